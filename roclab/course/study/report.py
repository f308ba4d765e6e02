"""From transcripts to a table and to sentences that say no more than it does.

The answers to one question depend on each other: a model that knows a fact knows it under every seed. So an interval
counts questions, not answers: Wilson's interval for the mean of the questions' pass rates, as if each had been asked
once. More seeds make a question's rate steadier and the interval no narrower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from roclab.core.files import atomic_write, write_json
from roclab.core.sentences import Evidence, Sentence, about, counted, listed, percent, pointer, strength
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


def _sentences(summary: Mapping[str, Any], transcripts: Transcripts) -> Iterator[Sentence]:
    if summary["overall"]["questions"]:
        yield about(summary, "/overall", f"Over all kinds {_passes(summary['overall'])}.")
    rows = {kind: found for kind, found in summary["kinds"].items() if found["questions"]}
    for kind, found in sorted(rows.items(), key=lambda item: -item[1]["rate"]):
        low, high = found["ci95"]
        if low > 0.5:
            text = f"It is good at “{kind}”: {_passes(found)}; the interval lies above one half."
        elif high < 0.5:
            text = f"It is not good at “{kind}”: {_passes(found)}; the interval lies below one half."
        else:
            text = f"Whether it is good at “{kind}” is open, for the interval holds one half: {_passes(found)}."
        yield about(summary, pointer("kinds", kind), text)
    for kind, found in rows.items():
        worse = [other for other, of_other in rows.items() if found["ci95"][0] > of_other["ci95"][1]]
        if worse:
            others = listed(f"“{other}”" for other in worse)
            intervals = {f"{name} ci95": rows[name]["ci95"] for name in (kind, *worse)}
            text = f"It is better at “{kind}” than at {others}: the intervals do not meet."
            yield Sentence(text, Evidence("measured", intervals), pointer("kinds", kind))
    for kind, found in summary["kinds"].items():
        if unscored := found["n"] - found["scored"]:
            text = f"{unscored} answers of the kind “{kind}” have no rule and are kept for reading."
            yield about(summary, pointer("kinds", kind), text, "computed")
    if len(summary["seeds"]) > 1:
        greedy = [t for t in transcripts if t["run"] == "greedy"]
        sampled = [t for t in transcripts if t["run"] != "greedy"]
        yield from _comparison("Sampling against greedy choice", {"sampled": sampled, "greedy": greedy}, "/runs")
        rates = summary["by_question"].values()
        mixed = sum(0 < rate < 1 for rate in rates)
        text = f"On {mixed} of {counted(len(rates), 'scored question')} some answers pass and others do not"
        yield Sentence(
            f"{text}: one answer alone would not tell.",
            Evidence("computed", {"mixed": mixed}, len(rates)),
            "/by_question",
        )
    replies = summary["replies"]
    text = f"{replies['cut_by_length']} of {replies['n']} replies were cut by their token limit; the mean reply has "
    yield about(summary, "/replies", f"{text}{replies['mean_new_tokens']:.0f} tokens.")
    if summary["thinking"]["available"]:
        on, off = ([t for t in transcripts if t["thinking"] == mode] for mode in ("on", "off"))
        yield from _comparison("Thinking", {"with thinking": on, "without": off}, "/thinking/modes")
    else:
        text = "The model's chat template has no thinking mode, so there is nothing to compare."
        yield Sentence(text, key="/thinking/available")


def _passes(found: Mapping[str, Any]) -> str:
    return (
        f"{found['passed']} of {found['scored']} answers to {counted(found['questions'], 'question')} pass "
        f"({percent(found['rate'], 0)} %, 95 % interval {_span(found['ci95'])} %)"
    )


def _span(ci95: Sequence[float]) -> str:
    return "–".join(percent(end, 0) for end in ci95)


def _comparison(what: str, two: Mapping[str, Transcripts], key: str) -> Iterator[Sentence]:
    """A paired comparison over the questions both answered, by the exact sign test."""
    (name, a), (other, b) = ((name, question_rates(transcripts)) for name, transcripts in two.items())
    both = [question for question in a if question in b]
    if not both:
        return
    better, worse = sum(a[q] > b[q] for q in both), sum(a[q] < b[q] for q in both)
    p = sign_test(better, worse)
    rates = {arm: sum(of_arm[q] for q in both) / len(both) for arm, of_arm in ((name, a), (other, b))}
    yield Sentence(
        f"{what}: {percent(rates[name], 0)} % {name}, {percent(rates[other], 0)} % {other}, on the same "
        f"{counted(len(both), 'question')}; better on {better}, worse on {worse} (exact sign test, p = {p:.2g}): "
        f"{'a difference' if p < 0.05 else 'no difference can be claimed'}.",
        Evidence(strength(p), {"better": better, "worse": worse, "p": p, **rates}, len(both)),
        key,
    )


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
    pages = {"kinds": table(summary), "config": config, "summary": summary}
    by_question: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for transcript in transcripts:
        by_question[transcript["question"]].append(transcript)
    for name in ("study.md", "transcripts.md"):
        text = kit.render(TEMPLATES / name, **pages, by_question=by_question, literal=kit.literal)
        atomic_write(folder / name, text)
    write_json(folder / "study.json", summary)
