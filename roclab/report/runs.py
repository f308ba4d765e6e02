"""The runs of a report: found, checked to answer one question, and described.

All runs of a report have the same images, classes and test split. A run that does not is refused by name; one whose
training was cut is shown as unfinished and takes part in no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json
from roclab.report.privacy import Relative
from roclab.vision.evaluate.run_reader import VisionRun, group_arms

KEPT = ("config.json", "provenance.json", "split.json", "metrics.jsonl", "training.json", "predictions.csv",
        "results-val.json", "results-test.json", "test_opened.json")  # fmt: skip
NOT_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "attn_mask")


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
    """All runs, each with a name and a number of its own; raises `RocLabError` if they do not belong in one report."""
    runs = [VisionRun.open(path) for path in find_runs(paths)]
    runs.sort(key=lambda r: (r.config["model"], r.config["strategy"], r.config["seed"], str(r.path)))
    names = [run.name for run in runs]
    for number, run in enumerate(runs, start=1):
        run.ref = f"R{number}"
        if names.count(run.name) > 1:  # seed0 of two folders
            run.name = f"{run.path.resolve().parent.name}-{run.name}"
    _check_same_images(runs)
    return runs


def _check_same_images(runs: Sequence[VisionRun]) -> None:
    """Refuse runs whose figures cannot stand in one table, naming them and what differs, all at once."""
    first = runs[0]
    by_seed = {first.manifest["seed"]: first}
    wrong = []
    for run in runs[1:]:
        if run.manifest["classes"] != first.manifest["classes"]:
            what = f"has other classes ({run.manifest['name']}, {len(run.manifest['classes'])} of them)"
        elif run.images("test") != first.images("test"):
            what = f"is evaluated on other test images ({len(run.images('test'))} of them)"
        elif run.images("train", "val") != first.images("train", "val"):
            what = f"is trained on other images ({len(run.images('train', 'val'))} of them)"
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
    if missing := [run for run in finished if not run.has_results(split)]:
        commands = "; ".join(f"roclab vision evaluate {run.path} --split {split}" for run in missing)
        other = " (or report on the validation images with --split val)" if split == "test" else ""
        raise RocLabError(f"{len(missing)} of {len(finished)} runs were not evaluated on {split}: {commands}{other}")
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


def run_paths(runs: Iterable[VisionRun]) -> Relative:
    """How the paths that the runs know are called in a report and in the hand-in."""
    known: dict[str | Path, str] = {}
    for run in runs:
        root, images = run.config.get("data_root"), Path(run.manifest["root"])
        if root:
            known[root] = Path(root).name
        inside = images.relative_to(root) if root and images.is_relative_to(root) else None
        known[images] = images.name if inside is None else str(Path(Path(root or "").name) / inside)
        for name in ("weights", "data"):
            value = run.config.get(name)
            if value and Path(value).is_absolute():
                known[value] = Path(value).name
        known[str(run.path)] = run.name
    return Relative(known)


def describe_run(run: VisionRun) -> dict[str, Any]:
    """What facts.json keeps of a run: who it is, what it came from, and the hash of each file that was read."""
    provenance, training = run.provenance, run.training if run.finished else {}
    opened = run.path / "test_opened.json"
    return {
        **{key: getattr(run, key) for key in ("ref", "name", "label", "finished")},
        "config": run.config,
        "epochs_done": len(run.epochs) if run.finetuned else None,
        "solver_steps": None if run.finetuned else len(run.metrics()),
        **{key: training.get(key) for key in ("best_epoch", "c")},
        "parameters": _parameters(run.checkpoints / "best.safetensors"),
        "data_fingerprint": run.manifest["fingerprint"],
        "weights": _weights_name(run.config.get("weights", "default"), provenance),
        "command": [str(word) for word in provenance.get("command", [])],
        **{key: provenance.get(key) for key in ("time", "git")},
        **{key: provenance.get(key, {}) for key in ("versions", "machine")},
        "test_opened": len(read_json(opened)) if opened.exists() else 0,
        "log": _last_line(run.path / "log.txt") if not run.finished else None,
        "files": {name: file_sha256(run.path / name) for name in KEPT if (run.path / name).exists()},
    }


def _weights_name(weights: str, provenance: dict[str, Any]) -> str:
    """The weights a run began from in words, with the beginning of their hash."""
    if weights == "none":
        return "random (no pretrained weights)"
    name = "ImageNet (default)" if weights == "default" else Path(weights).name
    digest = str(provenance.get("hashes", {}).get("weights", "")).rsplit(":", 1)[-1]
    return f"{name}, {digest[:12]}" if len(digest) == 64 else name


def _parameters(checkpoint: Path) -> int | None:
    """Number of weights in a checkpoint, BatchNorm's statistics not counted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="np") as file:
            return sum(math.prod(file.get_slice(n).get_shape()) for n in file.keys() if not n.endswith(NOT_WEIGHTS))  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


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
        counts = {name: splits.count(name) for name in ("train", "val", "test")}
        cuts.setdefault(str(run.manifest["seed"]), counts | {"fingerprint": run.manifest["fingerprint"]})
    labels = {image["label"] for image in first["images"] if image["split"] == "test"}
    species_of = first.get("species") or {}
    species = list(species_of.values())
    near = first["near_duplicates_across_splits"]
    return {
        "name": first["name"],
        "classes": first["classes"],
        "order": sorted(first["classes"], key=lambda name: (species_of.get(name, ""), name.lower())),  # cats, then dogs
        "species": {kind: species.count(kind) for kind in sorted(set(species))},
        "images": len(first["images"]),
        "cuts": cuts,
        "val_fraction": sorted({run.manifest["val_fraction"] for run in runs}),
        "test_seed": first.get("test_seed"),
        "without_test_images": [name for i, name in enumerate(first["classes"]) if i not in labels] if labels else [],
        "skipped": len(first["skipped"]),
        "near_duplicates": len(near),
        "near_duplicates_with_test": sum("test" in pair["splits"] for pair in near),
    }
