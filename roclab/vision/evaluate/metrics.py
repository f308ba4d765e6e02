"""What a list of predictions is worth, and how sure that is: accuracy with intervals, calibration, paired tests.

Everything takes `labels` (N,) integers and `probs` (N, C) rows that sum to one, and returns plain Python numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roclab.core.statistics import wilson

BOOTSTRAP_SAMPLES = 2000


def classification_metrics(labels: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Top-1, mean per-class accuracy, their 95 % intervals, macro F1, ECE, per-class scores, confusion matrix.

    `confusion[i][j]` counts images of class i that were called j. A class without images in `labels` has support 0
    and is left out of the means.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = np.arange(len(classes))
    predicted = probs.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, average=None, zero_division=0
    )
    seen = support > 0
    correct = predicted == labels
    return {
        "n": len(labels),
        "top1": float(correct.mean()),
        "mean_per_class": float(recall[seen].mean()),
        "ci95": {
            "top1": wilson(int(correct.sum()), len(correct)),
            "mean_per_class": per_class_interval(labels, correct),
        },
        "macro_f1": float(f1[seen].mean()),
        "ece": expected_calibration_error(labels, probs),
        "nll": loss_and_accuracy(probs, labels)[0],
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def per_class_interval(labels: np.ndarray, correct: np.ndarray, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the mean per-class accuracy, images drawn again within each class.

    Within a class the number of hits of a bootstrap sample is binomial, so no index has to be drawn.
    """
    draw = np.random.default_rng(seed)
    recalls = []
    for label in np.unique(labels):
        hits = correct[labels == label]
        recalls.append(draw.binomial(len(hits), hits.mean(), BOOTSTRAP_SAMPLES) / len(hits))
    low, high = np.percentile(np.mean(recalls, axis=0), [2.5, 97.5])
    return [float(low), float(high)]


def expected_calibration_error(labels: np.ndarray, probs: np.ndarray, bins: int = 15) -> float:
    """ECE (Guo et al. 2017): mean gap between confidence and accuracy over equal-width bins, weighted by images."""
    confidence = probs.max(1)
    correct = probs.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test on the same images (McNemar 1947): does either side win more of the disagreements?

    Returns the two counts and the two-sided p-value of the binomial test.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    disagreements = only_a + only_b
    p = binomtest(only_a, disagreements).pvalue if disagreements else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def paired_bootstrap(score_a: np.ndarray, score_b: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Difference of two means over the same images (a - b) with its 95 % percentile bootstrap interval.

    `score_a` and `score_b` (N,) hold each image's score (right or wrong, or the share of seeds that got it right);
    images are drawn again in pairs, so what is hard for both does not widen the interval.
    """
    difference = np.asarray(score_a, dtype=float) - np.asarray(score_b, dtype=float)
    draw = np.random.default_rng(seed).integers(0, len(difference), (BOOTSTRAP_SAMPLES, len(difference)))
    low, high = np.percentile(difference[draw].mean(1), [2.5, 97.5])
    return {"difference": float(difference.mean()), "ci95": [float(low), float(high)]}


def loss_and_accuracy(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of class probabilities (N, C)."""
    chosen = np.clip(probs[np.arange(len(labels)), labels], 1e-12, None)
    return float(-np.log(chosen).mean()), float((probs.argmax(1) == labels).mean())


def epoch_of(row: Mapping[str, Any]) -> int:
    """A row's epoch; the rows of a frozen backbone have none, but the iteration of the head's training as their step.
    (Runs of version 0.1 have the epoch, or the iteration, alone.)"""
    return row["epoch"] if "epoch" in row else row["step"]


def epochs_to_convergence(rows: Sequence[Mapping[str, Any]], within: float = 0.005) -> int | None:
    """First epoch of a run's metrics whose validation accuracy is within half a point of the best one. 0: the trained
    head that fine-tuning started from."""
    if not rows:
        return None
    target = max(row["val_top1"] for row in rows) - within
    return next(epoch_of(row) for row in rows if row["val_top1"] >= target - 1e-12)
