"""A network's outputs for many images: class probabilities, and features, which are kept for the next run."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from roclab.core.files import cache_folder, write_cache
from roclab.core.progress import track
from roclab.vision.data.dataset import Dataset, LabelledImage
from roclab.vision.data.images import open_image
from roclab.vision.data.loader import read_ahead
from roclab.vision.data.transforms import eval_crop, train_crop
from roclab.vision.models.backend import compute_features, pick_backend
from roclab.vision.models.classifier import Classifier

logger = logging.getLogger(__name__)

BATCH = 16  # images; also a chunk of the feature cache: the same images share a batch whatever was cached already
FORMAT = 2  # of the feature cache; raise it when the way features are computed changes


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C) float64 of logits (N, C)."""
    from scipy import special

    return special.softmax(logits.astype(np.float64), axis=1)


def predict_probs(
    model: Classifier, paths: Sequence[Path], image_size: int, backend: str = "auto", tta: bool = False
) -> np.ndarray:
    """Class probabilities (N, C) float64 of images under the evaluation transform, in the order given; with `tta`
    (test-time augmentation) their mean with those of the mirror images."""
    backend = pick_backend(model, len(paths), backend)
    plain = _reader(model, image_size)

    def mirrored(chunk: Sequence[Path]) -> np.ndarray:
        return np.ascontiguousarray(plain(chunk)[:, :, ::-1])

    views = []
    for read in (plain, mirrored) if tta else (plain,):
        features = _features(model, _chunks(paths), read, backend, "images")
        views.append(np.concatenate([head_probs(model, x) for x in features]))
    return np.mean(views, axis=0)


def head_probs(model: Classifier, features: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C) float64 of features (N, D)."""
    weight, bias = (value.detach().cpu().numpy() for value in (model.head.weight, model.head.bias))
    return softmax(features @ weight.T + bias)


def cached_features(
    model: Classifier,
    images: Sequence[LabelledImage],
    image_size: int,
    view: int = 0,
    flips: str = "horizontal",
    backend: str = "auto",
) -> tuple[np.ndarray, float]:
    """Features (N, D) float32 of the images under one view, and the seconds the backbone took (when it ran).

    View 0 is the evaluation transform; view 1 its mirror image (with `flips` "dihedral", views 1 to 7 are the square's
    other symmetries); any further view a random crop that is the same in every run. They are cached in chunks, so that
    a stopped extraction resumes, under a key of the model, its weights' hash, the backend, the transform and every
    image's hash.
    """
    backend = pick_backend(model, len(images), backend)
    key = {
        "format": [FORMAT, BATCH],
        "model": model.name,
        "weights": model.weights_id,
        "recipe": asdict(model.preprocessing),  # this name, so that caches stay valid
        "image_size": image_size,
        "view": [view, flips] if view > 1 else view,  # both kinds have the first two in common
        "images": [image.sha256 for image in images],
    } | ({"backend": backend} if backend != "torch" else {})  # which was the only one at first
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder, chunks = cache_folder("features") / digest, _chunks(images)
    seconds = 0.0
    with suppress(OSError, ValueError, TypeError):
        seconds = float(json.loads((folder / "seconds.json").read_text()))

    found: dict[int, np.ndarray] = {}
    for i, chunk in enumerate(chunks):
        with suppress(Exception):  # missing or damaged: computed again below
            values = load_file(folder / f"{i:05d}.safetensors")["features"].numpy()
            found |= {i: values} if len(values) == len(chunk) else {}
    if missing := [i for i in range(len(chunks)) if i not in found]:
        number = sum(len(chunks[i]) for i in missing)
        logger.info(f"features: {number} images, {model.name}, {image_size} px, view {view}, {backend}")
        read = _view_reader(model, image_size, view, flips)
        begin = time.perf_counter()
        outputs = _features(model, [chunks[i] for i in missing], read, backend, f"features (view {view})")
        for i, out in zip(missing, outputs, strict=True):
            found[i] = out
            write_cache(folder / f"{i:05d}.safetensors", save({"features": torch.from_numpy(out)}))
        seconds += time.perf_counter() - begin
        write_cache(folder / "seconds.json", json.dumps(seconds))
    return np.concatenate([found[i] for i in range(len(chunks))]), seconds


def dataset_features(
    model: Classifier, dataset: Dataset, image_size: int, view: int = 0, backend: str = "auto"
) -> tuple[dict[str, np.ndarray], float]:
    """Features (N, D) of "train" and "val" under a view, and the seconds the backbone took.

    They are extracted in the order of the images' hashes: runs with other seeds split the same images in another way,
    and all of them share one extraction.
    """
    everyone = sorted(dataset.images, key=lambda image: (image.sha256, str(image.path)))
    features, seconds = cached_features(model, everyone, image_size, view, dataset.flips, backend)
    row_of = {image.path: i for i, image in enumerate(everyone)}
    return {
        split: features[[row_of[image.path] for image in dataset.split(split)]] for split in ("train", "val")
    }, seconds


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def _features(
    model: Classifier, chunks: Sequence[Any], read: Callable[[Any], np.ndarray], backend: str, description: str
) -> Iterator[np.ndarray]:
    """The features of each chunk's images; the next chunk is read while the network computes."""
    return compute_features(model, track(read_ahead(chunks, read), description, len(chunks)), backend)


def _reader(model: Classifier, image_size: int) -> Callable[[Sequence[Path]], np.ndarray]:
    """Reads images (B, S, S, 3) uint8 under the evaluation transform."""
    crop, least = eval_crop(model.preprocessing, image_size), model.preprocessing.resize_for(image_size)
    return lambda paths: np.stack([np.asarray(crop(open_image(path, at_least=least))) for path in paths])


def _view_reader(
    model: Classifier, image_size: int, view: int, flips: str
) -> Callable[[Sequence[LabelledImage]], np.ndarray]:
    """Reads images (B, S, S, 3) uint8 under a view."""
    plain = _reader(model, image_size)
    crop = train_crop(model.preprocessing, image_size, flips=flips)

    def symmetry(images: Sequence[LabelledImage]) -> np.ndarray:
        batch = plain([image.path for image in images])
        batch = batch.swapaxes(1, 2) if view & 4 else batch
        return np.ascontiguousarray(np.flip(batch, tuple(axis for axis, bit in ((2, 1), (1, 2)) if view & bit)))

    def random_crop(images: Sequence[LabelledImage]) -> np.ndarray:
        crops = []
        with torch.random.fork_rng(devices=[]):
            for image in images:
                torch.manual_seed(int(image.sha256[:12], 16) + view)  # the image's own: the same in every batch
                crops.append(np.asarray(crop(open_image(image.path, at_least=2 * image_size))))
        return np.stack(crops)

    return symmetry if view < (8 if flips == "dihedral" else 2) else random_crop
