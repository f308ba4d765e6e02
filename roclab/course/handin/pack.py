"""`roclab handin`: everything the handout asks for in one zip, checked before and proven after it is packed.

latex/       the write-up: PDF, .tex, Markdown, figures
evaluation/  what the code wrote: facts, comparison, checks, error page, study, tokenizer lab
Code/        the package, part1/ with main.py and results/, part2/ with roclm_model.py, Tokenizer_Lab.ipynb, roc_demo.py
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_file, file_sha256
from roclab.core.provenance import PACKAGES
from roclab.course.handin.checklist import PACKAGE, Item, checklist, require
from roclab.course.handin.prove import prove
from roclab.report.kit import render
from roclab.report.privacy import Relative
from roclab.report.runs import find_runs, read_runs, run_paths
from roclab.vision.evaluate.run_reader import VisionRun

TEMPLATES = Path(__file__).parent / "templates"
RUN_FILES = ("*.json", "*.jsonl", "predictions.csv", "log.txt", "figures/*", "tensorboard/*")
NOT_CODE = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".ipynb_checkpoints")
RUNS_ON = (*PACKAGES, "matplotlib", "tensorboard", "jinja2", "huggingface_hub", "typer", "rich")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the same content gives the same bytes
BEST = "checkpoints/best.safetensors"
NOTEBOOK = "Tokenizer_Lab.ipynb"


def handin(
    student_id: str,
    name: str,
    paths: Sequence[str | Path],
    report: Path,
    lab: Path | None,
    out: Path,
    study: Path | None = None,
    with_checkpoints: bool = False,
    incomplete: bool = False,
) -> dict[str, Any]:
    """Check, pack, prove and write the hand-in `out`. Returns its size, its files, what was proven and the list.

    Raises `RocLabError` naming everything missing (unless `incomplete`), or whatever the proof found; `out` then is
    what it was before.
    """
    runs, trouble = _runs(paths)
    items = checklist(runs, report, lab, student_id, name, trouble)
    if not incomplete:
        require(items)
    missing = [item for item in items if not item.found]
    folders = {"latex": report, "evaluation/tokenizer-lab": lab, "evaluation/study": study}
    known = {folder: place for place, folder in folders.items() if folder}
    known |= {run.path: f"Code/part1/results/{run.name}" for run in runs}
    content = {
        place: (path, is_code)
        for place, path, is_code in _content(runs, report, lab, study, with_checkpoints)
        if path.is_file()
    }
    texts = {
        "README.md": _readme(student_id, name, runs, missing, with_checkpoints),
        "Code/requirements.txt": _requirements(),
    }
    try:
        with atomic_file(out) as temporary:
            rewritten = _pack(temporary, content, texts, Relative({**run_paths(runs).names, **known}))
            shown = prove(temporary, incomplete)
    except OSError as error:
        raise RocLabError(f"cannot write {out}: {error.strerror or error}") from None
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "files": sorted({*content, *texts}),
        "proven": shown,
        "made_relative": rewritten,
        "missing": [{"what": item.what, "remedy": item.remedy} for item in missing],
        "checked": len(items),
        "checkpoints": with_checkpoints,
    }


def _runs(paths: Sequence[str | Path]) -> tuple[list[VisionRun], str | None]:
    """The runs, or as many as can be read with what is wrong: the list names everything at once."""
    try:
        return read_runs(paths), None
    except RocLabError as error:
        readable = []
        for path in paths:
            try:
                readable += [VisionRun.open(found) for found in find_runs([path])]
            except RocLabError:
                continue
        return readable, str(error)


def _content(
    runs: Sequence[VisionRun], report: Path, lab: Path | None, study: Path | None, with_checkpoints: bool
) -> Iterator[tuple[str, Path, bool]]:
    """Name in the zip, file, and whether it is code, which is packed as it is."""
    for file in ("report.pdf", "report.tex", "report.md"):
        yield f"latex/{file}", report / file, False
    for file in ("report.html", "facts.json", "comparison.json", "verify.json"):
        yield f"evaluation/{file}", report / file, False
    for picture in _files(report / "figures"):
        yield f"latex/figures/{picture.name}", picture, False
        if not picture.name.startswith(("errors-", "lab-", "study-")):
            yield f"Code/part1/results/figures/{picture.name}", picture, False
    for folder, place in ((report / "errors", "errors"), (lab, "tokenizer-lab"), (study, "study")):
        for path in _files(folder) if folder else ():
            if path.name != NOTEBOOK:
                yield f"evaluation/{place}/{path.relative_to(folder or path).as_posix()}", path, False
    yield "Code/part1/results/comparison.json", report / "comparison.json", False
    for run in runs:
        results = f"Code/part1/results/{run.name}"
        for pattern in RUN_FILES:
            for number, path in enumerate(sorted(run.path.glob(pattern))):
                file = path.relative_to(run.path).as_posix()
                if "tfevents" in path.name:  # the name holds the machine's
                    file = f"tensorboard/events.out.tfevents.{path.name.split('.')[3]}.{number}"
                yield f"{results}/{file}", path, False
        if with_checkpoints:
            yield f"{results}/{BEST}", run.path / BEST, True
    yield "Code/part1/main.py", TEMPLATES / "part1_main.py", True
    yield "Code/part2/roclm_model.py", PACKAGE / "lm" / "model.py", True
    yield "Code/part2/roc_demo.py", PACKAGE / "course" / "roc_demo.py", True
    if lab:
        yield f"Code/part2/{NOTEBOOK}", lab / NOTEBOOK, False
    for path in _files(PACKAGE):
        yield f"Code/roclab/{path.relative_to(PACKAGE).as_posix()}", path, True


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part in NOT_CODE or part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _pack(target: Path, content: dict[str, tuple[Path, bool]], texts: dict[str, str], relative: Relative) -> list[str]:
    """Write the zip in the order of names, each file with the same date and rights; returns the files whose absolute
    paths were made relative."""
    rewritten = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted({*content, *texts}):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            if name in texts:
                archive.writestr(info, texts[name])
                continue
            path, is_code = content[name]
            if path.suffix == ".safetensors":
                info.compress_type = zipfile.ZIP_STORED
                with open(path, "rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                continue
            data = path.read_bytes()
            changed = data if is_code else relative.file(name, data)
            if changed != data:
                rewritten.append(name)
            archive.writestr(info, changed)
    return rewritten


def _requirements() -> str:
    lines = []
    for package in RUNS_ON:
        try:
            lines.append(f"{package}=={metadata.version(package)}".split("+")[0])
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _readme(
    student_id: str, name: str, runs: Iterable[VisionRun], missing: Sequence[Item], with_checkpoints: bool
) -> str:
    files = [(run.name, path) for run in runs if (path := run.path / BEST).is_file()]
    return render(
        TEMPLATES / "README.md",
        name=name,
        student_id=student_id,
        checkpoints=[(run, path.stat().st_size, file_sha256(path)) for run, path in files],
        missing=missing,
        with_checkpoints=with_checkpoints,
    )
