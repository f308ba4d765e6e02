"""Which device computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    import torch


def usable_device(name: str) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps, …). Raises `RocLabError` if it cannot be used here."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RocLabError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    return device
