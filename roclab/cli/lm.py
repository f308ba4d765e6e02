"""`roclab lm …`: the language model."""

from __future__ import annotations

import typer

app = typer.Typer(help="RocLM, the language model.", no_args_is_help=True)


def pull(name: str = typer.Argument(..., help="A short name, such as smollm2-135m.")) -> None:
    """Fetch a model's weights by its short name."""
    raise typer.Exit(1)
