"""The lab's folder, whole or not at all: notebook, page, text, facts and figures for one student ID."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, write_json
from roclab.core.progress import track
from roclab.course.tokenizer_lab import notebook
from roclab.course.tokenizer_lab.analysis import (
    analyse,
    bars,
    check_student_id,
    open_tokenizers,
    readable_text,
    sentences,
)
from roclab.course.tokenizer_lab.bpe_trace import Tracer

NOTEBOOK = "Tokenizer_Lab.ipynb"
FILES = {NOTEBOOK, "Tokenizer_Lab.html", "lab.md", "lab.json", "figures"}


def write_lab(
    student_id: str, out: str | os.PathLike, qwen3: str | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Execute the lab for an ID and write its folder; returns lab.json's content.

    lab.json: {"student_id", "tokenizers": name → facts, "missing": name → why, "sentences": [{"text", "topic",
    "tokenizer", "evidence"}], "figures", "captions": file → words}. Raises RocLabError for an ID that is none, a
    tokenizer that cannot be opened, or a folder that holds something else than a lab."""
    out = Path(out)
    check_student_id(student_id)
    _check_folder(out)
    notebook.require()
    tokenizers = open_tokenizers(qwen3, say)
    for reason in tokenizers.missing.values():
        say(reason)
    tracers = {name: Tracer(tokenizer) for name, tokenizer in tokenizers.found.items()}
    facts = {name: analyse(student_id, tracer) for name, tracer in tracers.items()}
    lab: dict[str, Any] = {
        "student_id": student_id,
        "tokenizers": facts,
        "missing": tokenizers.missing,
        "sentences": sentences(student_id, facts),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    except OSError as error:
        raise RocLabError(f"cannot write {out}: {error.strerror}") from None
    try:
        lab["captions"] = _draw(made, student_id, tracers, facts)
        lab["figures"] = [f"figures/{file}" for file in lab["captions"]]
        write_json(made / "lab.json", lab)
        atomic_write(made / "lab.md", _text(lab))
        pages = notebook.build(student_id)
        # The kernel opens what we opened. A path of this machine does not enter the notebook, which may be handed in.
        environment = {"ROCLAB_QWEN3": _absolute(qwen3)} if qwen3 else {}
        if shared := os.environ.get("ROCLAB_SHARED_DATA", "../shared/data"):
            environment["ROCLAB_SHARED_DATA"] = str(Path(shared).resolve())
        notebook.execute(pages, made, environment, lambda cells: track(cells, "cells"))
        import nbformat

        atomic_write(made / NOTEBOOK, nbformat.writes(pages) + "\n")
        atomic_write(made / "Tokenizer_Lab.html", notebook.to_html(pages, f"Tokenizer lab: {student_id}"))
        _put(made, out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return lab


def _absolute(name: str) -> str:
    """A path that means the same in another folder; a Hub id stays."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RocLabError(f"{out} is a file: choose a folder")
    if out.is_dir() and (others := sorted({entry.name for entry in out.iterdir()} - FILES)):
        raise RocLabError(f"{out} holds something else than a lab ({others[0]}): choose another folder")


def _put(made: Path, out: Path) -> None:
    """The finished folder takes its name; an older lab under it goes."""
    umask = os.umask(0)
    os.umask(umask)
    made.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner reads
    if not out.exists():
        os.replace(made, out)
        return
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".old"))
    os.replace(out, aside / "old")
    try:
        os.replace(made, out)
    except BaseException:
        os.replace(aside / "old", out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _draw(
    folder: Path, student_id: str, tracers: Mapping[str, Tracer], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Draws into `folder`/figures; returns what each file shows."""
    from roclab.course.tokenizer_lab import figures

    captions = {"vocabulary.png": "How long the tokens of the vocabularies are"}
    lengths = {name: fact["token_lengths"] for name, fact in facts.items()}
    atomic_write(folder / "figures" / "vocabulary.png", figures.vocabulary_lengths(lengths))
    for name, fact in facts.items():
        rows = [(label, variant["tokens"], variant["ids"]) for label, variant in fact["variants"].items()]
        alone, sentence = (tracers[name].trace(t) for t in (student_id, fact["variants"]["in a sentence"]["text"]))
        for file, title, draw in (
            ("variants", "the ID and its variants", lambda title, rows=rows: figures.token_strips(title, rows)),
            ("merges", "how the bytes of the ID grow together", lambda title, t=alone: figures.merge_tree(title, t)),
            ("merges-sentence", "the ID in a sentence", lambda title, t=sentence: figures.merge_tree(title, t)),
            (
                "coverage", "which substrings of the ID are one token",
                lambda title, f=fact: figures.coverage_triangle(title, f["normalized"], f["coverage"]),
            ),
        ):  # fmt: skip
            captions[f"{file}-{name}.png"] = f"{name}: {title}"
            atomic_write(folder / "figures" / f"{file}-{name}.png", draw(f"{name}: {title}"))
    return captions


def _text(lab: Mapping[str, Any]) -> str:
    """lab.md: a table of the variants and the sentences. What comes from the ID stands in code spans."""
    lines = ["# Tokenizer lab", "", f"Student ID: {_code(lab['student_id'])}", ""]
    for name, fact in lab["tokenizers"].items():
        lines += [f"## {name}", "", "| text | tokens | split | ids |", "|---|---|---|---|"]
        for variant in fact["variants"].values():
            ids = " ".join(map(str, variant["ids"]))
            cells = (
                _code(readable_text(variant["text"])),
                str(len(variant["tokens"])),
                _code(bars(variant["tokens"])),
                ids,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += ["", *(f"- {_escape(s['text'])}" for s in lab["sentences"] if s["tokenizer"] == name), ""]
    together = [f"- {_escape(s['text'])}" for s in lab["sentences"] if s["tokenizer"] is None]
    together += [f"- {_escape(reason)}" for reason in lab["missing"].values()]
    if together:
        lines += ["## Together", "", *together, ""]
    return "\n".join(lines)


def _code(text: str) -> str:
    ticks = "`"
    while ticks in text:
        ticks += "`"
    return f"{ticks} {text} {ticks}" if "`" in text or text.startswith(" ") or text.endswith(" ") else f"`{text}`"


def _escape(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$&" else c for c in text)
