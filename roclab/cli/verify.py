"""`roclab lm verify`: check an implementation of RocLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from roclab.cli.options import options_from
from roclab.cli.output import print_json
from roclab.course.verify.limits import Limits


@options_from(Limits, "limits")
def verify(
    file: Path = typer.Argument(None, help="A Python file with the handout's names; ours if none is given."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    limits: Limits = Limits(),
) -> None:
    """Check an implementation part by part against an independent reference, with a hint at the likely mistake.

    It runs in a process of its own, under limits. Exit code 0: all checks passed, 1: some failed.

    Example: roclab lm verify roclm_model.py --json
    """
    from rich.console import Console

    from roclab.course.verify.checker import OURS, verify

    file = file or OURS
    with Console(stderr=True).status(f"checking {file.name}"):  # some seconds, most of them torch's import
        report = verify(file, limits)
    if as_json:
        print_json(report)
    else:
        show(report)
    raise typer.Exit(0 if report["passed"] else 1)


def show(report: dict[str, Any]) -> None:
    """The diagnosis, a table of the checks, and what failed in words."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    worst = report["diagnosis"]
    passed, total = report["checks_passed"], report["checks_total"]
    console.print(f"{escape(report['file'])}: {passed} of {total} checks passed", style="bold", soft_wrap=True)
    if worst:
        console.print(f"Most likely: {escape(worst['hint'])}", style="red", soft_wrap=True)
    not_run = [c for c in report["checks"] if c["found"] == "not run"]
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "deviation", "allowed"):
        table.add_column(column, justify="right" if column in ("deviation", "allowed") else "left")
    for check in report["checks"]:
        if check in not_run:
            continue
        numbers = ["" if check[key] is None else f"{check[key]:.1e}" for key in ("deviation", "tolerance")]
        mark = "[green]ok[/]" if check["passed"] else "[red]FAILED[/]"
        table.add_row(mark, escape(check["name"]), *numbers)
    console.print(table)
    failed: dict[str, list[dict[str, Any]]] = {}  # by hint: one fault is shown once, with all that follows from it
    for check in report["checks"]:
        if not check["passed"] and check not in not_run:
            failed.setdefault(check["hint"], []).append(check)
    for hint, (first, *others) in failed.items():
        console.print(f"\n{escape(first['name'])}", style="bold", soft_wrap=True)
        for key in ("expected", "found"):
            console.print(f"  {key:9}{escape(first[key])}", soft_wrap=True)
        console.print(f"  hint     {escape(hint)}", soft_wrap=True)
        if others:
            console.print(f"  so too   {escape('; '.join(c['name'] for c in others))}", style="dim", soft_wrap=True)
    if not_run:
        console.print(f"\n{len(not_run)} checks were not run.")
