"""Intervals and tests that both parts report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

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


def proportion(successes: float, n: int) -> dict[str, Any]:
    """A share with its n and Wilson's 95 % interval; without images the share is None."""
    if n == 0:
        return {"count": 0.0, "n": 0, "share": None, "ci95": None}
    return {"count": float(successes), "n": int(n), "share": float(successes / n), "ci95": wilson(successes, n)}


def difference(a: float, n_a: int, b: float, n_b: int) -> dict[str, Any]:
    """Difference of two independent shares a/n_a - b/n_b, with Newcombe's 95 % interval (1998, method 10)."""
    p_a, p_b = a / n_a, b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(a, n_a), wilson(b, n_b)
    gap = p_a - p_b
    low = gap - math.hypot(p_a - low_a, high_b - p_b)
    high = gap + math.hypot(high_a - p_a, p_b - low_b)
    return {"difference": float(gap), "ci95": [low, high]}


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): p-values that hold however many of `tests` questions were asked.

    `tests` is the number of questions if some were not worth a p-value (theirs counts as 1).
    """
    tests = max(tests or 0, len(p_values))
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (tests - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def add_holm(rows: Iterable[dict[str, Any]], p: str = "p", into: str = "p_holm", tests: int | None = None) -> None:
    """Writes the adjusted p-value of each row beside its own."""
    rows = list(rows)
    for row, adjusted in zip(rows, holm([row[p] for row in rows], tests), strict=True):
        row[into] = adjusted
