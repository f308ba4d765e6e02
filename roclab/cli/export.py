"""`roclab lm export`: a model's weights, configuration and tokenizer for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from roclab.cli.lm import MODEL
from roclab.cli.options import options_from
from roclab.core.exceptions import RocLabError
from roclab.lm.settings import LoadOptions


@options_from(LoadOptions, "options", only=("tokenizer",))
def export(
    options: LoadOptions,
    out: Path = typer.Argument(..., help="The folder to write, or with --format gguf the file."),
    model: str = MODEL,
    layout: str = typer.Option("hf", "--format", help="hf: a Hugging Face folder; gguf: a GGUF file of floats."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="float32, bfloat16, float16; auto: as stored, quantized weights as float16."
    ),
) -> None:
    """Write a model for other programs: transformers and vLLM open the folder, llama.cpp the file.

    Example: roclab lm export smollm2 --model smollm2-135m
    """
    from roclab.lm.weights.checkpoint import open_checkpoint
    from roclab.lm.weights.gguf_writer import write_gguf_floats
    from roclab.lm.weights.huggingface_writer import write_huggingface

    writers: dict[str, Callable[..., None]] = {"hf": write_huggingface, "gguf": write_gguf_floats}
    if layout not in writers:
        raise RocLabError(f"--format {layout}: choose one of {', '.join(writers)}")
    checkpoint = open_checkpoint(model)
    tokenizer = checkpoint.load_tokenizer(options.tokenizer)
    writers[layout](out, checkpoint.config, tokenizer, checkpoint.tensors, dtype)
    typer.echo(str(out))
