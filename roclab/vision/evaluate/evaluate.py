"""Predictions of a trained run: on its validation or test images, with what they are worth, and on any images.

The test split is opened here and nowhere else; the run then says so in `test_opened.json`.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import atomic_write, file_sha256, read_json, write_json
from roclab.core.runs import Run
from roclab.vision.config import run_config
from roclab.vision.data.dataset import Dataset, LabelledImage, labelled_images, labels_of
from roclab.vision.data.files import inspect_files, is_image, printable, walk
from roclab.vision.data.images import in_threads
from roclab.vision.evaluate.metrics import classification_metrics, epochs_to_convergence
from roclab.vision.evaluate.run_reader import COLUMNS, VisionRun
from roclab.vision.models.classifier import load_model
from roclab.vision.models.exported import exported_file, open_exported
from roclab.vision.models.inference import cached_features, dataset_features, head_probs, predict_probs

logger = logging.getLogger(__name__)

CHUNK = 256  # images of a task on a cluster


def evaluate(
    run: Run,
    split: str = "val",
    training: dict[str, Any] | None = None,
    data_root: str | None = None,
    device: str | None = None,
    tta: bool = False,
) -> dict[str, Any]:
    """Evaluate a run on `split` ("val" or "test"): writes predictions.csv and results-SPLIT.json, returns the latter.

    With `tta` (each image's mean with its mirror image) it writes results-SPLIT-tta.json alone: what compares and
    reports runs reads the plain figures.

    `training` is what training.json will hold, given by `train` before it has written it; `data_root` says where the
    images are now if they have moved; `device`, where to compute, if not where the run was trained.

    Raises `RocLabError`, before anything is written, if the run is damaged, its training did not finish or the images
    are not where they were.
    """
    if split not in ("val", "test"):
        raise RocLabError(f"--split {split}: choose val or test (the training images tell nothing about new ones)")
    run = VisionRun(run.path, run.config)
    config = run_config(run)
    training = training if training is not None else run.training
    mark = {"tta": True} if tta else {}
    run.prediction_rows()  # the other split's rows are kept: a damaged table is named before the test images are opened
    dataset = run.dataset(data_root)
    if split == "test":
        images = dataset.test(opened_by="evaluate")
        _record_opening(run, len(images), **mark)
    else:
        images = dataset.split("val")
    if not images:
        raise RocLabError(f"{run.path}: its data has no {split} images")
    probs = run_probs(run, dataset, images, split, device, tta)
    if not tta:
        write_predictions(run, split, images, probs, dataset.classes)
    measured = ("best_epoch", "mean_train_seconds_per_epoch", "images_per_second", "peak_memory_mb")
    found = {
        "split": split,
        **mark,
        **classification_metrics(labels_of(images), probs, dataset.classes),
        "epochs_to_convergence": epochs_to_convergence(run.metrics()) if run.finetuned else None,
        **{name: training.get(name) for name in measured},
        **{name: getattr(config, name) for name in ("model", "strategy", "seed")},
    }
    write_json(run.path / f"results-{split}{'-tta' if tta else ''}.json", found)
    return found


def _record_opening(run: Run, images: int, **more: Any) -> None:
    """Note in the run's test_opened.json that so many of its test images are read now."""
    path = run.path / "test_opened.json"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    opening = {"time": now, "by": "evaluate", "images": images} | more
    write_json(path, [*(read_json(path) if path.exists() else []), opening])


def evaluate_on(
    run: VisionRun,
    data: str,
    data_root: str | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    tta: bool = False,
) -> dict[str, Any]:
    """Evaluate a finished run on all images of other data, labelled by the names of the run's classes. `trained_on`:
    how many of the images training has seen; `tested_on`: how many are the run's own test images, whose reading it
    notes. Nothing else in the run changes."""
    _ = run.training  # raises if the run is not finished
    model, classes, image_size = load_model(run, device=device)
    images = labelled_images(data, data_root, classes, skip_bad)
    split_of = {row["sha256"]: row["split"] for row in run.manifest["images"]}
    splits = [split_of.get(image.sha256) for image in images]
    if tested := splits.count("test"):
        _record_opening(run, tested, data=data)
    backend = run.config.get("backend", "auto")
    probs = predict_probs(model, [image.path for image in images], image_size, backend, tta)
    return {
        "split": data,
        **({"tta": True} if tta else {}),
        "trained_on": splits.count("train") + splits.count("val"),
        "tested_on": tested,
        **classification_metrics(labels_of(images), probs, classes),
        **{name: run.config[name] for name in ("model", "strategy", "seed")},
    }


def run_probs(
    run: Run,
    dataset: Dataset,
    images: Sequence[LabelledImage],
    split: str,
    device: str | None = None,
    tta: bool = False,
) -> np.ndarray:
    """Class probabilities (N, C) of the run's model for the images of a split; with `tta` as in `predict_probs`.

    A frozen backbone's features are looked up (or computed and cached), so five seeds need one pass over the test
    images.
    """
    model, _, image_size = load_model(run, split, device)
    backend = run.config.get("backend", "auto")
    if run.config["strategy"] == "finetune":
        return predict_probs(model, [image.path for image in images], image_size, backend, tta)
    views = []
    for view in (0, 1) if tta else (0,):
        if split == "val":
            features = dataset_features(model, dataset, image_size, view, backend)[0]["val"]
        else:
            features, _ = cached_features(model, images, image_size, view, backend=backend)
        views.append(head_probs(model, features))
    return np.mean(views, axis=0)


def write_predictions(
    run: VisionRun, split: str, images: Sequence[LabelledImage], probs: np.ndarray, classes: Sequence[str]
) -> None:
    """Put the split's rows into predictions.csv (split, path, true, predicted, one probability per class)."""
    kept = [row for row in run.prediction_rows() if row[0] != split]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"p({name})" for name in classes)])
    table.writerows(kept)
    for image, row in zip(images, probs, strict=True):
        values = (f"{p:.6g}" for p in row)
        table.writerow([split, str(image.path), classes[image.label], classes[int(row.argmax())], *values])
    atomic_write(run.path / "predictions.csv", out.getvalue())


def predict(
    run: Path,
    paths: Sequence[Path],
    top: int = 5,
    engine: str = "local",
    skip_bad: bool = False,
    device: str | None = None,
    tta: bool = False,
) -> list[dict[str, Any]]:
    """The `top` classes of each image with their probabilities; folders are searched for images. `run` is a run's
    folder, or what `roclab vision export` wrote.

    Returns one {"path", "predictions": [{"class", "probability"}, …]} an image, in order. An image that cannot be read
    raises `DataError` that names it; with `skip_bad` it is logged and left out. `engine` "ray" spreads the images over
    a Ray cluster; `device`: where to compute, if not where the run was trained; `tta` as in `predict_probs`. Raises
    `RocLabError` if the run is not finished.
    """
    check_engine(engine)
    if exported_file(run) is None:
        _ = VisionRun.open(run).training  # raises if the run is not finished
    elif tta or device not in (None, "auto", "cpu"):
        other = "an exported model sees each image once" if tta else "an exported model is computed on the CPU"
        raise RocLabError(f"{'--tta' if tta else f'--device {device}'}: {other}")
    images = find_images(paths, skip_bad)
    probs_of = partial(_probs, run.resolve(), device, tta)
    if engine == "ray":
        absolute = [path.resolve() for path in images]
        parts = map_over_cluster(probs_of, [absolute[i : i + CHUNK] for i in range(0, len(absolute), CHUNK)])
    else:
        parts = [probs_of(images)]
    found = []
    for path, row in zip(images, np.concatenate([probs for _, probs in parts]), strict=True):
        best = row.argsort(kind="stable")[::-1][:top]
        predictions = [{"class": parts[0][0][int(i)], "probability": float(row[i])} for i in best]
        found.append({"path": str(path), "predictions": predictions})
    return found


def _probs(run: Path, device: str | None, tta: bool, paths: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """Class names and probabilities (N, C) of images."""
    if file := exported_file(run):
        exported = open_exported(file)
        return exported.classes, exported.probs(paths)
    opened = Run.open(run)
    model, classes, image_size = load_model(opened, device=device)
    return classes, predict_probs(model, paths, image_size, opened.config.get("backend", "auto"), tta)


def without_labels(files: Sequence[Path]) -> list[LabelledImage]:
    """Images of no class and no split, with their hashes."""
    hashes = in_threads(file_sha256, files, "reading images")
    return [LabelledImage(path, -1, "", sha256) for path, sha256 in zip(files, hashes, strict=True)]


def find_images(paths: Sequence[Path], skip_bad: bool = False) -> list[Path]:
    """The images named, and those in the folders named (at any depth, in order of their names). With `skip_bad` every
    one is opened, and those that cannot be read are logged and left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = list(filter(is_image, walk(path)))
            if not inside:
                raise DataError(f"{path}: there are no images in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such image or folder")
    if not skip_bad:
        return found
    checks = inspect_files(found)
    for check in checks:
        if check.error:
            logger.info(f"left out {printable(check.path)}: {check.error}")
    found = [check.path for check in checks if not check.error]
    if not found:
        raise DataError("none of the images can be read")
    return found
