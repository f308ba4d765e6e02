"""`roclab lm study`: what a model is good at, and what not."""

from __future__ import annotations

from pathlib import Path

import typer

from roclab.cli.lm import MODEL, open_model
from roclab.cli.options import options_from
from roclab.cli.output import print_json
from roclab.core.exceptions import RocLabError
from roclab.course.study.settings import Study
from roclab.lm.settings import LoadOptions


@options_from(LoadOptions, "options", only=("tokenizer", "dtype", "device", "engine"))
@options_from(Study, "settings")
def study(
    settings: Study,
    options: LoadOptions,
    out: Path = typer.Option(..., "--out", help="The study's folder; an interrupted study goes on."),
    model: str = MODEL,
    as_json: bool = typer.Option(False, "--json", help="Print study.json's content."),
) -> None:
    """Ask a fixed set of questions by kind, score the answers by rule, and say what the model is good at.

    Example: roclab lm study --model smollm2-135m --out study
    """
    from roclab.core.files import file_sha256
    from roclab.course.study.ask import run_study
    from roclab.course.study.report import table
    from roclab.lm.weights.checkpoint import open_checkpoint

    settings.asked  # noqa: B018  (read now: a mistake in the file is reported before the model is opened)
    checkpoint = open_checkpoint(model)
    # All runs with float activations, as the greedy one needs them (`for_temperature`).
    runner, tokenizer, _ = open_model(checkpoint, options.for_temperature(0))
    if not tokenizer.chat_template:
        raise RocLabError(f"{model}: this model has no chat template, so it cannot be asked")
    path = checkpoint.path
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    hashes = {file.name: file_sha256(file) for file in files}
    summary = run_study(model, runner, tokenizer, settings, out, weights=hashes)
    if as_json:
        print_json(summary)
        return
    typer.echo(f"{table(summary)}\n")
    for sentence in summary["sentences"]:
        typer.echo(sentence["text"])
    typer.echo(f"\n{out / 'study.md'}   {out / 'transcripts.md'}")
