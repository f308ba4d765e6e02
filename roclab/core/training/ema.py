"""The average of a network's weights over the steps of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel


def weight_average(module: nn.Module, decay: float, step: int = 0) -> AveragedModel:
    """An exponential moving average of the weights (Polyak and Juditsky 1992); buffers are copied. Call its
    `update_parameters(module)` after each step; `step`: how many were averaged already.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the random start is soon forgotten.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel

    def average(averages: Any, values: Any, count: Tensor | int) -> None:
        torch._foreach_lerp_(averages, values, 1 - min(decay, int(count) / (9 + int(count))))

    averaged = AveragedModel(module, multi_avg_fn=average).requires_grad_(False)
    averaged.n_averaged += 1 + step  # at 0 the first update would be a copy
    return averaged
