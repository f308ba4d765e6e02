"""Images as a run's backbone sees them: their features, a map of them, and which are alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.sentences import counted
from roclab.vision.data.sources import SPLIT_NAMES, clean
from roclab.vision.evaluate.evaluate import find_images, without_labels
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import load_model
from roclab.vision.models.inference import cached_features, head_probs
from roclab.vision.models.weights import state_sha256

logger = logging.getLogger(__name__)

COMPONENTS = 50  # principal ones, from which t-SNE starts: as many as its author used
PERPLEXITY = 30
BLOCK = 2**24  # similarities computed at once, 64 MB


@dataclass
class Embedding:
    """N images with their features and the run's predictions."""

    paths: list[Path]
    labels: list[str]  # of the folder that an image lies in; "" where there is none
    features: np.ndarray  # (N, D) float32
    probs: np.ndarray  # (N, C)
    classes: list[str]

    @property
    def predictions(self) -> list[str]:
        return [self.classes[i] for i in self.probs.argmax(1)]


def embed(
    run: Path, paths: Sequence[Path], skip_bad: bool = False, device: str | None = None, new_only: bool = False
) -> Embedding:
    """The features of images, or of all images in folders, under a finished run's backbone and evaluation transform.

    They are cached as those of training are. With `new_only` the run's own images, of all splits, are left out by the
    hash of their bytes. Raises `RocLabError` for an exported model, which gives none, for images as `predict` does, and
    where none is left.
    """
    opened = VisionRun.open(run)
    _ = opened.training  # raises if the run is not finished
    images = without_labels(find_images(paths, skip_bad))
    if new_only:
        own = {sha256 for sha256, _ in opened.images("train", "val", "test")}
        given, images = len(images), [image for image in images if image.sha256 not in own]
        if not images:
            raise RocLabError(f"all images given are {run}'s own ({given}), with labels: give others")
        if len(images) < given:
            logger.info(f"left out, as they are {run}'s own: {counted(given - len(images), 'image')}")
    model, classes, image_size = load_model(opened, device=device)
    if opened.finetuned:  # the cache's key: its backbone is no longer that of the weights it began from
        model.weights_id = f"{model.name}:trained:{state_sha256(model.backbone_state())}"
    features, _ = cached_features(model, images, image_size, backend=opened.config.get("backend", "auto"))
    files = [image.path for image in images]
    labels = [label_by_folder(path, paths) for path in files]
    return Embedding(files, labels, features, head_probs(model, features), classes)


def label_by_folder(path: Path, named: Sequence[Path]) -> str:
    """The folder right below one of the folders named that an image lies in, a folder of a split not counted."""
    for folder in named:
        if folder.is_dir() and path.is_relative_to(folder):
            below = path.relative_to(folder).parts[:-1]
            names = below[1:] if below and below[0].lower() in SPLIT_NAMES else below
            return clean(names[0]) if names else ""
    return ""


def map_2d(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places (N, 2) in [0, 1] at which like features (N, D) lie close: t-SNE (van der Maaten and Hinton 2008) of the
    first principal components; of fewer than ten images, the first two components.

    Near neighbours mean something, distances between groups and the groups' sizes do not.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(features)
    if n < 3:
        return np.linspace(0, 1, n)[:, None] * np.ones(2)
    places = PCA(min(COMPONENTS if n >= 10 else 2, *features.shape), random_state=seed).fit_transform(features)
    if n >= 10:
        places = TSNE(perplexity=min(PERPLEXITY, (n - 1) / 3), init="pca", random_state=seed).fit_transform(places)
    places = places[:, :2] - places[:, :2].min(0)
    return places / max(float(places.max()), 1e-12)


def most_similar(features: np.ndarray, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """For each of N images the `count` others (fewer where there are not so many) whose features have the highest
    cosine with its own, best first: indices (N, K) and cosines (N, K)."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n, count = len(unit), min(count, len(unit) - 1)
    found = []
    for start in range(0, n, rows := max(1, BLOCK // n)):
        cosines = unit[start : start + rows] @ unit.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        found.append((best, np.take_along_axis(cosines, best, 1)))
    indices, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return indices, values
