"""One check: a question to the file, and how its answer is compared with the reference's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from roclab.course.verify.mistakes import Mistake, Unpredictable
from roclab.course.verify.reference import Array


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


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Check:
    """A row of `checks.json`. `probe` names a function of `probes.py`, which runs beside the file with `arguments`; the
    rest is for its value. Without a name the value is what the worker says about the whole run.

    `fault` (of `faults.py`) finds what is wrong with the value, or nothing. Where the row has a tolerance, the arrays
    that `read` makes of the value are compared with those that it makes of the reference's answer (`expected`), right
    or with the formulas of a mistake.
    """

    component: str
    title: str
    expects: str  # in words
    fault: Callable[[Check, Any], str | Verdict | None]
    expected: Callable[..., Any] | None
    read: Callable[[Any], list[Array]]
    gap: Callable[[Array, Array], float]
    hint: str = ""
    probe: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    compare_mistakes: bool = True  # False: the hint is specific, or the numbers are too slow to compute for each

    @property
    def name(self) -> str:
        return f"{self.component}: {self.title}"

    @cached_property
    def question(self) -> str:
        """Probe and arguments as JSON."""
        return json.dumps([self.probe, self.arguments])

    def verdict(self, value: Any) -> Verdict:
        try:
            found = self.fault(self, value)
            if isinstance(found, str):
                found = fault(found, self.hint.replace("{found}", found)) if found else None
            if self.expected is None:
                return found or Verdict(True)
            arrays = tuple(self.read(value))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a forged or damaged answer
            hint = (self.expected and self.hint) or "the answer cannot be read"
            return fault("an answer of another form", hint, specific=False)
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
            return check.read(check.expected(replaced, **check.arguments))[0]
    except Unpredictable:
        return ANYTHING
    except (ValueError, IndexError, KeyError):
        return None
