"""What the course project asks for: the implementation checker, the study, the tokenizer lab, the report, the zip."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import typer

from roclab.cli import lm
from roclab.cli.options import options_from
from roclab.cli.output import print_json, show
from roclab.core.exceptions import RocLabError
from roclab.course.study.settings import Study
from roclab.course.verify.limits import Limits
from roclab.lm.settings import LoadOptions
from roclab.report.settings import Settings
from roclab.vision.config import TrainConfig

logger = logging.getLogger(__name__)

RUNS = typer.Option(..., "--runs", help="Run folders, or folders of runs; more may follow: --runs A B C.")
OF_ALL_RUNS = ("data", "data_root", "mirror", "skip_bad", "image_size", "epochs", "seed", "lp_ft", "amp", "device")
QWEN3 = typer.Option(None, "--qwen3", help="A folder with Qwen3's tokenizer.json, or a Hub id such as Qwen/Qwen3-0.6B.")
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
    curve: Path | None = typer.Option(None, help="Folder of runs with other numbers of images a class (--per-class)."),
    lab: Path | None = typer.Option(None, help="Folder of `roclab tokenizer lab`."),
    study: Path | None = typer.Option(None, help="Folder of `roclab lm study`."),
    model: str | None = typer.Option(
        None, help="Model of the RocLM chapter; smollm2-135m where it is installed, else only a shape is drawn."
    ),
    verify: bool = typer.Option(
        True, "--verify/--no-verify", help="Check RocLM's implementation and measure its model for the report."
    ),
    settings: Path | None = typer.Option(
        None, help="TOML: author, student_id, title, course, date, consulted, ai_tools, [observations]."
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
    if model and not verify:
        raise RocLabError("--model names the model to measure, and --no-verify leaves that out: choose one of them")
    checked, roclm = _looked_into(model) if verify else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        if errors is None and explain:
            errors = _explained(paths, split, Path(folder) / "errors")
        facts = build(paths, out, known, split, errors, lab, study, checked, curve, roclm)
    for warning in facts["warnings"]:
        logger.warning(warning)
    show(facts, as_json, "\n".join(str(out / f"report.{suffix}") for suffix in ("pdf", "html", "tex", "md")))


def _looked_into(model: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the checker says of RocLM, and what it computes."""
    from rich.console import Console

    with Console(stderr=True).status("checking RocLM"):
        from roclab.course.ours import examine_ours
        from roclab.course.verify.checker import verify_ours

        checked = verify_ours()
    return checked, examine_ours(model)


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


def handin(
    runs: list[Path] = RUNS,
    more: list[Path] | None = MORE,
    student_id: str = typer.Option(..., help="Your student ID, as in the report and the tokenizer lab."),
    name: str = typer.Option(..., help="Your name, as in the report."),
    report: Path = typer.Option(..., help="Folder of `roclab report`."),
    lab: Path | None = typer.Option(None, help="Folder of `roclab tokenizer lab`; missing without it."),
    study: Path | None = typer.Option(None, help="Folder of `roclab lm study`."),
    out: Path = typer.Option(Path("handin.zip"), help="The zip."),
    demo: Path | None = typer.Option(None, help="File with what the demos printed."),
    with_checkpoints: bool = typer.Option(
        False, "--with-checkpoints", help="Pack whole networks too (large); the heads of frozen ones always are."
    ),
    incomplete: bool = typer.Option(
        False, "--incomplete", help="Pack although something is missing, and say so inside."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was packed and proven as JSON."),
) -> None:
    """Pack the hand-in: check the handout's list, write the zip, unzip it elsewhere and run it there.

    Example: roclab handin --student-id 31415 --name "Ada Lovelace" --runs runs/pets --report report --lab lab
    """
    from roclab.course.handin.pack import handin as pack
    from roclab.report.kit import render

    paths = [*runs, *(more or [])]
    done = pack(student_id, name, paths, report, lab, out, study, demo, with_checkpoints, incomplete)
    if not as_json:
        for item in done["missing"]:
            logger.info("missing: %s (%s)", item["what"], item["remedy"])
    show(done, as_json, render("handin.txt", done=done))


@options_from(TrainConfig, "base", only=OF_ALL_RUNS, defaults={"data": "pets"})
@options_from(Settings, "stated", only=("title", "consulted", "ai_tools"))
def project(
    base: TrainConfig,
    stated: Settings = Settings(),
    student_id: str = typer.Option(..., help="Your student ID."),
    name: str = typer.Option(..., help="Your name."),
    out: Path = typer.Option(Path("project"), help="Folder of everything; an interrupted project in it goes on."),
    budget: str | None = typer.Option(None, help="Time for all of it, such as 2h: chooses epochs, image size, extras."),
    weights: str = typer.Option("default", help="Of all networks, or MODEL=WEIGHTS,MODEL=WEIGHTS."),
    model: str = lm.MODEL,
    qwen3: str | None = QWEN3,
    settings: Path | None = typer.Option(None, help="TOML with what only you know, as for roclab report."),
    only_plan: bool = typer.Option(False, "--plan", help="Print the plan and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print project.json's content at the end."),
) -> None:
    """Make the whole hand-in: both networks under both strategies, analyses, RocLM's part, the report, the zip.

    Example: roclab project --student-id 31415 --name "Ada Lovelace" --data elpv --budget 30m --out project
    """
    from dataclasses import replace

    from roclab.core.progress import duration
    from roclab.course.project.plan import Asked
    from roclab.course.project.project import TEMPLATE, is_done, plan_of
    from roclab.course.project.project import project as make
    from roclab.report.kit import render

    me = replace(Settings.read(settings).with_given(stated), author=name, student_id=student_id)

    def show_plan(record: dict[str, Any], steps: Any) -> None:
        plan, done = plan_of(record), [is_done(step, steps, record, out) for step in steps]
        numbered = zip(range(1, len(steps) + 1), steps, done, strict=True)
        rows = [{"number": n, "done": d, "seconds": plan.seconds[s.name]} | vars(s) for n, s, d in numbered]
        total = sum(row["seconds"] for row in rows if not row["done"])
        values = {"rows": rows, "total": total, "choice": plan.choice, "notes": plan.notes, "duration": duration}
        typer.echo(render(TEMPLATE, **values).rstrip("\n"), err=as_json)

    record = make(Asked(me, base, weights, model, qwen3, budget), out, show_plan, only_plan)
    if as_json or not only_plan:
        show(record, as_json, f"{out / 'handin.zip'}   {out / 'requirements.md'}")


@lm.app.command()
@options_from(LoadOptions, "options", only=("tokenizer", "dtype", "device", "engine"))
@options_from(Study, "settings")
def study(
    settings: Study,
    options: LoadOptions,
    out: Path = typer.Option(..., "--out", help="The study's folder; an interrupted study goes on."),
    model: str = lm.MODEL,
    as_json: bool = typer.Option(False, "--json", help="Print study.json's content."),
) -> None:
    """Ask a fixed set of questions by kind, score the answers by rule, and say what the model is good at.

    Example: roclab lm study --model smollm2-135m --out study
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch"):  # it takes seconds: a person should see that something happens
        from roclab.course.study.ask import open_and_ask
        from roclab.course.study.report import table

    summary = open_and_ask(model, options, settings, out)
    said = "\n".join(sentence["text"] for sentence in summary["sentences"])
    show(summary, as_json, f"{table(summary)}\n\n{said}\n\n{out / 'study.md'}   {out / 'transcripts.md'}")


@lm.app.command()
@options_from(Limits, "limits")
def verify(
    files: list[Path] = typer.Argument(
        None, metavar="[FILE]...", help="Python files or notebooks with the handout's names; ours if none is given."
    ),
    points: Path | None = typer.Option(None, help="TOML or CSV with the points of parts or checks."),
    table: Path | None = typer.Option(None, "--csv", help="Write a table with a row a file."),
    gradescope: Path | None = typer.Option(None, help="Write Gradescope's results.json for the one file."),
    training: bool = typer.Option(
        False, "--training", help="Check the training parts too: cross_entropy, AdamW, get_batch and others."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    limits: Limits = Limits(),
) -> None:
    """Check implementations part by part against an independent reference, with a hint at the likely mistake.

    Each runs in a process of its own, under limits. Exit code 0: all checks passed, 1: some failed.

    Example: roclab lm verify roclm_model.py --json
    """
    from rich.console import Console
    from rich.markup import escape

    from roclab.course.verify.checker import OURS
    from roclab.course.verify.grades import a_point_a_check, read_points, verify_files, write_gradescope
    from roclab.report.kit import render

    if training and not files:
        raise RocLabError("--training needs a FILE: RocLab's own model file has no training parts")
    files = files or [OURS]
    if gradescope and len(files) > 1:
        raise RocLabError(f"--gradescope takes one file, these are {len(files)}: use --csv for a table of them")
    worth = read_points(points, training) if points else a_point_a_check(training)
    reports = []
    with Console(stderr=True).status(f"checking {escape(files[0].name)}") as status:  # mostly torch's import
        for report in verify_files(files, worth, limits, table, training):
            reports.append(report)
            status.update(f"checked {len(reports)} of {len(files)}")
    if gradescope:
        write_gradescope(reports[0], gradescope)
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"files": reports})
    else:
        text = render("verify.txt", reports=reports, with_points=points is not None, escape=escape)
        Console().print(text, end="", soft_wrap=True)
    raise typer.Exit(0 if all(report["passed"] for report in reports) else 1)


tokenizer = typer.Typer(help="Tokenizers, looked into.", no_args_is_help=True)


@tokenizer.callback()
def options() -> None:
    """Keeps `lab` a command of its own while it is the only one."""


@tokenizer.command()
def lab(
    student_id: str = typer.Option(..., "--student-id", help="The ID to take apart."),
    out: Path = typer.Option(..., "--out", help="The lab's folder; an older lab in it is replaced."),
    qwen3: str | None = QWEN3,
    as_json: bool = typer.Option(False, "--json", help="Print lab.json's content."),
) -> None:
    """Execute Tokenizer_Lab.ipynb for a student ID: notebook, page, text, facts and figures in a folder.

    Example: roclab tokenizer lab --student-id 31842067 --out lab
    """
    from roclab.core.sentences import sentences_of
    from roclab.course.tokenizer_lab.lab import write_lab
    from roclab.course.tokenizer_lab.sentences import paragraphs

    content = write_lab(student_id, out, qwen3)
    parts = paragraphs(sentences_of(content))
    said = "\n\n".join(": ".join(filter(None, (part.tokenizer, part.topic, part.text))) for part in parts)
    made = "   ".join(str(out / name) for name in ("Tokenizer_Lab.ipynb", "Tokenizer_Lab.html", "lab.md"))
    show(content, as_json, f"{said}\n\n{made}")
