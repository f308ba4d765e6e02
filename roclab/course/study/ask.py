"""A study of what a model is good at: fixed questions by kind, several runs each, scored by rule.

    run_study("smollm2-135m", *load("smollm2-135m"), Study(seeds=3), "study")

Every question is asked once greedily and once a seed with sampling, in every thinking mode that the model's template
has. Each answer depends on its own seed alone and is appended to transcripts.jsonl when its last turn ends, so a study
that was interrupted goes on where it stopped.

    config.json  provenance.json  transcripts.jsonl  transcripts.md  study.json  study.md
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import append_json_line, read_json, read_json_lines, write_json_lines
from roclab.core.progress import track
from roclab.core.runs import Run
from roclab.course.study.report import summarize, write_report
from roclab.course.study.scoring import score
from roclab.course.study.settings import Study
from roclab.lm.engine.runner import Runner
from roclab.lm.generate import Completion, stream
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer

TRANSCRIPTS = "transcripts.jsonl"
MODES = {None: "auto", True: "on", False: "off"}


@dataclass
class Talk:
    """The conversation about one question in one run and thinking mode."""

    question: Mapping[str, Any]
    run: str
    thinking: bool | None
    params: SamplingParams
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.turns) == len(self.question["turns"])

    def ask(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt of the next turn."""
        self.messages.append({"role": "user", "content": self.question["turns"][len(self.turns)]})
        return tokenizer.encode_chat(self.messages, enable_thinking=self.thinking)

    def add(self, answer: Completion) -> None:
        """The answer to the turn that was asked."""
        text, thought = answer.text.strip(), answer.thinking.strip()
        turn = {"user": self.messages[-1]["content"], "thinking": thought, "answer": text}
        self.turns.append(turn | {"finish_reason": answer.finish_reason, "new_tokens": len(answer.token_ids)})
        thinking = {"reasoning_content": thought} if thought else {}
        self.messages.append({"role": "assistant", "content": text, **thinking})

    def transcript(self) -> dict[str, Any]:
        return {
            "question": self.question["id"], "kind": self.question["kind"], "run": self.run,
            "thinking": MODES[self.thinking], "turns": self.turns,
        }  # fmt: skip


def run_study(
    name: str, runner: Runner, tokenizer: Tokenizer, study: Study, out: str | os.PathLike, **hashes: Any
) -> dict[str, Any]:
    """Ask what is not answered yet, then write study.json, study.md and transcripts.md; returns study.json's content.

    `name` of the model and `hashes` of its weights go into config.json and provenance.json. Raises RocLabError if `out`
    holds a study with other settings or anything else, or a conversation does not fit the model's context."""
    modes = [True, False] if tokenizer.has_thinking else [None]
    config = {
        "model": name, **asdict(study), "kind": "lm study", "seed": 0, "asked": study.asked,
        "modes": [MODES[mode] for mode in modes], "questions": Path(study.questions or "study_questions.json").name,
        "dtype": str(runner.dtype or "quantized"), "device": runner.device.type,
    }  # fmt: skip
    talks = {_key(talk.transcript()): talk for talk in _talks(study, modes)}
    with _open_run(Path(out), config, hashes) as run:
        path = run.path / TRANSCRIPTS
        done = _read_transcripts(path)
        if done:
            run.log(f"{len(done)} of {len(talks)} answers are there already")
        remaining = [talk for key, talk in talks.items() if key not in done]
        answers = _answers(runner, tokenizer, remaining, study.batch_size)
        for transcript in track(answers, "answers", len(talks), done=len(done)):
            append_json_line(path, transcript)
            done[_key(transcript)] = transcript
        for key, talk in talks.items():  # scored last, so that a rule fixed later holds for answers given before
            answer = done[key]["turns"][-1]["answer"]
            done[key]["passed"], done[key]["reasons"] = score(talk.question["checks"], answer)
        transcripts = [done[key] for key in talks]
        write_json_lines(path, transcripts)
        summary = summarize(config, study.runs, transcripts)
        write_report(run.path, config, summary, transcripts)
        return summary


def _talks(study: Study, modes: Sequence[bool | None]) -> Iterator[Talk]:
    """All conversations; those about one question one after the other, so that they share what is computed of it."""
    for mode in modes:
        tokens = study.max_new_tokens + (study.thinking_tokens if mode else 0)
        for place, question in enumerate(study.asked):
            for number, run in enumerate(study.runs):
                params = SamplingParams(max_new_tokens=tokens, seed=number * 100_000_000 + place)
                if number:
                    params = replace(params, temperature=study.temperature, top_p=study.top_p)
                yield Talk(question, run, mode, params)


def _answers(runner: Runner, tokenizer: Tokenizer, talks: Sequence[Talk], batch_size: int) -> Iterator[dict[str, Any]]:
    """The transcript of each conversation as it ends; `batch_size` are held at once, turn by turn."""
    for first in range(0, len(talks), batch_size):
        batch = list(talks[first : first + batch_size])
        while batch:
            prompts = [talk.ask(tokenizer) for talk in batch]
            params = [replace(talk.params, seed=talk.params.seed + 100_000 * len(talk.turns)) for talk in batch]
            results = [Completion(len(prompt)) for prompt in prompts]
            for event in stream(runner, tokenizer, prompts, params):
                talk, result = batch[event.row], results[event.row]
                if event.error:
                    raise RocLabError(f"question {talk.question['id']}: {event.error}")
                result.token_ids.append(event.token_id)
                result.text += event.text
                result.thinking += event.thinking
                if event.finish_reason:
                    result.finish_reason = event.finish_reason
                    talk.add(result)
                    if talk.done:
                        yield talk.transcript()
            batch = [talk for talk in batch if not talk.done]


def _open_run(path: Path, config: dict[str, Any], hashes: dict[str, Any]) -> Run:
    if not (path / "config.json").exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RocLabError(f"{path} holds something else than a study: choose another folder")
        return Run.create(path, config, **hashes)
    run = Run.open(path)
    if run.config.get("kind") != config["kind"]:
        raise RocLabError(f"{path} holds a run of another kind: choose another folder")
    changed = [name for name in config if run.config.get(name) != config[name]]
    if changed:
        names = ", ".join("the questions" if name == "asked" else name for name in changed)
        raise RocLabError(f"{path} holds a study with other settings ({names}): go on with those, or choose a folder")
    if read_json(run.path / "provenance.json").get("hashes") != hashes:
        raise RocLabError(f"{path} holds a study of other weights under the same name: choose another folder")
    return run


def _key(transcript: dict[str, Any]) -> tuple[str, str, str]:
    return transcript["question"], transcript["run"], transcript["thinking"]


def _read_transcripts(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The answers so far; a last line that was not finished is removed."""
    found = read_json_lines(path, "remove that line, or the file")
    write_json_lines(path, found)
    try:
        return {_key(transcript): transcript for transcript in found if transcript["turns"][-1]["answer"] is not None}
    except (LookupError, TypeError):
        raise RocLabError(f"{path} does not hold a study's answers: remove it, or choose another folder") from None
