"""The process's memory: how much it held at most, and keeping what is freed for the next step."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3), with its defaults
DEFAULTS = ((M_TRIM_THRESHOLD, 128 << 10), (M_MMAP_MAX, 65536))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While this lasts, glibc keeps freed memory for the next step, and gives it back at the end.

    Otherwise each activation of more than a few hundred kilobytes is mapped anew in every step and unmapped after it,
    and the kernel clears every page again: a third of a step's time on a CPU (docs/log-vision.md). Nothing happens
    where the C library is another.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap …
    mallopt(M_TRIM_THRESHOLD, -1)  # … which is not trimmed
    try:
        yield
    finally:
        for option, value in DEFAULTS:
            mallopt(option, value)
        malloc_trim(0)


def forget_peak_memory() -> None:
    """Begin to count the peak memory anew, where the system can: a comparison trains several runs in one process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Most memory held (MB) since `forget_peak_memory`: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
