"""A function over many items as tasks of a Ray cluster (extra `ray`).

Without a cluster Ray starts one on this machine. Tasks write where they run: with several machines, run folders and
images must be on storage that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from roclab.core.exceptions import RocLabError
from roclab.core.training.memory import keep_freed_memory

T = TypeVar("T")
S = TypeVar("S")


def check_engine(name: str) -> None:
    """Raise `RocLabError` for an unknown --engine."""
    if name not in ("local", "ray"):
        raise RocLabError(f"--engine {name}: choose local or ray")


def map_over_cluster(function: Callable[[T], S], items: Sequence[T]) -> list[S]:
    """`[function(item) for item in items]`, each call a task with as many threads as torch uses here (the same threads
    give the same bits). The first `RocLabError` of a task is raised here."""
    try:
        import ray
    except ImportError:
        raise RocLabError("--engine ray needs Ray: pip install 'roclab[ray]'") from None
    import torch

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    threads, here = torch.get_num_threads(), os.getcwd()

    @ray.remote(num_cpus=min(threads, int(ray.cluster_resources().get("CPU", 1))), max_retries=2)
    def task(item: T) -> tuple[str | None, S | None]:
        torch.set_num_threads(threads)
        keep_freed_memory()
        with suppress(OSError):  # another machine may lack the folder; absolute paths need it not
            os.chdir(here)
        try:
            return None, function(item)
        except RocLabError as error:  # a line crosses processes better than an exception does
            return str(error), None

    answers = ray.get([task.remote(item) for item in items])
    if mistakes := [line for line, _ in answers if line]:
        raise RocLabError(mistakes[0])
    return [answer for _, answer in answers]  # type: ignore[misc]
