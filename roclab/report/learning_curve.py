"""Accuracy against the number of images a class to train and validate on, from runs that were given `--per-class`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.report.runs import find_runs
from roclab.vision.evaluate.pairs import comparison
from roclab.vision.evaluate.run_reader import VisionRun, group_arms, model_name


def learning_curve(folder: Path, like: VisionRun, split: str) -> dict[str, Any]:
    """The curve of the finished runs in `folder`: `points`, one for each network and number of images a class, and
    `gaps`, fine-tuned minus frozen of the same network and number, compared on the same images.

    Raises `RocLabError` if a run there has other classes or other images of the split than `like`, a run of the report.
    """
    runs = [run for path in find_runs([folder]) if (run := VisionRun.open(path)).finished and run.has_results(split)]
    if not runs:
        raise RocLabError(f"--curve {folder}: no finished run in it was evaluated on {split}")
    for run in runs:
        if run.manifest["classes"] != like.manifest["classes"] or run.images(split) != like.images(split):
            raise RocLabError(f"--curve {folder}: {run.path} was evaluated on other {split} images than {like.path}")
    by_number: dict[int, list[VisionRun]] = defaultdict(list)
    for run in runs:
        by_number[images_a_class(run)].append(run)
    found: dict[str, Any] = {"points": [], "gaps": []}
    for number, members in sorted(by_number.items()):
        _add(found, number, members, split)
    return found


def images_a_class(run: VisionRun) -> int:
    """Images a class that the run was trained and validated on, a mean over the classes."""
    return round(len(run.images("train", "val")) / len(run.manifest["classes"]))


def _add(found: dict[str, Any], number: int, runs: Sequence[VisionRun], split: str) -> None:
    arms = group_arms(runs)
    compared = comparison(arms, split)
    for name, members in arms.items():
        row, run = compared["arms"][name], members[0]
        about = {"label": run.label, "model": model_name(run.config["model"]), "strategy": run.config["strategy"]}
        kept = {"top1": row["top1_mean"], "ci95": row["top1_ci95"], "n": row["n"], "seeds": len(members)}
        found["points"].append(about | {"images": number, "above_chance": row["above_chance"]} | kept)
    for pair in compared["pairs"]:
        one, other = (arms[pair[side]][0] for side in "ab")
        if one.config["model"] == other.config["model"] and one.finetuned != other.finetuned:
            sign = 1 if one.finetuned else -1
            ci95 = pair["ci95"] if one.finetuned else [-end for end in reversed(pair["ci95"])]
            tuned = arms[pair["a" if one.finetuned else "b"]]
            about = {"model": model_name(one.config["model"]), "images": number, "at_chance": pair["at_chance"],
                     "kept_start": all(run.kept_start for run in tuned)}  # fmt: skip
            found["gaps"].append(
                about | {"difference": sign * pair["difference"], "ci95": ci95, "shown": pair["shown"]}
            )
