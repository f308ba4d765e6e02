"""How answers are judged: a check compares an answer with the reference, and a failed one with every known mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from roclab.course.verify.mistakes import Mistake, Unpredictable, known
from roclab.course.verify.reference import Array, Reference

LAYOUT = "checkpoint: names and shapes"  # where it fails, the models of the later checks lack weights


@dataclass(frozen=True)
class Verdict:
    """What a check found. `specific`: the hint names the fault itself, not only the place."""

    passed: bool
    deviation: float | None = None
    found: str = ""
    hint: str = ""
    specific: bool = False
    component: str | None = None  # where it is not the check's own
    arrays: tuple[Array, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: `all_checks` makes each once
class Check:
    """One question to the file. `judge` takes the probe's value; an answer that is an error fails by itself."""

    name: str
    component: str
    probe: str
    arguments: dict[str, Any]
    expects: str  # in words
    judge: Callable[[Any], Verdict]
    expected: Callable[[type[Reference]], Array] | None = None  # by a reference, right or wrong
    tolerance: float = 0.0
    gap: Callable[[Array, Array], float] = field(default=lambda a, b: largest_gap(a, b))
    compare_mistakes: bool = True  # False where the expectation is too slow to compute for each


def largest_gap(a: Array, b: Array) -> float:
    """The largest absolute difference; infinite where shapes differ or one is NaN where the other is not."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def slope(f: Callable[..., Any], h: float = 1e-5) -> float:
    """The derivative of f at 0, by a central difference."""
    return float((f(h) - f(-h)) / (2 * h))


def numeric(
    name: str,
    component: str,
    probe: str,
    arguments: dict[str, Any],
    expected: Callable[[type[Reference]], Array],
    expects: str,
    hint: str,
    tolerance: float = 1e-4,
    read: Callable[[Any], list[Array]] = lambda value: [np.asarray(value, dtype=np.float64)],
    gap: Callable[[Array, Array], float] = largest_gap,
) -> Check:
    """A check of numbers: the value, read as one or several arrays of which the best counts, against the reference."""

    def judge(value: Any) -> Verdict:
        try:
            arrays = read(value)
        except (ValueError, TypeError, IndexError):
            return Verdict(False, None, "an answer of another form", hint)
        right = expectation(check, Reference)
        assert right is not None
        best = min(arrays, key=lambda a: gap(a, right))
        deviation = gap(best, right)
        if deviation <= tolerance:
            return Verdict(True, deviation, arrays=tuple(arrays))
        return Verdict(False, deviation, _difference(best, right), hint, arrays=tuple(arrays))

    check = Check(name, component, probe, arguments, expects, judge, expected, tolerance, gap)
    return check


def _difference(found: Array, right: Array) -> str:
    """The place of the largest difference and both values, in words."""
    if found.shape != right.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(right.shape)}"
    if np.isnan(found).any():
        return f"NaN in {np.isnan(found).sum()} of {found.size} numbers"
    place = np.unravel_index(np.abs(found - right).argmax(), found.shape)
    at = "[" + ", ".join(map(str, map(int, place))) + "]"
    return f"{found[place]:.6g} instead of {right[place]:.6g} at {at}"


def judge_all(checks: Sequence[Check], answers: list[dict[str, Any]]) -> tuple[list[Verdict], Verdict | None, int]:
    """Verdicts, one a check, with the hints of the known mistakes that explain them; the diagnosis, which is the first
    failed verdict or a fault of the state dict behind it, and the place of its check (−1: none failed)."""
    verdicts = []
    for check, answer in zip(checks, answers, strict=True):
        if "error" in answer:
            component = check.component
            if check.probe not in GENERATING:  # the model's checks run all parts: the one that raised is at fault
                component = next((RAISED_IN[n] for n in answer.get("where", ()) if n in RAISED_IN), component)
            hint = f"{component} could not be checked: {answer['error']}"
            verdicts.append(Verdict(False, None, answer["error"], hint, component=component))
        else:
            try:
                verdicts.append(check.judge(answer["value"]))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a forged or garbled answer
                verdicts.append(Verdict(False, None, "an answer of another form", "the answer cannot be read"))
    layout = next((v for c, v in zip(checks, verdicts, strict=True) if c.name == LAYOUT), None)
    if layout is not None and not layout.passed and ("missing" in layout.found or "shape" in layout.found):
        place = [c.name for c in checks].index(LAYOUT)  # what follows ran, if at all, on weights of its own
        verdicts[place + 1 :] = [
            v if v.passed or v.specific else replace(v, hint=f"follows from {LAYOUT}: the weights did not load")
            for v in verdicts[place + 1 :]
        ]
    else:
        found = diagnose(checks, verdicts)
        verdicts = [v if v.passed else explained(check, v, found) for check, v in zip(checks, verdicts, strict=True)]
    failed = [i for i, v in enumerate(verdicts) if not v.passed]
    if not failed:
        return verdicts, None, -1
    first = failed[0]
    for i in failed[1:]:
        if (
            not verdicts[i].specific and checks[i].probe not in DIRECT
        ):  # a model's check behind a fault: perhaps its own
            told = f"{verdicts[i].hint}; or it follows from “{checks[first].name}”: mend that first"
            verdicts[i] = replace(verdicts[i], hint=told)
    if not verdicts[first].specific:  # what the state dict tells outright may be the reason
        first = next((i for i in failed if checks[i].probe == "state" and verdicts[i].specific), first)
    return verdicts, verdicts[first], first


# The part at fault where one of the handout's classes or functions raises.
RAISED_IN: dict[str, str] = {
    "RocLMRMSNorm": "RMSNorm", "RocLMMLP": "SwiGLU", "RocLMAttention": "attention", "RocLMRotaryEmbedding": "RoPE",
    "rotate_half": "RoPE", "apply_rotary_pos_emb": "RoPE", "repeat_kv": "GQA", "RocLMDecoderLayer": "decoder",
    "RocLMModel": "decoder", "RocLMForCausalLM": "head",
}  # fmt: skip
GENERATING = ("generate", "draws", "drawn_twice", "signature")
# Probes of a function by itself, which the model may or may not use.
FUNCTIONS = ("rotate_half", "apply_rotary", "repeat_kv")
# Probes whose answer depends on one formula alone: one match is evidence enough.
DIRECT = (*FUNCTIONS, "norm", "norm_slope", "mlp", *GENERATING)


def diagnose(checks: Sequence[Check], verdicts: list[Verdict], most: int = 3) -> list[type[Mistake]]:
    """The mistakes that together answer as the file does, found from the first failed check on.

    A mistake counts only if it explains the earliest check that is still unexplained and promises no failure of the
    model that did not happen; in checks of the whole model, where answers may agree by chance, it must explain most of
    the next four. Better no name than a wrong one: at the first check that no mistake explains, the search ends.
    """
    judged = [(c, v) for c, v in zip(checks, verdicts, strict=True) if c.expected and c.compare_mistakes and v.arrays]
    passed = [c for c, v in judged if v.passed]
    open_ = [(c, v) for c, v in judged if not v.passed]  # failed and not explained yet
    found: list[type[Mistake]] = []
    while open_ and len(found) < most:
        best, chosen = 0.0, None
        for mistake in known():  # of equals the first: the order of the text
            kind = combined([mistake, *found])
            if mistake in found or not _explained_by(*open_[0], kind):
                continue
            broken = [c for c in passed if _promises_failure(c, kind)]
            if any(c.probe not in FUNCTIONS for c in broken):
                continue
            telling = [(c, v) for c, v in open_ if expectation(c, kind) is not ANYTHING]
            models = [(c, v) for c, v in telling if c.probe not in DIRECT]
            next_ = telling[:1] if open_[0][0].probe in DIRECT else models[:4]
            if 2 * sum(_explained_by(c, v, kind) for c, v in next_) <= len(next_):
                continue
            score = sum(_explained_by(c, v, kind) for c, v in telling) - len(broken) / 100
            if score > best:
                best, chosen = score, mistake
        if chosen is None:
            break
        found.append(chosen)
        open_ = [(c, v) for c, v in open_ if not _explained_by(c, v, combined(found))]
    return found


ANYTHING = np.zeros(0)  # stands for the answer of a mistake that cannot be foretold
_known_answers: dict[tuple[Check, type[Reference]], Array | None] = {}  # one process may check many files


def expectation(check: Check, kind: type[Reference]) -> Array | None:
    """What a reference of that kind answers; None if it cannot (two mistakes that do not go together)."""
    if (check, kind) in _known_answers:
        return _known_answers[check, kind]
    answer = None
    try:
        with np.errstate(all="ignore"):
            answer = check.expected(kind) if check.expected else None
    except Unpredictable:
        answer = ANYTHING
    except (ValueError, IndexError, KeyError):
        pass
    if kind is Reference or kind in known():
        _known_answers[check, kind] = answer
    return answer


def _promises_failure(check: Check, kind: type[Reference]) -> bool:
    says, right = expectation(check, kind), expectation(check, Reference)
    return says is not ANYTHING and (says is None or right is None or check.gap(says, right) > 2 * check.tolerance)


def _explained_by(check: Check, verdict: Verdict, kind: type[Reference]) -> bool:
    says = expectation(check, kind)
    return says is not None and any(says is ANYTHING or check.gap(a, says) <= check.tolerance for a in verdict.arrays)


def explained(check: Check, verdict: Verdict, found: list[type[Mistake]]) -> Verdict:
    """The verdict with the hint of the mistake that explains it, if one does: alone, or with the others found."""
    if check.expected is None or not verdict.arrays or verdict.specific:
        return verdict
    for mistakes in [[m] for m in found] + ([found] if len(found) > 1 else []):
        if _explained_by(check, verdict, combined(mistakes)):
            hint = " And ".join(f"{m.component}: {m.hint()}" for m in mistakes)
            return replace(verdict, hint=hint, specific=True, component=mistakes[0].component)
    return verdict


def combined(mistakes: list[type[Mistake]]) -> type[Reference]:
    """One reference that makes all of them; they go together because each overrides a step of its own."""
    if len(mistakes) == 1:
        return mistakes[0]
    try:
        return type("Combined", tuple(mistakes), {})
    except TypeError:  # one is a kind of the other
        return mistakes[0]
