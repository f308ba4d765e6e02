"""The process's memory: how much it held at most, and keeping what is freed for the next step."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step. For a process of our own: it changes the allocator for good.

    Otherwise each activation of more than 32 MB is mapped anew in every step and unmapped after it, and the kernel
    clears every page again: up to a third of a step's time on a CPU (docs/log-vision.md). It cannot be undone: setting
    these values ends glibc's own adaptation, and its first values are worse than both. Nothing happens where the C
    library is another.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap …
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # … which is not trimmed


def release_freed_memory() -> None:
    """Give memory that is free back to the system, between two parts of the work that need blocks of other sizes."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        if libc.mallopt and libc.malloc_trim:
            return libc
    return None


def reset_peak_memory() -> None:
    """Count the peak memory anew, where the system can: a comparison trains several runs in one process."""
    import torch

    release_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Most memory held (MB) since `reset_peak_memory`: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
