"""What a training run is told: one dataclass, from which the command line's options and config.json follow; and the
defaults of the settings that the user left open, for each strategy and architecture, with the reasons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.runs import Run
from roclab.core.settings import check_settings, setting, settings_from

STRATEGIES = ("features", "finetune")
ALWAYS_THERE = ("data", "model", "strategy", "seed", "image_size", "epochs")  # older runs may lack what came later

# A run may go on with others of these: the hashes of images and weights are compared, and the machine is another.
MOVABLE = frozenset({"data_root", "mirror", "weights", "workers", "device", "backend"})


@dataclass
class TrainConfig:
    """Everything that decides a run.

    Where the default is None and the type has no None, the setting is open: `with_defaults` fills it in
    before training, and config.json holds what was filled in.
    """

    # Images
    data: str = setting(
        "elpv", "pets, elpv, a folder (a folder per class, or train/val/test), or a CSV path,label[,split]."
    )
    data_root: str | None = setting(None, "Where the pets are, or should be downloaded to; the base of a CSV's paths.")
    mirror: str | None = setting(None, "Where else to download the pets from.")
    skip_bad: bool = setting(False, "Leave unreadable images out of every split, and log them.", flags=("--skip-bad",))
    # Model
    model: str = setting("efficientnet_lite0", "resnet50, swin_t, efficientnet_lite0 to 2, or any timm name.")
    weights: str = setting("default", "default, none, v1, v2, or a .safetensors or .pth file.")
    strategy: str = setting(
        "features", "features: the backbone is frozen; finetune: all weights are trained.", choices=STRATEGIES
    )
    class_weights: str | None = setting(
        None,
        "balanced: rare classes weigh as much as common ones in training; all images alike if not given.",
        choices=("balanced",),
    )
    epochs: int | None = setting(  # None with a frozen backbone: its head's solver runs until it converges
        None, "finetune: epochs; the model's default if not given. (A frozen backbone's head has none.)", low=1
    )
    budget: str | None = setting(None, "Time to spend, such as 20m: chooses epochs and image size.")
    image_size: int = setting(None, "Pixels; the weights' own size if not given.", low=16, high=4096)
    seed: int = setting(0, "Cuts the validation split and drives the training.", low=0, high=2**32 - 1)
    val_fraction: float = setting(0.2, "Share of the training part that validates.")
    per_class: int | None = setting(
        None, "Train and validate on at most so many images of each class, drawn by the seed.", low=2
    )
    full_frame: bool = setting(
        False, "Evaluate on the whole image, not its centre as ImageNet does.", flags=("--full-frame",)
    )
    # Frozen backbone
    views: int = setting(
        1, "features: 2 adds each image's mirror image, more add symmetries and random crops.", low=1, high=64
    )
    imagenet_prior: bool = setting(
        False,
        "features: begin from what the weights know of classes that ImageNet has by name; for few images.",
        flags=("--imagenet-prior",),
    )
    unlabelled: str | None = setting(
        None, "features: a folder of images without labels, which the head is trained on too; for few images."
    )
    soft_labels: bool = setting(
        False,
        "Train on the probabilities of labels that are not certain (elpv, a column certainty).",
        flags=("--soft-labels",),
    )
    refit: bool = setting(None, "features: train the head again on train + val once C is chosen.")
    # Fine-tuning
    lp_ft: bool = setting(None, "finetune: start from the trained head.")  # Kumar et al. 2022
    optimizer: str = setting(None, "finetune: adamw or sgd.", choices=("adamw", "sgd"))
    lr: float = setting(None, "finetune: learning rate of the head.", low=1e-9, high=100)
    layer_decay: float = setting(
        None, "finetune: factor between the learning rates of a layer group and the next one.", low=0.01, high=1
    )
    weight_decay: float = setting(None, "finetune: not on norms and biases.", low=0, high=10)
    batch_size: int = setting(None, "finetune: images a batch, over all processes.", low=1)
    accumulate: int = setting(1, "finetune: batches whose gradients make one step.", low=1)
    warmup: float = setting(0.1, "finetune: share of the steps in which the rate rises.", low=0, high=1)
    clip: float = setting(None, "finetune: largest norm of the gradient; 0 is off.", low=0)
    label_smoothing: float = setting(None, "finetune.", low=0, high=0.99)
    mixup: float = setting(None, "finetune: alpha; 0 is off.", low=0, high=100)
    cutmix: float = setting(None, "finetune: alpha; 0 is off.", low=0, high=100)
    ema: float = setting(None, "finetune: decay of the weight average; 0 is off.", low=0, high=0.99999)
    patience: int = setting(None, "finetune: stop so many epochs after the best; 0 never stops.", low=0)
    batch_norm: str = setting(None, "finetune: train or frozen statistics.", choices=("train", "frozen"))
    min_area: float = setting(None, "finetune: smallest random crop, as a share of the image.", low=0.01, high=1)
    randaugment: bool = setting(False, "finetune: RandAugment on top of crop and flip.", flags=("--randaugment",))
    progressive: bool = setting(None, "finetune: early epochs at a lower resolution.")
    gradual: float = setting(None, "finetune: share of the epochs in which the early layers are frozen.", low=0, high=1)
    amp: str = setting(
        "auto",
        "finetune: bf16 computes in bfloat16 (faster for ResNets on CPUs with AVX-512 BF16); auto does on GPUs.",
        choices=("auto", "bf16", "off"),
    )
    # Machine
    workers: int = setting(None, "finetune: processes that read images.", low=0, high=256)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")
    backend: str = setting(
        "auto",
        "What computes frozen features and predictions: auto is openvino where it is installed and faster.",
        choices=("auto", "torch", "openvino"),
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def not_of(strategy: str, names: Collection[str]) -> list[str]:
    """The flags of those settings among `names` that another strategy has: a setting's help begins with its own."""
    others = tuple(other for other in STRATEGIES if other != strategy)
    helps = {field.name: field.metadata["help"] for field in fields(TrainConfig) if field.name != "strategy"}
    return [f"--{name.replace('_', '-')}" for name in names if helps.get(name, "").startswith(others)]


def run_config(run: Run) -> TrainConfig:
    """A run's config.json. Raises `RocLabError` that names the first key which is unknown, missing or mistyped."""
    return settings_from(TrainConfig, run.config, run.path / "config.json", ALWAYS_THERE)


def check_same(path: Path, own: Mapping[str, Any], asked: Mapping[str, Any], free: Collection[str], hint: str) -> None:
    """Raise `RocLabError` if `path` was made with `own` settings and others are asked for; `free` ones may differ. A
    setting that an older version did not have counts as its default."""
    own = {**DEFAULTS, **own}

    def word(value: Any) -> Any:
        return "its default" if value is None else value

    other = [name for name, value in asked.items() if name not in free and own.get(name) != value]
    if other:
        made = "; ".join(f"{name} = {word(own.get(name))}, now asked for {word(asked[name])}" for name in other)
        raise RocLabError(f"{path} was made with {made}: {hint}")


# What a run was made with where an older version did not know a setting; None: open, filled in later.
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig)}

FEATURES: dict[str, Any] = {
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
    "clip": 1.0,
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
            # SGD adds it to the gradient, divided by 1 - momentum: 0.05 at a peak rate of 1e-3 took a seventh of the
            # last layers' weights in 555 steps, and frozen statistics do not make up for that
            own |= {"weight_decay": 1e-4}
        elif lp_ft is not False and not mobile:
            # on pets37 AdamW at 3e-4 undid the features within an epoch, and at 1e-4 lost six points
            own |= {"lr": 3e-5}
        elif not mobile and optimizer != "adamw" and weights != "none":
            # a head of zeros: the usual way, which a few thousand images are enough for. The head's first gradients are
            # long, and cut to a norm of 1 the first epoch would hardly move it
            own = {"optimizer": "sgd", "lr": 2e-2, "layer_decay": 0.8, "weight_decay": 5e-4, "clip": 0.0}
            own |= {"batch_norm": "train", "batch_size": 64}
    elif "swin" in name or "vit" in name or "deit" in name:
        # transformers diverge at rates a convolutional net takes; windows and position tables are tied to the size
        # they were trained at, so the resolution is not raised in steps
        own = {"lr": 3e-4, "layer_decay": 0.8}
    if optimizer == "sgd" and own.get("optimizer") != "sgd":
        own |= {"lr": 1e-3, "weight_decay": 1e-4}
    return COMMON | own | (FROM_SCRATCH if weights == "none" else {}) | ({"optimizer": optimizer} if optimizer else {})


def with_defaults(config: TrainConfig, own_size: int, any_size: bool = True) -> TrainConfig:
    """A copy in which nothing is open: gaps are filled with the strategy's and the architecture's defaults.

    `own_size` (px) is the weights' own image size; `any_size`: the network takes other sizes too.
    """
    values = architecture_defaults(config.model, config.weights, config.optimizer, config.lp_ft)
    values |= {"image_size": own_size} | (FEATURES if config.strategy == "features" else {})
    filled = fill(config, values)
    epochs = filled.epochs if config.strategy == "finetune" else None
    return replace(filled, epochs=epochs, progressive=filled.progressive and any_size)


def fill(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """A copy that takes open settings from `values`."""
    return replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})
