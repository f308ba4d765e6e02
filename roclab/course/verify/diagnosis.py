"""From the answers to verdicts with the names of the mistakes, and the one sentence that helps most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from roclab.course.verify.check import ANYTHING, Check, Verdict, expectation, fault
from roclab.course.verify.mistakes import MISTAKES, Mistake
from roclab.course.verify.parts import CLASSES_AND_FUNCTIONS, INSIDE, MISSING, REFUSAL, TRAINING_PARTS

LAYOUT = "checkpoint: names and shapes"  # where it fails, the models of the later checks lack weights
OWN = "own implementation"
GENERATING = ("generate", "draws", "signature")
# Probes of a function by itself, which the model may or may not use.
FUNCTIONS = ("rotate_half", "apply_rotary", "repeat_kv")
# Probes whose answer depends on one formula alone: one match is evidence enough.
DIRECT = (
    *FUNCTIONS, "norm", "norm_slope", "mlp", *GENERATING, "cross_entropy", "cross_entropy_slope", "adamw", "schedule",
    "clip", "batches", "resume",
)  # fmt: skip


def evaluate_answers(
    checks: Sequence[Check], answers: Sequence[dict[str, Any]]
) -> tuple[list[Verdict], tuple[Check, Verdict] | None]:
    """Verdicts, one a check, with the hints of the known mistakes that explain them; and the most telling failure: the
    first wrong answer, or a fault of the state dict behind it. None if all passed. The first check is the import's."""
    verdicts = [evaluate(check, answer) for check, answer in zip(checks, answers, strict=True)]
    if not verdicts[0].passed:  # the file was not imported
        not_run = fault("not run", "not run: the file cannot be imported")
        verdicts = [not_run if c.probe or v.passed else v for c, v in zip(checks, verdicts, strict=True)]
        return verdicts, (checks[0], verdicts[0])
    missing = {c.component: v for c, v in zip(checks, verdicts, strict=True) if v.found.startswith(MISSING)}
    verdicts = [missing.get(c.component, v) for c, v in zip(checks, verdicts, strict=True)]
    parts: dict[str, list[int]] = {}  # the model is searched as one, each training part by itself
    for i, check in enumerate(checks):
        parts.setdefault(check.component if check.component in TRAINING_PARTS else "", []).append(i)
    layout = next(i for i, c in enumerate(checks) if c.name == LAYOUT)
    if any(word in verdicts[layout].found for word in ("missing", "shape")):
        for i in parts.pop(""):  # what follows ran, if at all, on weights of its own
            if i > layout and not verdicts[i].passed and not verdicts[i].specific:
                verdicts[i] = replace(verdicts[i], hint=f"follows from {LAYOUT}: the weights did not load")
    for part, places in parts.items():
        known = [m for m in MISTAKES if part == (m.component if m.component in TRAINING_PARTS else "")]
        found = find_mistakes([checks[i] for i in places], [verdicts[i] for i in places], known)
        for i in places:
            verdicts[i] = explained(checks[i], verdicts[i], found)
    failed = [i for i, v in enumerate(verdicts) if not v.passed]
    if not failed:
        return verdicts, None
    if owners := [i for i in failed if checks[i].title == OWN and MISSING not in verdicts[i].found]:
        return not_counted(checks, verdicts), (checks[owners[0]], verdicts[owners[0]])
    asked = [i for i in failed if checks[i].probe]
    first = next((i for i in asked if MISSING not in verdicts[i].found), [*asked, *failed][0])
    for i in failed[1:]:  # a check of the model behind a fault may have failed for a reason of its own
        if not verdicts[i].specific and checks[i].probe not in DIRECT:
            hint = f"{verdicts[i].hint}; or it follows from “{checks[first].name}”: fix that first"
            verdicts[i] = replace(verdicts[i], hint=hint)
    if not verdicts[first].specific:  # what the state dict says outright may be the reason
        first = next((i for i in failed if checks[i].probe == "state" and verdicts[i].specific), first)
    return verdicts, (checks[first], verdicts[first])


def not_counted(checks: Sequence[Check], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Right answers of a part that another computes are not the file's."""
    hints = {c.component: v.hint for c, v in zip(checks, verdicts, strict=True) if c.title == OWN and not v.passed}
    hints |= {part: hints[name] for part, around in INSIDE.items() for name in around if name in hints}
    return [
        fault("not counted: the part is not the file's own", hints[c.component], c.component)
        if v.passed and c.component in hints else v
        for c, v in zip(checks, verdicts, strict=True)
    ]  # fmt: skip


def evaluate(check: Check, answer: dict[str, Any]) -> Verdict:
    if "error" not in answer:
        return check.verdict(answer.get("value"))
    component, error = check.component, str(answer["error"])
    if REFUSAL in error:  # what the part would have answered is not known
        return fault(error, f"the file does what a model has no need of: {error}", "file")
    if error.startswith(MISSING):
        return fault(error, f"{component}: {error}")
    if check.probe not in GENERATING:  # the model's checks run all parts: the one that raised is at fault
        component = next(
            (CLASSES_AND_FUNCTIONS[n] for n in map(str, answer.get("where", ())) if n in CLASSES_AND_FUNCTIONS),
            component,
        )
    return fault(error, f"{component} could not be checked: {error}", component, specific=False)


def find_mistakes(
    checks: Sequence[Check], verdicts: Sequence[Verdict], known: Sequence[Mistake], most: int = 3
) -> list[Mistake]:
    """The mistakes that together answer as the file does, found from the first failed check on.

    A mistake counts only if it explains the earliest check that is still unexplained and predicts no failure of the
    model that did not happen; in checks of the whole model, where answers may agree by chance, it must explain most of
    the next four. Better no name than a wrong one: at the first check that no mistake explains, the search ends.
    """
    compared = [(c, v) for c, v in zip(checks, verdicts, strict=True) if c.expected and c.compare_mistakes and v.arrays]
    passed = [c for c, v in compared if v.passed]
    unexplained = [(c, v) for c, v in compared if not v.passed]
    found: list[Mistake] = []
    while unexplained and len(found) < most:
        best, chosen = 0.0, None
        for mistake in known:  # of equals the first: the order of the parts
            both = (mistake, *found)
            if mistake in found or not explains(*unexplained[0], both):
                continue
            broken = [c for c in passed if predicts_failure(c, both)]
            if any(c.probe not in FUNCTIONS for c in broken):
                continue
            telling = [(c, v) for c, v in unexplained if expectation(c, both) is not ANYTHING]
            models = [(c, v) for c, v in telling if c.probe not in DIRECT]
            next_ = telling[:1] if unexplained[0][0].probe in DIRECT else models[:4]
            if 2 * sum(explains(c, v, both) for c, v in next_) <= len(next_):
                continue
            score = sum(explains(c, v, both) for c, v in telling) - len(broken) / 100
            if score > best:
                best, chosen = score, mistake
        if chosen is None:
            break
        found.append(chosen)
        unexplained = [(c, v) for c, v in unexplained if not explains(c, v, tuple(found))]
    return found


def predicts_failure(check: Check, mistakes: tuple[Mistake, ...]) -> bool:
    wrong, right = expectation(check, mistakes), expectation(check)
    if wrong is ANYTHING:
        return False
    return wrong is None or right is None or check.gap(wrong, right) > 2 * check.tolerance


def explains(check: Check, verdict: Verdict, mistakes: tuple[Mistake, ...]) -> bool:
    wrong = expectation(check, mistakes)
    return wrong is not None and (
        wrong is ANYTHING or any(check.gap(array, wrong) <= check.tolerance for array in verdict.arrays)
    )


def explained(check: Check, verdict: Verdict, found: list[Mistake]) -> Verdict:
    """The verdict with the hint of the mistake that explains it, if one does: alone, or with the others found."""
    if verdict.passed or verdict.specific or not verdict.arrays or not check.expected:
        return verdict
    alone = [(mistake,) for mistake in found]
    for mistakes in [*alone, tuple(found)]:
        if mistakes and explains(check, verdict, mistakes):
            hint = " And ".join(f"{m.component}: {m.hint}" for m in mistakes)
            return replace(verdict, hint=hint, specific=True, component=mistakes[0].component)
    return verdict
