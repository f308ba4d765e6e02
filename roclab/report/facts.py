"""Everything a report says, gathered once: the runs' facts, and those of the other tools' folders as far as given.

A part that was not given is None in the facts, and the report says so; nothing is made up for it.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json
from roclab.report import gather
from roclab.report.privacy import Relative
from roclab.report.settings import Settings
from roclab.vision.evaluate.run_reader import VisionRun

# of a tool's JSON; the rest (images, transcripts) stays in its own folder
KEPT = ("sentences", "captions", "split", "n", "runs", "notes", "student_id", "model", "kinds", "seeds", "thinking")
FIGURE_FORMATS = (".png", ".jpg", ".jpeg")


def collect(
    runs: list[VisionRun],
    settings: Settings,
    split: str | None = None,
    errors: Path | None = None,
    verify: dict[str, Any] | None = None,
    lab: Path | None = None,
    study: Path | None = None,
) -> dict[str, Any]:
    """The facts of a report as plain data, free of absolute paths; what facts.json holds.

    `verify` is what `roclab.course.verify.verify` returned; `errors`, `lab` and `study` are folders of those commands.
    Raises `RocLabError` if the runs do not fit together or a folder is not what it should be.
    """
    relative = run_paths(runs)
    split = gather.pick_split(runs, split)
    arms = gather.finished_arms(runs)
    facts: dict[str, Any] = {
        "settings": asdict(settings),
        "split": split,
        "runs": [gather.describe_run(run, relative) for run in runs],
        "data": gather.describe_data(runs),
        "arms": {name: [run.ref for run in members] for name, members in arms.items()},
        "comparison": gather.comparison(arms, split),
        "per_class": {name: gather.per_class(members, split) for name, members in arms.items()},
        "errors": errors and _folder(errors, "errors.json", "roclab vision errors"),
        "verify": verify,
        "lab": lab and _folder(lab, "lab.json", "roclab tokenizer lab"),
        "study": study and _folder(study, "study.json", "roclab lm study"),
    }
    facts["comparison"]["confusion"] = {
        name: sum_of([run.results(split)["confusion"] for run in members]) for name, members in arms.items()
    }
    if errors:
        _about_these_runs(facts, errors)
        _without_accuracy(facts["errors"]["found"])
    facts["warnings"] = _warnings(facts)
    return relative.data(facts)


def run_paths(runs: list[VisionRun]) -> Relative:
    """How the paths that the runs know are called in a report and in the hand-in."""
    known: dict[str | os.PathLike, str] = {}
    for run in runs:
        root = run.config.get("data_root")
        if root:
            known[root] = Path(root).name
        known[run.manifest["root"]] = (
            str(Path(Path(root).name) / Path(run.manifest["root"]).relative_to(root))
            if root and Path(run.manifest["root"]).is_relative_to(root)
            else Path(run.manifest["root"]).name
        )
        for name in ("weights", "data"):
            value = run.config.get(name)
            if value and Path(value).is_absolute():
                known[value] = Path(value).name
        known[str(run.path)] = run.name
    return Relative(known)


def sum_of(matrices: list[list[list[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _folder(path: Path, name: str, command: str) -> dict[str, Any]:
    """A tool's JSON with the hash of the file and the figures beside it; `name` is also what marks its folder."""
    if not (path / name).exists():
        raise RocLabError(f"{path} has no {name}: make it with `{command} --out {path}`")
    found = read_json(path / name)
    if not isinstance(found, dict):
        raise RocLabError(f"{path / name} does not hold what `{command}` writes")
    figures = sorted(p for p in (path / "figures").glob("*") if p.suffix.lower() in FIGURE_FORMATS)
    return {
        "folder": path.resolve().name,
        "file": name,
        "sha256": file_sha256(path / name),
        "figures": {figure.name: shown_width(figure) for figure in figures},
        "found": {key: found[key] for key in KEPT if key in found},
    }


def shown_width(picture: Path) -> int:
    """Width of a picture in percent of the text's: its letters about as large as the text's, and no more than 8 cm
    high. Raises `RocLabError` if it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture) as opened:
            width, height = opened.size
    except (OSError, UnidentifiedImageError):
        raise RocLabError(f"{picture} is not a picture") from None
    share = min(1.0, width / (130 * 6.5), 3.2 / 6.5 * width / height)
    return max(20, round(100 * share))


def sentences(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The sentences of a tool's JSON, each a dict with at least `text`."""
    return [s if isinstance(s, dict) else {"text": str(s)} for s in found.get("sentences", [])]


def _about_these_runs(facts: dict[str, Any], folder: Path) -> None:
    """An error analysis of other runs, or of another split, has no place in this report."""
    found = facts["errors"]["found"]
    names = {
        Path(str(run.get("path") or run.get("name"))).name for run in found.get("runs", []) if isinstance(run, dict)
    }
    here = {Path(run["name"]).name for run in facts["runs"] if run["finished"]}
    if found.get("split") not in (None, facts["split"]):
        raise RocLabError(f"{folder} explains errors on {found['split']}, the report is about {facts['split']}")
    if strangers := {name for name in names if not any(run == name or run.endswith(f"-{name}") for run in here)}:
        raise RocLabError(f"{folder} is about runs that the report does not have: {', '.join(sorted(strangers))}")


def _without_accuracy(found: dict[str, Any]) -> None:
    """Leave out of the analysis' sentences what the section on accuracy says."""
    found["sentences"] = [
        s for s in sentences(found)
        if not (key := str(s.get("key", ""))).startswith("/arms/")
        and (not key.startswith("/pairs/") or s.get("evidence") == "measured")
    ]  # fmt: skip


def _warnings(facts: dict[str, Any]) -> list[str]:
    """What the reader of the console should know before the reader of the report finds it."""
    settings, found = facts["settings"], []
    spoken = {
        "author": "the author",
        "student_id": "the student ID",
        "consulted": "people consulted",
        "ai_tools": "AI tools",
    }
    if unfilled := [words for key, words in spoken.items() if settings[key] is None]:
        found.append(f"not filled in: {', '.join(unfilled)} (--settings FILE.toml, or options)")
    for run in facts["runs"]:
        if not run["finished"]:
            found.append(f"{run['name']} was cut after {run['epochs_done']} epochs: it takes part in no comparison")
    if facts["split"] == "val":
        found.append("the accuracies are of validation images, on which choices were made: evaluate the runs on test")
    if absent := facts["data"]["without_test_images"]:
        found.append(f"test has no image of {len(absent)} classes: {', '.join(absent[:5])}{', …' * (len(absent) > 5)}")
    lab_id = facts["lab"] and facts["lab"]["found"].get("student_id")
    if lab_id is not None and settings["student_id"] is not None and str(lab_id) != settings["student_id"]:
        found.append(f"the tokenizer lab is of the student ID {lab_id}, the report of {settings['student_id']}")
    for key, words in (
        ("errors", "no error analysis (--errors, from roclab vision errors)"),
        ("verify", "RocLM was not checked (roclab lm verify)"),
        ("lab", "no tokenizer lab (--lab, from roclab tokenizer lab)"),
        ("study", "no demo study (--study, from roclab lm study)"),
    ):
        if not facts[key]:
            found.append(words)
    return found
