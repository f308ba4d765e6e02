"""What a list of predictions is worth, and how sure that is: accuracy with intervals, calibration, paired tests.

Everything takes `labels` (N,) integers and `probs` (N, C) rows that sum to one, and returns plain Python numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roclab.core.statistics import wilson

BINS = 15  # of confidence
BOOTSTRAP_SAMPLES = 2000
RESAMPLES = 999  # of the calibration error, which costs more


def classification_metrics(labels: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Top-1, mean per-class accuracy, their 95 % intervals, macro F1, ECE, per-class scores, confusion matrix.

    `confusion[i][j]` counts images of class i that were called j. A class without images in `labels` has support 0
    and is left out of the means.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = np.arange(len(classes))
    predicted = probs.argmax(1)
    scores = precision_recall_fscore_support(labels, predicted, labels=every, average=None, zero_division=0)
    per_class = dict(zip(("precision", "recall", "f1", "support"), scores, strict=True))
    seen = per_class["support"] > 0
    correct = predicted == labels
    return {
        "n": len(labels),
        "top1": float(correct.mean()),
        "mean_per_class": float(per_class["recall"][seen].mean()),
        "ci95": {
            "top1": wilson(int(correct.sum()), len(correct)),
            "mean_per_class": per_class_interval(labels, correct),
        },
        "macro_f1": float(per_class["f1"][seen].mean()),
        "ece": expected_calibration_error(labels, probs),
        "nll": loss_and_accuracy(probs, labels)[0],
        "per_class": {
            name: {score: values[i].item() for score, values in per_class.items()} for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def per_class_interval(labels: np.ndarray, correct: np.ndarray) -> list[float]:
    """95 % percentile bootstrap interval of the mean per-class accuracy, images drawn again within each class.

    Within a class the number of hits of a bootstrap sample is binomial, so no index has to be drawn.
    """
    draw = np.random.default_rng(0)
    recalls = []
    for label in np.unique(labels):
        hits = correct[labels == label]
        recalls.append(draw.binomial(len(hits), hits.mean(), BOOTSTRAP_SAMPLES) / len(hits))
    low, high = np.percentile(np.mean(recalls, axis=0), [2.5, 97.5])
    return [float(low), float(high)]


def expected_calibration_error(labels: np.ndarray, probs: np.ndarray) -> float:
    """ECE (Guo et al. 2017): mean gap between confidence and accuracy over equal-width bins, weighted by images."""
    return calibration_gap(probs.max(1), probs.argmax(1) == labels)


def calibration_gap(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The ECE of confidences (N,) in predictions that are right or wrong (N,) bool."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(which, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration(labels: np.ndarray, probs: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Calibration of the runs of one arm, `probs` (R, N, C), over the same images.

    `ece` (Guo et al. 2017) is the mean over the runs. `ci95` is its basic bootstrap over images (Davison and Hinkley
    1997): resamples lean upwards as the ECE itself does, and the percentile interval would lean twice. Even perfect
    confidences give an ECE above zero on few images: `ece_if_calibrated` is what they would give here, and `p` how
    often they would give this much (consistency resampling, Vaicenavicius et al. 2019). `gap` is mean confidence minus
    accuracy: above zero the network is too sure. `bins`: images (per run), mean confidence and accuracy with Wilson's
    interval.
    """
    confidence = probs.max(2)  # (R, N)
    correct = probs.argmax(2) == labels
    draw = np.random.default_rng(seed)
    n = confidence.shape[1]

    def ece(sure: np.ndarray, right: np.ndarray) -> float:
        return float(np.mean([calibration_gap(*run) for run in zip(sure, right, strict=True)]))

    observed = ece(confidence, correct)
    again, null = [], []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, n, n)
        again.append(ece(confidence[:, rows], correct[:, rows]))
        # one number an image: runs that agree on an image are right or wrong on it together
        null.append(ece(confidence, draw.random(n) < confidence))
    low, high = np.clip(2 * observed - np.percentile(again, [97.5, 2.5]), 0, 1)
    gap = paired_bootstrap(confidence.mean(0), correct.mean(0), seed)
    return {
        "ece": observed,
        "ci95": [float(low), float(high)],
        "ece_if_calibrated": float(np.mean(null)),
        "p": float((1 + np.sum(np.array(null) >= observed - 1e-12)) / (1 + RESAMPLES)),
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
        "gap": gap["difference"],
        "gap_ci95": gap["ci95"],
        "bins": _reliability(confidence, correct),
    }


def _reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """Of each bin of confidence that is not empty: images (per run), mean confidence, accuracy with its interval."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = []
    for b in np.unique(which):
        sure, right = confidence[which == b], correct[which == b]
        images = len(sure) / len(confidence)
        found.append(
            {
                "from": float(b) / BINS,
                "to": float(b + 1) / BINS,
                "images": images,
                "confidence": float(sure.mean()),
                "accuracy": float(right.mean()),
                "ci95": wilson(float(right.sum()) / len(confidence), images),
            }
        )
    return found


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


def loss_and_accuracy(
    probs: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of class probabilities (N, C); weighted by `class_weights` (C,)."""
    chosen = np.clip(probs[np.arange(len(labels)), labels], 1e-12, None)
    each = None if class_weights is None else class_weights[labels]
    loss, accuracy = np.average([-np.log(chosen), probs.argmax(1) == labels], axis=1, weights=each)
    return float(loss), float(accuracy)


def epoch_of(row: Mapping[str, Any]) -> int:
    """A row's epoch; the rows of a frozen backbone have none, but the iteration of the head's training as their step.
    (Runs of version 0.1 have the epoch, or the iteration, alone.)"""
    return row["epoch"] if "epoch" in row else row["step"]


def epochs_to_convergence(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """First epoch of a run's metrics whose validation accuracy is within half a point of the best one. 0: the trained
    head that fine-tuning started from."""
    if not rows:
        return None
    target = max(row["val_top1"] for row in rows) - 0.005
    return next(epoch_of(row) for row in rows if row["val_top1"] >= target - 1e-12)
