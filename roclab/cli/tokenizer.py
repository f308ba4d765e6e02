"""`roclab tokenizer …`: what tokenizers make of texts."""

from __future__ import annotations

from pathlib import Path

import typer

from roclab.cli.output import print_json

app = typer.Typer(help="Tokenizers, looked into.", no_args_is_help=True)


@app.callback()
def options() -> None:
    """Keeps `lab` a command of its own while it is the only one."""


@app.command()
def lab(
    student_id: str = typer.Option(..., "--student-id", help="The ID to take apart."),
    out: Path = typer.Option(..., "--out", help="The lab's folder; an older lab in it is replaced."),
    qwen3: str = typer.Option(
        None, "--qwen3", help="A folder with Qwen3's tokenizer.json, or a Hub id such as Qwen/Qwen3-0.6B."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print lab.json's content."),
) -> None:
    """Execute Tokenizer_Lab.ipynb for a student ID: notebook, page, text, facts and figures in a folder.

    Example: roclab tokenizer lab --student-id 31842067 --out lab
    """
    from roclab.course.tokenizer_lab.lab import write_lab

    content = write_lab(student_id, out, qwen3)
    if as_json:
        print_json(content)
        return
    for sentence in content["sentences"]:
        typer.echo(sentence["text"])
    typer.echo(f"\n{out / 'Tokenizer_Lab.ipynb'}   {out / 'Tokenizer_Lab.html'}   {out / 'lab.md'}")
