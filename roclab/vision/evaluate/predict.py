"""What a trained run sees in images it has never met."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import DataError
from roclab.core.runs import Run
from roclab.vision.cluster import check_engine, predict_over_cluster
from roclab.vision.data.images import inspect_images
from roclab.vision.evaluate.evaluate import predict_probs, to_device
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.checkpoint import load_model


def predict(
    run: Run, paths: Sequence[Path], top: int = 5, engine: str = "local", skip_bad: bool = False
) -> list[dict[str, Any]]:
    """The `top` classes of each image with their probabilities; folders are searched for images.

    Returns one {"path", "predictions": [{"class", "probability"}, …]} a image, in order. A image that cannot be read
    raises `DataError` that names it; with `skip_bad` it is named on stderr and left out. `engine` "ray" spreads the
    images over a Ray cluster. Raises `RocLabError` if the run is not finished.
    """
    check_engine(engine)
    _ = VisionRun(run.path, run.config).training  # raises if the run is not finished
    images = find_images(paths)
    if skip_bad:
        checks = inspect_images(images)
        for check in checks:
            if check.error:
                print(f"left out {check.path}: {check.error}", file=sys.stderr)
        images = [check.path for check in checks if not check.error]
        if not images:
            raise DataError("none of the images can be read")
    if engine == "ray":
        probs, classes = predict_over_cluster(run, images)
    else:
        model, classes, image_size = load_model(run)
        probs = predict_probs(to_device(model, run.config.get("device", "auto")), images, image_size)
    found = []
    for path, row in zip(images, probs, strict=True):
        best = row.argsort(kind="stable")[::-1][:top]
        found.append(
            {
                "path": str(path),
                "predictions": [{"class": classes[int(i)], "probability": float(row[i])} for i in best],
            }
        )
    return found


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images named, and those in the folders named (at any depth, in order of their names)."""
    from roclab.vision.data.images import EXTENSIONS

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
