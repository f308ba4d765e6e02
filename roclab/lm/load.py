"""Which engine runs a checkpoint: the compiled kernels where they fit, the readable model on torch elsewhere."""

from __future__ import annotations

import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import load_library, why_no_library
from roclab.lm.engine.cpu.pack import why_not
from roclab.lm.engine.cpu.runner import FastRocLM
from roclab.lm.engine.scheduler import LanguageModel
from roclab.lm.weights.checkpoint import Checkpoint

ENGINES = ("auto", "fast", "torch", "compiled")


def open_model(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    exact: bool | None = None,
    threads: int | None = None,
    lookup: bool = True,
) -> LanguageModel:
    """The checkpoint's model on the engine named. "auto" takes the kernels if the device is the CPU, the dtype float32,
    the weights quantized (or `quantize` says how) and a compiler is there; otherwise torch. "compiled" is torch with
    its steps compiled, which pays on GPUs. `exact` is FastRocLM's; None: as the engine likes.

    Raises RocLabError for an unknown engine, options that this engine does not have, or what `FastRocLM` raises.
    """
    if engine not in ENGINES:
        raise RocLabError(f"--engine {engine}: choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    wants_kernels = quantize is not None or threads is not None or exact is False  # floats are what torch has anyway
    if engine in ("torch", "compiled") and wants_kernels:
        raise RocLabError(f"--quantize, --threads and --int8-activations belong to the fast engine, not to {engine}")
    if engine == "torch":
        return checkpoint.load_model(dtype, device)
    if engine == "compiled":
        from roclab.lm.engine.compiled_runner import CompiledRocLM

        return CompiledRocLM(checkpoint.load_model(dtype, device))
    reason = _why_torch(checkpoint, dtype, device, quantize)
    if engine == "auto" and reason and not wants_kernels:
        return checkpoint.load_model(dtype, device)
    if reason:
        raise RocLabError(f"the fast engine cannot run {checkpoint.path}: {reason}")
    return FastRocLM(checkpoint, quantize=quantize, exact=bool(exact), threads=threads, guessing=lookup)


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
