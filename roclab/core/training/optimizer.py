"""The optimizer and one step of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel


def make_optimizer(groups: Sequence[dict[str, Any]], name: str) -> Optimizer:
    """ "adamw": AdamW (Loshchilov and Hutter 2019); "sgd": SGD with Nesterov's momentum of 0.9. A group's "scale" is
    its share of the learning rate."""
    import torch

    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def optimizer_step(
    module: nn.Module, optimizer: Optimizer, rate: float, clip: float, ema: AveragedModel | None
) -> None:
    """One step at the learning rate `rate`, gradients clipped to the norm `clip` (0: not), and one of the average."""
    import torch

    if clip:
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if ema:
        ema.update_parameters(module)
