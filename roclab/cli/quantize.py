"""`roclab lm quantize`: float weights to a GGUF file in int8 or int4."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from roclab.cli.lm import MODEL, read_text
from roclab.cli.options import options_from
from roclab.core.exceptions import RocLabError
from roclab.lm.settings import LoadOptions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BYTES_A_TOKEN = 16  # more than in any text: what lies beyond in a file is not needed


@options_from(LoadOptions, "options", only=("tokenizer", "device"))
def quantize(
    options: LoadOptions,
    out: Path = typer.Argument(..., help="The file to write, such as model-int4.gguf."),
    model: str = MODEL,
    to: str = typer.Option("int4", "--to", help="int4 (calibrated), or int8."),
    calibration: Path = typer.Option(
        None, "--calibration", help="int4: a text like those the model will read; if not given it writes one itself."
    ),
    tokens: int = typer.Option(16384, "--tokens", min=512, help="int4: at most so many tokens of it."),
    seed: int = typer.Option(0, "--seed", max=2**62, help="int4: of the text that the model writes itself."),
    force: bool = typer.Option(False, "--force", help="Replace the file if it is there."),
) -> None:
    """Round a model's weights to int8 or int4 and write them as a GGUF file, for the fast engine and for llama.cpp.

    int4 is calibrated: the rounding keeps what each layer computes on a text near to what it was (GPTQ), which takes
    minutes and loses far less than --quantize int4, which rounds each weight to the nearest step while loading.

    Example: roclab lm quantize qwen3-int4.gguf --model Qwen/Qwen3-0.6B
    """
    from roclab.core.devices import pick_device
    from roclab.lm.engine.cpu.pack import QUANTIZATIONS, is_quantized
    from roclab.lm.quantize import calibration_texts, written_texts
    from roclab.lm.quantize import quantize as write
    from roclab.lm.weights.checkpoint import open_checkpoint

    if to not in QUANTIZATIONS:
        raise RocLabError(f"--to {to}: choose int4 or int8")
    if to != "int4" and calibration:
        raise RocLabError("--calibration belongs to --to int4; int8 needs none")
    if out.is_dir():
        raise RocLabError(f"{out} is a folder; name the file to write")
    if out.suffix != ".gguf":
        raise RocLabError(f"{out}: the file is GGUF; give it a name that ends in .gguf")
    if out.exists() and not force:
        raise RocLabError(f"{out} is there already; --force replaces it")
    device = pick_device(options.device)
    started = time.perf_counter()
    checkpoint = open_checkpoint(model)
    if is_quantized(checkpoint):
        logger.info("%s: quantized already; rounding it again adds to what that lost", model)
    tokenizer = checkpoint.load_tokenizer(options.tokenizer)
    content = read_text(calibration, max_bytes=BYTES_A_TOKEN * tokens) if calibration else ""

    def texts() -> torch.Tensor:
        if calibration is None:
            logger.info("the model writes %s tokens of calibration text", f"{tokens:,}")
            return written_texts(checkpoint, tokenizer, tokens, seed, device)
        return calibration_texts(checkpoint, tokenizer, content, tokens, str(calibration))

    write(checkpoint, tokenizer, out, to, texts, device)
    size, count = out.stat().st_size, sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    typer.echo(
        f"{out}: {size / 1e6:,.0f} MB, {8 * size / count:.1f} bits a weight, in {time.perf_counter() - started:.0f} s"
    )
