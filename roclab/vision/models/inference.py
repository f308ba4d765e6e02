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
from torch import Tensor

from roclab.core.files import cache_folder, write_cache
from roclab.core.progress import track
from roclab.core.training.memory import release_freed_memory
from roclab.vision.data.dataset import Dataset, LabelledImage
from roclab.vision.data.images import open_image
from roclab.vision.data.loader import read_ahead
from roclab.vision.data.transforms import eval_transform, train_transform
from roclab.vision.models.classifier import Classifier

logger = logging.getLogger(__name__)

BATCH = 16  # images; also a chunk of the feature cache: the same images share a batch whatever was cached already
FORMAT = 2  # of the feature cache; raise it when the way features are computed changes


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C) float64 of logits (N, C)."""
    from scipy import special

    return special.softmax(logits.astype(np.float64), axis=1)


def predict_probs(model: Classifier, paths: Sequence[Path], image_size: int) -> np.ndarray:
    """Class probabilities (N, C) float64 of images under the evaluation transform, in the order given."""
    read = _reader(model, image_size)
    return softmax(np.concatenate(list(_outputs(model, model.module, _chunks(paths), read, "images"))))


def cached_features(
    model: Classifier, images: Sequence[LabelledImage], image_size: int, view: int = 0, flips: str = "horizontal"
) -> tuple[np.ndarray, float]:
    """Features (N, D) float32 of the images under one view, and the seconds the backbone took (when it ran).

    View 0 is the evaluation transform; view 1 its mirror image (with `flips` "dihedral", views 1 to 7 are the square's
    other symmetries); any further view a random crop that is the same in every run. They are cached in chunks, so that
    a stopped extraction resumes, under a key of the model, its weights' hash, the transform and every image's hash.
    """
    key = {
        "format": [FORMAT, BATCH],
        "model": model.name,
        "weights": model.weights_id,
        "recipe": asdict(model.preprocessing),  # this name, so that caches stay valid
        "image_size": image_size,
        "view": [view, flips] if view > 1 else view,  # both kinds have the first two in common
        "images": [image.sha256 for image in images],
    }
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
        logger.info(f"features: {number} images, {model.name}, {image_size} px, view {view}")
        read = _view_reader(model, image_size, view, flips)
        begin = time.perf_counter()
        outputs = _outputs(model, model.features, [chunks[i] for i in missing], read, f"features (view {view})")
        for i, out in zip(missing, outputs, strict=True):
            found[i] = out
            write_cache(folder / f"{i:05d}.safetensors", save({"features": torch.from_numpy(out)}))
        seconds += time.perf_counter() - begin
        write_cache(folder / "seconds.json", json.dumps(seconds))
    return np.concatenate([found[i] for i in range(len(chunks))]), seconds


def dataset_features(
    model: Classifier, dataset: Dataset, image_size: int, view: int = 0
) -> tuple[dict[str, np.ndarray], float]:
    """Features (N, D) of "train" and "val" under a view, and the seconds the backbone took.

    They are extracted in the order of the images' hashes: runs with other seeds split the same images in another way,
    and all of them share one extraction.
    """
    everyone = sorted(dataset.images, key=lambda image: (image.sha256, str(image.path)))
    features, seconds = cached_features(model, everyone, image_size, view, dataset.flips)
    row_of = {image.path: i for i, image in enumerate(everyone)}
    return {
        split: features[[row_of[image.path] for image in dataset.split(split)]] for split in ("train", "val")
    }, seconds


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def _outputs(
    model: Classifier,
    function: Callable[[Tensor], Tensor],
    chunks: Sequence[Any],
    read: Callable[[Any], Tensor],
    description: str,
) -> Iterator[np.ndarray]:
    """`function` (of the network in evaluation mode) of each chunk's images, float32. The next chunk is read
    while the network computes."""
    model.module.eval()
    for images in track(read_ahead(chunks, read), description, len(chunks)):
        with torch.inference_mode():
            out = function(images.to(model.device).contiguous(memory_format=torch.channels_last))
        yield out.float().cpu().contiguous().numpy()
    release_freed_memory()


def _reader(model: Classifier, image_size: int) -> Callable[[Sequence[Path]], Tensor]:
    """Reads images (B, 3, S, S) under the evaluation transform."""
    transform, least = eval_transform(model.preprocessing, image_size), model.preprocessing.resize_for(image_size)
    return lambda paths: torch.stack([transform(open_image(path, at_least=least)) for path in paths])


def _view_reader(
    model: Classifier, image_size: int, view: int, flips: str
) -> Callable[[Sequence[LabelledImage]], Tensor]:
    """Reads images (B, 3, S, S) under a view."""
    plain = _reader(model, image_size)
    crop = train_transform(model.preprocessing, image_size, flips=flips)

    def symmetry(images: Sequence[LabelledImage]) -> Tensor:
        batch = plain([image.path for image in images])
        batch = batch.transpose(2, 3) if view & 4 else batch
        return batch.flip([axis for axis, bit in ((3, 1), (2, 2)) if view & bit])

    def random_crop(images: Sequence[LabelledImage]) -> Tensor:
        crops = []
        with torch.random.fork_rng(devices=[]):
            for image in images:
                torch.manual_seed(int(image.sha256[:12], 16) + view)  # the image's own: the same in every batch
                crops.append(crop(open_image(image.path, at_least=2 * image_size)))
        return torch.stack(crops)

    return symmetry if view < (8 if flips == "dihedral" else 2) else random_crop
