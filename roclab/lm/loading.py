"""From a model's name to what computes its logits, and its tokenizer: `roclab.lm.load`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from roclab.core.devices import pick_device
from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import load_library, why_no_library
from roclab.lm.engine.cpu.pack import why_not
from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.runner import Runner
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.settings import LoadOptions
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import Checkpoint, open_checkpoint

logger = logging.getLogger(__name__)


def load(name: str | Path | Checkpoint, engine: str = "auto", **options: Any) -> tuple[Runner, Tokenizer]:
    """A runner, ready to compute, and the tokenizer: the one door for the command line, scripts and notebooks.

        runner, tokenizer = lm.load("smollm2-135m")

    `name`: a short name, a path, `owner/name` on a Hub (see `roclab.lm.weights.sources`), or an open checkpoint.
    `options` are the fields of `LoadOptions`: dtype, device, quantize, float_activations, threads, tokenizer.

    `engine` "fast" is the compiled CPU kernels, "torch" the readable model. "auto" takes the kernels if there is no
    CUDA GPU (or `device` is the CPU), the dtype is float32, the weights are quantized (or `quantize` says how) and a
    compiler is there; otherwise torch, with a warning if it is the kernels that do not work.

    Raises RocLabError for an option that is not allowed or that the engine does not have, CheckpointError for a model
    that cannot be opened.
    """
    chosen = LoadOptions(engine=engine, **options)
    needs_kernels = chosen.quantize is not None or chosen.threads is not None or chosen.float_activations is False
    if chosen.engine == "torch" and needs_kernels:
        raise RocLabError("--quantize, --threads and --int8-activations belong to the fast engine, not to torch")
    device = pick_device(chosen.device)
    if chosen.device == "auto" and (chosen.engine == "fast" or needs_kernels):
        device = torch.device("cpu")
    checkpoint = name if isinstance(name, Checkpoint) else open_checkpoint(name)
    dtype: torch.dtype = getattr(torch, chosen.dtype)
    if chosen.engine != "torch":
        unfit = _why_unfit(checkpoint, dtype, device, chosen)
        reason = unfit or (why_no_library() if load_library() is None else None)
        if reason and (chosen.engine == "fast" or needs_kernels):
            raise RocLabError(f"the fast engine cannot run {checkpoint.path}: {reason}")
        if reason and not unfit and os.environ.get("ROCLAB_KERNELS") != "torch":
            logger.warning("slow, on torch instead of the fast engine: %s", reason)
        if not reason:
            runner = CPURunner(
                checkpoint, quantize=chosen.quantize, float_activations=bool(chosen.float_activations),
                threads=chosen.threads,
            )  # fmt: skip
            tokenizer = checkpoint.load_tokenizer(chosen.tokenizer)  # while the kernels pack the weights
            runner.wait()
            return runner, tokenizer
    return TorchRunner(checkpoint.load_model(dtype, device)), checkpoint.load_tokenizer(chosen.tokenizer)


def _why_unfit(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, options: LoadOptions) -> str | None:
    """Why the kernels are not for this model or this choice of options, or None."""
    if device.type == "cuda" or (options.device != "auto" and device.type != "cpu"):
        return f"it computes on the CPU, not on {device}"
    if dtype != torch.float32:
        return "it computes in float32, whatever the weights are kept in; leave --dtype out"
    return why_not(checkpoint, options.quantize)
