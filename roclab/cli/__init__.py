"""The command line: parsing and printing only. Heavy libraries are imported inside the commands,
so that `roclab --help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

# Threads that wait must sleep, not spin: where cores are shared, spinning costs most of the speed (docs/log.md). It has
# to be said before torch loads its thread pool.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from roclab import __version__
from roclab.cli import course, lm, serve, vision
from roclab.core.devices import cpu_quota, usable_cores
from roclab.core.exceptions import RocLabError
from roclab.core.log import show_messages
from roclab.core.provenance import packages_by_extra
from roclab.core.sentences import one_line

app = typer.Typer(
    name="roclab",
    help="A deep-learning bench: transfer learning for images, and RocLM, a readable language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lm.app.command("serve")(serve.serve)
app.add_typer(lm.app, name="lm")
app.add_typer(vision.app, name="vision")
app.add_typer(course.tokenizer, name="tokenizer")
app.command("pull")(lm.pull)
app.command("report")(course.report)
app.command("handin")(course.handin)
app.command("project")(course.project)


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


# typer's base class of a user's mistake in the words of the command itself: it exports only this child of it.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line: a user's mistake becomes one line on stderr and exit code 2."""
    for name in ("stdin", "stdout", "stderr"):
        if (text_stream := getattr(sys, name)) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  (open to the end)
        elif hasattr(text_stream, "reconfigure"):  # a character that a terminal lacks, or a byte that is no text
            text_stream.reconfigure(errors="replace")
            if name == "stdin" and not text_stream.isatty():  # a pipe holds what a file would (roclab.lm.text.source)
                text_stream.reconfigure(encoding="utf-8-sig", errors="replace")
    if cpu_quota() < (os.cpu_count() or 1):  # torch counts the cores it sees
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    show_messages()
    try:
        sys.exit(app(standalone_mode=False))
    except RocLabError as error:
        _fail(error, str(error))
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        message = error.format_message()
        _fail(error, f"{message} (see {context.command_path} --help)" if message and context else message)
    except ModuleNotFoundError as error:
        if not (extra := _extra_with(error.name or "")):
            raise
        _fail(error, f"this needs {error.name}: python -m pip install 'roclab[{extra}]'")
    except typer.Abort:  # ctrl-c
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `roclab … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a file that went away
        _fail(error, f"{error.filename or 'writing'}: {error.strerror or error}")


OTHER_NAMES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "pypandoc": "pypandoc-binary",
    "markdown_it": "markdown-it-py",
    "prometheus_client": "prometheus-client",
}


def _extra_with(module: str) -> str | None:
    """The extra of ours that installs a library, from what pip knows of us. Of several, the one that the command is
    named after (vision, report, lab), then the smallest: report holds all of vision."""
    package = OTHER_NAMES.get(module.split(".")[0], module.split(".")[0])
    packages = {extra: names for extra, names in packages_by_extra().items() if extra not in ("", "dev")}
    having = [extra for extra, names in packages.items() if package in names]
    return min(having, key=lambda extra: (extra not in sys.argv, len(packages[extra])), default=None)


def _fail(error: Exception, message: str) -> None:
    if os.environ.get("ROCLAB_DEBUG"):
        raise error
    if message:  # without one the help was printed
        print(f"roclab: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
