"""Words of the report's templates: names, ranges and means of what the facts hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

Facts = Mapping[str, Any]
DATA = {"pets": "Oxford-IIIT Pet", "elpv": "ELPV solar cells"}


def data_name(facts: Facts) -> str:
    return DATA.get(facts["data"]["name"], facts["data"]["name"])


def members_of(facts: Facts, arm: str) -> list[Facts]:
    return [run for run in facts["runs"] if run["ref"] in facts["arms"][arm]]


def config_of(facts: Facts, arm: str) -> Facts:
    return members_of(facts, arm)[0]["config"]


def split_word(split: str) -> str:
    return "validation" if split == "val" else split


def span(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "–".join(dict.fromkeys(str(value) for value in (*known[:1], *known[-1:]))) or "–"


def mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def refs(names: Iterable[str]) -> str:
    """R1, R2, R3, R7 → R1–R3, R7."""
    numbers = enumerate(sorted({int(name[1:]) for name in names}))
    spans = [[f"R{n}" for _, n in span] for _, span in groupby(numbers, lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{span[0]}–{span[-1]}" if len(span) > 2 else ", ".join(span) for span in spans)
