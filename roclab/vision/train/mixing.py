"""Mixup and CutMix: two images of a batch in one, with a share of each label."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy


def mix(images: Tensor, mixup: float, cutmix: float, seed: int) -> tuple[Tensor, float]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image (B, 3, H, W) with its neighbour in the batch;
    `mixup` and `cutmix` are the alphas of their Beta distributions, 0 is off.

    Neighbours are pairs (0, 1), (2, 3) …: the batch is shuffled already, and a pair never spans two processes.
    Returns the images and the share of each image's own label.
    """
    kinds = [(name, alpha) for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha]
    if not kinds:
        return images, 1.0
    draw = np.random.default_rng(seed)
    kind, alpha = kinds[int(draw.integers(len(kinds)))]
    own = float(draw.beta(alpha, alpha))
    other = images[neighbours(len(images))]
    if kind == "mixup":
        return images.lerp(other, 1 - own), own
    height, width = images.shape[-2:]
    cut_h, cut_w = (round(side * math.sqrt(1 - own)) for side in (height, width))
    top, left = int(draw.integers(0, height - cut_h + 1)), int(draw.integers(0, width - cut_w + 1))
    images = images.clone()
    images[..., top : top + cut_h, left : left + cut_w] = other[..., top : top + cut_h, left : left + cut_w]
    return images, 1 - cut_h * cut_w / (height * width)


def neighbours(n: int) -> list[int]:
    """1, 0, 3, 2, …: each one's partner; the last of an odd number stays alone."""
    return [i ^ 1 if i ^ 1 < n else i for i in range(n)]


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, own: float, label_smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits (B, C) of images mixed by `mix`, with the share `own` of each image's own label.

    `labels`: (B,), or probabilities (B, C). With `weights` (C,) of the classes it is their weighted sum over B, where
    torch divides by the weights of the batch: a batch of common images makes a smaller step, and shares of a batch in
    two processes add up to the batch.
    """

    def loss(labels: Tensor) -> Tensor:
        mean = cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
        return mean if weights is None or labels.ndim > 1 else mean * weights[labels].mean()

    if own < 1:
        return own * loss(labels) + (1 - own) * loss(labels[neighbours(len(labels))])
    return loss(labels)
