"""What tokenizers do to one student ID, in sentences that follow from the facts of `analysis.analyse`: the texts are in
templates/sentences.txt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roclab.core.sentences import Sentence, listed, sentences_from
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


def bars(tokens: Iterable[Any]) -> str:
    return " · ".join(map(str, tokens))


def readable_text(text: str) -> str:
    return text.replace(" ", "␣")


def _in_digits(cuts: Sequence[Facts]) -> bool:
    """One of the cuts is between two digits."""
    around = [cut["left"][-1:] + cut["right"][:1] for cut in cuts]
    return any(both.isascii() and both.isdigit() for both in around)
