"""`roclab report` and `roclab handin`: the write-up and the zip."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import typer

from roclab.cli.options import options_from
from roclab.cli.output import print_json
from roclab.core.exceptions import RocLabError
from roclab.report.settings import Settings

logger = logging.getLogger(__name__)

RUNS = typer.Option(..., "--runs", help="Run folders, or folders of runs; more may follow: --runs A B C.")
MORE = typer.Argument(None, metavar="[RUN]...", help="More run folders.")


@options_from(Settings, "stated")
def report(
    runs: list[Path] = RUNS,
    more: list[Path] | None = MORE,
    out: Path = typer.Option(..., help="Folder of the report; an older report in it is replaced."),
    split: str | None = typer.Option(None, help="test or val; test where the images have one, if not given."),
    errors: Path | None = typer.Option(None, help="Folder of `roclab vision errors`."),
    explain: bool = typer.Option(
        True, "--explain/--no-explain", help="Without --errors: analyse the errors here, without heat maps."
    ),
    lab: Path | None = typer.Option(None, help="Folder of `roclab tokenizer lab`."),
    study: Path | None = typer.Option(None, help="Folder of `roclab lm study`."),
    verify: bool = typer.Option(True, "--verify/--no-verify", help="Check RocLM's implementation for the report."),
    settings: Path | None = typer.Option(
        None, help="TOML: author, student_id, title, course, date, consulted, ai_tools."
    ),
    stated: Settings = Settings(),
    as_json: bool = typer.Option(False, "--json", help="Print all facts as JSON."),
) -> None:
    """Write the report of finished runs: Markdown, HTML, LaTeX and PDF, every figure from a run folder it names.

    Example: roclab report --runs runs/pets --errors errors --lab lab --settings me.toml --out report
    """
    from roclab.report.build import report as build

    paths = [*runs, *(more or [])]
    known = Settings.read(settings).with_given(stated)
    with tempfile.TemporaryDirectory() as folder:
        if errors is None and explain:
            errors = _explained(paths, split, Path(folder) / "errors")
        facts = build(paths, out, known, split, errors, lab, study, _verified() if verify else None)
    for warning in facts["warnings"]:
        logger.warning(warning)
    if as_json:
        print_json(facts)
        return
    for name in ("report.pdf", "report.html", "report.tex", "report.md"):
        print(out / name)


def _explained(paths: list[Path], split: str | None, folder: Path) -> Path | None:
    """The error analysis of the finished runs, made into `folder`; None where there is none to be had."""
    from roclab.report.error_page import write_page
    from roclab.report.runs import pick_split, read_runs
    from roclab.vision.error_analysis.facts import analyse

    found = read_runs(paths)
    split = pick_split(found, split)
    try:
        write_page(analyse([run for run in found if run.finished], split, decided=False), folder)
    except RocLabError as error:
        logger.warning("no error analysis: %s", error)
        return None
    return folder


def _verified() -> dict[str, Any]:
    """What the checker says of our own model."""
    from roclab.course.handin.checklist import PACKAGE
    from roclab.course.verify.checker import verify

    return dict(verify(PACKAGE / "lm" / "model.py")) | {"file": "roclm_model.py"}


def handin(
    runs: list[Path] = RUNS,
    more: list[Path] | None = MORE,
    student_id: str = typer.Option(..., help="Your student ID, as in the report and the tokenizer lab."),
    name: str = typer.Option(..., help="Your name, as in the report."),
    report: Path = typer.Option(..., help="Folder of `roclab report`."),
    lab: Path | None = typer.Option(None, help="Folder of `roclab tokenizer lab`; missing without it."),
    study: Path | None = typer.Option(None, help="Folder of `roclab lm study`."),
    out: Path = typer.Option(Path("handin.zip"), help="The zip."),
    with_checkpoints: bool = typer.Option(False, "--with-checkpoints", help="Pack the trained models too (large)."),
    incomplete: bool = typer.Option(
        False, "--incomplete", help="Pack although something is missing, and say so inside."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was packed and proven as JSON."),
) -> None:
    """Pack the hand-in: check the handout's list, write the zip, unzip it elsewhere and run it there.

    Example: roclab handin --student-id 31415 --name "Ada Lovelace" --runs runs/pets --report report --lab lab
    """
    from roclab.course.handin.pack import handin as pack

    done = pack(student_id, name, [*runs, *(more or [])], report, lab, out, study, with_checkpoints, incomplete)
    if as_json:
        print_json(done)
        return
    for item in done["missing"]:
        logger.info("missing: %s (%s)", item["what"], item["remedy"])
    for line in done["proven"]:
        print(f"proven: {line}")
    print(f"absolute paths were made relative in {len(done['made_relative'])} files")
    if not done["checkpoints"]:
        print("checkpoints are not in it: README.md lists them, --with-checkpoints packs them")
    print(f"{done['out']}: {len(done['files'])} files, {done['bytes'] / 1e6:.1f} MB")
