"""The implementation checker: any file with the handout's names, check by check, with the likely mistake.

    report = verify("roclm_model.py")
    report["passed"], report["score"], report["diagnosis"]

The file runs in a process of its own (`worker.py`, `sandbox.py`), where it answers questions (`probes.py`) about small
models (`cases.py`). The answers are judged here, against an independent reference in numpy (`reference.py`), and a
wrong one is compared with what each typical mistake would have answered (`mistakes/`, `judge.py`, `checks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    from roclab.course.verify.judge import Check, Verdict
    from roclab.course.verify.sandbox import Sandbox

OURS = Path(__file__).parents[2] / "lm" / "model.py"


def verify(
    path: str | Path = OURS,
    *,
    seconds: float = 20.0,
    total_seconds: float = 180.0,
    memory_mb: int = 2048,
    sandbox: Sandbox | None = None,
) -> dict[str, Any]:
    """Check an implementation of RocLM.

    `seconds` is the limit of each check, `total_seconds` that of the file, `memory_mb` what it may take beyond torch
    itself. `sandbox` is one to share among many files; without it a new process is started, which imports torch.

    Returns a JSON-able dict: `file`, `score` (the share of checks passed), `passed`, `checks_passed`, `checks_total`,
    `seconds`, `diagnosis` (None, or `component`, `check` and `hint` of the most telling failure) and `checks`, each
    with `name`, `component`, `passed`, `deviation` (the largest absolute one; None where nothing is measured or it is
    not finite), `tolerance`, `expected`, `found` and `hint` (empty if passed).
    Raises RocLabError if there is no such file; whatever the file does is a failed check.
    """
    from roclab.course.verify.checks import all_checks
    from roclab.course.verify.judge import judge_all
    from roclab.course.verify.sandbox import Sandbox, SandboxEnded

    path = Path(path)
    if not path.is_file():
        raise RocLabError(f"{path}: {'is a folder, not a Python file' if path.is_dir() else 'no such file'}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise RocLabError(f"{path}: cannot be read: {error.strerror}") from None

    checks = all_checks()
    probes, places = _distinct(checks)
    limits: Any = {"seconds": seconds, "total_seconds": total_seconds, "memory_mb": memory_mb}
    try:
        if sandbox is None:
            with Sandbox() as own:
                ran = own.run(path, probes, **limits)
        else:
            ran = sandbox.run(path, probes, **limits)
    except SandboxEnded as error:
        ran = {"import": {"error": str(error)}, "answers": [], "printed": {}, "refused": [], "left": [], "seconds": 0.0}

    manners = _manners(path, ran)
    if (ran["import"] or {}).get("error"):
        results = manners + [_result(c, None) for c in checks]
        first: dict[str, Any] | None = manners[0]
    else:
        verdicts, told, place = judge_all(checks, [ran["answers"][i] for i in places])
        results = manners + [_result(c, v) for c, v in zip(checks, verdicts, strict=True)]
        rude = next((m for m in manners if not m["passed"]), None)
        first = rude
        if told is not None:
            component = told.component or checks[place].component
            first = {"component": component, "name": checks[place].name, "hint": told.hint}
    passed = sum(r["passed"] for r in results)
    return {
        "file": str(path),
        "score": round(passed / len(results), 4),
        "passed": passed == len(results),
        "checks_passed": passed,
        "checks_total": len(results),
        "seconds": round(ran["seconds"], 2),
        "diagnosis": first and {"component": first["component"], "check": first["name"], "hint": first["hint"]},
        "checks": results,
    }


def _distinct(checks: Sequence[Check]) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """The probes, each once though several checks read it, and the place of each check's probe among them."""
    probes: list[tuple[str, dict[str, Any]]] = []
    places = []
    for check in checks:
        probe = (check.probe, check.arguments)
        if probe not in probes:
            probes.append(probe)
        places.append(probes.index(probe))
    return probes, places


def _manners(path: Path, ran: dict[str, Any]) -> list[dict[str, Any]]:
    """What the file does besides answering: it must be importable, print nothing, touch nothing."""

    def result(name: str, expected: str, found: str, hint: str) -> dict[str, Any]:
        return {
            "name": f"file: {name}", "component": "file", "passed": not found, "deviation": None, "tolerance": None,
            "expected": expected, "found": found, "hint": hint if found else "",
        }  # fmt: skip

    error = (ran["import"] or {}).get("error") or ""
    if error and path.suffix == ".ipynb":
        error = "it is a notebook, not a Python file: export it as a script"
    lines, at_import = ran["printed"].get("lines", 0), (ran["import"] or {}).get("printed") or 0
    when = "while it is imported" if lines == at_import else "while it runs"
    printed = f"the file prints {lines} line{'s' * (lines != 1)} {when}: {ran['printed'].get('first', '')!r}"
    touched = [*ran["refused"], *(f"writing {name}" for name in ran["left"])]
    manners = [
        result("can be imported", "it defines its names and ends", error, f"the file cannot be used: {error}"),
        result("prints nothing", "no output", printed if lines else "",
               f"{printed}; move it below if __name__ == '__main__', or take it out"),
        result("touches nothing", "no files, programs or network", "; ".join(touched[:5]),
               f"the file does what a model has no need of: {'; '.join(touched[:5])}"),
    ]  # fmt: skip
    if error:  # what never ran has not passed
        for other in manners[1:]:
            if other["passed"]:
                other.update(passed=False, found="not run", hint="not run: the file cannot be imported")
    return manners


def _result(check: Check, verdict: Verdict | None) -> dict[str, Any]:
    """A check's entry in the report; no verdict: it was not run."""
    from roclab.course.verify.judge import Verdict

    verdict = verdict or Verdict(False, None, "not run", "not run: the file cannot be imported")
    deviation = verdict.deviation
    return {
        "name": check.name,
        "component": check.component,
        "passed": verdict.passed,
        "deviation": deviation if deviation is not None and math.isfinite(deviation) else None,
        "tolerance": check.tolerance if check.expected else None,
        "expected": check.expects,
        "found": "" if verdict.passed else verdict.found,
        "hint": "" if verdict.passed else verdict.hint,
    }
