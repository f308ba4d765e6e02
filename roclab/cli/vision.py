"""`roclab vision …`: transfer learning for images."""

from __future__ import annotations

import typer

app = typer.Typer(help="Transfer learning for images.", no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Transfer learning for images."""
