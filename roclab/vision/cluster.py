"""The comparison's runs and batch prediction over a Ray cluster (extra `ray`).

Without a cluster Ray starts one on this machine. Runs are written where the tasks run: on several machines, the run
folders and the images must be on storage that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.runs import Run
from roclab.vision.train.config import TrainConfig


def check_engine(name: str) -> None:
    """Raise `RocLabError` if `name` is no engine of `compare` and `predict`."""
    if name not in ("local", "ray"):
        raise RocLabError(f"--engine {name}: choose local or ray")


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise RocLabError("--engine ray needs Ray: pip install 'roclab[ray]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    return ray


def _cpus_a_task() -> int:
    """As many cores as torch uses here: the same threads give the same bits as without Ray."""
    import torch

    return torch.get_num_threads()


def train_over_cluster(runs: Mapping[Path, TrainConfig]) -> None:
    """Finish every run, each as one task; the first mistake of a user is raised here."""
    if not runs:
        return
    ray = _ray()
    threads = _cpus_a_task()
    available = int(ray.cluster_resources().get("CPU", 1))

    here = os.getcwd()  # what relative paths in the configs are relative to

    @ray.remote(num_cpus=min(threads, available), max_retries=2)
    def task(path: str, values: dict[str, Any]) -> str | None:
        import torch

        from roclab.vision.train.train import finish

        os.chdir(here)
        torch.set_num_threads(threads)
        try:
            finish(Path(path), TrainConfig.fromdict(values))
        except RocLabError as error:  # a plain line crosses processes better than an exception does
            return str(error)
        return None

    pending = [task.remote(str(path.resolve()), config.asdict()) for path, config in runs.items()]
    if mistakes := [line for line in ray.get(pending) if line]:
        raise RocLabError(mistakes[0])


def predict_over_cluster(run: Run, images: Sequence[Path], chunk: int = 256) -> tuple[np.ndarray, list[str]]:
    """Class probabilities (N, C) of images in order, and the class names; chunks of images are tasks."""
    ray = _ray()
    threads = _cpus_a_task()
    available = int(ray.cluster_resources().get("CPU", 1))

    @ray.remote(num_cpus=min(threads, available), max_retries=2)
    def task(paths: list[str]) -> tuple[str | None, np.ndarray | None]:
        import torch

        from roclab.vision.evaluate.evaluate import predict_probs, to_device
        from roclab.vision.models.checkpoint import load_model

        torch.set_num_threads(threads)
        try:
            model, _, image_size = load_model(Run.open(run_path))
            return None, predict_probs(to_device(model), [Path(p) for p in paths], image_size)
        except RocLabError as error:
            return str(error), None

    run_path = str(run.path.resolve())
    from roclab.vision.models.checkpoint import load_model

    _, classes, _ = load_model(run)
    absolute = [str(path.resolve()) for path in images]
    answers = ray.get([task.remote(absolute[i : i + chunk]) for i in range(0, len(absolute), chunk)])
    if mistakes := [line for line, _ in answers if line]:
        raise RocLabError(mistakes[0])
    return np.concatenate([probs for _, probs in answers]), classes
