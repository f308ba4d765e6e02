"""The handout's list: what a hand-in must hold, and what is missing from it, all at once."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json
from roclab.vision.evaluate.run_reader import STRATEGIES, VisionRun, label_of

HANDOUT_MODELS = ("resnet50", "swin_t")
PACKAGE = Path(__file__).resolve().parents[2]
REPORT_AGAIN = "make it with roclab report"
PARTS = {  # of the report's facts: words, command
    "errors": ("the error analysis", "vision errors"),
    "study": ("what the demo’s model is good at", "lm study"),
    "lab": ("the tokenizer lab", "tokenizer lab"),
}


@dataclass(frozen=True)
class Item:
    """One line of the list; `remedy` says what is wrong and what to do where it is not `found`."""

    what: str
    found: bool
    remedy: str = ""


def checklist(
    runs: Sequence[VisionRun], report: Path, lab: Path | None, student_id: str, name: str, trouble: str | None = None
) -> list[Item]:
    """Check everything; raises nothing. `trouble` is what reading the runs raised, if it did."""
    items = [Item("runs that fit together", not trouble, trouble or "")]
    items += [*_handout_runs(runs), *(item for run in runs for item in _run(run))]
    items += [*_report(runs, report, student_id, name), *_lab(lab, student_id)]
    for what, path in (("part2/roclm_model.py", "lm/model.py"), ("part2/roc_demo.py", "course/roc_demo.py")):
        items.append(Item(what, (PACKAGE / path).is_file(), f"the package has no {path}"))
    return items


def _handout_runs(runs: Sequence[VisionRun]) -> Iterator[Item]:
    there = {(run.config["model"], run.config["strategy"]) for run in runs if run.finished}
    for model in HANDOUT_MODELS:
        for strategy in STRATEGIES:
            command = f"roclab vision train --model {model} --strategy {strategy} --out RUN"
            yield Item(f"a finished run of {label_of(model, strategy)}", (model, strategy) in there, command)


def _run(run: VisionRun) -> Iterator[Item]:
    split, path = "test" if run.images("test") else "val", run.path
    if not run.finished:
        yield Item(f"{run.name}: training finished", False, f"roclab vision train --resume {path}")
        return
    evaluate = f"roclab vision evaluate {path} --split {split}"
    yield Item(f"{run.name}: evaluated on {split}", run.has_results(split), evaluate)
    logs = bool(run.metrics()) and any((path / "tensorboard").glob("*tfevents*"))
    yield Item(f"{run.name}: losses and logs", logs, "metrics.jsonl or tensorboard/ is missing: train again")
    kept = (run.checkpoints / "best.safetensors").is_file()
    yield Item(f"{run.name}: checkpoint", kept, "checkpoints/best.safetensors is missing: train again")


def _report(runs: Sequence[VisionRun], report: Path, student_id: str, name: str) -> Iterator[Item]:
    for file in ("report.pdf", "report.tex", "report.md"):
        yield Item(f"the report’s {file}", (report / file).is_file(), REPORT_AGAIN)
    facts = _json(report / "facts.json")
    if not isinstance(facts, dict) or "settings" not in facts:
        yield Item("the report’s facts.json", False, f"{report} is not a report: {REPORT_AGAIN}")
        return
    settings, unfilled = facts["settings"], f"say it in the settings and {REPORT_AGAIN} again"
    for key, mine, words in (("author", name, "name"), ("student_id", student_id, "student ID")):
        theirs = settings[key]
        wrong = f"not filled in: {unfilled}" if theirs is None else f"the report says {theirs!r}, not {mine!r}"
        yield Item(f"the report’s {words}", theirs == mine, wrong)
    for key, words in (("consulted", "people consulted"), ("ai_tools", "AI tools used")):
        yield Item(f"{words}, filled in", settings[key] is not None, unfilled)
    recorded = {run["name"]: run["files"] for run in facts["runs"]}
    stale = [run.name for run in runs if not _same_files(run, recorded.get(run.name))]
    stale += sorted(set(recorded) - {run.name for run in runs}) if runs else []
    differ = f"{', '.join(stale)} differ from it: {REPORT_AGAIN} again"
    yield Item("a report of these runs as they are", not stale, differ)
    for key, (words, command) in PARTS.items():
        remedy = f"roclab {command}, then {REPORT_AGAIN} --{key}"
        yield Item(f"{words}, in the report", bool(facts.get(key)), remedy)


def _same_files(run: VisionRun, recorded: dict[str, str] | None) -> bool:
    return recorded is not None and all(
        (run.path / name).is_file() and file_sha256(run.path / name) == digest for name, digest in recorded.items()
    )


def _lab(lab: Path | None, student_id: str) -> Iterator[Item]:
    again = shlex.join(["roclab", "tokenizer", "lab", "--student-id", student_id, "--out", str(lab or "lab")])
    if lab is None:
        yield Item("the tokenizer lab’s folder", False, f"no --lab was given: {again}, then --lab lab")
        return
    trouble = notebook_trouble(lab / "Tokenizer_Lab.ipynb")
    yield Item("Tokenizer_Lab.ipynb, executed", trouble is None, f"{trouble}: {again}")
    found = _json(lab / "lab.json")
    written = str(found["student_id"]) if isinstance(found, dict) and "student_id" in found else None
    wrong = "not filled in" if written is None else f"it is {written!r}"
    yield Item("the tokenizer lab’s student ID", written == student_id, f"{wrong}: {again}")


def notebook_trouble(path: Path) -> str | None:
    """What keeps a notebook from being handed in: not there, not executed, or with an error among its outputs."""
    notebook = _json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        return f"{path.name} is missing or no notebook"
    code = [c for c in notebook["cells"] if c.get("cell_type") == "code" and "".join(c.get("source", "")).strip()]
    if not any(cell.get("outputs") for cell in code):
        return "it has no outputs"
    if any(cell.get("execution_count") is None for cell in code):
        return "some of its cells were not executed"
    if any(output.get("output_type") == "error" for cell in code for output in cell.get("outputs", [])):
        return "a cell ended in an error"
    return None


def require(items: Sequence[Item]) -> None:
    """Raise `RocLabError` that names everything missing."""
    if missing := [item for item in items if not item.found]:
        listed = "; ".join(f"{item.what} ({item.remedy})" for item in missing)
        raise RocLabError(f"{len(missing)} of {len(items)} things are missing (--incomplete packs without): {listed}")


def _json(path: Path) -> Any:
    with suppress(RocLabError):
        return read_json(path)
