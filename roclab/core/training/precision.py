"""The number format that a forward pass computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def autocast(device: torch.device, amp: str = "auto") -> AbstractContextManager:
    """bfloat16 on GPUs that compute in it (compute capability 8.0 and later); elsewhere it is emulated, and slower.
    With `amp` "off" float32."""
    import torch

    if amp == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
