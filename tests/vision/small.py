"""A small world for tests: three classes of coloured, striped images, and a network of 90,000 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from roclab.vision.config import TrainConfig

MODEL = "test_resnet"  # timm's own tiny ResNet, with BatchNorm
CLASSES = {"brick": (170, 80, 60), "grass": (90, 150, 70), "sky": (110, 140, 190)}


def make_images(folder: Path, each: int = 12, size: int = 48, seed: int = 0) -> Path:
    """A folder per class of noisy JPEGs whose mean colour tells the class, though not from one pixel."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            noise = rng.normal(0, 50, (size, size + i % 5, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.jpg", quality=90)
    return folder


def config(data: Path, **changes: object) -> TrainConfig:
    values: dict = {"data": str(data), "model": MODEL, "weights": "none", "image_size": 64, "device": "cpu"}
    if changes.get("strategy") == "finetune":  # as if the weights were worth keeping: the defaults of trained ones
        values |= {"lp_ft": True, "layer_decay": 0.75, "batch_norm": "frozen"}
    return TrainConfig(**(values | changes))
