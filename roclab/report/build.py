"""`roclab report`: facts, figures, Markdown and its three formats, in a folder that appears as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from roclab.core.files import atomic_write, write_json
from roclab.core.progress import track
from roclab.core.sentences import Sentence, escape, sentences_of
from roclab.report import figures, formats, roclm_figures, words
from roclab.report.facts import collect
from roclab.report.folders import REPORT
from roclab.report.galleries import copy_pictures
from roclab.report.kit import Document, command_lines, render
from roclab.report.network_figures import draw_network
from roclab.report.runs import read_runs
from roclab.report.settings import Settings
from roclab.vision.evaluate.run_reader import STRATEGIES, VisionRun, model_name

COLUMNS = 4  # arms in one table of the classes
CHAPTERS = (
    "cover", "summary", "data", "networks", "training", "accuracy", "classes", "errors", "architectures", "strategies",
    "roclm", "tokenizer_lab", "demo", "appendix_classes", "appendix_confusion", "appendix_errors", "setup", "provenance"
)  # fmt: skip


def report(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: Settings,
    split: str | None = None,
    errors: Path | None = None,
    lab: Path | None = None,
    study: Path | None = None,
    verify: dict[str, Any] | None = None,
    curve: Path | None = None,
    roclm: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report of the runs in `paths` into the folder `out`: report.md, .html, .tex, .pdf, figures/ and
    facts.json. Returns the facts, with what the author should know under "warnings".

    `errors`, `lab` and `study` are folders of those commands; `verify` is what `roclab.course.verify.verify` returned,
    `roclm` what `roclab.report.roclm.examine` did; `curve` is a folder of runs with other numbers of images a class.
    Raises `RocLabError` if runs are missing or do not belong together, or if `out` holds something else.
    """
    from matplotlib import rc_context

    formats.require()
    REPORT.check(out)
    runs = read_runs(paths)
    folders = {name: path for name, path in (("errors", errors), ("lab", lab), ("study", study)) if path}
    facts = collect(runs, settings, split, folders, verify, curve, roclm)
    with REPORT.new(out) as (work, record):
        with rc_context(figures.STYLE):
            _draw(runs, facts, work / "figures")
            if facts["roclm"]:
                roclm_figures.draw(facts["roclm"], work / "figures")
        for key, folder in folders.items():
            for name in facts[key]["figures"]:
                shutil.copyfile(folder / "figures" / name, work / "figures" / f"{key}-{name}")
        if errors:
            copy_pictures(facts["gallery"], errors, work / "figures")
        if errors and (errors / "index.html").exists():
            shutil.copytree(errors, work / "errors")
        atomic_write(work / "report.md", write(facts))
        facts["warnings"] += formats.convert(work)
        if verify:
            write_json(work / "verify.json", facts["verify"])
        write_json(work / "comparison.json", facts["comparison"])
        record |= facts
    return facts


def _draw(runs: Sequence[VisionRun], facts: dict[str, Any], folder: Path) -> None:
    for draw in track(_figures(runs, facts, folder), "figures"):
        draw()


def _figures(runs: Sequence[VisionRun], facts: dict[str, Any], folder: Path) -> list[Callable[[], None]]:
    """What draws the figures, one by one."""
    arms = {name: [run for run in runs if run.ref in members] for name, members in facts["arms"].items()}
    compared, split, data = facts["comparison"], facts["split"], facts["data"]
    made: list[Callable[[], None]] = [
        partial(figures.curves, runs, arms, facts["training"], folder / "loss"),
        partial(figures.accuracy, compared["arms"], compared["chance"], split, folder / "accuracy"),
        partial(figures.f1_by_class, facts["scores"][split], folder / "f1"),
    ]
    for model, network in facts["networks"].items():
        if network["kind"]:
            made.append(partial(draw_network, network, folder / f"network-{model}"))
    for page in _matrix_pages(facts):
        counts = {name: np.array(compared["confusion"][name]) for name in page["arms"]}
        made.append(
            partial(figures.matrices, counts, data["classes"], page["order"], folder / page["name"], page["side"])
        )
    if facts["curve"]:
        made.append(partial(figures.learning_curve, facts["curve"]["points"], split, folder / "curve"))
    return made


def _matrix_pages(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures with confusion matrices: all classes, a page for four arms, and the classes of the confused pairs."""
    names, classes = list(facts["comparison"]["confusion"]), facts["data"]["order"]
    parts = [names[i : i + figures.MATRICES] for i in range(0, len(names), figures.MATRICES)]
    side = 3.6 if len(classes) > 12 else 2.9
    pages = [
        {"name": f"confusion-{i}", "arms": part, "order": classes, "side": side} for i, part in enumerate(parts, 1)
    ]
    pairs = (facts["gallery"] or {"confused": []})["confused"]
    close = {row[side] for row in pairs for side in "ab"}
    if pairs and len(close) < len(classes):
        zoom = [name for name in classes if name in close]
        best = words.able(facts)[: figures.MATRICES] or names[:1]
        pages.append({"name": "confusion-zoom", "arms": best, "order": zoom, "side": 3.2})
    return pages


def write(facts: dict[str, Any]) -> str:
    """The whole report as pandoc's Markdown, its metadata first. Figures are expected under figures/."""
    names = sorted(facts["arms"], key=lambda name: -facts["comparison"]["arms"][name]["top1_mean"])
    best: dict[tuple[str, str], Any] = {}  # of each model under each strategy
    for name in names:
        config = words.config_of(facts, name)
        best.setdefault((config["model"], config["strategy"]), facts["comparison"]["arms"][name])
    arms = list(facts["arms"].items())
    columns = -(-len(arms) // -(-len(arms) // COLUMNS))  # as many in each table
    commands = dict.fromkeys(tuple(run["command"][1:]) for run in facts["runs"] if run["command"])
    last = max((run["time"] or "" for run in facts["runs"]), default="")
    return render(
        "report.md",
        facts=facts,
        words=words,
        doc=Document(),
        chapters=CHAPTERS,
        yaml=_yaml,
        day=f"Results as of {datetime.fromisoformat(last):%d %B %Y}".replace("of 0", "of ") if last else "",
        commands="\n".join(line for command in commands for line in command_lines(["roclab", *command])),
        best=best,
        per=_rows_of,
        class_tables=[dict(arms[i : i + columns]) for i in range(0, len(arms), columns)],
        parts=_parts,
        model_name=model_name,
        matrices=_matrix_pages(facts),
        strategies=STRATEGIES,
    )


def _rows_of(pictures: Sequence[dict[str, Any]], columns: int) -> list[list[dict[str, Any] | None]]:
    """Pictures in rows of `columns`; the last row is filled up with None."""
    filled = [*pictures, *[None] * (-len(pictures) % columns)]
    return [filled[i : i + columns] for i in range(0, len(filled), columns)]


def _yaml(text: str) -> Markup:
    """A JSON string is a YAML string, so nothing a name holds can end it."""
    return Markup(json.dumps(escape(text), ensure_ascii=False))


def _parts(tool: str, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The sentences and figures of another tool's folder, by topic: a title, what is said of it, its figures. What has
    no topic comes first. The error analysis' sentences on accuracy are left out: they are in a section of their own."""
    said = sentences_of(made["found"])
    topics = [sentence.topic for sentence in said]
    if tool == "lab":  # by tokenizer; its topics are paragraphs there
        raw = [value if isinstance(value, dict) else {} for value in made["found"].get("sentences", [])]
        topics = [value.get("tokenizer") or ("Together" if value.get("topic") else "") for value in raw]
    pairs = [(s, topic) for s, topic in zip(said, topics, strict=True) if topic != "Accuracy"]
    drawn = {name: _topic_of(tool, Path(name).stem, pairs) for name in made["figures"]}
    titles = dict.fromkeys([*(topic for _, topic in pairs), *drawn.values()])
    return [
        {
            "title": title,
            "sentences": [sentence for sentence, topic in pairs if topic == title],
            "figures": [name for name, topic in drawn.items() if topic == title],
        }
        for title in sorted(titles, key=bool)
    ]


def _topic_of(tool: str, figure: str, said: Sequence[tuple[Sentence, str]]) -> str:
    """Figures of the error analysis have the names of facts, those of the lab end in a tokenizer's."""
    if tool == "errors":
        return next((topic for s, topic in said if s.key.split("/")[1:2] == [figure]), "")
    named = (topic for _, topic in said if topic and figure.endswith(f"-{topic}"))
    return next(named, "Together" * (tool == "lab"))
