"""Grad-CAM (Selvaraju et al. 2017): which part of an image speaks for a class, and whether it decides.

    map = ReLU(Σ_k α_k A_k),   α_k = mean over places of ∂ logit / ∂ A_k

A (channels k, places) is the last activation with places, just before pooling. Convolutional networks hold it as
(B, C, H, W), Swin as (B, H, W, C), plain vision transformers as (B, tokens, C): `activation` finds it and its layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.progress import track
from roclab.core.statistics import add_holm
from roclab.vision.data.images import open_image
from roclab.vision.data.transforms import eval_transform
from roclab.vision.error_analysis.gather import JointPredictions
from roclab.vision.evaluate.metrics import paired_bootstrap
from roclab.vision.models.classifier import Classifier, load_model

ARMS = 4  # whose heat maps are drawn
EACH = 2  # images of each kind: all wrong, only A wrong, only B wrong
RANDOM = 16  # images drawn at random, so that the check is not made on errors alone
HOT = 0.25  # share of the places that the check covers


@dataclass(frozen=True)
class Activation:
    """Where a network holds its last map of places: the submodule whose output it is, and the order of its axes."""

    module: str
    layout: str  # "BCHW", "BHWC" or "BTC"
    prefix: int = 0  # "BTC": tokens before the places (class token, registers)

    def places(self, values: Tensor) -> Tensor:
        """As (B, C, H, W), whatever the layout."""
        if self.layout == "BHWC":
            return values.permute(0, 3, 1, 2)
        if self.layout == "BTC":
            values = values[:, self.prefix :]
            side = round(values.shape[1] ** 0.5)
            return values.transpose(1, 2).unflatten(2, (side, side))
        return values


def activation(model: Classifier, image_size: int) -> Activation:
    """Find the last activation with more than one place, by sending a blank image through the network.

    The image is square, so the two axes that are equal are height and width: (B, C, S, S) or (B, S, S, C).
    Raises `RocLabError` if the network has none.
    """
    module: Any = model.module
    if hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens") and hasattr(module, "cls_token"):
        # a plain vision transformer takes its answer from the class token after the last block, so the last activation
        # of the places that matters is the one before that block's attention
        last = len(module.blocks) - 1
        return Activation(f"blocks.{last}.norm1", "BTC", int(module.num_prefix_tokens))
    found: list[Activation] = []

    def watch(name: str, _module: nn.Module, _inputs: Any, out: Any) -> None:
        if name and isinstance(out, torch.Tensor) and out.ndim == 4:
            _, a, b, c = out.shape
            if b == c > 1:
                found.append(Activation(name, "BCHW"))
            elif a == b > 1:
                found.append(Activation(name, "BHWC"))

    with ExitStack() as hooks, torch.no_grad():
        for name, part in module.named_modules():
            hooks.enter_context(part.register_forward_hook(partial(watch, name)))
        module(torch.zeros(1, 3, image_size, image_size, device=model.device))
    if not found:
        raise RocLabError(f"{model.name} has no activation with places: Grad-CAM does not apply")
    return found[-1]


def grad_cam(
    model: Classifier, images: Tensor, classes: Sequence[int], where: Activation, rectify: bool = True
) -> tuple[Tensor, Tensor]:
    """Grad-CAM maps (B, H, W) at the activation's own resolution, not scaled, and the logits (B, num_classes).

    `images` (B, 3, S, S) normalised; `classes` (B) the class whose logit is explained in each. `rectify` False leaves
    the ReLU out: where the head is linear on the mean over places, such a map sums to the logit without its bias.
    """
    caught: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        caught.append(out.detach().requires_grad_())  # the network goes on from here: nothing before it needs gradients
        return caught[-1]

    with model.module.get_submodule(where.module).register_forward_hook(hook), torch.enable_grad():
        logits = model.module(images)
        chosen = logits[torch.arange(len(images)), torch.as_tensor(classes)].sum()
        (gradient,) = torch.autograd.grad(chosen, caught[-1])
    values, slope = where.places(caught[-1].detach()), where.places(gradient)
    weights = slope.mean((2, 3), keepdim=True)  # α (B, C, 1, 1)
    maps = (weights * values).sum(1)
    return maps.clamp(min=0) if rectify else maps, logits.detach()


def covered(images: Tensor, cells: np.ndarray) -> Tensor:
    """The image (1, 3, S, S) with the places `cells` (H, W) bool set to the weights' mean colour."""
    mask = torch.from_numpy(cells).to(images.device)[None, None].float()
    mask = torch.nn.functional.interpolate(mask, images.shape[-2:], mode="nearest")
    return images * (1 - mask)  # 0 is the mean colour after normalisation


def hottest(heat: np.ndarray) -> np.ndarray:
    """The hottest quarter of the places (H, W) bool; ties by position."""
    cells = np.zeros(heat.size, dtype=bool)
    cells[np.argsort(-heat.ravel(), kind="stable")[: max(1, round(HOT * heat.size))]] = True
    return cells.reshape(heat.shape)


def what_decided(
    joint: JointPredictions,
    shared: dict[str, Any],
    pairs: list[dict[str, Any]],
    telling: Sequence[tuple[int, str]],
    seed: int,
) -> dict[str, Any]:
    """Heat maps for telling images, and for each arm whether the hottest places decide. `telling` has more images, each
    with what it tells, which are explained for the best arm.

    The check: the hottest quarter of the places is covered, and the probability of the predicted class falls by so much
    (`drop_hot`); then a part of the same shape elsewhere (moved by half the map, twice), which gives `drop_elsewhere`.
    Their difference has a paired bootstrap interval and Wilcoxon's p over the images drawn at random, so it holds for
    ordinary images too. An arm is represented by its first run.
    """
    arms = sorted(joint.arms, key=lambda name: float(joint.wrong[joint.arms[name]].mean()))[:ARMS]
    wanted: list[tuple[int, str, list[str]]] = [(i, "wrong by all", arms) for i in shared["by_all"][:EACH]]
    for pair in pairs:
        if {pair["a"], pair["b"]} == set(arms[:2]):
            for side in "ab":
                wanted += [(i, f"only {pair[side]} wrong", arms[:2]) for i in pair[f"only_{side}_wrong"][:EACH]]
    wanted += [(i, kind, arms[:1]) for i, kind in telling]
    n = len(joint.labels)
    drawn = np.random.default_rng(seed).choice(n, min(RANDOM, n), replace=False)
    found: dict[str, Any] = {"arms": {}, "shown": []}
    for arm in track(arms, "heat maps"):
        row = joint.arms[arm][0]
        try:
            explainer = _Explainer(joint, row)
        except (RocLabError, RuntimeError) as error:
            joint.notes.append(f"{joint.runs[row].path.name}: no heat maps ({error})")
            continue
        checks = [check for i in drawn if (check := explainer.explain(int(i)))]
        kinds: dict[int, str] = {}
        for i, kind, which in wanted:
            if arm in which:
                kinds.setdefault(i, kind)
        for i, kind in kinds.items():
            if check := explainer.explain(i):
                found["shown"].append({"image": i, "arm": arm, "kind": kind, **check})
        if len(checks) > 1:
            hot, elsewhere = (np.array([check[k] for check in checks]) for k in ("drop_hot", "drop_elsewhere"))
            found["arms"][arm] = {
                "run": joint.runs[row].path.name,
                "layer": explainer.where.module,
                "layout": explainer.where.layout,
                "images": len(checks),
                "drop_hot": float(hot.mean()),
                "drop_elsewhere": float(elsewhere.mean()),
                **paired_bootstrap(hot, elsewhere, seed),
                "p": covering_tells(hot, elsewhere),
                "resize": explainer.model.preprocessing.resize_for(explainer.size),
                "crop": explainer.size,
            }
    add_holm(found["arms"].values())
    return found


def covering_tells(hot: np.ndarray, elsewhere: np.ndarray) -> float:
    """One-sided p-value that covering the hottest places costs more than covering others, both (N,) over the same
    images: Wilcoxon's signed-rank test (1945)."""
    from scipy.stats import wilcoxon

    if not (hot != elsewhere).any():
        return 1.0
    return float(wilcoxon(hot, elsewhere, alternative="greater").pvalue)


class _Explainer:
    """One run's network, and what is needed to explain its predictions image by image."""

    def __init__(self, joint: JointPredictions, row: int) -> None:
        self.joint, self.row = joint, row
        self.model, _, self.size = load_model(joint.runs[row], joint.split)
        self.model.module.requires_grad_(False)
        self.where = activation(self.model, self.size)
        self.transform = eval_transform(self.model.preprocessing, self.size)

    def explain(self, i: int) -> dict[str, Any] | None:
        """The heat map of the predicted class, scaled to at most 1, and the check; None if the image is not there."""
        try:
            image = open_image(self.joint.file(i), at_least=self.model.preprocessing.resize_for(self.size))
        except (OSError, DataError):
            return None
        tensor = self.transform(image)[None].to(self.model.device)
        predicted = int(self.joint.predicted[self.row, i])
        maps, logits = grad_cam(self.model, tensor, [predicted], self.where)
        heat = maps[0].float().cpu().numpy()
        cells = hottest(heat)
        half = (heat.shape[0] // 2, heat.shape[1] // 2)
        others = [np.roll(cells, half, (0, 1)), np.roll(cells, half[1], 1)]
        with torch.inference_mode():
            again = self.model.module(torch.cat([covered(tensor, part) for part in (cells, *others)]))
        p = torch.softmax(torch.cat([logits, again]).float(), 1)[:, predicted].cpu().numpy()
        return {
            "predicted": self.joint.classes[predicted],
            "probability": float(p[0]),
            "heat": np.round(heat / max(float(heat.max()), 1e-12), 3).tolist(),
            "drop_hot": float(p[0] - p[1]),
            "drop_elsewhere": float(p[0] - p[2:].mean()),
        }
