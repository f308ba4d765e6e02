"""Which device computes, and how many of its cores are ours."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


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


def usable_cores() -> int:
    """The cores this process may use: those it may run on, and no more than its control group pays for. More threads
    than that are stopped for a part of every tenth of a second, all of them at a barrier."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that control groups allow (Linux, version 1 and 2), infinite without a limit. The smallest
    counts of the group and all around it; of a container, whose groups have other names outside, the mounted ones."""
    found = math.inf
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            places = [mount] if not controllers else [mount / controllers, mount / "cpu"]
            around = PurePosixPath(name)
            for folder in (place / str(g).lstrip("/") for place in places for g in (around, *around.parents)):
                with suppress(OSError, ValueError):
                    if controllers:
                        quota, period = (int((folder / f"cpu.cfs_{w}_us").read_text()) for w in ("quota", "period"))
                    else:
                        quota, period = map(int, (folder / "cpu.max").read_text().split())
                    if quota > 0 and period > 0:
                        found = min(found, quota / period)
    return found


def device_or_auto(name: str) -> torch.device:
    """The device that a run was trained on, or the one of this machine."""
    try:
        return pick_device(name)
    except RocLabError:
        device = pick_device()
        logger.info(f"the run was trained on {name}, which is not here: using {device}")
        return device
