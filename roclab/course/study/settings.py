"""What fixes a study: its settings and its questions."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import read_json
from roclab.core.settings import check_settings, setting
from roclab.course.study.scoring import validate_checks

QUICK = 2  # questions of each kind


@dataclass(frozen=True)
class Study:
    """With the same settings and weights on the same machine, a study gives the same answers. Raises RocLabError for a
    value out of range."""

    questions: Path | None = setting(None, "A question file of your own (docs/study.md).")
    seeds: int = setting(3, "Sampled runs beside the greedy one.", low=0)
    quick: bool = setting(False, "Two questions of each kind, greedy only.", flags=("--quick",))
    temperature: float = setting(0.7, "Of the sampled runs.", low=0, flags=("--temperature", "-t"))
    top_p: float = setting(0.9, "Of the sampled runs.", low=0, high=1)
    max_new_tokens: int = setting(128, "At most this many tokens an answer.", low=1, flags=("--max-new-tokens", "-n"))
    thinking_tokens: int = setting(512, "With thinking on, at most this many tokens more.", low=0)
    batch_size: int = setting(32, "Questions answered at once.", low=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.temperature == 0 and self.seeds:
            raise RocLabError("--temperature 0: must be above 0 for the sampled runs, or leave them out with --seeds 0")

    @property
    def runs(self) -> list[str]:
        """ "greedy", then "seed-0", "seed-1", …"""
        return ["greedy", *(f"seed-{i}" for i in range(0 if self.quick else self.seeds))]

    def tokens(self, thinking: bool) -> int:
        """How many an answer may have, its thought included."""
        return self.max_new_tokens + (self.thinking_tokens if thinking else 0)

    @cached_property
    def asked(self) -> list[dict[str, Any]]:
        """The questions; with `quick` the first of each kind."""
        questions = load_questions(self.questions)
        kinds = dict.fromkeys(question["kind"] for question in questions)
        of_kind = {kind: [question for question in questions if question["kind"] == kind] for kind in kinds}
        return [question for listed in of_kind.values() for question in listed[:QUICK]] if self.quick else questions


def load_questions(path: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """The questions of a file, or ours: {"id", "kind", "turns": the user's messages, "checks"}. Raises DataError that
    names the question and what is wrong with it."""
    ours = resources.files("roclab.course.study").joinpath("questions.json")
    content = read_json(path) if path else json.loads(ours.read_text("utf-8"))
    questions = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(questions, list) or not questions:
        raise DataError(f'{path}: a question file holds an object with a list "questions"')
    seen = set()
    for number, question in enumerate(questions, start=1):
        where = f"{path}, question {number}"
        if not isinstance(question, dict) or not _are_texts([question.get("id"), question.get("kind")]):
            raise DataError(f"{where}: it needs an id and a kind")
        where += f" ({question['id']})"
        if question["id"] in seen:
            raise DataError(f"{where}: the id is there twice")
        seen.add(question["id"])
        if not _are_texts(question.get("turns")):
            raise DataError(f"{where}: turns must be a list of messages")
        validate_checks(question.setdefault("checks", []), where)
    return questions


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
