"""The command line: parsing and printing only. Heavy libraries are imported inside the commands,
so that `roclab --help` answers at once."""

from __future__ import annotations

import os
import sys

import typer

# Threads that wait must sleep, not spin: where cores are shared, spinning costs most of the speed (docs/log.md). It has
# to be said before torch loads its thread pool.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from roclab import __version__
from roclab.cli import lm, vision
from roclab.errors import RocLabError

app = typer.Typer(
    name="roclab",
    help="A deep-learning bench: transfer learning for images, and RocLM, a readable language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lm.app, name="lm")
app.add_typer(vision.app, name="vision")
app.command("pull")(lm.pull)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"roclab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if debug:
        os.environ["ROCLAB_DEBUG"] = "1"


def main() -> None:
    """Run the command line: a `RocLabError` becomes one line on stderr and exit code 2."""
    try:
        app()
    except RocLabError as error:
        if os.environ.get("ROCLAB_DEBUG"):
            raise
        print(f"roclab: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone, as in `roclab … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
