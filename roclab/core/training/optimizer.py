"""One step of a training: its learning rate, its number format, the optimizer, the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel


def warmup_cosine(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate at `step` of `steps`: a linear rise to `peak` over the share `warmup` of the steps, then half a
    cosine down to zero (Loshchilov and Hutter 2017)."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def autocast(device: torch.device, amp: str = "auto") -> AbstractContextManager:
    """Activations in bfloat16 or float32. `amp` "auto": bfloat16 on GPUs that compute in it (compute capability 8.0
    and later); elsewhere it may be emulated, and slower. "bf16" asks for it on any device, "off" for float32."""
    import torch

    if amp == "bf16" or (
        amp == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    ):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def emulated(device: torch.device, amp: str) -> str:
    """A line where `amp` asks for bfloat16 on a CPU that cannot compute in it (a step then takes ten times as long and
    more); else ""."""
    if amp != "bf16" or device.type != "cpu" or computes_bf16():
        return ""
    return "--amp bf16: this CPU does not compute in bfloat16, which makes training many times slower; leave it out"


def computes_bf16() -> bool:
    """Whether torch's library for CPUs, oneDNN, has bfloat16 kernels for this one."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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


def weight_average(module: nn.Module, decay: float, step: int = 0) -> AveragedModel:
    """An exponential moving average of the weights (Polyak and Juditsky 1992); buffers are copied. Call its
    `update_parameters(module)` after each step; `step`: how many were averaged already.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the random start is soon forgotten.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel

    def average(averages: Any, values: Any, count: torch.Tensor | int) -> None:
        torch._foreach_lerp_(averages, values, 1 - min(decay, int(count) / (9 + int(count))))

    averaged = AveragedModel(module, multi_avg_fn=average).requires_grad_(False)
    averaged.n_averaged += 1 + step  # at 0 the first update would be a copy
    return averaged
