"""A study of what a model is good at: fixed questions by kind, several runs each, scored by rule.

    run_study("smollm2-135m", *load("smollm2-135m"), Study(seeds=3), "study")

Every question is asked once greedily and once a seed with sampling, in every thinking mode that the model's template
has. Each answer depends on its own seed alone and is appended to transcripts.jsonl when its last turn ends, so a study
that was interrupted goes on where it stopped.

    config.json  provenance.json  transcripts.jsonl  transcripts.md  study.json  study.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, read_json
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
    """The conversation about one question in one run and thinking mode. `place` is the question's in the study."""

    question: Mapping[str, Any]
    place: int
    run: int
    thinking: bool | None
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.turns) == len(self.question["turns"])

    def ask(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt of the next turn."""
        self.messages.append({"role": "user", "content": self.question["turns"][len(self.turns)]})
        return tokenizer.encode_chat(self.messages, enable_thinking=self.thinking)

    def params(self, study: Study) -> SamplingParams:
        """Every turn of every conversation has a seed of its own."""
        tokens = study.max_new_tokens + (study.thinking_tokens if self.thinking else 0)
        if self.run == 0:
            return SamplingParams(max_new_tokens=tokens)
        seed = (self.run * 1000 + len(self.turns)) * 100_000 + self.place
        return SamplingParams(temperature=study.temperature, top_p=study.top_p, seed=seed, max_new_tokens=tokens)

    def add(self, answer: Completion) -> None:
        """The answer to the turn that was asked."""
        text, thought = answer.text.strip(), answer.thinking.strip()
        message = {"role": "assistant", "content": text}
        turn = {"user": self.messages[-1]["content"], "thinking": thought, "answer": text}
        self.messages.append(message | {"reasoning_content": thought} if thought else message)
        self.turns.append(turn | {"finish_reason": answer.finish_reason, "new_tokens": len(answer.token_ids)})

    def transcript(self, study: Study) -> dict[str, Any]:
        return {
            "question": self.question["id"], "kind": self.question["kind"], "run": study.runs[self.run],
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
    with _open_run(Path(out), config, hashes) as run:
        done = _read_transcripts(run.path / TRANSCRIPTS)
        talks = [
            Talk(question, place, number, mode)
            for mode in modes
            for number in range(len(study.runs))
            for place, question in enumerate(study.asked)
        ]
        if done:
            run.log(f"{len(done)} of {len(talks)} answers are there already")
        answered = {_key(transcript) for transcript in done}
        remaining = [talk for talk in talks if _key(talk.transcript(study)) not in answered]
        with open(run.path / TRANSCRIPTS, "a", encoding="utf-8") as file:
            answers = _answers(runner, tokenizer, study, remaining)
            for transcript in track(answers, "answers", len(talks), done=len(done)):
                file.write(json.dumps(transcript, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                done.append(transcript)
        places = {question["id"]: place for place, question in enumerate(study.asked)}
        done.sort(key=lambda t: (t["thinking"], places[t["question"]], study.runs.index(t["run"])))
        for transcript in done:  # scored last, so that a rule fixed later holds for answers given before
            checks = study.asked[places[transcript["question"]]]["checks"]
            transcript["passed"], transcript["reasons"] = score(checks, transcript["turns"][-1]["answer"])
        atomic_write(run.path / TRANSCRIPTS, "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in done))
        summary = summarize(config, study.runs, done)
        write_report(run.path, config, summary, done)
        return summary


def _answers(runner: Runner, tokenizer: Tokenizer, study: Study, talks: Sequence[Talk]) -> Iterator[dict[str, Any]]:
    """The transcript of each conversation as it ends; `batch_size` are held at once, turn by turn."""
    for first in range(0, len(talks), study.batch_size):
        batch = list(talks[first : first + study.batch_size])
        while batch:
            prompts = [talk.ask(tokenizer) for talk in batch]
            results = [Completion(len(prompt)) for prompt in prompts]
            for event in stream(runner, tokenizer, prompts, [talk.params(study) for talk in batch]):
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
                        yield talk.transcript(study)
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


def _read_transcripts(path: Path) -> list[dict[str, Any]]:
    """The answers so far. A last line that was not finished is removed; a damaged line elsewhere raises."""
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
            _key(found[-1]), found[-1]["turns"][-1]["answer"]
        except (ValueError, LookupError, TypeError):
            raise RocLabError(f"{path} is damaged in line {number}: remove that line, or the file") from None
    if unfinished:
        atomic_write(path, b"".join(line + b"\n" for line in lines))
    return found
