"""What the runs said about the images: read from their folders, checked, and laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.runs import Run
from roclab.vision.data.dataset import _find_root, read_manifest
from roclab.vision.evaluate.evaluate import judged_splits, read_predictions, read_training

# What may differ between two runs of one arm: the seed, and where things are done.
ASIDE = {"seed", "data", "data_root", "mirror", "budget", "workers", "device"}


@dataclass
class Judged:
    """R runs over the same N images of one split, told apart into C classes."""

    split: str
    classes: list[str]
    species: dict[str, str] | None  # class -> "cat" or "dog", where the data say so
    root: Path  # what `paths` are relative to
    paths: list[str]  # (N,)
    sha256: list[str]  # (N,)
    labels: np.ndarray  # (N,)
    probs: np.ndarray  # (R, N, C) float64
    runs: list[Run]
    arms: dict[str, list[int]]  # name -> its rows in `runs`: the same model and settings under several seeds
    notes: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> np.ndarray:  # (R, N)
        return self.probs.argmax(2)

    @property
    def wrong(self) -> np.ndarray:  # (R, N) bool
        return self.predicted != self.labels


def gather(runs: Sequence[Run], split: str | None = None, data_root: str | None = None) -> Judged:
    """Read the predictions of finished runs on one split, in the image order of the first.

    `split` None: test if every run has been evaluated on it, else val. Raises `RocLabError`, naming the run, if one is
    unfinished, has no predictions, was judged on other images or tells other classes apart.
    """
    if not runs:
        raise RocLabError("no run was given: roclab vision errors RUN… --out DIR")
    if split not in (None, "val", "test"):
        raise RocLabError(f"--split {split}: choose val or test")
    seen: set[Path] = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise RocLabError(f"{run.path} was given twice")
        seen.add(run.path.resolve())
        read_training(run)
    notes = []
    if split is None:
        tested = [run for run in runs if "test" in judged_splits(run)]
        split = "test" if len(tested) == len(runs) else "val"
        if tested and split == "val":
            untested = next(run for run in runs if run not in tested)
            notes.append(
                f"{len(tested)} of {len(runs)} runs have been evaluated on test, {untested.path.name} among others has "
                "not: all of them are shown on val"
            )
    read = [_read(run, split) for run in runs]
    first, probs = read[0], [read[0].probs]
    for other in read[1:]:
        if other.classes != first.classes:
            raise RocLabError(
                f"{other.run.path} tells other classes apart than {first.run.path}: judge them one by one"
            )
        if other.images.keys() != first.images.keys():
            seeds = {run.run.config.get("seed") for run in (first, other)}
            why = (
                " (each seed cuts its own val images: evaluate them on test)"
                if split == "val" and len(seeds) > 1
                else ""
            )
            raise RocLabError(
                f"{other.run.path} was judged on other {split} images than {first.run.path}{why}: errors are compared "
                "on the same images only"
            )
        rows = [other.images[key] for key in first.images]
        if (other.labels[rows] != first.labels).any():
            raise RocLabError(f"{other.run.path} has other labels than {first.run.path} for the same images")
        probs.append(other.probs[rows])
    manifest = first.manifest
    return Judged(
        split=split,
        classes=first.classes,
        species=manifest.get("species"),
        root=_find_root(manifest, data_root),
        paths=first.names,
        sha256=[sha256 for _, sha256, _ in first.images],
        labels=first.labels,
        probs=np.stack(probs),
        runs=list(runs),
        arms=_arms(runs),
        notes=notes,
    )


@dataclass
class _Predictions:
    run: Run
    manifest: dict[str, Any]
    classes: list[str]
    images: dict[tuple[str, str, int], int]  # (path or, if it is absolute, file name; sha256; copy) -> row
    names: list[str]  # (N,) paths as split.json has them
    labels: np.ndarray
    probs: np.ndarray


def _read(run: Run, split: str) -> _Predictions:
    manifest = read_manifest(run.path)
    damaged = RocLabError(
        f"{run.path / 'predictions.csv'} does not fit the run's split.json: run `roclab vision evaluate {run.path} "
        f"--split {split}` again"
    )
    try:
        classes = list(manifest["classes"])
        listed = [(image["path"], image["sha256"]) for image in manifest["images"] if image["split"] == split]
        paths, labels, probs = read_predictions(run, split, classes)
        fits = len(paths) == len(listed) and probs.shape == (len(paths), len(classes)) and np.isfinite(probs).all()
    except (KeyError, ValueError, IndexError, TypeError):
        raise damaged from None
    # evaluate writes the images in the order of split.json
    if not fits or any(
        not path.replace("\\", "/").endswith(name) for path, (name, _) in zip(paths, listed, strict=True)
    ):
        raise damaged
    # an absolute path names the machine, not the image; copies of one file are counted through
    images: dict[tuple[str, str, int], int] = {}
    for row, (name, sha256) in enumerate(listed):
        copy = 0
        while (key := (Path(name).name if Path(name).is_absolute() else name, sha256, copy)) in images:
            copy += 1
        images[key] = row
    return _Predictions(run, manifest, classes, images, [name for name, _ in listed], labels, probs)


def _arms(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Runs that differ in their seed alone are one arm; arms of one name are told apart by what differs."""
    settings = [{k: v for k, v in run.config.items() if k not in ASIDE} for run in runs]
    groups: list[list[int]] = []
    for i, own in enumerate(settings):
        for group in groups:
            if settings[group[0]] == own:
                group.append(i)
                break
        else:
            groups.append([i])
    short = [_name(runs[g[0]].config) for g in groups]
    named: dict[str, list[int]] = {}
    for name, group in zip(short, groups, strict=True):
        twins = [settings[g[0]] for n, g in zip(short, groups, strict=True) if n == name]
        own = settings[group[0]]
        keys = sorted(k for k in own if any(twin.get(k) != own[k] for twin in twins))
        shown = ", ".join(f"{k}={Path(str(own[k])).name if k == 'weights' else own[k]}" for k in keys[:3])
        full = f"{name} ({shown})" if shown else name
        while full in named:
            full += f" [{runs[group[0]].path.name}]"
        named[full] = group
    return named


def _name(config: dict[str, Any]) -> str:
    """Model and strategy; weights that were never trained are said, for such a run says nothing of the architecture."""
    name = f"{config.get('model', '?')} {config.get('strategy', '?')}"
    return f"{name} (random weights)" if config.get("weights") == "none" else name
