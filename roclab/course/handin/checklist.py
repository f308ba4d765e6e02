"""The handout's list: what a hand-in must hold, and what is missing from it, all at once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256
from roclab.vision.evaluate.run_reader import STRATEGIES, VisionRun, label_of

HANDOUT_MODELS = ("resnet50", "swin_t")
PACKAGE = Path(__file__).resolve().parents[2]


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
    items += _runs(runs)
    items += _report(runs, report, student_id, name)
    items += _lab(lab, student_id)
    for what, path in (("part2/roclm_model.py", "lm/model.py"), ("part2/roc_demo.py", "course/roc_demo.py")):
        items.append(Item(what, (PACKAGE / path).is_file(), f"the package has no {path}"))
    return items


def _runs(runs: Sequence[VisionRun]) -> list[Item]:
    items = []
    for model in HANDOUT_MODELS:
        for strategy in STRATEGIES:
            found = any(r.finished and (r.config["model"], r.config["strategy"]) == (model, strategy) for r in runs)
            items.append(Item(
                f"a finished run of {label_of(model, strategy)}", found,
                f"roclab vision train --model {model} --strategy {strategy} --out RUN",
            ))  # fmt: skip
    for run in runs:
        split = "test" if run.images("test") else "val"
        path = run.path
        if not run.finished:
            items.append(Item(f"{run.name}: training finished", False, f"roclab vision train --resume {path}"))
            continue
        needed = f"roclab vision evaluate {path} --split {split}"
        items.append(Item(f"{run.name}: evaluated on {split}", run.has_results(split), needed))
        logs = bool(run.metrics()) and any((path / "tensorboard").glob("*tfevents*"))
        items.append(
            Item(f"{run.name}: losses and logs", logs, "metrics.jsonl or tensorboard/ is missing: train again")
        )
        kept = (path / "checkpoints" / "best.safetensors").is_file()
        items.append(Item(f"{run.name}: checkpoint", kept, "checkpoints/best.safetensors is missing: train again"))
    return items


def _report(runs: Sequence[VisionRun], report: Path, student_id: str, name: str) -> list[Item]:
    facts = _json(report / "facts.json")
    again = "make it with roclab report"
    items = [
        Item(f"the report’s {f}", (report / f).is_file(), again) for f in ("report.pdf", "report.tex", "report.md")
    ]
    if not isinstance(facts, dict) or "settings" not in facts:
        return [*items, Item("the report’s facts.json", False, f"{report} is not a report: {again}")]
    settings = facts["settings"]
    for key, mine, words in (("author", name, "name"), ("student_id", student_id, "student ID")):
        theirs = settings[key]
        wrong = f"not filled in: say it in the settings and {again} again"
        if theirs is not None:
            wrong = f"the report says {theirs!r}, not {mine!r}"
        items.append(Item(f"the report’s {words}", theirs == mine, wrong))
    for key, words in (("consulted", "people consulted"), ("ai_tools", "AI tools used")):
        items.append(
            Item(f"{words}, filled in", settings[key] is not None, f"say it in the settings and {again} again")
        )
    hashes = {run["name"]: run["files"] for run in facts["runs"]}
    stale = [run.name for run in runs if not _same_files(run, hashes.get(run.name))]
    stale += sorted(set(hashes) - {run.name for run in runs}) if runs else []
    items.append(
        Item("a report of these runs as they are", not stale, f"{', '.join(stale)} differ from it: {again} again")
    )
    for key, words, command in (
        ("errors", "the error analysis", "vision errors"),
        ("study", "what the demo’s model is good at", "lm study"),
        ("lab", "the tokenizer lab", "tokenizer lab"),
    ):
        items.append(Item(f"{words}, in the report", bool(facts.get(key)), f"roclab {command}, then {again} --{key}"))
    return items


def _same_files(run: VisionRun, recorded: dict[str, str] | None) -> bool:
    if recorded is None:
        return False
    path = run.path
    return all((path / name).is_file() and file_sha256(path / name) == digest for name, digest in recorded.items())


def _lab(lab: Path | None, student_id: str) -> list[Item]:
    again = shlex.join(["roclab", "tokenizer", "lab", "--student-id", student_id, "--out", str(lab or "lab")])
    if lab is None:
        return [Item("the tokenizer lab’s folder", False, f"no --lab was given: {again}, then --lab lab")]
    trouble = notebook_trouble(lab / "Tokenizer_Lab.ipynb")
    found = _json(lab / "lab.json")
    written = str(found["student_id"]) if isinstance(found, dict) and "student_id" in found else None
    said = "not filled in" if written is None else f"it is {written!r}"
    return [
        Item("Tokenizer_Lab.ipynb, executed", trouble is None, f"{trouble}: {again}"),
        Item("the tokenizer lab’s student ID", written == student_id, f"{said}: {again}"),
    ]


def notebook_trouble(path: Path) -> str | None:
    """What keeps a notebook from being handed in: not there, not executed, or with an error among its outputs."""
    notebook = _json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        return f"{path.name} is missing or no notebook"
    code = [
        cell
        for cell in notebook["cells"]
        if cell.get("cell_type") == "code" and "".join(cell.get("source", "")).strip()
    ]
    if not code or not any(cell.get("outputs") for cell in code):
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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
