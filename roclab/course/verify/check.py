"""One check: a question to the file, and how its answer is compared with the reference's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES
from roclab.course.verify.mistakes import Mistake, Unpredictable
from roclab.course.verify.reference import Array, Formulas, Reference


@dataclass(frozen=True)
class Verdict:
    """What a check found. `specific`: the hint names the fault itself, not only the place."""

    passed: bool
    deviation: float | None = None
    found: str = ""
    hint: str = ""
    specific: bool = False
    component: str | None = None  # where it is not the check's own
    arrays: tuple[Array, ...] = field(default=(), repr=False, compare=False)  # the numbers that were compared


def fault(found: str, hint: str, component: str | None = None, specific: bool = True) -> Verdict:
    return Verdict(False, None, found, hint, specific, component)


def numbers(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)


def largest_gap(a: Array, b: Array) -> float:
    """The largest absolute difference. Infinite where the shapes differ or one is NaN and the other is not."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Check:
    """`probe` names a function of `probes.py`, which runs beside the file with `arguments` (values and arrays); the
    rest is for its value. Without a name the value is what the worker says about the whole run.

    `fault` finds what is wrong with the value, or nothing. `expected` are the right numbers, or those of a mistake if
    its formulas are given. `read` makes arrays of the value, of which the nearest one counts.
    """

    component: str
    title: str
    probe: str
    arguments: dict[str, Any]
    expects: str  # in words
    hint: str = ""
    expected: Callable[[Formulas], Array] | None = None
    tolerance: float = 1e-4
    fault: Callable[[Any], Verdict | None] = lambda value: None
    read: Callable[[Any], list[Array]] = lambda value: [numbers(value)]
    gap: Callable[[Array, Array], float] = largest_gap
    compare_mistakes: bool = True  # False: the hint is specific, or the numbers are too slow to compute for each

    @property
    def name(self) -> str:
        return f"{self.component}: {self.title}"

    @cached_property
    def question(self) -> str:
        """Probe and arguments as JSON."""
        return json.dumps([self.probe, self.arguments], default=np.ndarray.tolist)

    def verdict(self, value: Any) -> Verdict:
        try:
            found = self.fault(value)
            if self.expected is None:
                return found or Verdict(True)
            arrays = tuple(self.read(value))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a forged or damaged answer
            return fault("an answer of another form", self.hint or "the answer cannot be read", specific=False)
        right = expectation(self)
        assert right is not None
        best = min(arrays, key=lambda a: self.gap(a, right))
        deviation = self.gap(best, right)
        if found:
            return replace(found, deviation=deviation, arrays=() if found.specific else arrays)
        if deviation <= self.tolerance:
            return Verdict(True, deviation, arrays=arrays)
        return Verdict(False, deviation, _difference(best, right), self.hint, not self.compare_mistakes, arrays=arrays)


def _difference(found: Array, right: Array) -> str:
    """The place of the largest difference and both values, in words."""
    if found.shape != right.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(right.shape)}"
    if np.isnan(found).any():
        return f"NaN in {np.isnan(found).sum()} of {found.size} numbers"
    place = np.unravel_index(np.abs(found - right).argmax(), found.shape)
    return f"{found[place]:.6g} instead of {right[place]:.6g} at {[int(n) for n in place]}"


ANYTHING = np.zeros(0)  # stands for the answer of a mistake that cannot be predicted


@lru_cache(maxsize=20_000)  # one process may check many files
def expectation(check: Check, mistakes: tuple[Mistake, ...] = ()) -> Array | None:
    """What an implementation with these mistakes answers, without any: the right numbers. None if it has no answer.

    Mistakes go together unless they replace the same formula; there the first one counts."""
    assert check.expected
    replaced = {name: formula for mistake in reversed(mistakes) for name, formula in mistake.replaced.items()}
    try:
        with np.errstate(all="ignore"):
            return check.expected(replaced)
    except Unpredictable:
        return ANYTHING
    except (ValueError, IndexError, KeyError):
        return None


# ---- for the tables of checks


def model(case: str, replaced: Formulas | None = None, **changes: Any) -> Reference:
    """The reference for a case, its configuration changed, with the formulas of a mistake."""
    return Reference(CASES[case].config | changes, CASES[case].weights, replaced)


def slope(f: Callable[..., Any], h: float = 1e-5) -> float:
    """The derivative of f at 0, by a central difference."""
    return float((f(h) - f(-h)) / (2 * h))
