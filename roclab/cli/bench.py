"""`roclab lm bench`: how fast this machine runs a model."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import typer

from roclab.cli.lm import MODEL
from roclab.cli.options import options_from
from roclab.cli.output import print_json
from roclab.core.exceptions import RocLabError
from roclab.lm.settings import LoadOptions

logger = logging.getLogger(__name__)


@options_from(LoadOptions, "options", only=("engine", "quantize"))
def bench(
    options: LoadOptions,
    model: str = MODEL,
    peers: str = typer.Option("", "--peers", help="Also measure llama.cpp, transformers or both, with a comma."),
    peer_python: str = typer.Option(
        None, "--peer-python", help="The Python that has llama-cpp-python, if it is another; or set ROCLAB_PEER_PYTHON."
    ),
    shape: str = typer.Option(
        None, "--random", help="Instead of --model, random weights: qwen3-0.6b:int8 or qwen3-0.6b:int4."
    ),
    repeats: int = typer.Option(3, "--repeats", min=1, max=100, help="Each figure is the median of as many."),
    quick: bool = typer.Option(False, "--quick", help="Leave out the long prompts."),
    as_json: bool = typer.Option(False, "--json", help="Print all measurements as one JSON object."),
) -> None:
    """Measure loading, prefill, decode, batches and memory, with the share of this machine's limits. The last line is
    JSON with the six figures that sum it up.

    Example: roclab lm bench --model smollm2-135m --peers llama.cpp
    """
    import tempfile

    from roclab_bench.lm import PEERS, table
    from roclab_bench.lm import bench as measure

    from roclab.lm.weights.checkpoint import open_checkpoint

    wanted = [name.strip() for name in peers.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(PEERS)):
        raise RocLabError(f"--peers {', '.join(unknown)}: choose among {', '.join(PEERS)}")
    python = peer_python or os.environ.get("ROCLAB_PEER_PYTHON") or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        if shape:
            from roclab_bench.random_model import write_random

            logger.info("writing random weights of %s", shape)
            write_random(path, shape)
        checkpoint = open_checkpoint(path if shape else model)
        if "llama.cpp" in wanted and checkpoint.path.suffix != ".gguf":
            raise RocLabError("--peers llama.cpp: it reads GGUF files only, and this model is none")
        result = measure(
            str(checkpoint.path), min(checkpoint.config.vocab_size, 40000), checkpoint.config.max_position_embeddings,
            peers=wanted, peer_python=python, engine=options.engine, quantize=options.quantize, repeats=repeats,
            quick=quick,
        )  # fmt: skip
    result = {"model": shape or model, **result}
    if as_json:
        print_json(result)
        return
    typer.echo(table(result))
    print_json(result["summary"])
