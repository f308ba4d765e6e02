"""Finished runs without training: the folders that `train` and `evaluate` leave, with the predictions a test wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roclab.core.files import write_json
from roclab.vision.data.dataset import load_data
from roclab.vision.error_analysis.gather import JointPredictions
from roclab.vision.evaluate.evaluate import write_predictions
from roclab.vision.evaluate.run_reader import VisionRun


def finished_run(
    path: Path, images: Path, seed: int = 0, accuracy: float = 0.8, drawn: int | None = None, **config: object
) -> VisionRun:
    """A run over a folder of images whose val and test calls are right with this probability, drawn from `drawn`, or
    from its seed."""
    dataset = load_data(str(images), seed=seed)
    write_json(path / "split.json", dataset.manifest())
    about = {"model": "test_resnet", "strategy": "features", "seed": seed, "data": str(images)}
    run = VisionRun.create(path, about | {"image_size": 64, "epochs": 1} | config)
    for split, listed in (("val", dataset.split("val")), ("test", dataset.test(opened_by="evaluate"))):
        labels = np.array([image.label for image in listed])
        probs = random_probs(
            np.random.default_rng(seed if drawn is None else drawn), labels, len(dataset.classes), accuracy
        )
        write_predictions(run, split, listed, probs, dataset.classes)
    write_json(path / "training.json", {})
    return run


def random_probs(rng: np.random.Generator, labels: np.ndarray, classes: int, accuracy: float) -> np.ndarray:
    """(N, C): confidence near `accuracy` in a call that is right so often, and else in any other class."""
    n = len(labels)
    called = np.where(rng.random(n) < accuracy, labels, (labels + rng.integers(1, classes, n)) % classes)
    sure = np.clip(accuracy + rng.normal(0, 0.02, n), 1.1 / classes, 0.99)
    probs = np.repeat(((1 - sure) / (classes - 1))[:, None], classes, axis=1)
    probs[np.arange(n), called] = sure
    return probs


def joint_predictions(
    labels: np.ndarray, probs: np.ndarray, arms: dict[str, list[int]], **more: object
) -> JointPredictions:
    """Predictions (R, N, C) as `gather` would have read them, of images that lie nowhere."""
    classes = [f"class {i}" for i in range(probs.shape[2])]
    names = [f"image-{i}.jpg" for i in range(len(labels))]
    seeds = {row: at for rows in arms.values() for at, row in enumerate(rows)}
    runs = [VisionRun(f"run-{row}", {"seed": seeds[row]}) for row in range(len(probs))]
    values: dict = {"split": "test", "classes": classes, "species": None, "root": Path("nowhere"), "paths": names}
    values |= {"sha256": names, "labels": labels, "probs": probs, "runs": runs, "arms": arms}
    return JointPredictions(**(values | more))
