"""What a training run is told: one dataclass, from which the command line's options and config.json follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from roclab.core.runs import Run
from roclab.core.settings import check_settings, setting, settings_from

STRATEGIES = ("features", "finetune")
ALWAYS_THERE = ("data", "model", "strategy", "seed", "image_size", "epochs")  # older runs may lack what came later


@dataclass
class TrainConfig:
    """Everything that decides a run.

    Where the default is None and the type has no None, the setting is open: `train.defaults.with_defaults` fills it in
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
    model: str = setting("efficientnet_lite0", "resnet50, swin_t, efficientnet_lite0, or any timm name.")
    weights: str = setting("default", "default, none, v1, v2, or a .safetensors or .pth file.")
    strategy: str = setting(
        "features", "features: the backbone is frozen; finetune: all weights are trained.", choices=STRATEGIES
    )
    epochs: int = setting(None, "Epochs; the model's default if not given.", low=1)  # features: iterations of L-BFGS
    budget: str | None = setting(None, "Time to spend, such as 20m: chooses epochs and image size.")
    image_size: int = setting(None, "Pixels; the weights' own size if not given.", low=16, high=4096)
    seed: int = setting(0, "Cuts the validation split and drives the training.")
    val_fraction: float = setting(0.2, "Share of the training part that validates.")
    full_frame: bool = setting(
        False, "Evaluate on the whole image, not its centre as ImageNet does.", flags=("--full-frame",)
    )
    # Frozen backbone
    views: int = setting(
        1, "features: 2 adds each image's mirror image, more add symmetries and random crops.", low=1, high=64
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
    clip: float = setting(1.0, "finetune: largest norm of the gradient; 0 is off.", low=0)
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
    amp: str = setting("auto", "finetune: auto is bfloat16 on GPUs that compute in it.", choices=("auto", "off"))
    # Machine
    workers: int = setting(None, "finetune: processes that read images.", low=0, high=256)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")

    def __post_init__(self) -> None:
        check_settings(self)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def run_config(run: Run) -> TrainConfig:
    """A run's config.json. Raises `RocLabError` that names the first key which is unknown, missing or mistyped."""
    return settings_from(TrainConfig, run.config, run.path / "config.json", ALWAYS_THERE)
