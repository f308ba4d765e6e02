"""What two classes that are confused have in common, from the data alone: species, colour, and a network's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.vision.data.dataset import labels_of
from roclab.vision.error_analysis.gather import JointPredictions
from roclab.vision.models.classifier import load_model
from roclab.vision.models.inference import dataset_features


def pair_name(row: Mapping[str, Any]) -> str:
    return f"{row['a']} / {row['b']}"


def add_likeness(
    rows: Sequence[dict[str, Any]], joint: JointPredictions, colours: Mapping[str, list[float]], with_features: bool
) -> None:
    """Write into each row, a pair of classes, how alike the two are: `same_species` (None where the data do not say),
    and `colour_closer` and `features_closer`, the share of all other pairs of classes that lie further apart: in the
    mean colour of their images, and in the mean of a frozen backbone's features over training and validation images.
    """
    places = {"colour": (list(colours), np.array(list(colours.values())))}
    run = next((run for run in joint.runs if not run.finetuned and run.config.get("weights") != "none"), None)
    if with_features and rows and run:
        with suppress(RocLabError, OSError):  # the images are elsewhere: nothing is said
            places["features"] = (joint.classes, _class_means(joint, run))
    species = joint.species or {}
    for row in rows:
        kinds = [species.get(row[side]) for side in "ab"]
        row["same_species"] = None if None in kinds else kinds[0] == kinds[1]
        for name, (classes, means) in places.items():
            row[f"{name}_closer"] = closer_than(classes, means, row["a"], row["b"])


def closer_than(classes: Sequence[str], means: np.ndarray, a: str, b: str) -> float | None:
    """The share of the other pairs of classes whose means (C, D) lie further apart than those of `a` and `b`; None
    if a class has no mean, or there are fewer than ten other pairs."""
    if a not in classes or b not in classes or len(classes) < 6:
        return None
    gaps = np.linalg.norm(means[:, None] - means[None], axis=2)
    own = gaps[classes.index(a), classes.index(b)]
    others = gaps[np.triu_indices(len(classes), 1)]
    return float((others > own).sum() / (len(others) - 1))


def _class_means(joint: JointPredictions, run: Any) -> np.ndarray:
    """The mean of each class's standardised features (C, D), which a frozen run's training left in the cache."""
    model, _, size = load_model(run)
    dataset = run.dataset(str(joint.root))
    found, _ = dataset_features(model, dataset, size, backend=run.config.get("backend", "auto"))
    features = np.concatenate([found["train"], found["val"]])
    labels = np.concatenate([labels_of(dataset.split(split)) for split in ("train", "val")])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return np.stack([features[labels == label].mean(0) for label in range(len(joint.classes))])
