"""From transcripts to a table and to sentences that say no more than it does.

The answers to one question hang together: a model that knows a fact knows it under every seed. So an interval counts
questions, not answers: Wilson's interval for the mean of the questions' pass rates, as if each had been asked once.
More seeds make a question's rate steadier and the interval no narrower.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roclab.core.files import atomic_write, write_json
from roclab.core.statistics import wilson
from roclab.course.study.scoring import sign_test

Transcripts = Sequence[Mapping[str, Any]]


def summarize(config: Mapping[str, Any], runs: Sequence[str], transcripts: Transcripts) -> dict[str, Any]:
    """study.json's content: a row per kind, overall, per thinking mode and per run, and the sentences.

    A row: n answers, of them `scored` and `passed`; `questions` scored; `rate`, the mean of the questions' pass rates;
    `ci95`, its interval."""
    modes = config["modes"]
    kinds = list(dict.fromkeys(question["kind"] for question in config["asked"]))
    table = {kind: _row([t for t in transcripts if t["kind"] == kind]) for kind in kinds}
    by_mode = {
        mode: {"overall": _row(of_mode), "kinds": {k: _row([t for t in of_mode if t["kind"] == k]) for k in kinds}}
        for mode in modes
        if (of_mode := [t for t in transcripts if t["thinking"] == mode])
    }
    by_run = {run: _row([t for t in transcripts if t["run"] == run]) for run in runs}
    turns = [turn for t in transcripts for turn in t["turns"]]
    summary = {
        "model": config["model"],
        "questions": len(config["asked"]),
        "seeds": list(runs),
        "quick": config["quick"],
        "kinds": table,
        "overall": _row(transcripts),
        "runs": by_run,
        "thinking": {"available": modes != ["auto"], "modes": by_mode},
        "replies": {
            "n": len(turns),
            "cut_by_length": sum(turn["finish_reason"] == "length" for turn in turns),
            "mean_new_tokens": round(sum(turn["new_tokens"] for turn in turns) / max(len(turns), 1), 1),
        },
        "by_question": _question_rates(transcripts),
        "transcripts": "transcripts.jsonl",
    }
    summary["sentences"] = _sentences(summary, transcripts, config["max_new_tokens"])
    return summary


def _question_rates(transcripts: Transcripts) -> dict[str, float]:
    """Question → the share of its answers that passed; questions without checks are left out."""
    answers = defaultdict(list)
    for transcript in transcripts:
        if transcript["passed"] is not None:
            answers[transcript["question"]].append(transcript["passed"])
    return {question: sum(passed) / len(passed) for question, passed in answers.items()}


def _row(transcripts: Transcripts) -> dict[str, Any]:
    rates = _question_rates(transcripts)
    return {
        "n": len(transcripts),
        "scored": sum(t["passed"] is not None for t in transcripts),
        "passed": sum(bool(t["passed"]) for t in transcripts),
        "questions": len(rates),
        "rate": sum(rates.values()) / len(rates) if rates else None,
        "ci95": wilson(sum(rates.values()), len(rates)) if rates else None,
    }


def _of(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return (
        f"{row['passed']} of {row['scored']} answers to {row['questions']} questions pass "
        f"({100 * row['rate']:.0f} %, 95 % interval {100 * low:.0f}–{100 * high:.0f} %)"
    )


def _sentences(summary: Mapping[str, Any], transcripts: Transcripts, max_new_tokens: int) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []

    def say(text: str, **evidence: Any) -> None:
        said.append({"text": text, "evidence": evidence})

    overall = summary["overall"]
    if overall["questions"]:
        say(f"Over all kinds {_of(overall)}.", overall=overall)
    rows = [(kind, row) for kind, row in summary["kinds"].items() if row["questions"]]
    for kind, row in sorted(rows, key=lambda pair: -pair[1]["rate"]):
        low, high = row["ci95"]
        if low > 0.5:
            say(f"It is good at “{kind}”: {_of(row)}; the interval lies above one half.", kind=kind, **row)
        elif high < 0.5:
            say(f"It is not good at “{kind}”: {_of(row)}; the interval lies below one half.", kind=kind, **row)
        else:
            say(
                f"Whether it is good at “{kind}” is open, for the interval holds one half: {_of(row)}.",
                kind=kind,
                **row,
            )
    apart = [(a, b) for a, x in rows for b, y in rows if x["ci95"][0] > y["ci95"][1]]
    for better in dict.fromkeys(a for a, _ in apart):
        worse = [b for a, b in apart if a == better]
        others = " and ".join(f"“{kind}”" for kind in worse)
        say(
            f"It is better at “{better}” than at {others}: the intervals do not meet.",
            better={better: summary["kinds"][better]},
            worse={kind: summary["kinds"][kind] for kind in worse},
        )
    for kind, row in summary["kinds"].items():
        if unscored := row["n"] - row["scored"]:
            say(
                f"{unscored} answers of the kind “{kind}” have no rule and are kept for reading.", kind=kind, n=unscored
            )
    if len(summary["seeds"]) > 1:
        greedy = [t for t in transcripts if t["run"] == "greedy"]
        sampled = [t for t in transcripts if t["run"] != "greedy"]
        _compare("Sampling against greedy choice", "sampled", sampled, "greedy", greedy, say)
        rates = summary["by_question"].values()
        mixed = sum(0 < rate < 1 for rate in rates)
        say(
            f"On {mixed} of {len(rates)} scored questions some answers pass and others do not: one answer alone would "
            "not tell.",
            mixed=mixed,
            questions=len(rates),
        )
    replies = summary["replies"]
    say(
        f"{replies['cut_by_length']} of {replies['n']} replies were cut by their token limit; the mean reply has "
        f"{replies['mean_new_tokens']:.0f} tokens.",
        **replies,
    )
    if summary["thinking"]["available"]:
        on, off = ([t for t in transcripts if t["thinking"] == mode] for mode in ("on", "off"))
        _compare("Thinking", "with thinking", on, "without", off, say)
    else:
        say("The model's chat template has no thinking mode, so there is nothing to compare.", available=False)
    return said


def _compare(what: str, name: str, some: Transcripts, other_name: str, others: Transcripts, say: Any) -> None:
    """A paired comparison over the questions both answered, by the exact sign test."""
    a, b = _question_rates(some), _question_rates(others)
    both = [question for question in a if question in b]
    if not both:
        return
    better = sum(a[q] > b[q] for q in both)
    worse = sum(a[q] < b[q] for q in both)
    p = sign_test(better, worse)
    mean_a, mean_b = (sum(x[q] for q in both) / len(both) for x in (a, b))
    verdict = "a difference" if p < 0.05 else "no difference can be claimed"
    say(
        f"{what}: {100 * mean_a:.0f} % {name}, {100 * mean_b:.0f} % {other_name}, on the same {len(both)} questions; "
        f"better on {better}, worse on {worse} (exact sign test, p = {p:.2g}): {verdict}.",
        better=better, worse=worse, p=p, rates={name: mean_a, other_name: mean_b}, questions=len(both),
    )  # fmt: skip


# ── Written out ─────────────────────────────────────────────────────────────────────────────────────────────────


def write_report(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], transcripts: Transcripts) -> None:
    """study.json, study.md and transcripts.md, each whole or not at all."""
    atomic_write(folder / "transcripts.md", _transcripts_page(summary, transcripts))
    atomic_write(folder / "study.md", _page(config, summary))
    write_json(folder / "study.json", summary)


def table(summary: Mapping[str, Any]) -> str:
    """The Markdown table of kinds."""
    lines = ["| kind | questions scored | answers passed | rate | 95 % interval |", "|---|---|---|---|---|"]
    for kind, row in [*summary["kinds"].items(), ("**all**", summary["overall"])]:
        cells = "– | –"
        if row["questions"]:
            low, high = row["ci95"]
            cells = f"{100 * row['rate']:.0f} % | {100 * low:.0f}–{100 * high:.0f} %"
        lines.append(f"| {_cell(kind)} | {row['questions']} | {row['passed']} of {row['scored']} | {cells} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _page(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    rates = summary["by_question"]
    questions = {question["id"]: question for question in config["asked"]}
    sampled = len(summary["seeds"]) - 1
    modes = ", ".join(config["modes"]) if summary["thinking"]["available"] else "none in this model's template"
    parts = [
        f"# What {_cell(config['model'])} is good at",
        f"{summary['questions']} questions; one greedy run and {sampled} sampled "
        f"(temperature {config['temperature']}, top-p {config['top_p']}); at most {config['max_new_tokens']} tokens a "
        f"reply; thinking modes: {modes}. Scored by rule; an interval counts questions, not answers.",
        table(summary),
        "\n".join(f"- {sentence['text']}" for sentence in summary["sentences"]),
        "## Question by question",
        "| question | asked | passed |\n|---|---|---|\n"
        + "\n".join(
            f"| {_cell(name)} | {_cell(' / '.join(question['turns']))} | "
            f"{f'{100 * rates[name]:.0f} %' if name in rates else 'not scored'} |"
            for name, question in questions.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _transcripts_page(summary: Mapping[str, Any], transcripts: Transcripts) -> str:
    parts = [f"# Transcripts: {_cell(summary['model'])}"]
    before = None
    for transcript in sorted(transcripts, key=lambda t: t["question"]):
        if transcript["question"] != before:
            before = transcript["question"]
            parts.append(f"## {_cell(before)}")
        verdict = {True: "passed", False: "failed", None: "not scored"}[transcript["passed"]]
        mode = "" if transcript["thinking"] == "auto" else f", thinking {transcript['thinking']}"
        parts.append(f"**{transcript['run']}{mode}: {verdict}**")
        parts += [f"{_literal(reason)}" for reason in transcript["reasons"]]
        for turn in transcript["turns"]:
            parts.append("User:\n\n" + _fenced(turn["user"]))
            if turn["thinking"]:
                parts.append("Thinking:\n\n" + _fenced(turn["thinking"]))
            cut = " (cut by the token limit)" if turn["finish_reason"] == "length" else ""
            parts.append(f"Answer{cut}:\n\n" + _fenced(turn["answer"]))
    return "\n\n".join(parts) + "\n"


def _ticks(text: str, least: int) -> str:
    """A run of backticks longer than any in the text, so that nothing in it can close what it opens."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _fenced(text: str) -> str:
    ticks = _ticks(text, 3)
    return f"{ticks}text\n{text}\n{ticks}"


def _literal(text: str) -> str:
    text = " ".join(text.split())
    ticks = _ticks(text, 1)
    return f"{ticks} {text} {ticks}"
