"""The classes that a trained run predicts for any images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.exceptions import DataError
from roclab.core.runs import Run
from roclab.vision.data.images import EXTENSIONS, inspect_images
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import load_model
from roclab.vision.models.inference import predict_probs

logger = logging.getLogger(__name__)

CHUNK = 256  # images of a task on a cluster


def predict(
    run: Run, paths: Sequence[Path], top: int = 5, engine: str = "local", skip_bad: bool = False
) -> list[dict[str, Any]]:
    """The `top` classes of each image with their probabilities; folders are searched for images.

    Returns one {"path", "predictions": [{"class", "probability"}, …]} an image, in order. An image that cannot be read
    raises `DataError` that names it; with `skip_bad` it is logged and left out. `engine` "ray" spreads the images over
    a Ray cluster. Raises `RocLabError` if the run is not finished.
    """
    check_engine(engine)
    _ = VisionRun(run.path, run.config).training  # raises if the run is not finished
    images = find_images(paths)
    if skip_bad:
        checks = inspect_images(images)
        for check in checks:
            if check.error:
                logger.info(f"left out {check.path}: {check.error}")
        images = [check.path for check in checks if not check.error]
        if not images:
            raise DataError("none of the images can be read")
    probs_of = partial(_probs, run.path.resolve())
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


def _probs(run: Path, paths: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """Class names and probabilities (N, C) of images."""
    model, classes, image_size = load_model(Run.open(run))
    return classes, predict_probs(model, paths, image_size)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images named, and those in the folders named (at any depth, in order of their names)."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise DataError(f"{path}: there are no images in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such image or folder")
    return found
