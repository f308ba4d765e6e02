"""How long a run will take, and what fits into a given time: by this machine's speed, measured on the model itself."""

from __future__ import annotations

import copy
import math
import re
import time
from dataclasses import replace

import torch

from roclab.core.exceptions import RocLabError
from roclab.core.progress import duration
from roclab.core.training.optimizer import autocast
from roclab.vision.config import TrainConfig
from roclab.vision.data.dataset import Dataset
from roclab.vision.data.images import open_image
from roclab.vision.models.classifier import Classifier
from roclab.vision.train.finetune import size_at

SMALLEST = 96  # px; below that, ImageNet's features say little
FEWEST = 3  # epochs; fewer are a warm-up
HEADROOM = 0.9  # plan for this share of the budget: a machine is rarely as free later as in the measured seconds


def parse_duration(text: str) -> float:
    """Seconds in "90s", "20m", "1.5h" or "1h30m"; raises `RocLabError` on anything else."""
    number = r"(\d+\.?\d*|\.\d+)"
    parts = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip().lower())
    if not parts or not any(parts.groups()):
        raise RocLabError(f"--budget {text}: give a time such as 90s, 20m or 1h30m")
    return sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))


def measure(model: Classifier, image_size: int, training: bool, seconds: float = 1.5, amp: str = "off") -> float:
    """Seconds an image takes: forward, or with `training` forward and backward, in the numbers of `amp`. The model is
    left as it was."""
    device = model.device
    # four large images fill a CPU, sixteen small ones: a measurement should not need the run's memory
    batch = 16 if device.type == "cuda" else max(4, min(16, round(16 * (128 / image_size) ** 2)))
    module = copy.deepcopy(model.module).to(memory_format=torch.channels_last)
    module.train(training)
    images = torch.zeros(batch, 3, image_size, image_size, device=device).contiguous(memory_format=torch.channels_last)
    fastest, begin = math.inf, time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training), autocast(device, amp):
        while fastest == math.inf or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            out = module(images)
            if training:
                out.sum().backward()
                module.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, (time.perf_counter() - start) / batch)
    return fastest


def image_seconds(dataset: Dataset, image_size: int, sample: int = 12) -> float:
    """Seconds to read, decode and resize one image."""
    images = dataset.images[:: max(1, len(dataset.images) // sample)][:sample]
    begin = time.perf_counter()
    for image in images:
        open_image(image.path).resize((image_size, image_size))
    return (time.perf_counter() - begin) / len(images)


class Costs:
    """Predicted seconds of a run whose features are not in the cache; one size is measured, and the others follow by
    area."""

    def __init__(self, config: TrainConfig, model: Classifier, dataset: Dataset, seconds: float = 1.5):
        self.counts, self.size = dataset.counts(), config.image_size
        self.read = image_seconds(dataset, config.image_size)
        self.forward = measure(model, config.image_size, training=False, seconds=seconds)
        self.backward = 0.0
        if config.strategy == "finetune":
            self.backward = measure(model, config.image_size, training=True, seconds=seconds, amp=config.amp)

    def seconds(self, config: TrainConfig) -> float:
        return sum(self.parts(config))

    def parts(self, config: TrainConfig) -> tuple[float, float]:
        """Extraction of the features, and what is trained after it."""
        evaluating = self.forward * (config.image_size / self.size) ** 2 + self.read  # an image
        train, val, epochs = self.counts["train"], self.counts["val"], config.epochs or 0
        if config.strategy == "features":
            return (train + val) * config.views * evaluating, 5
        total = (epochs + 1) * val * evaluating
        for epoch in range(epochs):
            size = size_at(epoch, epochs, config.image_size, config.progressive)
            total += train * (self.backward * (size / self.size) ** 2 * 1.1 + self.read * 0.5)
        return (train + val) * config.lp_ft * evaluating, total


def fit_to_budget(config: TrainConfig, model: Classifier, dataset: Dataset) -> tuple[TrainConfig, str]:
    """The config whose epochs and image size fit `config.budget`, and a line that says what was chosen.

    Epochs are reduced before resolution: as many epochs as fit at full size (at least three, at most the default), else
    the next smaller size. Raises `RocLabError` if not even the smallest run fits.
    """
    limit = parse_duration(config.budget or "")
    costs = Costs(config, model, dataset)
    finetunes, most = config.strategy == "finetune", config.epochs or 0
    for size in [config.image_size, *range((config.image_size - 1) // 32 * 32, SMALLEST - 1, -32)]:
        for number in [*range(most, FEWEST - 1, -1)] or [config.epochs]:
            chosen = replace(config, image_size=size, epochs=number)
            if (seconds := costs.seconds(chosen)) <= limit * HEADROOM:
                what = f"{number} epochs at {size} px" if finetunes else f"{size} px"
                return chosen, f"budget {config.budget}: {what}, expected to take {duration(seconds)}"
    smallest = replace(config, image_size=min(SMALLEST, config.image_size), epochs=min(FEWEST, most) or None)
    raise RocLabError(
        f"--budget {config.budget} is too short on this machine: the smallest run takes about "
        f"{duration(costs.seconds(smallest))}; raise it, or use a smaller model"
    )
