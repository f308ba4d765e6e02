"""Run folders -> facts: everything the report says about training, as plain data.

All runs of a report answer one question: the same images, the same classes, the same test split. A run that does not is
refused by name; one whose training was cut is shown as unfinished and takes part in no comparison.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json
from roclab.report.privacy import Relative
from roclab.vision.error_analysis.statistics import holm
from roclab.vision.evaluate.run_reader import VisionRun, group_arms

KEPT = ("config.json", "provenance.json", "split.json", "metrics.jsonl", "training.json", "predictions.csv")


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among `paths`, and those directly inside one that is not a run itself (as `compare` leaves it).

    Raises `RocLabError` that names every path without a run.
    """
    found: list[Path] = []
    missing = []
    for path in map(Path, paths):
        inside = sorted(child.parent for child in path.glob("*/config.json"))
        if (path / "config.json").exists():
            found.append(path)
        elif inside:
            found += inside
        elif path.is_dir():
            missing.append(f"{path} holds no run (no config.json)")
        elif not path.exists():
            missing.append(f"{path} does not exist")
        # a file beside the runs, which a shell's * names too, is passed over
    if missing:
        raise RocLabError("; ".join(missing))
    unique = list({path.resolve(): path for path in found}.values())
    if not unique:
        raise RocLabError("there is no run to report on: name run folders with --runs")
    return unique


def read_runs(paths: Iterable[str | Path]) -> list[VisionRun]:
    """All runs, each with a name of its own; raises `RocLabError` if they do not belong in one report."""
    runs = [VisionRun.open(path) for path in find_runs(paths)]
    runs.sort(key=lambda r: (r.config["model"], r.config["strategy"], r.config["seed"], str(r.path)))
    names = [run.name for run in runs]
    for number, run in enumerate(runs, start=1):
        run.ref = f"R{number}"
        if names.count(run.name) > 1:  # seed0 of two folders
            run.name = f"{run.path.resolve().parent.name}-{run.name}"
    _same_images(runs)
    return runs


def _same_images(runs: Sequence[VisionRun]) -> None:
    """Refuse runs whose figures cannot stand in one table, naming them and what differs, all at once."""
    first = runs[0]
    by_seed = {first.manifest["seed"]: first}
    wrong = []
    for run in runs[1:]:
        if run.manifest["classes"] != first.manifest["classes"]:
            what = f"has other classes ({run.manifest['name']}, {len(run.manifest['classes'])} of them)"
        elif run.images("test") != first.images("test"):
            what = f"is judged on other test images ({len(run.images('test'))} of them)"
        elif run.images("train", "val") != first.images("train", "val"):
            what = f"learns from other images ({len(run.images('train', 'val'))} of them)"
        elif run.images("val") != (twin := by_seed.setdefault(run.manifest["seed"], run)).images("val"):
            what = f"cuts other validation images ({len(run.images('val'))}) than {twin.path} of the same seed"
        else:
            continue
        wrong.append(f"{run.path} {what}")
    if wrong:
        classes, images = len(first.manifest["classes"]), len(first.images("test"))
        raise RocLabError(
            f"runs of different data do not fit in one report: against {first.path} ({first.manifest['name']}, "
            f"{classes} classes, {images} test images), " + "; ".join(wrong) + ". Report them apart"
        )


def pick_split(runs: Sequence[VisionRun], wanted: str | None) -> str:
    """The split to report: the one asked for, else test where the images have one. Raises `RocLabError` if a finished
    run was not evaluated on it, with the commands to do so."""
    finished = [run for run in runs if run.finished]
    if not finished:
        raise RocLabError(
            "no run was trained to its end: go on with " + " and ".join(f"--resume {r.path}" for r in runs[:3])
        )
    if wanted not in (None, "val", "test"):
        raise RocLabError(f"--split {wanted}: choose val or test")
    split = wanted or ("test" if finished[0].images("test") else "val")
    unjudged = [run for run in finished if not run.has_results(split)]
    if unjudged:
        commands = "; ".join(f"roclab vision evaluate {run.path} --split {split}" for run in unjudged)
        other = " (or report on the validation images with --split val)" if split == "test" else ""
        raise RocLabError(f"{len(unjudged)} of {len(finished)} runs were not evaluated on {split}: {commands}{other}")
    return split


def finished_arms(runs: Sequence[VisionRun]) -> dict[str, list[VisionRun]]:
    """The finished runs by arm. Raises `RocLabError` if two runs of an arm have the same seed."""
    arms = group_arms([run for run in runs if run.finished])
    for label, members in arms.items():
        seeds = [run.config["seed"] for run in members]
        if twice := [run for run in members if seeds.count(run.config["seed"]) > 1]:
            same = " and ".join(str(run.path) for run in twice)
            raise RocLabError(f"{same} are the same run ({label}, the same seed): name one of them")
    return arms


def comparison(arms: dict[str, list[VisionRun]], split: str) -> dict[str, Any]:
    """The judgement of `vision compare` over these arms, with Holm's correction over all the pairs it makes."""
    from roclab.vision.compare import is_shown, judge, verdict

    found = judge(arms, split)
    for name, runs in arms.items():
        found["arms"][name]["runs"] = [run.ref for run in runs]
        found["arms"][name]["best_val"] = [max((row["val_top1"] for row in r.metrics()), default=None) for r in runs]
        found["arms"][name]["images_per_second"] = _mean([r.results(split).get("images_per_second") for r in runs])
    adjusted = holm([float(np.median([test["p"] for test in pair["mcnemar"]])) for pair in found["pairs"]])
    for pair, p in zip(found["pairs"], adjusted, strict=True):
        pair["p"] = p
        pair["shown"] = is_shown(pair)
        pair["sentence"] = verdict(pair)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def per_class(runs: Sequence[VisionRun], split: str) -> dict[str, dict[str, float | int | None]]:
    """Mean precision, recall and F1 of each class over an arm's runs. None where there is nothing to measure: recall
    and F1 of a class without images, precision of one that was never named."""
    results = [run.results(split) for run in runs]
    counts = [np.array(result["confusion"]) for result in results]
    found: dict[str, dict[str, float | int | None]] = {}
    for i, name in enumerate(results[0]["per_class"]):
        rows = [result["per_class"][name] for result in results]
        support = int(rows[0]["support"])
        found[name] = {
            "support": support,
            "precision": _mean([r["precision"] if c[:, i].sum() else None for r, c in zip(rows, counts, strict=True)]),
            "recall": _mean([row["recall"] for row in rows]) if support else None,
            "f1": _mean([row["f1"] for row in rows]) if support else None,
        }
    return found


def describe_run(run: VisionRun, relative: Relative) -> dict[str, Any]:
    """What facts.json keeps of a run: who it is, what it came from, and the hash of each file that was read."""
    config, path = run.config, run.path
    training = run.training if run.finished else {}
    files = [*KEPT, *(f"results-{split}.json" for split in ("val", "test")), "test_opened.json"]
    opened = path / "test_opened.json"
    return {
        "ref": run.ref,
        "name": run.name,
        "label": run.label,
        "finished": run.finished,
        "config": relative.data(config),
        "epochs_done": len(run.metrics()),
        "best_epoch": training.get("best_epoch"),
        "c": training.get("c"),
        "parameters": parameters(path / "checkpoints" / "best.safetensors"),
        "data_fingerprint": run.manifest["fingerprint"],
        "weights": weights_name(config.get("weights", "default"), run.provenance),
        "time": run.provenance.get("time"),
        "git": run.provenance.get("git"),
        "versions": run.provenance.get("versions", {}),
        "machine": run.provenance.get("machine", {}),
        "test_opened": len(read_json(opened)) if opened.exists() else 0,
        "log": _last_line(path / "log.txt") if not run.finished else None,
        "files": {name: file_sha256(path / name) for name in files if (path / name).exists()},
    }


def weights_name(weights: str, provenance: dict[str, Any]) -> str:
    """The weights a run began from in words, with the beginning of their hash."""
    digest = str(provenance.get("hashes", {}).get("weights", "")).rsplit(":", 1)[-1]
    spoken = {"none": "random (no pretrained weights)", "default": "ImageNet (default)"}.get(
        weights, Path(weights).name
    )
    return f"{spoken}, {digest[:12]}" if weights != "none" and len(digest) == 64 else spoken


def parameters(checkpoint: Path) -> int | None:
    """Number of weights in a checkpoint, BatchNorm's statistics not counted; read from the header alone."""
    try:
        with open(checkpoint, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    except (OSError, ValueError, struct.error):
        return None
    statistics = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "attn_mask")
    shapes = [
        entry["shape"] for name, entry in header.items() if name != "__metadata__" and not name.endswith(statistics)
    ]
    return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes))


def _last_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip().splitlines()[-1]
    except (OSError, IndexError):
        return None


def describe_data(runs: Sequence[VisionRun]) -> dict[str, Any]:
    """The images of all runs and how each seed cuts them."""
    first = runs[0].manifest
    cuts: dict[str, dict[str, Any]] = {}
    for run in runs:
        splits = [image["split"] for image in run.manifest["images"]]
        cuts.setdefault(
            str(run.manifest["seed"]),
            {name: splits.count(name) for name in ("train", "val", "test")}
            | {"fingerprint": run.manifest["fingerprint"]},
        )
    labels = [image["label"] for image in first["images"] if image["split"] == "test"]
    absent = [name for i, name in enumerate(first["classes"]) if i not in set(labels)] if labels else []
    species = first.get("species") or {}
    return {
        "name": first["name"],
        "classes": first["classes"],
        "species": {kind: list(species.values()).count(kind) for kind in sorted(set(species.values()))},
        "images": len(first["images"]),
        "cuts": cuts,
        "val_fraction": sorted({run.manifest["val_fraction"] for run in runs}),
        "test_seed": first.get("test_seed"),
        "without_test_images": absent,
        "skipped": len(first["skipped"]),
        "near_duplicates": len(first["near_duplicates_across_splits"]),
        "near_duplicates_with_test": sum("test" in p["splits"] for p in first["near_duplicates_across_splits"]),
    }
