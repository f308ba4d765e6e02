"""From an image to the numbers a network takes, with the preprocessing its weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def eval_transform(preprocessing: Preprocessing, image_size: int | None = None) -> Callable[[Any], Any]:
    """The transform for validation, test and prediction: PIL image (or uint8 CHW tensor) -> float32 (3, S, S).

    Shorter side resized (the aspect is kept), centre crop, normalisation. At the weights' own size this is what
    torchvision's `weights.transforms()` computes, bit for bit.
    """
    from torchvision.transforms import v2

    size = image_size or preprocessing.crop
    resize = v2.Resize(preprocessing.resize_for(size), interpolation=_mode(preprocessing), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size), *_to_normalised(preprocessing)])


def train_transform(
    preprocessing: Preprocessing,
    image_size: int | None = None,
    randaugment: bool = False,
    min_area: float = 0.35,
    flips: str = "horizontal",
) -> Callable[[Any], Any]:
    """The transform for training: PIL image (or uint8 CHW tensor) -> float32 (3, S, S), drawn anew at each call.

    Random resized crop of at least `min_area` of the image, flips, RandAugment if asked, normalisation. `flips` is
    "horizontal", or "dihedral" for things without an up: all eight flips and quarter turns, equally likely.

    Every draw comes from torch's global generator: seed it, and the same image gives the same bits. `min_area` is
    0.35, not ImageNet's 0.08: with few images, a crop of 8 % often does not show what the label names.
    """
    from torchvision.transforms import v2

    size, mode = image_size or preprocessing.crop, _mode(preprocessing)
    flipped = [v2.RandomHorizontalFlip()]
    if flips == "dihedral":  # two flips and a quarter turn reach each of the eight with probability 1/8
        flipped += [v2.RandomVerticalFlip(), v2.RandomApply([v2.RandomRotation((90, 90))], p=0.5)]
    elif flips != "horizontal":
        raise RocLabError(f"flips is {flips!r}, must be horizontal or dihedral")
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=mode, antialias=True),
            *flipped,
            *([v2.RandAugment(interpolation=mode)] if randaugment else []),
            *_to_normalised(preprocessing),
        ]
    )


def _to_normalised(preprocessing: Preprocessing) -> list[Callable[[Any], Any]]:
    from torchvision.transforms import Normalize, v2
    from torchvision.transforms.functional import convert_image_dtype

    # x / 255 and then (x - mean) / std, as torchvision's presets: v2's ToDtype multiplies by 1/255, one rounding away
    normalise = Normalize(list(preprocessing.mean), list(preprocessing.std))
    return [v2.ToImage(), v2.ToPureTensor(), convert_image_dtype, normalise]


def _mode(preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(preprocessing.interpolation)
