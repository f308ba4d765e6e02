"""Which device computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps, …); "auto" is CUDA, else mps, else the CPU. Raises RocLabError
    if it cannot be used here."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RocLabError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    return device
