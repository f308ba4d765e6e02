"""What a training run is told: one dataclass, saved whole in config.json, and the defaults of each architecture."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    from typing_extensions import Self

STRATEGIES = ("features", "finetune")
ALWAYS_THERE = ("data", "model", "strategy", "seed", "image_size", "epochs")  # older runs may lack what came later

# What a number may be, both ends included. (`load_data` looks at val_fraction.)
BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "image_size": (16, 4096),
    "views": (1, 64),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "lr": (1e-9, 100),
    "layer_decay": (0.01, 1),
    "weight_decay": (0, 10),
    "warmup": (0, 1),
    "clip": (0, math.inf),
    "label_smoothing": (0, 0.99),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "ema": (0, 0.99999),
    "patience": (0, math.inf),
    "min_area": (0.01, 1),
    "gradual": (0, 1),
    "workers": (0, 256),
}


@dataclass
class TrainConfig:
    """Everything that decides a run. `None` means: the architecture's default, filled in by `with_defaults`."""

    # what is learnt from
    data: str = "elpv"
    data_root: str | None = None
    mirror: str | None = None
    skip_bad: bool = False
    val_fraction: float = 0.2
    seed: int = 0
    # what is trained
    model: str = "efficientnet_lite0"
    weights: str = "default"
    strategy: str = "features"
    image_size: int | None = None  # px; the weights' own size if not given
    epochs: int | None = None  # features: steps of L-BFGS; finetune: passes over the images
    budget: str | None = None  # "20m": epochs and resolution chosen to fit
    full_frame: bool = False  # judge the whole image, not the centre that ImageNet's recipes cut out
    # features
    views: int = 1  # 1: the image; 2: and its mirror image; more: the other symmetries if it has any, random crops
    refit: bool | None = None  # once the regularisation is chosen on val, train the head again on train + val
    # finetune
    lp_ft: bool | None = None  # start from the trained head (Kumar et al. 2022)
    batch_size: int | None = None
    accumulate: int = 1  # gradients of so many batches make one step
    optimizer: str | None = None  # "adamw" or "sgd"
    lr: float | None = None  # of the head
    layer_decay: float | None = None  # each group nearer to the image learns at this fraction of the next one's rate
    weight_decay: float | None = None  # not on norms and biases
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # norm of the gradient
    label_smoothing: float | None = None
    mixup: float | None = None  # alpha of the Beta distribution; 0: off
    cutmix: float | None = None
    ema: float | None = None  # decay of the weight average per step; 0: off
    patience: int | None = None  # stop after so many epochs without a better validation accuracy; 0: never
    batch_norm: str | None = None  # "train": batch statistics; "frozen": the weights' own statistics
    min_area: float | None = None  # smallest random crop, as a share of the image
    randaugment: bool = False
    progressive: bool | None = None  # early epochs at a lower resolution
    gradual: float | None = None  # share of the epochs in which the half of the layers next to the image rests
    amp: str = "auto"  # bf16 autocast on GPUs that have it; "off"
    # the machine
    workers: int | None = None  # processes that read images; 0: none
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise RocLabError(f"--strategy {self.strategy}: choose one of {', '.join(STRATEGIES)}")
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise RocLabError(f"--{name.replace('_', '-')} {value}: must be {allowed}")
        if self.optimizer not in (None, "adamw", "sgd"):
            raise RocLabError(f"--optimizer {self.optimizer}: choose adamw or sgd")
        if self.batch_norm not in (None, "train", "frozen"):
            raise RocLabError(f"--batch-norm {self.batch_norm}: choose train or frozen")

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def fromdict(cls, values: dict[str, Any], path: str | os.PathLike = "config.json") -> Self:
        """From the JSON object in `path`; a key that is unknown, missing or of another type raises `RocLabError` that
        names it."""
        kinds = {f.name: str(f.type).split(" | ") for f in fields(cls)}
        if unknown := sorted(set(values) - kinds.keys()):
            raise RocLabError(f"{path} has keys this version does not know: {', '.join(unknown)}")
        if missing := [name for name in ALWAYS_THERE if name not in values]:
            raise RocLabError(f"{path} has no {', '.join(missing)}: restore the file, or train again")
        for name, value in values.items():
            kind = "None" if value is None else type(value).__name__
            if kind not in kinds[name] and not (kind == "int" and "float" in kinds[name]):
                raise RocLabError(
                    f"{path}: {name} is {value!r}, which should be {' or '.join(kinds[name])}: restore the file, or "
                    "train again"
                )
        return cls(**values)

    def with_defaults(self, recipe_size: int, any_size: bool = True) -> FullConfig:
        """A copy without `None`: gaps filled with the strategy's and the architecture's defaults.

        `recipe_size` (px) is the weights' own; `any_size` says whether the network takes others in between.
        """
        values = {
            **architecture_defaults(self.model, self.weights, self.optimizer, self.lp_ft),
            **(FEATURES if self.strategy == "features" else {}),
        }
        filled = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if filled[name] is None:
                filled[name] = value
        filled["image_size"] = filled["image_size"] or recipe_size
        filled["progressive"] = bool(filled["progressive"] and any_size)
        return FullConfig(**filled)


@dataclass
class FullConfig(TrainConfig):
    """A `TrainConfig` in which nothing is left open: what a run is made with, and what its config.json holds."""

    image_size: int = 224
    epochs: int = 12
    refit: bool = False
    lp_ft: bool = True
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.99
    patience: int = 0
    batch_norm: str = "train"
    min_area: float = 0.35
    progressive: bool = False
    gradual: float = 0.0
    workers: int = 0


FEATURES: dict[str, Any] = {
    "epochs": 100,  # L-BFGS is at the optimum well before that at every regularisation worth having; it costs seconds
    # a fifth of the images is much where there are seven of a class; what the choice was worth on them is kept
    "refit": True,
}

# The ground every architecture stands on, and why. What was measured is in docs/log-vision.md.
COMMON: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 16,  # a few hundred images give few steps an epoch; with BatchNorm at rest small batches cost nothing
    "optimizer": "adamw",
    "lr": 1e-3,  # of the head; 3e-3 collapsed to the commonest class on elpv
    "layer_decay": 0.75,  # early layers hold edges and textures, which the new images share with ImageNet
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "mixup": 0.0,  # mixing pays over hundreds of epochs; over a dozen it slows learning down
    "cutmix": 0.0,
    "ema": 0.99,  # per step: averages over about the last hundred
    "patience": 0,
    # the trained head fits features normalised by the weights' own statistics; under those of a batch of unlike images
    # it sees other features (on elpv the first epoch's loss was 42), and small batches make them noisy
    "batch_norm": "frozen",
    "min_area": 0.35,
    "progressive": False,
    "gradual": 0.0,
    "refit": False,
    "lp_ft": True,
    "workers": 0,
}

# Random weights have nothing to keep: no head is worth training on them, no layer is nearer to its goal than another,
# and their BatchNorm has no statistics yet.
FROM_SCRATCH: dict[str, Any] = {
    "lp_ft": False,
    "optimizer": "adamw",
    "layer_decay": 1.0,
    "batch_norm": "train",
    "gradual": 0.0,
    "lr": 5e-4,
    "label_smoothing": 0.1,
}


def architecture_defaults(
    model: str, weights: str = "default", optimizer: str | None = None, lp_ft: bool | None = None
) -> dict[str, Any]:
    """Fine-tuning defaults for a model name and what the user has chosen already; the reason stands beside each value
    that differs from `COMMON`."""
    name = model.lower()
    mobile = "efficientnet" in name or "mobilenet" in name
    own: dict[str, Any] = {}
    if mobile or any(kind in name for kind in ("resnet", "resnext", "regnet", "convnext", "densenet")):
        # convolutions all the way to the pooling: any size fits, and the early layers, where most of the work at high
        # resolution is, change least
        own = {"progressive": True, "gradual": 0.5}
        if lp_ft is not False and optimizer != "adamw":
            # near the trained head's optimum Adam still takes steps of full length, SGD ones as small as the gradient;
            # a head that is certain of its images is pulled away from them by label smoothing
            own |= {"optimizer": "sgd", "label_smoothing": 0.0, "lr": 1e-2 if mobile else 1e-3}
        elif lp_ft is not False and not mobile:
            # on pets37 AdamW at 3e-4 undid the features within an epoch, and at 1e-4 lost six points
            own |= {"lr": 3e-5}
    elif "swin" in name or "vit" in name or "deit" in name:
        # transformers diverge at rates a convolutional net takes; windows and position tables are tied to the size
        # they were trained at, so the resolution is not raised in steps
        own = {"lr": 3e-4, "layer_decay": 0.8}
    if optimizer == "sgd" and own.get("optimizer") != "sgd":
        own |= {"lr": 1e-3}
    return COMMON | own | (FROM_SCRATCH if weights == "none" else {}) | ({"optimizer": optimizer} if optimizer else {})
