"""`roclab report`: facts, figures, Markdown and its three formats, in a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, write_json
from roclab.report import figures, gather, render
from roclab.report.facts import FIGURE_FORMATS, collect, run_paths
from roclab.report.settings import Settings
from roclab.report.write import write

MARK = "facts.json"  # a folder that holds it is a report, and may be made anew


def report(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: Settings,
    split: str | None = None,
    errors: Path | None = None,
    lab: Path | None = None,
    study: Path | None = None,
    verify: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report of the runs in `paths` into the folder `out`: report.md, .html, .tex, .pdf, figures/ and
    facts.json. Returns the facts, with what the author should know under "warnings".

    Raises `RocLabError` if runs are missing or do not belong together, or if `out` holds something else.
    """
    render.require()
    out = Path(os.path.normpath(out))  # NEW/.. is the folder it leads to
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise RocLabError(f"{out} exists and is not a report: choose another --out")
    runs = gather.read_runs(paths)
    facts = collect(runs, settings, split, errors, verify, lab, study)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise RocLabError(f"cannot write the report to {out}: {error.strerror}") from None
    try:
        work.chmod(0o755)
        _figures(runs, facts, work / "figures")
        for key, folder in (("errors", errors), ("lab", lab), ("study", study)):
            if folder:
                _copy_figures(folder, key, facts[key]["figures"], work / "figures")
        if errors and (errors / "index.html").exists():
            shutil.copytree(errors, work / "errors")
        atomic_write(work / "report.md", write(facts, commands_of(runs)))
        facts["warnings"] += render.render(work)
        if verify:
            write_json(work / "verify.json", facts["verify"])
        write_json(work / "comparison.json", facts["comparison"])
        write_json(work / MARK, facts)
        _put(work, out)
    except (OSError, shutil.Error) as error:  # a full disk, most likely
        raise RocLabError(f"cannot write the report to {out}: {_reason(error)}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _reason(error: OSError) -> str:
    """An error's words; of copying a folder, those about its first file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def commands_of(runs: Sequence[gather.VisionRun]) -> list[list[str]]:
    """The commands that made the runs, each once, as one types them; paths relative."""
    relative = run_paths(list(runs))
    found: dict[tuple[str, ...], None] = {}
    for run in runs:
        words = [str(word) for word in run.provenance.get("command", [])]
        if words:
            command = ("roclab", *map(relative.text, words[1:]))
            found[command] = None
    return [list(words) for words in found]


def _figures(runs: list[gather.VisionRun], facts: dict[str, Any], folder: Path) -> None:
    arms = {name: [run for run in runs if run.ref in members] for name, members in facts["arms"].items()}
    figures.curves(runs, arms, folder / "loss.png")
    figures.accuracy(facts["comparison"]["arms"], facts["split"], folder / "accuracy.png")
    figures.f1_by_class(facts["per_class"], folder / "f1.png")
    for i, counts in enumerate(facts["comparison"]["confusion"].values(), start=1):
        figures.confusion(np.array(counts), facts["data"]["classes"], folder / f"confusion-{i}.png")


def _copy_figures(source: Path, prefix: str, names: Sequence[str], folder: Path) -> None:
    for name in names:
        if Path(name).suffix.lower() in FIGURE_FORMATS:
            shutil.copyfile(source / "figures" / name, folder / f"{prefix}-{name}")


def _put(work: Path, out: Path) -> None:
    """Give the finished folder its name; an older report is kept until the new one is there, and what the user has laid
    beside its files for good."""
    aside = None
    if out.exists():
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
        os.replace(out, aside / out.name)
    try:
        os.replace(work, out)
    except OSError:
        if aside:
            os.replace(aside / out.name, out)
            aside.rmdir()
        raise
    if aside:
        for own in (aside / out.name).iterdir():
            if not (out / own.name).exists():
                os.replace(own, out / own.name)
        shutil.rmtree(aside, ignore_errors=True)
