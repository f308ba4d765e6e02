"""A study of what a model is good at: fixed questions by kind, several runs each, scored by rule.

    run_study("smollm2-135m", *load("smollm2-135m"), Study(seeds=3), "study")

Every question is asked once greedily and once a seed with sampling, in every thinking mode that the model's template
has. Each answer depends on its own seed alone and is appended to transcripts.jsonl when its last turn ends, so a study
that was interrupted goes on where it stopped.

    config.json  provenance.json  transcripts.jsonl  transcripts.md  study.json  study.md
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import append_json_line, file_sha256, read_json, read_json_lines, write_json_lines
from roclab.core.progress import track
from roclab.core.runs import Run
from roclab.course.study.report import summarize, write_report
from roclab.course.study.scoring import score
from roclab.course.study.settings import Study
from roclab.lm.engine.runner import Runner
from roclab.lm.generate import Completion, stream
from roclab.lm.loading import load
from roclab.lm.settings import LoadOptions, SamplingParams
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import open_checkpoint

TRANSCRIPTS = "transcripts.jsonl"
ENOUGH = 256  # tokens that say how fast a model is
MODES = {None: "auto", True: "on", False: "off"}


# A conversation: it yields a prompt with its sampling, is sent what became of it, and returns its transcript.
Talk = Generator[tuple[list[int], SamplingParams], Completion, dict[str, Any]]
Key = tuple[str, str, str]  # question, run, thinking mode


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
    with _open_run(Path(out), config, hashes) as run:
        path = run.path / TRANSCRIPTS
        done = _read_transcripts(path)
        began = datetime.fromisoformat(read_json(run.path / "provenance.json")["time"]).astimezone()
        talks = dict(_talks(tokenizer, study, modes, began))
        if done:
            run.log(f"{len(done)} of {len(talks)} answers are there already")
        remaining = [talk for key, talk in talks.items() if key not in done]
        pace = Pace([turn for key in talks if key not in done for turn in _limits(study, key)])
        answers = _answers(runner, tokenizer, remaining, study.batch_size, pace)
        for transcript in track(answers, "answers", len(talks), done=len(done), left=pace.left):
            append_json_line(path, transcript)
            done[_key(transcript)] = transcript
        transcripts = [done[key] for key in talks]
        checks = {question["id"]: question["checks"] for question in study.asked}
        for transcript in transcripts:  # scored last, so that a rule fixed later holds for answers given before
            answer = transcript["turns"][-1]["answer"]
            transcript["passed"], transcript["reasons"] = score(checks[transcript["question"]], answer)
        write_json_lines(path, transcripts)
        summary = summarize(config, study.runs, transcripts)
        write_report(run.path, config, summary, transcripts)
        return summary


class Pace:
    """How long a study still takes, told from its tokens: answers that run at the same time end in bursts, the short
    ones first. `limits`: how many tokens each turn may have."""

    def __init__(self, limits: Sequence[int]):
        self._most, self._turns = sum(limits) / max(len(limits), 1), len(limits)
        self._began = time.monotonic()
        self.tokens = self.ended = 0  # so far: new tokens, turns

    def left(self) -> float | None:
        """Seconds, None before there is enough to tell from. If an end is as likely at every token and the limit ends a
        turn in any case, its mean length is (1 − e^(−p·limit)) / p, where p is ends a token so far."""
        if self.tokens < ENOUGH and self.ended < self._turns:
            return None
        ends = self.ended / self.tokens
        mean = (1 - math.exp(-ends * self._most)) / ends if ends else self._most
        return (self._turns - self.ended) * mean * (time.monotonic() - self._began) / self.tokens


def _limits(study: Study, key: Key) -> list[int]:
    """How many tokens each turn of a conversation may have."""
    question, _, mode = key
    turns = next(asked["turns"] for asked in study.asked if asked["id"] == question)
    return [study.tokens(mode == "on")] * len(turns)


def open_and_ask(model: str, options: LoadOptions, study: Study, out: str | os.PathLike) -> dict[str, Any]:
    """`run_study` of a model by its name; the hashes of its weights are recorded. Raises RocLabError if it cannot be
    opened or has no chat template."""
    study.asked  # noqa: B018  (read now: a mistake in the file is reported before the model is opened)
    checkpoint = open_checkpoint(model)
    # All runs with float activations, as the greedy one needs them (`for_temperature`).
    runner, tokenizer = load(checkpoint, **vars(options.for_temperature(0)))
    if not tokenizer.chat_template:
        raise RocLabError(f"{model}: this model has no chat template, so it cannot be asked")
    path = checkpoint.path
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    hashes = {file.name: file_sha256(file) for file in files}
    return run_study(model, runner, tokenizer, study, out, weights=hashes)


def _talks(
    tokenizer: Tokenizer, study: Study, modes: Sequence[bool | None], began: datetime
) -> Iterator[tuple[Key, Talk]]:
    """All conversations; those about one question one after the other, so that they share what is computed of it.
    `began`: the day of the study, which a template may tell the model."""
    for mode in modes:
        tokens = study.tokens(bool(mode))
        for place, question in enumerate(study.asked):
            for number, run in enumerate(study.runs):
                params = SamplingParams(max_new_tokens=tokens, seed=number * 100_000_000 + place)
                if number:
                    params = replace(params, temperature=study.temperature, top_p=study.top_p)
                key = (question["id"], run, MODES[mode])
                yield key, _talk(tokenizer, question, run, mode, params, began)


def _talk(
    tokenizer: Tokenizer,
    question: Mapping[str, Any],
    run: str,
    thinking: bool | None,
    params: SamplingParams,
    began: datetime,
) -> Talk:
    messages: list[dict[str, str]] = []
    turns: list[dict[str, Any]] = []
    for number, text in enumerate(question["turns"]):
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.encode_chat(messages, enable_thinking=thinking, now=began)
        result = yield prompt, replace(params, seed=params.seed + number * 100_000)
        if result.error:
            raise RocLabError(f"question {question['id']}: {result.error}")
        answer, thought = result.text.strip(), result.thinking.strip()
        message = {"role": "assistant", "content": answer}
        messages.append(message | {"reasoning_content": thought} if thought else message)
        turns.append(
            {
                "user": text, "thinking": thought, "answer": answer, "finish_reason": result.finish_reason,
                "new_tokens": len(result.token_ids),
            }
        )  # fmt: skip
    return {
        "question": question["id"], "kind": question["kind"], "run": run, "thinking": MODES[thinking], "turns": turns,
    }  # fmt: skip


def _answers(
    runner: Runner, tokenizer: Tokenizer, talks: Sequence[Talk], batch_size: int, pace: Pace
) -> Iterator[dict[str, Any]]:
    """The transcript of each conversation as it ends; `batch_size` are held at once, turn by turn."""
    for first in range(0, len(talks), batch_size):
        asked = [(talk, *next(talk)) for talk in talks[first : first + batch_size]]
        while asked:
            again, results = [], [Completion(len(prompt)) for _, prompt, _ in asked]
            for event in stream(
                runner, tokenizer, [prompt for _, prompt, _ in asked], [params for *_, params in asked]
            ):
                results[event.row].add(event)
                pace.tokens += 1
                pace.ended += bool(event.finish_reason)
                if event.finish_reason:
                    talk = asked[event.row][0]
                    try:
                        again.append((talk, *talk.send(results[event.row])))
                    except StopIteration as end:
                        yield end.value
            asked = again


def _open_run(path: Path, config: dict[str, Any], hashes: dict[str, Any]) -> Run:
    if not (path / "config.json").exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RocLabError(f"{path} holds something else than a study: choose another folder")
        return Run.create(path, config, **hashes)
    run = Run.open(path)
    if run.config.get("kind") != config["kind"]:
        raise RocLabError(f"{path} holds a run of another kind: choose another folder")
    changed = [name for name in config if run.config.get(name) != config[name]]
    other_weights = read_json(run.path / "provenance.json").get("hashes") != hashes
    if (changed or other_weights) and not _read_transcripts(path / TRANSCRIPTS):
        (path / "config.json").unlink()  # it was refused or stopped before its first answer: nothing is lost
        return Run.create(path, config, **hashes)
    if changed:
        names = ", ".join("the questions" if name == "asked" else name for name in changed)
        raise RocLabError(f"{path} holds a study with other settings ({names}): go on with those, or choose a folder")
    if other_weights:
        raise RocLabError(f"{path} holds a study of other weights under the same name: choose another folder")
    return run


def _key(transcript: dict[str, Any]) -> Key:
    return transcript["question"], transcript["run"], transcript["thinking"]


def _read_transcripts(path: Path) -> dict[Key, dict[str, Any]]:
    """The answers so far; a last line that was not finished is removed."""
    found = read_json_lines(path, "remove that line, or the file")
    write_json_lines(path, found)
    try:
        return {_key(transcript): transcript for transcript in found if transcript["turns"][-1]["answer"] is not None}
    except (LookupError, TypeError):
        raise RocLabError(f"{path} does not hold a study's answers: remove it, or choose another folder") from None
