"""Words of the report's templates: names, ranges and means of what the facts hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any

from roclab.vision.evaluate.run_reader import model_name

Facts = Mapping[str, Any]
DATA = {"pets": "Oxford-IIIT Pet", "elpv": "ELPV solar cells"}


def data_name(facts: Facts) -> str:
    return DATA.get(facts["data"]["name"], facts["data"]["name"])


def members_of(facts: Facts, arm: str) -> list[Facts]:
    return [run for run in facts["runs"] if run["ref"] in facts["arms"][arm]]


def config_of(facts: Facts, arm: str) -> Facts:
    return members_of(facts, arm)[0]["config"]


def of_model(facts: Facts, arm: str) -> str:
    return model_name(str(config_of(facts, arm)["model"]))


def able(facts: Facts) -> list[str]:
    """The arms that are shown to be above chance, best first; of the others only their accuracy is said."""
    arms = facts["comparison"]["arms"]
    return sorted((name for name in arms if arms[name]["above_chance"]), key=lambda name: -arms[name]["top1_mean"])


def gap(facts: Facts, a: str, b: str) -> dict[str, Any] | None:
    """The comparison a - b as it was made, whichever stands first there; None if the two have no seed in common."""
    for number, pair in enumerate(facts["comparison"]["pairs"]):
        if {pair["a"], pair["b"]} == {a, b}:
            turned = pair["a"] != a
            low, high = pair["ci95"]
            return {
                "a": a,
                "b": b,
                "difference": -pair["difference"] if turned else pair["difference"],
                "ci95": [-high, -low] if turned else [low, high],
                "shown": pair["shown"],
                "at_chance": pair["at_chance"],
                "same": not any(test["only_a"] + test["only_b"] for test in pair["mcnemar"]),
                "key": f"/comparison/pairs/{number}",
            }
    return None


def gaps(facts: Facts, different: str, same: str) -> list[dict[str, Any]]:
    """The comparisons of two arms that differ in the setting `different` and agree in `same`; of strategies,
    fine-tuned minus frozen."""
    found = []
    for a, b in combinations(facts["arms"], 2):
        one, other = config_of(facts, a), config_of(facts, b)
        if one[same] == other[same] and one[different] != other[different]:
            first, second = (b, a) if other["strategy"] == "finetune" != one["strategy"] else (a, b)
            found.append(gap(facts, first, second))
    return [row for row in found if row]


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
