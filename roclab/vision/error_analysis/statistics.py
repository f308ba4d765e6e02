"""The statistics of the error analysis that `evaluate.metrics` and `evaluate.pairs` do not hold.

An image is the unit everywhere. Several runs over the same images are not several images: where there are more runs, an
image's score is its mean over them, and intervals and tests count images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from roclab.core.statistics import Z, wilson
from roclab.vision.evaluate.metrics import expected_calibration_error, paired_bootstrap

DRAWS = 9999  # of a permutation test: its smallest p-value is 1 in 10,000
RESAMPLES = 999  # of the calibration error, which costs more


def harder_than_the_rest(wrong: np.ndarray, inside: np.ndarray, seed: int = 0) -> float:
    """One-sided p-value: is the mean of `wrong` (N,) over the images `inside` (N,) bool higher than chance puts it?

    Chance: the same number of images drawn from all of them without replacement. Exact (Fisher 1935) where an image is
    only right or wrong; else `DRAWS` draws of how many images of each score come up.
    """
    levels, counts = np.unique(wrong, return_counts=True)
    k, observed = int(inside.sum()), float(wrong[inside].sum())
    if len(levels) < 2 or k == 0:
        return 1.0
    if set(levels) <= {0.0, 1.0}:
        from scipy.stats import hypergeom

        return float(hypergeom.sf(observed - 1, len(wrong), counts[1], k))
    draws = np.random.default_rng(seed).multivariate_hypergeometric(counts, k, size=DRAWS, method="marginals")
    return float((1 + (draws @ levels >= observed - 1e-9).sum()) / (1 + DRAWS))


def calibration(labels: np.ndarray, probs: np.ndarray, bins: int = 15, seed: int = 0) -> dict[str, Any]:
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
        # the metric asks for a table of probabilities: the predicted class is 0, the true one 0 or another
        tables = (np.stack([row, np.zeros_like(row)], 1) for row in sure)
        labels = 1 - right.astype(int)
        return float(np.mean([expected_calibration_error(y, t, bins) for y, t in zip(labels, tables, strict=True)]))

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
        "bins": _reliability(confidence, correct, bins),
    }


def _reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """Of each bin of confidence that is not empty: images (per run), mean confidence, accuracy with its interval."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    runs, found = len(confidence), []
    for b in np.unique(which):
        inside = which == b
        images = float(inside.sum()) / runs
        found.append(
            {
                "from": float(b) / bins,
                "to": float(b + 1) / bins,
                "images": images,
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
                "ci95": wilson(float(correct[inside].sum()) / runs, images),
            }
        )
    return found


def logistic_slope(x: np.ndarray, right: np.ndarray) -> dict[str, Any] | None:
    """How the odds of being right change with x (N,), standardised: odds ratio per standard deviation.

    Logistic regression of the share of runs that are right (N,), in [0, 1], with the sandwich variance (Papke and
    Wooldridge 1996), which holds for shares as for zeros and ones. Returns odds_ratio, its 95 % interval and p; None
    if x does not vary, fewer than ten images' worth are wrong (or right), or the fit does not converge.
    """
    from scipy.stats import norm

    n = len(x)
    if x.std() < 1e-12 or min(right.sum(), n - right.sum()) < 10:
        return None
    design = np.stack([np.ones(n), (x - x.mean()) / x.std()], 1)
    beta = np.zeros(2)
    for _ in range(50):
        mean = 1 / (1 + np.exp(-design @ beta))
        information = (design * (mean * (1 - mean))[:, None]).T @ design
        if np.linalg.cond(information) > 1e10:
            return None
        step = np.linalg.solve(information, design.T @ (right - mean))
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    else:
        return None
    mean = 1 / (1 + np.exp(-design @ beta))
    bread = np.linalg.inv((design * (mean * (1 - mean))[:, None]).T @ design)
    scores = design * (right - mean)[:, None]
    error = float(np.sqrt((bread @ (scores.T @ scores) @ bread)[1, 1] * n / (n - 2)))
    return {
        "odds_ratio": float(np.exp(beta[1])),
        "ci95": [float(np.exp(beta[1] + side * Z * error)) for side in (-1, 1)],
        "p": float(2 * norm.sf(abs(beta[1]) / error)),
    }
