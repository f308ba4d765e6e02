"""What tokenizers do to one student ID, in sentences that follow from the facts of `analysis.analyse`: the texts are in
templates/sentences.txt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from roclab.core.sentences import Sentence, escape, listed, sentences_from
from roclab.course.tokenizer_lab.bpe_trace import ADDED, NO_RULE, PRE_TOKENIZER

Facts = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"


def sentences(student_id: str, facts: Mapping[str, Facts]) -> list[Sentence]:
    """The analysis; `facts` by name of tokenizer. A sentence's key leads to its fact in lab.json."""
    return sentences_from(
        TEMPLATES / "sentences.txt", facts, student_id=student_id, PRE_TOKENIZER=PRE_TOKENIZER,
        NO_RULE=NO_RULE, ADDED=ADDED, in_digits=_in_digits, readable_text=readable_text,
        each=lambda form, rows, most: listed([form.format(**row) for row in rows], most),
        alike=lambda key: len({tuple(fact[key]) for fact in facts.values()}) == 1,
    )  # fmt: skip


class Paragraph(NamedTuple):
    """The sentences of one topic; `tokenizer` is empty where they are about all of them."""

    tokenizer: str
    topic: str
    text: str


def paragraphs(said: Iterable[Sentence]) -> list[Paragraph]:
    """The analysis to be read: sentences of one topic one after the other."""
    found = groupby(said, lambda sentence: (tokenizer_of(sentence), sentence.topic))
    return [Paragraph(*about, " ".join(sentence.text for sentence in some)) for about, some in found]


def tokenizer_of(sentence: Sentence) -> str:
    """The name in its key, /tokenizers/NAME/…"""
    return next(iter(sentence.key.split("/")[2:]), "")


def as_markdown(said: Iterable[Sentence]) -> str:
    """The analysis as Markdown: a heading for each tokenizer, a paragraph for each topic."""
    lines = []
    for tokenizer, some in groupby(paragraphs(said), lambda paragraph: paragraph.tokenizer):
        lines.append(f"### {escape(tokenizer or 'Together')}")
        lines += [f"**{escape(part.topic)}.** {escape(part.text)}" for part in some]
    return "\n\n".join(lines)


def bars(tokens: Iterable[Any]) -> str:
    return " · ".join(map(str, tokens))


def readable_text(text: str) -> str:
    return text.replace(" ", "␣")


def _in_digits(cuts: Sequence[Facts]) -> bool:
    """One of the cuts is between two digits."""
    around = [cut["left"][-1:] + cut["right"][:1] for cut in cuts]
    return any(both.isascii() and both.isdigit() for both in around)
