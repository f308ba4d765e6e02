"""`roclab lm study`: what a model is good at, and what not."""

from __future__ import annotations

from pathlib import Path

import typer

from roclab.cli.lm import DEVICE, DTYPE, MODEL, TOKENIZER, _load, say
from roclab.cli.output import print_json
from roclab.core.exceptions import RocLabError


def study(
    out: Path = typer.Option(..., "--out", help="The study's folder; one that was cut goes on."),
    model: str = MODEL,
    tokenizer_path: Path = TOKENIZER,
    seeds: int = typer.Option(3, "--seeds", help="Sampled runs beside the greedy one."),
    questions: Path = typer.Option(None, "--questions", help="A question file of your own (docs/study.md)."),
    quick: bool = typer.Option(False, "--quick", help="Two questions a kind, greedy only."),
    temperature: float = typer.Option(0.7, "--temperature", "-t", help="Of the sampled runs."),
    top_p: float = typer.Option(0.9, "--top-p", help="Of the sampled runs."),
    max_new_tokens: int = typer.Option(128, "--max-new-tokens", "-n", help="At most this many tokens a reply."),
    thinking_tokens: int = typer.Option(512, "--thinking-tokens", help="And this many more for a thought."),
    batch_size: int = typer.Option(32, "--batch-size", help="Questions answered at once."),
    as_json: bool = typer.Option(False, "--json", help="Print study.json's content."),
    dtype: str = DTYPE,
    device: str = DEVICE,
) -> None:
    """Ask a fixed set of questions by kind, score the answers by rule, and say what the model is good at.

    Example: roclab lm study --model smollm2-135m --out study
    """
    from roclab.core.files import file_sha256
    from roclab.course.study.ask import Study, run_study
    from roclab.course.study.report import table
    from roclab.lm.weights.checkpoint import open_checkpoint

    plan = Study(
        model, str(questions) if questions else None, seeds, temperature, top_p, max_new_tokens, thinking_tokens,
        batch_size, quick,
    )  # fmt: skip
    plan.asked  # noqa: B018  (read now: a mistake in the file is said before the model is opened)
    language_model, tokenizer, _ = _load(model, tokenizer_path, dtype, device)
    if not tokenizer.chat_template:
        raise RocLabError(f"{model}: this model has no chat template, so it cannot be asked")
    path = open_checkpoint(model, say).path
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    summary = run_study(language_model, tokenizer, plan, out, weights={f.name: file_sha256(f) for f in files})
    if as_json:
        print_json(summary)
        return
    typer.echo(table(summary) + "\n")
    for sentence in summary["sentences"]:
        typer.echo(sentence["text"])
    typer.echo(f"\n{out / 'study.md'}   {out / 'transcripts.md'}")
