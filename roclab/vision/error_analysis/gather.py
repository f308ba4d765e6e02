"""What the runs said about the images: read from their folders, checked, and laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.vision.evaluate.run_reader import Predictions, VisionRun, group_arms


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
    runs: list[VisionRun]
    arms: dict[str, list[int]]  # name -> its rows in `runs`: the same model and settings under several seeds
    notes: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> np.ndarray:  # (R, N)
        return self.probs.argmax(2)

    @property
    def wrong(self) -> np.ndarray:  # (R, N) bool
        return self.predicted != self.labels


def gather(runs: Sequence[VisionRun], split: str | None = None, data_root: str | None = None) -> Judged:
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
        _ = run.training  # raises if the run was cut
    notes = []
    if split is None:
        tested = [run for run in runs if "test" in run.predicted_splits()]
        split = "test" if len(tested) == len(runs) else "val"
        if tested and split == "val":
            untested = next(run for run in runs if run not in tested)
            notes.append(
                f"{len(tested)} of {len(runs)} runs have been evaluated on test, {untested.path.name} among others has "
                "not: all of them are shown on val"
            )
    read = [run.predictions(split) for run in runs]
    probs = [_in_order_of(runs[0], read[0], run, own, split) for run, own in zip(runs, read, strict=True)]
    rows = {id(run): row for row, run in enumerate(runs)}
    return Judged(
        split=split,
        classes=list(runs[0].manifest["classes"]),
        species=runs[0].manifest.get("species"),
        root=runs[0].root(data_root),
        paths=read[0].paths,
        sha256=read[0].sha256,
        labels=read[0].labels,
        probs=np.stack(probs),
        runs=list(runs),
        arms={name: [rows[id(run)] for run in members] for name, members in group_arms(runs).items()},
        notes=notes,
    )


def _in_order_of(first: VisionRun, wanted: Predictions, run: VisionRun, own: Predictions, split: str) -> np.ndarray:
    """Probabilities (N, C) of `run` in the image order of the first run."""
    if run.manifest["classes"] != first.manifest["classes"]:
        raise RocLabError(f"{run.path} tells other classes apart than {first.path}: judge them one by one")
    row_of = {key: row for row, key in enumerate(own.keys)}
    if row_of.keys() != set(wanted.keys):
        cut = split == "val" and run.config["seed"] != first.config["seed"]
        why = " (each seed cuts its own val images: evaluate them on test)" if cut else ""
        raise RocLabError(
            f"{run.path} was judged on other {split} images than {first.path}{why}: errors are compared on the same "
            "images only"
        )
    rows = [row_of[key] for key in wanted.keys]
    if (own.labels[rows] != wanted.labels).any():
        raise RocLabError(f"{run.path} has other labels than {first.path} for the same images")
    return own.probs[rows]
