"""What the runs predicted for the same images: read from their folders, checked, and laid side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import file_sha256
from roclab.vision.data.dataset import find_root
from roclab.vision.evaluate.pairs import above_chance
from roclab.vision.evaluate.run_reader import VisionRun, group_arms, side_by_side


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

    @cached_property
    def predicted_by_arm(self) -> dict[str, np.ndarray]:  # (N,) each, from the mean probabilities of the arm's runs
        return {name: self.probs[rows].mean(0).argmax(1) for name, rows in self.arms.items()}

    @cached_property
    def wrong_by_arm(self) -> dict[str, np.ndarray]:  # (N,) bool each
        return {name: predicted != self.labels for name, predicted in self.predicted_by_arm.items()}

    def of_arms(self, names: Sequence[str]) -> JointPredictions:
        """The runs of these arms alone."""
        rows = [row for name in names for row in self.arms[name]]
        arms = {name: [rows.index(row) for row in self.arms[name]] for name in names}
        return replace(self, probs=self.probs[rows], runs=[self.runs[row] for row in rows], arms=arms)

    def left_out(self) -> dict[str, str]:
        """The arms whose errors would only blur those of the others, and why: "chance", if it is not shown to be above
        chance; "random", if it began from random weights and another did not; else the arm that predicts the same (a
        fine-tuned one that kept its starting head)."""
        found: dict[str, str] = {}
        for name, rows in self.arms.items():
            if not above_chance((~self.wrong[rows]).mean(0), self.labels):
                found[name] = "chance"
        able = [name for name in self.arms if name not in found]
        random = {name for name in able if self.runs[self.arms[name][0]].config.get("weights") == "none"}
        if len(random) < len(able):
            found |= dict.fromkeys(random, "random")
        for i, name in enumerate(able):
            for other in able[:i]:
                ours, others = self.probs[self.arms[name]], self.probs[self.arms[other]]
                if name not in found and ours.shape == others.shape and np.allclose(ours, others, atol=1e-3):
                    found[name] = other
        return found

    def by_loss(self, which: np.ndarray, most: int) -> list[int]:
        """Of the images `which` (N,) bool, the `most` with the highest loss, that one first."""
        return sorted((int(i) for i in np.flatnonzero(which)), key=lambda i: (-self.loss[i], i))[:most]


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
        untested = [run.path.name for run in runs if all(row[0] != "test" for row in run.prediction_rows())]
        split = "val" if untested else "test"
        if 0 < len(untested) < len(runs):
            notes.append(
                f"{len(runs) - len(untested)} of {len(runs)} runs have been evaluated on test, {untested[0]} among "
                "others has not: all of them are shown on val"
            )
    first, probs = side_by_side(runs, split)
    return JointPredictions(
        split=split,
        classes=list(runs[0].manifest["classes"]),
        species=runs[0].manifest.get("species"),
        root=find_root(runs[0].manifest, data_root),
        paths=first.paths,
        sha256=first.sha256,
        labels=first.labels,
        probs=probs,
        runs=list(runs),
        arms={name: [paths.index(run.path.resolve()) for run in arm] for name, arm in group_arms(runs).items()},
        notes=notes,
    )
