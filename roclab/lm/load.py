"""Which engine runs a checkpoint: the compiled kernels where they fit, the readable model on torch elsewhere."""

from __future__ import annotations

import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import load_library, why_no_library
from roclab.lm.engine.cpu.pack import why_not
from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.runner import Runner
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.weights.checkpoint import Checkpoint

ENGINES = ("auto", "fast", "torch")


def open_model(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    exact: bool | None = None,
    threads: int | None = None,
) -> Runner:
    """The checkpoint's model on the engine named. "auto" takes the kernels if the device is the CPU, the dtype float32,
    the weights quantized (or `quantize` says how) and a compiler is there; otherwise torch.
    `exact` is CPURunner's `float_activations`; None: as the engine likes.

    Raises RocLabError for an unknown engine, options that this engine does not have, or what `CPURunner` raises.
    """
    if engine not in ENGINES:
        raise RocLabError(f"--engine {engine}: choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    wants_kernels = quantize is not None or threads is not None or exact is False  # floats are what torch has anyway
    if engine == "torch" and wants_kernels:
        raise RocLabError(f"--quantize, --threads and --int8-activations belong to the fast engine, not to {engine}")
    if engine == "torch":
        return TorchRunner(checkpoint.load_model(dtype, device))
    reason = _why_torch(checkpoint, dtype, device, quantize)
    if engine == "auto" and reason and not wants_kernels:
        return TorchRunner(checkpoint.load_model(dtype, device))
    if reason:
        raise RocLabError(f"the fast engine cannot run {checkpoint.path}: {reason}")
    return CPURunner(checkpoint, quantize=quantize, float_activations=bool(exact), threads=threads)


def _why_torch(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device, quantize: str | None
) -> str | None:
    """Why the kernels cannot be used, or None."""
    if torch.device(device).type != "cpu":
        return f"it computes on the CPU, not on {device}"
    if dtype != torch.float32:
        return "it computes in float32, whatever the weights are kept in; leave --dtype out"
    if reason := why_not(checkpoint, quantize):
        return reason
    return why_no_library() if load_library() is None else None
