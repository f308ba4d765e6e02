"""The tokenizer lab takes a student ID apart and says why it is split so: notebook, page, text, facts and figures.

`analysis` computes, `sentences` writes, `figures` draws, `notebook` builds and executes Tokenizer_Lab.md."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from roclab.core.files import atomic_write
from roclab.course.tokenizer_lab import figures, notebook
from roclab.course.tokenizer_lab.analysis import analyse, check_student_id, open_tokenizers
from roclab.course.tokenizer_lab.bpe_trace import Tracer
from roclab.course.tokenizer_lab.sentences import bars, paragraphs, readable_text, sentences, tokenizer_of
from roclab.report import kit
from roclab.report.folders import LAB

logger = logging.getLogger(__name__)


def write_lab(student_id: str, out: str | os.PathLike, qwen3: str | None = None) -> dict[str, Any]:
    """Execute the lab for an ID and write its folder; returns lab.json's content.

    lab.json: {"student_id", "tokenizers": name → facts, "missing": name → why, "sentences": [{"text", "topic",
    "tokenizer", "key": of the fact, "evidence"}], "figures", "captions": file → words, "files"}. Raises RocLabError for
    an ID that is none, a tokenizer that cannot be opened, or a folder that holds something else than a lab."""
    import nbformat

    check_student_id(student_id)
    LAB.check(out)
    tokenizers, missing = open_tokenizers(qwen3)
    for reason in missing.values():
        logger.info(reason)
    tracers = {name: Tracer(tokenizer) for name, tokenizer in tokenizers.items()}
    facts = {name: analyse(student_id, tracer) for name, tracer in tracers.items()}
    analysis = sentences(student_id, facts)
    said = [sentence.json() | {"tokenizer": tokenizer_of(sentence) or None} for sentence in analysis]
    with LAB.new(out) as (folder, lab):
        lab |= {"student_id": student_id, "tokenizers": facts, "missing": missing, "sentences": said}
        lab["captions"] = _draw(folder, student_id, tracers, facts)
        lab["figures"] = [f"figures/{file}" for file in lab["captions"]]
        variants = {name: _rows(fact["variants"].values()) for name, fact in facts.items()}
        page = kit.render(
            notebook.HERE / "templates" / "lab.md", lab=lab, variants=variants, analysis=paragraphs(analysis)
        )
        atomic_write(folder / "lab.md", page)
        pages = notebook.build(student_id)
        # The kernel opens what we opened. A path of this machine does not enter the notebook, which may be handed in.
        shared = Path(os.environ.get("ROCLAB_SHARED_DATA", "../shared/data")).resolve()
        environment = {"ROCLAB_SHARED_DATA": str(shared)} | ({"ROCLAB_QWEN3": _absolute(qwen3)} if qwen3 else {})
        notebook.execute(pages, folder, environment)
        atomic_write(folder / "Tokenizer_Lab.ipynb", nbformat.writes(pages) + "\n")
        atomic_write(folder / "Tokenizer_Lab.html", notebook.to_html(pages, f"Tokenizer lab: {student_id}"))
    return lab


def _absolute(name: str) -> str:
    """A path that means the same in another folder; a Hub id stays."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _rows(variants: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return [(readable_text(v["text"]), len(v["tokens"]), bars(v["tokens"]), bars(v["ids"])) for v in variants]


def _draw(
    folder: Path, student_id: str, tracers: Mapping[str, Tracer], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Draws into `folder`/figures; returns what each file shows."""
    captions = {"vocabulary.png": "How long the tokens of the vocabularies are"}
    lengths = {name: fact["token_lengths"] for name, fact in facts.items()}
    atomic_write(folder / "figures" / "vocabulary.png", figures.vocabulary_lengths(lengths))
    for name, fact in facts.items():
        trace, variants = tracers[name].trace, fact["variants"]
        rows = [(label, variant["tokens"], variant["ids"]) for label, variant in variants.items()]
        sentence = variants["in a sentence"]["text"]
        pictures = [
            ("variants", "the ID and its variants", partial(figures.token_strips, rows=rows)),
            ("merges-sentence", "the ID in a sentence", partial(figures.merge_tree, trace=trace(sentence))),
        ]
        if fact["merges"]:  # of an ID of digits there is nothing to draw, and the analysis says so
            tree = partial(figures.merge_tree, trace=trace(student_id))
            pictures.append(("merges", "how the bytes of the ID grow together", tree))
        if len(fact["coverage"]["longest"]) > 1:
            triangle = partial(figures.coverage_triangle, text=fact["normalized"], coverage=fact["coverage"])
            pictures.append(("coverage", "which substrings of the ID are one token", triangle))
        for file, title, draw in pictures:
            captions[f"{file}-{name}.png"] = f"{name}: {title}"
            atomic_write(folder / "figures" / f"{file}-{name}.png", draw(f"{name}: {title}"))
    return captions
