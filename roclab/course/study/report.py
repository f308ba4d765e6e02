"""From transcripts to a table and to sentences that say no more than it does.

The answers to one question depend on each other: a model that knows a fact knows it under every seed. So an interval
counts questions, not answers: Wilson's interval for the mean of the questions' pass rates, as if each had been asked
once. More seeds make a question's rate steadier and the interval no narrower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from roclab.core.files import atomic_write, write_json
from roclab.core.sentences import Sentence, percent, sentences_from, strength
from roclab.core.statistics import sign_test, wilson
from roclab.report import kit

Transcripts = Sequence[Mapping[str, Any]]
TEMPLATES = Path(__file__).parent / "templates"


def summarize(config: Mapping[str, Any], runs: Sequence[str], transcripts: Transcripts) -> dict[str, Any]:
    """study.json's content: a row per kind, overall, per thinking mode and per run, and the sentences.

    A row: n answers, of them `scored` and `passed`; `questions` scored; `rate`, the mean of the questions' pass rates;
    `ci95`, its interval."""
    modes = config["modes"]
    kinds = list(dict.fromkeys(question["kind"] for question in config["asked"]))
    turns = [turn for t in transcripts for turn in t["turns"]]

    def rows(**chosen: str) -> dict[str, Any]:
        some = [t for t in transcripts if chosen.items() <= t.items()]
        return {"overall": row(some), "kinds": {kind: row([t for t in some if t["kind"] == kind]) for kind in kinds}}

    summary = {
        "model": config["model"],
        "questions": len(config["asked"]),
        "seeds": list(runs),
        "quick": config["quick"],
        **rows(),
        "runs": {run: rows(run=run)["overall"] for run in runs},
        "thinking": {"available": modes != ["auto"], "modes": {mode: rows(thinking=mode) for mode in modes}},
        "replies": {
            "n": len(turns),
            "cut_by_length": sum(turn["finish_reason"] == "length" for turn in turns),
            "mean_new_tokens": round(sum(turn["new_tokens"] for turn in turns) / max(len(turns), 1), 1),
        },
        "by_question": question_rates(transcripts),
        "transcripts": "transcripts.jsonl",
    }
    return summary | {"sentences": [sentence.json() for sentence in _sentences(summary, transcripts)]}


def question_rates(transcripts: Transcripts) -> dict[str, float]:
    """Question → the share of its answers that passed; questions without checks are left out."""
    answers = defaultdict(list)
    for transcript in transcripts:
        if transcript["passed"] is not None:
            answers[transcript["question"]].append(transcript["passed"])
    return {question: sum(passed) / len(passed) for question, passed in answers.items()}


def row(transcripts: Transcripts) -> dict[str, Any]:
    rates = question_rates(transcripts)
    return {
        "n": len(transcripts),
        "scored": sum(t["passed"] is not None for t in transcripts),
        "passed": sum(bool(t["passed"]) for t in transcripts),
        "questions": len(rates),
        "rate": sum(rates.values()) / len(rates) if rates else None,
        "ci95": wilson(sum(rates.values()), len(rates)) if rates else None,
    }


def _sentences(summary: Mapping[str, Any], transcripts: Transcripts) -> list[Sentence]:
    def some(field: str, *values: str) -> Transcripts:
        return [t for t in transcripts if t[field] in values]

    return sentences_from(
        TEMPLATES / "sentences.txt", summary, span=_span,
        quoted=lambda names: [f"“{name}”" for name in names],
        intervals=lambda kinds: {f"{kind} ci95": summary["kinds"][kind]["ci95"] for kind in kinds},
        sampling=_comparison(sampled=some("run", *summary["seeds"][1:]), greedy=some("run", "greedy")),
        thinking=_comparison(**{"with thinking": some("thinking", "on"), "without": some("thinking", "off")}),
    )  # fmt: skip


def _span(ci95: Sequence[float]) -> str:
    return "–".join(percent(end, 0) for end in ci95)


def _comparison(**two: Transcripts) -> dict[str, Any] | None:
    """A paired comparison over the questions both answered, by the exact sign test."""
    a, b = map(question_rates, two.values())
    if not (both := [question for question in a if question in b]):
        return None
    better, worse = sum(a[q] > b[q] for q in both), sum(a[q] < b[q] for q in both)
    p = sign_test(better, worse)
    rates = {name: sum(of_arm[q] for q in both) / len(both) for name, of_arm in zip(two, (a, b), strict=True)}
    return {"numbers": {"better": better, "worse": worse, "p": p}, "rates": rates, "n": len(both), "kind": strength(p)}


def table(summary: Mapping[str, Any]) -> Markup:
    """The Markdown table of kinds."""
    rows = [*summary["kinds"].items(), (Markup("**all**"), summary["overall"])]
    cells = [
        (
            kind, found["questions"], f"{found['passed']} of {found['scored']}",
            *((f"{percent(found['rate'], 0)} %", f"{_span(found['ci95'])} %") if found["questions"] else "––"),
        )
        for kind, found in rows
    ]  # fmt: skip
    return kit.table(("kind", "questions scored", "answers passed", "rate", "95 % interval"), "lrrrr", cells)


def write_report(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], transcripts: Transcripts) -> None:
    """study.json, study.md and transcripts.md."""
    facts = {"kinds": table(summary), "config": config, "summary": summary, "transcripts": transcripts}
    for name in ("study.md", "transcripts.md"):
        atomic_write(folder / name, kit.render(TEMPLATES / name, **facts))
    write_json(folder / "study.json", summary)
