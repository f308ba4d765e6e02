"""What weights know already: the rows of their ImageNet head for classes that ImageNet has by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.vision.models.classifier import build_model

IMAGENET = 1000  # classes


def imagenet_rows(model: str, weights: str, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Weight (C, D) and bias (C,) that give a class its ImageNet logit, less the mean of all 1,000 logits, and the
    classes that have one. A class is found by its name, or by another that WordNet has for it ("Scottish Terrier" is
    "Scotch terrier, Scottish terrier, Scottie"); the others have zeros.

    Raises `RocLabError` if the weights have no ImageNet head, or no class is found.
    """
    if weights == "none":
        raise RocLabError("--imagenet-prior: random weights know no ImageNet class")
    head = build_model(model, weights).head
    if head.out_features != IMAGENET:
        raise RocLabError(f"--imagenet-prior: these weights have a head of {head.out_features} classes, not ImageNet's")
    row_of = imagenet_names()
    rows = {i: row_of[key] for i, name in enumerate(classes) if (key := _key(name)) in row_of}
    if not rows:
        raise RocLabError(f"--imagenet-prior: ImageNet has no class called {', '.join(classes[:5])}, …: leave it out")
    own, own_bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    weight, bias = np.zeros((len(classes), own.shape[1]), np.float32), np.zeros(len(classes), np.float32)
    for i, row in rows.items():
        weight[i], bias[i] = own[row] - own.mean(0), own_bias[row] - own_bias.mean()
    return weight, bias, [classes[i] for i in rows]


def imagenet_names() -> dict[str, int]:
    """The row of each ImageNet class by each of its names, small letters with single blanks."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    found: dict[str, int] = {}
    for row in range(IMAGENET):
        for name in info.index_to_description(row).split(","):
            found.setdefault(_key(name), row)
    return found


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
