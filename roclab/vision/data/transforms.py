"""From an image to the numbers a network takes, with the preprocessing its weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What the weights expect: shorter side resized to `resize` px, centre crop of `crop` px, then (x - mean) / std.

    `mean` and `std` are for red, green and blue in [0, 1]; `interpolation` is "bilinear" or "bicubic".
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def resize_for(self, image_size: int) -> int:
        """Length of the shorter side, in px, that keeps the ratio of resize to crop at another image size."""
        return max(image_size, round(image_size * self.resize / self.crop))


def eval_crop(preprocessing: Preprocessing, image_size: int | None = None) -> Callable[[Any], Any]:
    """The first part of `eval_transform`: the shorter side resized (the aspect is kept), centre crop; still uint8."""
    from torchvision.transforms import v2

    size = image_size or preprocessing.crop
    resize = v2.Resize(preprocessing.resize_for(size), interpolation=_mode(preprocessing), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


def eval_transform(preprocessing: Preprocessing, image_size: int | None = None) -> Callable[[Any], Any]:
    """The transform for validation, test and prediction: PIL image (or uint8 CHW tensor) -> float32 (3, S, S).

    Shorter side resized, centre crop, normalisation. At the weights' own size this is what torchvision's
    `weights.transforms()` computes, bit for bit.
    """
    return _then_normalised(eval_crop(preprocessing, image_size), preprocessing)


def train_crop(
    preprocessing: Preprocessing,
    image_size: int | None = None,
    randaugment: bool = False,
    min_area: float = 0.35,
    flips: str = "horizontal",
) -> Callable[[Any], Any]:
    """The first part of `train_transform`: random crop, flips, RandAugment; still uint8."""
    from torchvision.transforms import v2

    size, mode = image_size or preprocessing.crop, _mode(preprocessing)
    flipped = [v2.RandomHorizontalFlip()]
    if flips == "dihedral":  # two flips and a quarter turn reach each of the eight with probability 1/8
        flipped += [v2.RandomVerticalFlip(), v2.RandomApply([v2.RandomRotation((90, 90))], p=0.5)]
    elif flips != "horizontal":
        raise RocLabError(f"flips is {flips!r}, must be horizontal or dihedral")
    crop = v2.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=mode, antialias=True)
    return v2.Compose([crop, *flipped, *([v2.RandAugment(interpolation=mode)] if randaugment else [])])


def train_transform(
    preprocessing: Preprocessing, image_size: int | None = None, **options: Any
) -> Callable[[Any], Any]:
    """The transform for training: PIL image (or uint8 CHW tensor) -> float32 (3, S, S), drawn anew at each call.

    Random resized crop of at least `min_area` of the image, flips, RandAugment if asked, normalisation. `flips` is
    "horizontal", or "dihedral" for things without an up: all eight flips and quarter turns, equally likely.

    Every draw comes from torch's global generator: seed it, and the same image gives the same bits. `min_area` is
    0.35, not ImageNet's 0.08: with few images, a crop of 8 % often does not show what the label names.
    """
    return _then_normalised(train_crop(preprocessing, image_size, **options), preprocessing)


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Float32 images (…, 3, H, W) of uint8 ones: x / 255 and then (x - mean) / std, as torchvision's presets. (v2's
    ToDtype multiplies by 1/255, one rounding away.)"""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return images.float().div_(255).sub_(mean).div_(std)


def _then_normalised(crop: Callable[[Any], Any], preprocessing: Preprocessing) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    return v2.Compose([crop, v2.ToImage(), v2.ToPureTensor(), partial(normalised, preprocessing=preprocessing)])


def _mode(preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(preprocessing.interpolation)
