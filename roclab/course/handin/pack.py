"""`roclab handin`: everything the handout asks for in one zip, checked before and proven after it is packed.

latex/       the write-up: PDF, .tex, Markdown, figures
evaluation/  what the code wrote: facts, comparison, checks, error page, study, tokenizer lab
Code/        the package, part1/ with main.py and results/, part2/ with roclm_model.py, Tokenizer_Lab.ipynb, roc_demo.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256
from roclab.core.provenance import PACKAGES
from roclab.course.handin.checklist import PACKAGE, Item, checklist, require
from roclab.course.handin.prove import prove
from roclab.report import gather
from roclab.report.facts import run_paths
from roclab.report.privacy import Relative
from roclab.vision.evaluate.run_reader import VisionRun

RUN_FILES = ("*.json", "*.jsonl", "predictions.csv", "log.txt", "figures/*", "tensorboard/*")
NOT_CODE = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".ipynb_checkpoints")
RUNS_ON = (*PACKAGES, "matplotlib", "tensorboard", "jinja2", "huggingface_hub", "typer", "rich")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the same content gives the same bytes


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
    relative = _relative(runs, report, lab, study)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    except OSError as error:
        raise RocLabError(f"cannot write {out}: {error.strerror}") from None
    os.close(handle)
    try:
        missing = [item for item in items if not item.found]
        rewritten = _pack(Path(temporary), _content(runs, report, lab, study, with_checkpoints), relative,
                          _readme(student_id, name, runs, missing, with_checkpoints))  # fmt: skip
        shown = prove(Path(temporary), incomplete)
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except OSError as error:
        raise RocLabError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
    return {
        "out": str(out), "bytes": out.stat().st_size, "files": names, "proven": shown, "made_relative": rewritten,
        "missing": [{"what": item.what, "remedy": item.remedy} for item in missing],
        "checked": len(items), "checkpoints": with_checkpoints,
    }  # fmt: skip


def _runs(paths: Sequence[str | Path]) -> tuple[list[VisionRun], str | None]:
    """The runs, or as many as can be read with what is wrong: the list names everything at once."""
    try:
        return gather.read_runs(paths), None
    except RocLabError as error:
        readable = []
        for path in paths:
            try:
                readable += [VisionRun.open(found) for found in gather.find_runs([path])]
            except RocLabError:
                continue
        return readable, str(error)


def _relative(runs: list[VisionRun], report: Path, lab: Path | None, study: Path | None) -> Relative:
    known: dict[str | os.PathLike, str] = {}
    known.update((path, called) for path, called in run_paths(runs).names.items())
    known |= {run.path: f"Code/part1/results/{run.name}" for run in runs}
    known[report] = "latex"
    known |= {folder: f"evaluation/{name}" for folder, name in ((lab, "tokenizer-lab"), (study, "study")) if folder}
    return Relative(known)


def _content(
    runs: Sequence[VisionRun], report: Path, lab: Path | None, study: Path | None, with_checkpoints: bool
) -> Iterator[tuple[str, Path, bool]]:
    """Name in the zip, file, and whether it is code, which is packed as it is."""
    for file in ("report.pdf", "report.tex", "report.md"):
        yield f"latex/{file}", report / file, False
    for picture in _files(report / "figures"):
        yield f"latex/figures/{picture.name}", picture, False
        if not picture.name.startswith(("errors-", "lab-", "study-")):
            yield f"Code/part1/results/figures/{picture.name}", picture, False
    for file in ("report.html", "facts.json", "comparison.json", "verify.json"):
        yield f"evaluation/{file}", report / file, False
    yield "Code/part1/results/comparison.json", report / "comparison.json", False
    for folder, place in ((report / "errors", "errors"), (lab, "tokenizer-lab"), (study, "study")):
        if folder is not None:
            for path in _files(folder):
                if path.name != "Tokenizer_Lab.ipynb":
                    yield f"evaluation/{place}/{path.relative_to(folder).as_posix()}", path, False
    for run in runs:
        results = f"Code/part1/results/{run.name}"
        for pattern in RUN_FILES:
            for number, path in enumerate(sorted(run.path.glob(pattern))):
                file = path.relative_to(run.path).as_posix()
                if "tfevents" in path.name:  # the name holds the machine's
                    file = f"tensorboard/events.out.tfevents.{path.name.split('.')[3]}.{number}"
                yield f"{results}/{file}", path, False
        if with_checkpoints:
            yield f"{results}/checkpoints/best.safetensors", run.path / "checkpoints" / "best.safetensors", True
    yield "Code/part1/main.py", PACKAGE / "report" / "templates" / "part1_main.py", True
    yield "Code/part2/roclm_model.py", PACKAGE / "lm" / "model.py", True
    yield "Code/part2/roc_demo.py", PACKAGE / "course" / "roc_demo.py", True
    if lab is not None:
        yield "Code/part2/Tokenizer_Lab.ipynb", lab / "Tokenizer_Lab.ipynb", False
    for path in _files(PACKAGE):
        yield f"Code/roclab/{path.relative_to(PACKAGE).as_posix()}", path, True


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*")
        if path.is_file() and not any(p in NOT_CODE or p.startswith(".") for p in path.relative_to(folder).parts)
    )  # fmt: skip


def _pack(target: Path, content: Iterator[tuple[str, Path, bool]], relative: Relative, readme: str) -> list[str]:
    """Write the zip in the order of names, each file with the same date and rights; returns the files whose absolute
    paths were made relative."""
    files = {name: (path, code) for name, path, code in content if path.is_file()}
    rewritten = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted({*files, "README.md", "Code/requirements.txt"}):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            if name == "README.md":
                archive.writestr(info, readme)
            elif name == "Code/requirements.txt":
                archive.writestr(info, _requirements())
            elif files[name][0].suffix == ".safetensors":
                info.compress_type = zipfile.ZIP_STORED
                with open(files[name][0], "rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            else:
                path, code = files[name]
                data = path.read_bytes()
                changed = data if code else relative.file(name, data)
                if changed != data:
                    rewritten.append(name)
                archive.writestr(info, changed)
    return rewritten


def _requirements() -> str:
    from importlib import metadata

    lines = []
    for package in RUNS_ON:
        try:
            lines.append(f"{package}=={metadata.version(package)}".split("+")[0])
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _readme(
    student_id: str, name: str, runs: Sequence[VisionRun], missing: Sequence[Item], with_checkpoints: bool
) -> str:
    lines = [
        f"# Hand-in of {' '.join(name.split())}, student ID {' '.join(student_id.split())}", "",
        "    cd Code", "    python -m pip install -r requirements.txt", "    python part2/roclm_model.py",
        "    python part2/roc_demo.py", "    python part1/main.py --help", "",
        "`latex/` is the write-up, `evaluation/` what the code wrote, `Code/` all code with `part1/results/`.", "",
        "Absolute paths in configurations, logs and tables were made relative when this was packed; the images "
        "themselves are not included (`--data-root` says where they are).", "",
    ]  # fmt: skip
    if with_checkpoints:
        lines.append("Checkpoints: `checkpoints/best.safetensors` of every run is included.")
    else:
        lines.append("Checkpoints are not included for their size (`--with-checkpoints` packs them). They are:\n")
    for run in runs:
        path = run.path / "checkpoints" / "best.safetensors"
        if path.is_file():
            lines.append(f"- {run.name}: {path.stat().st_size / 1e6:.0f} MB, SHA-256 {file_sha256(path)}")
    if missing:
        lines += ["", "Missing from the handout’s list:", ""] + [f"- {item.what}" for item in missing]
    return "\n".join(lines) + "\n"
