"""Intervals and tests that both parts report."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(successes: float, n: float) -> list[float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), n > 0: right for small n and near 0 and 1.

    `successes` may be a fraction: the sum of rates over n questions, or the mean of several runs on the same n images.
    The interval is then that of one run of this accuracy over n images, and rather too wide than too narrow.
    """
    p, spread = successes / n, Z**2 / n
    centre = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return [0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half]


def sign_test(better: int, worse: int) -> float:
    """p-value of the two-sided exact sign test: how likely is a split at least this uneven if both ways are equally
    likely?"""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)
