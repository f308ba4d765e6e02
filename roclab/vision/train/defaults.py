"""Defaults of the settings that the user left open: for each strategy and architecture, with the reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from roclab.vision.config import TrainConfig

FEATURES: dict[str, Any] = {
    "epochs": 100,  # L-BFGS converges well before that at every useful regularisation; it takes seconds
    # a fifth of the images is much where a class has seven; the validation figures are of the head before the refit
    "refit": True,
}

# Fine-tuning defaults of every architecture. Measurements are in docs/log-vision.md.
COMMON: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 16,  # a few hundred images give few steps an epoch; small batches do no harm to frozen BatchNorm
    "optimizer": "adamw",
    "lr": 1e-3,  # of the head; 3e-3 collapsed to the commonest class on elpv
    "layer_decay": 0.75,  # early layers detect edges and textures, which the new images share with ImageNet
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "mixup": 0.0,  # mixing helps over hundreds of epochs; over a dozen it slows training down
    "cutmix": 0.0,
    "ema": 0.99,  # per step: averages over about the last hundred
    "patience": 0,
    # the trained head was fitted to features under the weights' own statistics; under a batch's statistics the features
    # differ (on elpv the first epoch's loss was 42), and small batches make them noisy
    "batch_norm": "frozen",
    "min_area": 0.35,
    "progressive": False,
    "gradual": 0.0,
    "refit": False,
    "lp_ft": True,
    "workers": 0,
}

# Random weights: no head is worth training on their features, all layers need the same rate, and their BatchNorm has no
# statistics yet.
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


def with_defaults(config: TrainConfig, own_size: int, any_size: bool = True) -> TrainConfig:
    """A copy in which nothing is open: gaps are filled with the strategy's and the architecture's defaults.

    `own_size` (px) is the weights' own image size; `any_size`: the network takes other sizes too.
    """
    values = architecture_defaults(config.model, config.weights, config.optimizer, config.lp_ft)
    values |= {"image_size": own_size} | (FEATURES if config.strategy == "features" else {})
    filled = fill(config, values)
    return replace(filled, progressive=filled.progressive and any_size)


def fill(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """A copy that takes open settings from `values`."""
    return replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})
