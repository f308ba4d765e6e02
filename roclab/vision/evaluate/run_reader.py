"""The one reader of a finished vision run: comparison, error analysis, report and hand-in look at runs through it."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json
from roclab.core.runs import Run
from roclab.vision.config import DEFAULTS
from roclab.vision.data.dataset import Dataset, read_manifest
from roclab.vision.evaluate.metrics import epochs_to_convergence
from roclab.vision.models.exported import FILES, exported_file

COLUMNS = ["split", "path", "true", "predicted"]  # of predictions.csv, before one probability for each class
MODELS = {"resnet50": "ResNet-50", "swin_t": "Swin-T"} | {
    f"efficientnet_lite{n}": f"EfficientNet-Lite{n}" for n in range(3)
}
STRATEGIES = {"features": "frozen", "finetune": "fine-tuned"}
# Of a run's config: its seed, where its images lie and where it was trained. Everything else makes the arm.
NOT_THE_ARM = {"seed", "data", "data_root", "mirror", "workers", "device", "backend"}
KEPT_START = "kept its starting head"
BY_BUDGET = {"epochs", "image_size"}  # what --budget decides by measuring: it may differ from seed to seed


@dataclass(frozen=True)
class Predictions:
    """What a run predicted for the N images of one split, in the order of split.json."""

    paths: list[str]  # (N,) as split.json has them
    sha256: list[str]  # (N,)
    labels: np.ndarray  # (N,) integers
    probs: np.ndarray  # (N, C)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """The same for the same image in every run, wherever the images lie; copies of one file are counted through."""
        copies: dict[str, count[int]] = defaultdict(count)
        return [(sha256, next(copies[sha256])) for sha256 in self.sha256]


class VisionRun(Run):
    """A run of `roclab vision train`, finished or cut. `name` and `ref` (R1, R2 …) are what a report calls it."""

    def __init__(self, path: str | os.PathLike, config: dict[str, Any]):
        super().__init__(path, config)
        self.name = self.path.resolve().name
        self.ref = ""

    @classmethod
    def open(cls, path: str | os.PathLike) -> VisionRun:
        """Raises `RocLabError` saying what is missing or damaged."""
        file = None if (Path(path) / "config.json").exists() else exported_file(Path(path))
        if file and file.suffix in {Path(name).suffix for name in FILES.values()}:
            raise RocLabError(f"{path} is an exported model, not a run: name the run it was made from")
        run = cls(path, Run.open(path).config)
        if missing := sorted({"model", "strategy", "seed"} - set(run.config)):
            lacks = f"its config.json lacks {', '.join(missing)}"
            raise RocLabError(f"{path} is not a run of `roclab vision train`: {lacks}")
        return run

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """split.json: the images with their hashes, labels and splits, and where they came from."""
        return read_manifest(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    @property
    def finished(self) -> bool:
        """Training came to its end: it writes training.json last."""
        return (self.path / "training.json").exists()

    @property
    def training(self) -> dict[str, Any]:
        """What training measured; raises `RocLabError` if it was cut."""
        if not self.finished:
            raise RocLabError(f"{self.path}: its training was not finished; go on with --resume {self.path}")
        return read_json(self.path / "training.json")

    @property
    def finetuned(self) -> bool:
        """Its metrics have a row an epoch; those of a frozen backbone have a row a step of the head's solver."""
        return self.config["strategy"] == "finetune"

    @property
    def kept_start(self) -> bool:
        """Fine-tuning kept the trained head it began with: no epoch was better on the validation images."""
        return self.finetuned and self.finished and self.training.get("best_epoch") == 0

    @property
    def cut_solver(self) -> int | None:
        """The steps after which an older version cut the head's solver, converged or not; None where it did not."""
        steps = None if self.finetuned else self.config.get("epochs")
        return steps if steps and len(self.metrics()) == steps else None

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of the epochs that were trained; none with a frozen backbone."""
        return [row for row in self.metrics() if row["epoch"]] if self.finetuned else []

    def cost(self) -> dict[str, float | None]:
        """What training took, validation not counted. `head_seconds`: extraction of the features and training of the
        head, which all of a frozen run is, and what fine-tuning began with. An epoch is fine-tuning's."""
        seconds = [row["train_seconds"] for row in self.epochs]
        head = sum(self.training.get(name, 0.0) for name in ("feature_seconds", "head_seconds"))
        return {
            "head_seconds": head,
            "mean_train_seconds_per_epoch": sum(seconds) / len(seconds) if seconds else None,
            "train_seconds": head + sum(seconds),
            "epochs_to_convergence": epochs_to_convergence(self.metrics()) if self.finetuned else None,
        }

    def has_results(self, split: str) -> bool:
        return (self.path / f"results-{split}.json").exists()

    def results(self, split: str) -> dict[str, Any]:
        """What `evaluate` found on a split."""
        return read_json(self.path / f"results-{split}.json")

    def images(self, *splits: str) -> set[tuple[str, int]]:
        """Hash and label of each image of the splits."""
        return {(image["sha256"], image["label"]) for image in self.manifest["images"] if image["split"] in splits}

    def dataset(self, data_root: str | None = None) -> Dataset:
        """The run's images in the run's own split, each still the file it was."""
        return Dataset.from_manifest(self.manifest, data_root)

    # ---- predictions.csv

    def prediction_rows(self) -> list[list[str]]:
        """The rows of predictions.csv, none where there is no such file; raises `RocLabError` for a damaged one."""
        path = self.path / "predictions.csv"
        try:
            with open(path, newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RocLabError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, csv.Error):  # not UTF-8, empty, or not a table
            raise self._damaged("it is not a table of predictions") from None
        if head[: len(COLUMNS)] != COLUMNS:
            raise self._damaged("its first line is not that of a table of predictions")
        if wrong := next((i for i, row in enumerate(rows, start=2) if len(row) != len(head)), None):
            raise self._damaged(f"row {wrong} has not the columns of the first")
        return rows

    def predictions(self, split: str) -> Predictions:
        """Raises `RocLabError` if the split was not evaluated, or predictions.csv does not fit the run's images."""
        path = self.path / "predictions.csv"
        again = f"run `roclab vision evaluate {self.path} --split {split}`"
        if not path.exists():
            raise RocLabError(f"{path} is missing: {again} first")
        rows = [row for row in self.prediction_rows() if row[0] == split]
        if not rows:
            raise RocLabError(f"{path} has no {split} rows: {again} first")
        unfit = RocLabError(f"{path} does not fit the run's split.json: {again} again")
        try:
            index = {name: i for i, name in enumerate(self.manifest["classes"])}
            listed = [(image["path"], image["sha256"]) for image in self.manifest["images"] if image["split"] == split]
        except (KeyError, TypeError):
            raise unfit from None
        try:
            labels = np.array([index[row[2]] for row in rows])
            probs = np.array([[float(value) for value in row[4:]] for row in rows])
        except (KeyError, ValueError):
            raise self._damaged(f"its {split} rows do not fit the run's classes") from None
        # `evaluate` writes the images in the order of split.json
        if len(rows) != len(listed) or probs.shape != (len(rows), len(index)) or not np.isfinite(probs).all():
            raise unfit
        if any(not row[1].replace("\\", "/").endswith(name) for row, (name, _) in zip(rows, listed, strict=True)):
            raise unfit
        paths, hashes = (list(column) for column in zip(*listed, strict=True))
        return Predictions(paths, hashes, labels, probs)

    def _damaged(self, why: str) -> RocLabError:
        return RocLabError(
            f"{self.path / 'predictions.csv'} is damaged ({why}): delete it and run `roclab vision evaluate "
            f"{self.path}` for each split again"
        )

    # ---- arms

    @property
    def label(self) -> str:
        """Model and strategy in words, such as "ResNet-50, fine-tuned". Weights that were never trained are named: such
        a run says nothing about the architecture with pretrained weights. So is a head whose solver was cut."""
        words = label_of(self.config["model"], self.config["strategy"])
        words = _noted(words, "random weights") if self.config.get("weights") == "none" else words
        return _noted(words, f"solver cut at {self.cut_solver} steps") if self.cut_solver else words

    @cached_property
    def arm(self) -> dict[str, Any]:
        """What two runs share that differ in their seed alone: every setting but its default, the weights they began
        from (by the hash of their values), and the images with their labels and the test split."""
        digest = str(self.provenance.get("hashes", {}).get("weights", "")).rsplit(":", 1)[-1]
        aside = NOT_THE_ARM | (BY_BUDGET if self.config.get("budget") else set())
        settings = {
            name: value for name, value in self.config.items() if name not in aside and value != DEFAULTS.get(name)
        }
        if len(digest) == 64 and settings.get("weights") != "none":  # random weights follow from the seed
            settings["weights"] = digest
        if not self.finetuned:  # a solver has no epochs, unless an older version took them as its bound
            settings["epochs"] = self.cut_solver
        drawn = bool(self.config.get("per_class"))  # then each seed draws its own training images
        images = [i for i in self.manifest["images"] if i["split"] == "test" or not drawn]
        rows = sorted((i["sha256"], i["label"], i["split"] == "test") for i in images)
        return settings | {"images": hashlib.sha256(repr(rows).encode()).hexdigest()}


def label_of(model: str, strategy: str) -> str:
    """Model and strategy in words."""
    return f"{model_name(model)}, {STRATEGIES.get(strategy, strategy)}"


def model_name(model: str) -> str:
    """An architecture as readers know it."""
    return MODELS.get(model, model)


def side_by_side(runs: Sequence[VisionRun], split: str) -> tuple[Predictions, np.ndarray]:
    """What the first run predicted, and the probabilities (R, N, C) of all runs in its image order.

    Raises `RocLabError`, naming the run, if one has no predictions of the split, was evaluated on other images or has
    other classes.
    """
    read = [run.predictions(split) for run in runs]
    first, wanted, probs = runs[0], read[0], []
    for run, own in zip(runs, read, strict=True):
        if run.manifest["classes"] != first.manifest["classes"]:
            raise RocLabError(f"{run.path} has other classes than {first.path}: analyse them one by one")
        row_of = {key: row for row, key in enumerate(own.keys)}
        if row_of.keys() != set(wanted.keys):
            cut = split == "val" and run.config["seed"] != first.config["seed"]
            why = " (each seed cuts its own val images: evaluate them on test)" if cut else ""
            raise RocLabError(
                f"{run.path} was evaluated on other {split} images than {first.path}{why}: predictions are compared on "
                "the same images only"
            )
        rows = [row_of[key] for key in wanted.keys]
        if (own.labels[rows] != wanted.labels).any():
            raise RocLabError(f"{run.path} has other labels than {first.path} for the same images")
        probs.append(own.probs[rows])
    return wanted, np.stack(probs)


def group_arms(runs: Sequence[VisionRun]) -> dict[str, list[VisionRun]]:
    """The runs by arm: those that differ in their seed alone. Arms of one label are told apart by what differs, and an
    arm whose fine-tuning kept the head it began with is called that, wherever arms are named.

    A setting that a run lacks (an older version made it) counts as its default, where it has one.
    """
    groups: list[list[VisionRun]] = []
    for run in runs:
        same = next((group for group in groups if group[0].arm == run.arm), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    named: dict[str, list[VisionRun]] = {}
    for group in groups:
        first = group[0]
        twins = [other[0].arm for other in groups if other[0].label == first.label]
        keys = sorted({k for twin in twins for k in twin if any(t.get(k) != twin[k] for t in twins)})
        name = first.label
        if keys:
            name = _noted(name, ", ".join(_setting(first, key) for key in keys[:3]) + (", …" if len(keys) > 3 else ""))
        if kept := sum(run.kept_start for run in group):
            name = _noted(name, f"{f'{kept} of {len(group)} seeds ' if kept < len(group) else ''}{KEPT_START}")
        named[name if name not in named else f"{name} [{first.name}]"] = group
    return named


def _noted(name: str, words: str) -> str:
    """A name with more in its brackets."""
    return f"{name[:-1]}, {words})" if name.endswith(")") else f"{name} ({words})"


def _setting(run: VisionRun, key: str) -> str:
    """A setting in words: "lr 0.01", "weights mine.pth", "other images"."""
    if key == "images":
        return f"images of {run.manifest['name']}"
    value = run.config.get(key)
    words = Path(value).name if isinstance(value, str) else "default" if value is None else str(value)
    return f"{key.replace('_', ' ')} {words}"
