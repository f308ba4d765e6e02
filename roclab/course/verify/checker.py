"""The implementation checker: any file with the handout's names, check by check, with the likely mistake.

    report = verify("roclm_model.py")
    report["passed"], report["score"], report["diagnosis"]

The file runs in a process of its own (`worker.py`, `sandbox.py`), where it answers questions (`probes.py`) about small
models (`cases.py`). Check by check (`checks.json`, `check.py`, `faults.py`) its answers are compared with those
(`answers.py`) of an independent reference in numpy (`reference.py`), and a wrong one with what each typical mistake
would have answered (`mistakes.py`, `diagnosis.py`).
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from roclab.course.verify import faults
from roclab.course.verify.answers import ANSWERS, GAPS, READINGS
from roclab.course.verify.check import Check, Verdict
from roclab.course.verify.diagnosis import evaluate_answers
from roclab.course.verify.limits import Limits
from roclab.course.verify.sandbox import Sandbox, SandboxEnded
from roclab.course.verify.source import note_on_structure, read_source, same_structure

OURS = Path(__file__).parents[2] / "lm" / "model.py"


@lru_cache
def all_checks(training: bool = False) -> tuple[Check, ...]:
    """In the order in which the parts build on each other: an early one that fails is nearest to the fault. `training`:
    those of the optional training parts too."""
    files = ("checks.json", "training.json") if training else ("checks.json",)
    rows = [row for file in files for row in json.loads((Path(__file__).parent / file).read_text("utf-8"))]
    for row in rows:  # functions for their names
        row["fault"] = getattr(faults, row["fault"]) if "fault" in row else lambda check, value: None
        row["expected"] = ANSWERS[row["probe"]] if "tolerance" in row else None
        row["read"], row["gap"] = READINGS[row.get("read", "whole")], GAPS[row.get("gap", "largest")]
    return tuple(Check(**row) for row in rows)


def verify(
    path: str | Path = OURS, limits: Limits | None = None, *, sandbox: Sandbox | None = None, training: bool = False
) -> dict[str, Any]:
    """Check an implementation of RocLM, and with `training` that of the training parts. `sandbox` may be shared by many
    files; without it a new process is started, which imports torch.

    Returns a JSON-able dict: `file`, `score` (the share of checks passed), `passed`, `checks_passed`, `checks_total`,
    `seconds`, `diagnosis` (None, or `component`, `check` and `hint` of the most telling failure), `notes` (sentences
    about what is no fault), `same_structure` (`same` `of` the file's functions of some size have the structure of one
    of RocLab's own; None for RocLab's own file and for what is no Python) and `checks`, each with `name`, `component`,
    `passed`, `deviation` (the largest absolute one; None where nothing is measured or it is not finite), `tolerance`,
    `expected`, `found` and `hint` (empty if passed).
    Raises RocLabError if there is no such file; whatever the file does is a failed check.
    """
    path, limits = Path(path), limits or Limits()
    source = read_source(path)
    with nullcontext(sandbox) if sandbox else Sandbox() as running:  # it imports torch while the checks are made
        checks = all_checks(training)
        questions = list(dict.fromkeys(c.question for c in checks if c.probe))  # several checks may read an answer
        try:
            ran = running.run(path, [json.loads(question) for question in questions], limits, source.text)
        except SandboxEnded as error:
            ran = {"import": {"error": str(error)}, "printed": {}, "refused": [], "foreign": {}, "left": []}
            ran["seconds"] = 0.0
    notes = list(source.notes)
    if source.text is not None and ran["printed"].get("lines"):  # cells print
        notes.append(f"it prints {ran['printed']['lines']} lines, as a notebook may")
        ran["printed"] = {}
    if source.error:
        ran["import"] = {"error": source.error}
    if ran["import"].get("error"):
        ran["answers"] = [{"error": "not run"}] * len(questions)
    answers = dict(zip(questions, ran["answers"], strict=True))
    verdicts, worst = evaluate_answers(checks, [answers[c.question] if c.probe else {"value": ran} for c in checks])
    passed = sum(verdict.passed for verdict in verdicts)
    diagnosis = None
    if worst:
        check, verdict = worst
        diagnosis = {"component": verdict.component or check.component, "check": check.name, "hint": verdict.hint}
    same = None
    if path.resolve() != OURS:
        same = same_structure(path.read_bytes() if source.text is None else source.text, OURS.read_text("utf-8"))
    return {
        "file": str(path),
        "score": round(passed / len(checks), 4),
        "passed": passed == len(checks),
        "checks_passed": passed,
        "checks_total": len(checks),
        "seconds": round(ran["seconds"], 2),
        "diagnosis": diagnosis,
        "notes": [*notes, *note_on_structure(same)],
        "same_structure": same,
        "checks": [entry(check, verdict) for check, verdict in zip(checks, verdicts, strict=True)],
    }


def verify_ours() -> dict[str, Any]:
    """The report on RocLM itself, under the name it is handed in by."""
    return verify(OURS) | {"file": "roclm_model.py"}


def entry(check: Check, verdict: Verdict) -> dict[str, Any]:
    """A check's entry in the report."""
    deviation = verdict.deviation
    return {
        "name": check.name,
        "component": check.component,
        "passed": verdict.passed,
        "deviation": deviation if deviation is not None and math.isfinite(deviation) else None,
        "tolerance": check.tolerance if check.expected else None,
        "expected": check.expects,
        "found": verdict.found,
        "hint": verdict.hint,
    }
