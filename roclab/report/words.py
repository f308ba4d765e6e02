"""Small words of the report: counts, lists, ranges, and what a name stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from roclab.report.page import percent, refs


def data_name(facts: dict[str, Any]) -> str:
    return {"pets": "Oxford-IIIT Pet", "elpv": "ELPV solar cells"}.get(facts["data"]["name"], facts["data"]["name"])


def revision(git: str | None) -> str:
    if not git:
        return "not in a checkout"
    return git[:12] + (" (edited)" if git.endswith("-dirty") else "")


def kind_of(facts: dict[str, Any], arm: str) -> tuple[str, str]:
    """Model and strategy of an arm."""
    config = config_of(facts, arm)
    return config["model"], config["strategy"]


def config_of(facts: dict[str, Any], arm: str) -> dict[str, Any]:
    return next(run["config"] for run in facts["runs"] if run["ref"] == facts["arms"][arm][0])


def distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def split_word(split: str) -> str:
    return "validation" if split == "val" else split


def all_refs(runs: Sequence[dict[str, Any]], finished: bool = False) -> str:
    return refs(run["ref"] for run in runs if run["finished"] or not finished)


def span(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "–" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def spread(arm: dict[str, Any], key: str) -> str:
    mean = percent(arm[f"{key}_mean"])
    return f"{mean} ± {percent(arm[f'{key}_std'])}" if len(arm["runs"]) > 1 else mean


def mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def precision_recall_f1(row: dict[str, Any]) -> str:
    return " · ".join(percent(row[key], 0) for key in ("precision", "recall", "f1"))


def deviation(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, (int, float)) else "–"
