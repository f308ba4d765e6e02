"""What the runs predicted for the same images: read from their folders, checked, and laid side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import file_sha256
from roclab.vision.evaluate.run_reader import Predictions, VisionRun, group_arms


@dataclass
class JointPredictions:
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

    def file(self, i: int) -> Path:
        """An image's file. Raises `DataError` if it is another than the one that was evaluated, `OSError` if none."""
        path = self.root / self.paths[i]
        if file_sha256(path) != self.sha256[i]:
            raise DataError(f"{path} has changed")
        return path

    @cached_property
    def predicted(self) -> np.ndarray:  # (R, N)
        return self.probs.argmax(2)

    @cached_property
    def wrong(self) -> np.ndarray:  # (R, N) bool
        return self.predicted != self.labels

    @cached_property
    def wrong_share(self) -> np.ndarray:  # (N,) of the runs
        return self.wrong.mean(0)

    @cached_property
    def loss(self) -> np.ndarray:  # (N,) nats: negative log-likelihood of the true class, mean over the runs
        given = self.probs[:, np.arange(len(self.labels)), self.labels]  # (R, N)
        return -np.log(np.clip(given, 1e-12, None)).mean(0)

    def by_loss(self, images: Iterable[int]) -> list[int]:
        """The images by their loss, highest first."""
        return sorted((int(i) for i in images), key=lambda i: (-self.loss[i], i))


def gather(
    runs: Sequence[VisionRun], split: str | None = None, data_root: str | os.PathLike | None = None
) -> JointPredictions:
    """Read the predictions of finished runs on one split, in the image order of the first.

    `split` None: test if every run has been evaluated on it, else val. Raises `RocLabError`, naming the run, if one is
    unfinished, has no predictions, was evaluated on other images or has other classes.
    """
    if not runs:
        raise RocLabError("no run was given: roclab vision errors RUN… --out DIR")
    if split not in (None, "val", "test"):
        raise RocLabError(f"--split {split}: choose val or test")
    paths = [run.path.resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise RocLabError(f"{run.path} was given twice")
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
    return JointPredictions(
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
        raise RocLabError(f"{run.path} has other classes than {first.path}: analyse them one by one")
    rows = own.rows_like(wanted)
    if rows is None:
        cut = split == "val" and run.config["seed"] != first.config["seed"]
        why = " (each seed cuts its own val images: evaluate them on test)" if cut else ""
        raise RocLabError(
            f"{run.path} was evaluated on other {split} images than {first.path}{why}: errors are compared on the same "
            "images only"
        )
    if (own.labels[rows] != wanted.labels).any():
        raise RocLabError(f"{run.path} has other labels than {first.path} for the same images")
    return own.probs[rows]
