"""`roclab handin`: everything the handout asks for in one zip, checked before and proven after it is packed.

latex/       the write-up: PDF, .tex, Markdown, figures
evaluation/  what the code wrote: facts, comparison, checks, error page, study, demo, tokenizer lab
Code/        the package, part1/ with main.py and results/, part2/ with roclm_model.py, Tokenizer_Lab.ipynb, roc_demo.py
README.md    how to run it, the checkpoints with their hashes, and where each requirement of the assignment is met
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_file, file_sha256, read_json
from roclab.core.provenance import PACKAGES, packages_by_extra
from roclab.course.handin.checklist import PACKAGE, Item, checklist, require
from roclab.course.handin.logs import picture
from roclab.course.handin.prove import prove
from roclab.course.handin.requirements import Requirement, requirements
from roclab.report.kit import render
from roclab.report.privacy import Relative
from roclab.report.runs import find_runs, read_runs, run_paths
from roclab.vision.config import STRATEGIES
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import BEFORE_REFIT, HEAD, save_head

TEMPLATES = Path(__file__).parent / "templates"
RUN_FILES = ("*.json", "*.jsonl", "predictions.csv", "log.txt", "figures/*", "tensorboard/*")
NOT_CODE = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".ipynb_checkpoints")
EXTRAS = ("", "vision", "report", "lab")  # whose packages the code in the zip may import
BESIDES = ("nbconvert", 'tomli>=2; python_version < "3.11"')  # to execute the notebook in a shell; for older Pythons
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the same content gives the same bytes
BEST = "checkpoints/best.safetensors"
NOTEBOOK = "Tokenizer_Lab.ipynb"
Content = dict[str, tuple[Path, bool]]  # name in the zip -> the file, and whether it is code, which is packed as it is


def handin(
    student_id: str,
    name: str,
    paths: Sequence[str | Path],
    report: Path,
    lab: Path | None,
    out: Path,
    study: Path | None = None,
    demo: Path | None = None,
    with_checkpoints: bool = False,
    incomplete: bool = False,
) -> dict[str, Any]:
    """Check, pack, prove and write the hand-in `out`. Returns its size, its files, what was proven, the list and the
    requirements. `demo` is a file with what the demos printed.

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
    with tempfile.TemporaryDirectory() as folder:
        found = [*_content(runs, report, lab, study, with_checkpoints), *_made(runs, Path(folder))]
        found += [("evaluation/demo.txt", demo, False)] if demo else []
        content = {place: (path, is_code) for place, path, is_code in found if path.is_file()}
        texts = {
            "Code/part1/README.md": render(TEMPLATES / "part1_README.md"),
            "Code/part1/experiment.json": json.dumps(experiment(runs), indent=1, ensure_ascii=False) + "\n",
            "Code/requirements.txt": _requirements(),
        }
        rows = requirements([*content, *texts], runs, items, _facts(report))
        texts["README.md"] = _readme(student_id, name, runs, content, missing, rows)
        rewritten, shown = _write(out, content, texts, Relative({**run_paths(runs).names, **known}), incomplete)
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "files": sorted({*content, *texts}),
        "proven": shown,
        "made_relative": rewritten,
        "missing": [{"what": item.what, "remedy": item.remedy} for item in missing],
        "checked": len(items),
        "checkpoints": with_checkpoints,
        "requirements": [vars(row) for row in rows],
    }


def _write(
    out: Path, content: Content, texts: dict[str, str], relative: Relative, incomplete: bool
) -> tuple[list[str], list[str]]:
    """The zip in its place, once it is proven; returns the files whose paths changed, and what was proven."""
    try:
        with atomic_file(out) as temporary:
            rewritten = _pack(temporary, content, texts, relative)
            return rewritten, prove(temporary, incomplete)
    except OSError as error:
        raise RocLabError(f"cannot write {out}: {error.strerror or error}") from None


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


def _facts(report: Path) -> dict[str, Any]:
    """The report's facts; none where the list has said already that they are missing."""
    with suppress(RocLabError):
        facts = read_json(report / "facts.json")
        return facts if isinstance(facts, dict) else {}
    return {}


def _made(runs: Sequence[VisionRun], folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """What is made for the zip: the heads of frozen runs, and a picture of the logs."""
    for run in runs:
        if run.finished and not run.finetuned and (run.path / BEST).is_file():
            save_head(run, folder / run.name)
            yield f"Code/part1/results/{run.name}/checkpoints/{HEAD}", folder / run.name, True
    if any(run.finished and any((run.path / "tensorboard").glob("*tfevents*")) for run in runs):
        (folder / "tensorboard.png").write_bytes(picture(runs))
        yield "Code/part1/results/tensorboard.png", folder / "tensorboard.png", True


def experiment(runs: Sequence[VisionRun]) -> list[str]:
    """The options of `roclab vision compare` that repeat the runs: what `python part1/main.py` does."""
    configs = [run.config for run in runs]
    if not configs:
        return []
    first, seeds = configs[0], sorted({config["seed"] for config in configs})
    epochs = [config["epochs"] for config in configs if config["epochs"] and config["strategy"] == "finetune"]
    weights = {config["model"]: Path(config.get("weights", "default")).name for config in configs}
    options = {
        "models": ",".join(weights),
        "strategies": ",".join(name for name in STRATEGIES if name in {config["strategy"] for config in configs}),
        "weights": ",".join(f"{model}={name}" for model, name in weights.items()),
        "data": first["data"] if first["data"] in ("pets", "elpv") else Path(first["data"]).name,
        "image-size": first["image_size"], "seeds": len(seeds), "first-seed": seeds[0],
    }  # fmt: skip
    options |= {"epochs": max(epochs)} if epochs else {}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _content(
    runs: Sequence[VisionRun], report: Path, lab: Path | None, study: Path | None, with_checkpoints: bool
) -> Iterator[tuple[str, Path, bool]]:
    """Name in the zip, file, and whether it is code, which is packed as it is."""
    for file in ("report.pdf", "report.tex", "report.md"):
        yield f"latex/{file}", report / file, False
    for file in ("report.html", "facts.json", "comparison.json", "verify.json"):
        yield f"evaluation/{file}", report / file, False
    for figure in _files(report / "figures"):
        yield f"latex/figures/{figure.name}", figure, False
        if not figure.name.startswith(("errors-", "lab-", "study-")):
            yield f"Code/part1/results/figures/{figure.name}", figure, False
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
        yield f"{results}/checkpoints/{BEFORE_REFIT}", run.checkpoints / BEFORE_REFIT, True
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


def _pack(target: Path, content: Content, texts: dict[str, str], relative: Relative) -> list[str]:
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
    """What pip must install for the code: the packages of our extras, at the versions that are here."""
    packages = packages_by_extra()
    lines = []
    for package in dict.fromkeys(name for extra in EXTRAS for name in packages.get(extra, PACKAGES)):
        with suppress(metadata.PackageNotFoundError):
            lines.append(f"{package}=={metadata.version(package)}".split("+")[0])
    return "\n".join([*lines, *BESIDES]) + "\n"


def _readme(
    student_id: str,
    name: str,
    runs: Sequence[VisionRun],
    content: Mapping[str, object],
    missing: Sequence[Item],
    rows: Sequence[Requirement],
) -> str:
    whole = [(run, run.path / BEST) for run in runs if (run.path / BEST).is_file()]
    packed = {run.name: f"Code/part1/results/{run.name}/{BEST}" in content for run, _ in whole}
    return render(
        TEMPLATES / "README.md",
        name=name,
        student_id=student_id,
        checkpoints=[(run, path.stat().st_size, file_sha256(path), packed[run.name]) for run, path in whole],
        heads=[place for place in content if place.endswith(f"/{HEAD}")],
        missing=missing,
        requirements=rows,
    )


def requirements_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The requirements and where each is met, as Markdown."""
    return render(TEMPLATES / "requirements.md", requirements=rows)
