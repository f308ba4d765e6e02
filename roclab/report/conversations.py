"""Conversations of a study, chosen by their scores, and what a thinking mode does to a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import DataError
from roclab.core.files import read_json_lines
from roclab.lm.text.detokenizer import END_THINK, THINK, ThinkingSplit
from roclab.lm.text.tokenizer import Tokenizer

Facts = dict[str, Any]
Transcript = Mapping[str, Any]
MOST, LONGEST = 3, 420  # good and bad ones each; characters of an answer that are shown
QUESTION = "What is 17 + 25?"
MADE_UP = f"{THINK}\n17 + 25 is 42.\n{END_THINK}\n\nIt is 42."  # an answer for the example, no model's


def choose(path: Path, found: Mapping[str, Any]) -> Facts:
    """Of a study's transcripts, by its rates (`found` is study.json): "good", greedy answers to the questions that are
    passed most often, of the best kinds; "bad", those that failed, of the worst; "thinking", the same question with
    thinking on and off, one where only one of the two passes if there is one. At most one of a kind in each.

    Raises `DataError` if the file does not hold a study's answers.
    """
    transcripts = read_json_lines(path, "make the study again")
    try:
        rates, kinds = found["by_question"], found["kinds"]
        greedy = [t for t in transcripts if t["run"] == "greedy" and t["question"] in rates]
        order = sorted(greedy, key=lambda t: (-kinds[t["kind"]]["rate"], -rates[t["question"]], _length(t)))
        plain = [t for t in order if t["thinking"] != "on"]
        worst = sorted(plain, key=lambda t: (kinds[t["kind"]]["rate"], rates[t["question"]], _length(t)))
        return {
            "good": [_shown(t, rates) for t in _one_a_kind(t for t in plain if t["passed"])],
            "bad": [_shown(t, rates) for t in _one_a_kind(t for t in worst if not t["passed"])],
            "thinking": [[_shown(t, rates) for t in pair] for pair in _pairs(order)[:2]],
        }
    except (LookupError, TypeError):
        raise DataError(f"{path} does not hold a study's answers: make the study again") from None


def _length(transcript: Transcript) -> int:
    return sum(len(turn["answer"]) for turn in transcript["turns"])


def _one_a_kind(transcripts: Iterator[Transcript]) -> list[Transcript]:
    first: dict[str, Transcript] = {}
    for transcript in transcripts:
        first.setdefault(transcript["kind"], transcript)
    return list(first.values())[:MOST]


def _pairs(transcripts: Sequence[Transcript]) -> list[tuple[Transcript, Transcript]]:
    """The same question with thinking and without; those first of which only one passed."""
    modes = {(t["question"], t["thinking"]): t for t in transcripts}
    pairs = [(t, modes[question, "off"]) for (question, mode), t in modes.items() if mode == "on"]
    return sorted(pairs, key=lambda pair: bool(pair[0]["passed"]) == bool(pair[1]["passed"]))


def _shown(transcript: Transcript, rates: Mapping[str, float]) -> Facts:
    turns = [
        {
            "user": turn["user"], "thinking": _cut(turn["thinking"]), "answer": _cut(turn["answer"]),
            "by_limit": turn["finish_reason"] == "length",
        }
        for turn in transcript["turns"]
    ]  # fmt: skip
    kept = {key: transcript[key] for key in ("question", "kind", "passed", "reasons")}
    return kept | {"turns": turns, "rate": rates[transcript["question"]]}


def _cut(text: str) -> str:
    """A text's beginning, whole words, marked where the rest is left out."""
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(maxsplit=1)[0] + " […]"


def thinking_prompts(tokenizer: Tokenizer) -> Facts:
    """What a chat template with a thinking mode makes of one question with it on and off, and how the tokens of an
    answer (made up for the example) are sorted into thought and answer."""
    messages = [{"role": "user", "content": QUESTION}]
    prompts = {mode: tokenizer.encode_chat(messages, enable_thinking=mode == "on") for mode in ("on", "off")}
    split = ThinkingSplit(tokenizer, prompts["on"])
    ids = [part for piece in MADE_UP.split("\n") for part in _ids(tokenizer, piece)]
    return {
        "origin": Path(tokenizer.origin).parent.name,
        "prompts": {mode: tokenizer.decode(ids, control=True) for mode, ids in prompts.items()},
        "lengths": {mode: len(ids) for mode, ids in prompts.items()},
        "end": tokenizer.control.get(END_THINK),
        "split": [[tokenizer.decode([i], control=True), i, split.feed(i)] for i in ids],
    }


def _ids(tokenizer: Tokenizer, line: str) -> list[int]:
    """A line's ids; marks as the control tokens that a model writes, not as typed text."""
    control = tokenizer.control.get(line)
    return [control] if control is not None else tokenizer.encode(line, bos=False)
