"""Everything a report says, gathered once: the runs' facts, and those of the other tools' folders as far as given.

A part that was not given is None in the facts, and the report says so; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.progress import track
from roclab.core.sentences import sentences_from, sentences_of
from roclab.core.statistics import wilson
from roclab.report import conversations, source_code, words
from roclab.report import runs as reading
from roclab.report.folders import ERRORS, LAB, STUDY, FolderKind
from roclab.report.galleries import galleries
from roclab.report.kit import TEMPLATES
from roclab.report.learning_curve import learning_curve
from roclab.report.networks import describe_network
from roclab.report.settings import OBSERVATIONS, Settings
from roclab.report.training import dynamics
from roclab.vision.evaluate.pairs import comparison
from roclab.vision.evaluate.run_reader import VisionRun

# of a tool's JSON; the rest (images, transcripts) stays in its own folder
KEPT = ("sentences", "captions", "split", "n", "runs", "notes", "student_id", "model", "kinds", "seeds", "thinking",
        "told", "told_runs", "left_out", "chance")  # fmt: skip
FIGURE_FORMATS = (".png", ".jpg", ".jpeg")
TOOLS = {"errors": ERRORS, "lab": LAB, "study": STUDY}


def collect(
    runs: list[VisionRun],
    settings: Settings,
    split: str | None,
    folders: Mapping[str, Path],
    verify: dict[str, Any] | None,
    curve: Path | None = None,
    roclm: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts of a report as plain data, free of absolute paths; what facts.json holds.

    `folders` are those of "errors", "lab" and "study"; `verify` is what `roclab.course.verify.verify` returned, `roclm`
    what `roclab.report.roclm.examine` did; `curve` is a folder of runs with other numbers of images a class. Raises
    `RocLabError` if the runs do not fit together or a folder is not what it should be.
    """
    split = reading.pick_split(runs, split)
    arms = reading.finished_arms(runs)
    read = {key: TOOLS[key].read(folder) for key, folder in folders.items()}
    facts: dict[str, Any] = {
        "settings": asdict(settings),
        "split": split,
        "runs": [reading.describe_run(run) for run in runs],
        "data": reading.describe_data(runs),
        "arms": {name: [run.ref for run in members] for name, members in arms.items()},
        "comparison": _compared(arms, split),
        "scores": {name: _scores(arms, name) for name in ("val", "test") if _evaluated(arms, name)},
        "training": {run.ref: dynamics(run) for members in arms.values() for run in members},
        "networks": _networks(runs),
        "curve": learning_curve(curve, runs[0], split) if curve else None,
        "gallery": None,
        "verify": verify,
        "roclm": roclm,
        "code": source_code.parts(),
        **{key: _tool(TOOLS[key], folders[key], *read[key]) if key in folders else None for key in TOOLS},
    }
    if facts["errors"]:
        _check_about_these_runs(facts, folders["errors"])
        best = sorted(arms, key=lambda name: -facts["comparison"]["arms"][name]["top1_mean"])
        facts["gallery"] = galleries(read["errors"][0], folders["errors"], best)
    if facts["study"]:
        asked = folders["study"] / "transcripts.jsonl"
        facts["study"]["conversations"] = conversations.choose(asked, read["study"][0])
    differences = sentences_of(facts["comparison"])
    said = sentences_from(TEMPLATES / "sentences.txt", facts, words=words, differences=differences)
    facts["observations_missing"] = [key for key in OBSERVATIONS if key not in (settings.observations or {})]
    facts["sentences"] = [sentence.json() for sentence in said]
    facts["warnings"] = [warning.text for warning in sentences_from(TEMPLATES / "warnings.txt", facts)]
    return reading.run_paths(runs).data(facts)


def _compared(arms: dict[str, list[VisionRun]], split: str) -> dict[str, Any]:
    """What `vision compare` finds in these arms, runs called by their numbers."""
    found = comparison(arms, split)
    for name, runs in arms.items():
        results = [run.results(split) for run in runs]
        found["arms"][name] |= {
            "runs": [run.ref for run in runs],
            "best_val": [run.results("val")["top1"] if run.has_results("val") else None for run in runs],
            "images_per_second": words.mean_known([row.get("images_per_second") for row in results]),
        }
    found["confusion"] = {
        name: np.sum([run.results(split)["confusion"] for run in runs], axis=0).tolist() for name, runs in arms.items()
    }
    return found


def _evaluated(arms: dict[str, list[VisionRun]], split: str) -> bool:
    return all(run.has_results(split) for runs in arms.values() for run in runs)


def _scores(arms: dict[str, list[VisionRun]], split: str) -> dict[str, Any]:
    """What each arm reaches on a split: means over its runs, Wilson's interval, and each class."""
    found = {}
    for name, runs in arms.items():
        results = [run.results(split) for run in runs]
        means = {key: float(np.mean([row[key] for row in results])) for key in ("top1", "mean_per_class", "macro_f1")}
        n = results[0]["n"]
        classes = _per_class(runs, split)
        found[name] = means | {"n": n, "ci95": wilson(means["top1"] * n, n), "classes": classes}
    return found


def _networks(runs: Sequence[VisionRun]) -> dict[str, dict[str, Any]]:
    """Each architecture at the image size of its runs (the largest, where they differ)."""
    sizes: dict[str, int] = {}
    for run in runs:
        sizes[run.config["model"]] = max(run.config["image_size"], sizes.get(run.config["model"], 0))
    classes = len(runs[0].manifest["classes"])
    return {
        model: describe_network(model, classes, size) for model, size in track(sizes.items(), "networks", len(sizes))
    }


def _per_class(runs: Sequence[VisionRun], split: str) -> dict[str, dict[str, float | int | None]]:
    """Mean precision, recall and F1 of each class over an arm's runs. None where there is nothing to measure: recall
    and F1 of a class without images, precision of one that was never predicted."""
    results = [run.results(split) for run in runs]
    predicted = [np.sum(result["confusion"], axis=0) for result in results]
    found: dict[str, dict[str, float | int | None]] = {}
    for i, name in enumerate(results[0]["per_class"]):
        rows = [result["per_class"][name] for result in results]
        support = int(rows[0]["support"])
        found[name] = {
            "support": support,
            "precision": words.mean_known(
                [r["precision"] if n[i] else None for r, n in zip(rows, predicted, strict=True)]
            ),
            "recall": words.mean_known([row["recall"] for row in rows]) if support else None,
            "f1": words.mean_known([row["f1"] for row in rows]) if support else None,
        }
    return found


def _tool(kind: FolderKind, path: Path, found: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """What is kept of a tool's JSON, with the hash of the file and the figures beside it."""
    figures = sorted(p for p in (path / "figures").glob("*") if p.suffix.lower() in FIGURE_FORMATS)
    return {
        "folder": path.resolve().name,
        "file": kind.mark,
        "sha256": digest,
        "figures": {figure.name: _shown_width(figure) for figure in figures},
        "found": {key: found[key] for key in KEPT if key in found},
    }


def _shown_width(picture: Path) -> int:
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


def _check_about_these_runs(facts: dict[str, Any], folder: Path) -> None:
    """An error analysis of other runs, or of another split, has no place in this report."""
    found = facts["errors"]["found"]
    names = {run["name"] for run in found.get("runs", [])}
    here = {run["name"] for run in facts["runs"] if run["finished"]}
    if found.get("split") not in (None, facts["split"]):
        raise RocLabError(f"{folder} explains errors on {found['split']}, the report is about {facts['split']}")
    if strangers := {name for name in names if not any(run == name or run.endswith(f"-{name}") for run in here)}:
        raise RocLabError(f"{folder} is about runs that the report does not have: {', '.join(sorted(strangers))}")
