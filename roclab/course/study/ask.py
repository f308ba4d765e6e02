"""A study of what a model is good at: fixed questions by kind, several runs each, scored by rule.

    run_study(model, tokenizer, Study("smollm2-135m", seeds=3), "study")

Every question is asked once greedily and once a seed with sampling, in every thinking mode the model's template has.
An answer is appended to transcripts.jsonl when its last turn ends, so a run that was cut goes on where it stopped: the
batches are fixed by the settings, and one that was cut is answered again, its answers the same as before.

    config.json  provenance.json  transcripts.jsonl  transcripts.md  study.json  study.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import atomic_write, read_json
from roclab.core.progress import track
from roclab.core.runs import Run
from roclab.course.study.scoring import score, validate_checks
from roclab.lm.generate import Completion, stream
from roclab.lm.settings import SamplingParams

if TYPE_CHECKING:
    from roclab.lm.engine.runner import Runner
    from roclab.lm.text.tokenizer import Tokenizer

TRANSCRIPTS = "transcripts.jsonl"
MODES = {None: "auto", True: "on", False: "off"}
QUICK = 2  # questions a kind


@dataclass(frozen=True)
class Study:
    """What fixes a study: with the same settings and weights on the same machine it gives the same answers.

    `questions`: a file, or None for ours. `seeds`: sampled runs beside the greedy one. A thought may have
    `thinking_tokens` on top of the answer's `max_new_tokens`.
    """

    model: str
    questions: str | None = None
    seeds: int = 3
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 128
    thinking_tokens: int = 512
    batch_size: int = 32
    quick: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seeds", 0), ("max_new_tokens", 1), ("thinking_tokens", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise RocLabError(f"{name} must be at least {least}: got {getattr(self, name)}")
        if self.temperature <= 0 and self.seeds:
            raise RocLabError(f"temperature must be above 0 for the sampled runs: got {self.temperature}")

    @property
    def runs(self) -> list[str]:
        """ "greedy", then "seed-0", "seed-1", …"""
        return ["greedy", *(f"seed-{i}" for i in range(0 if self.quick else self.seeds))]

    @cached_property
    def asked(self) -> list[dict[str, Any]]:
        """The questions; with `quick` the first of each kind."""
        questions = load_questions(self.questions)
        if not self.quick:
            return questions
        kinds = dict.fromkeys(question["kind"] for question in questions)
        return [q for kind in kinds for q in [q for q in questions if q["kind"] == kind][:QUICK]]


def load_questions(path: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """The questions of a file, or ours: {"id", "kind", "turns": the user's messages, "checks"}. Raises DataError that
    names the question and what is wrong with it."""
    if path is None:
        listed = json.loads(resources.files("roclab.course.study").joinpath("questions.json").read_text("utf-8"))
    else:
        listed = read_json(path)
    where = str(path or "study_questions.json")
    questions = listed.get("questions") if isinstance(listed, dict) else None
    if not isinstance(questions, list) or not questions:
        raise DataError(f'{where}: a question file holds an object with a list "questions"')
    seen = set()
    for number, question in enumerate(questions, start=1):
        at = f"{where}, question {number}"
        if not isinstance(question, dict) or not all(
            isinstance(question.get(key), str) and question[key].strip() for key in ("id", "kind")
        ):
            raise DataError(f"{at}: it needs an id and a kind")
        if question["id"] in seen:
            raise DataError(f"{at}: the id {question['id']} is there twice")
        seen.add(question["id"])
        turns = question.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
            raise DataError(f"{at} ({question['id']}): turns must be a list of messages")
        validate_checks(question.setdefault("checks", []), f"{at} ({question['id']})")
    return questions


def run_study(
    model: Runner, tokenizer: Tokenizer, study: Study, out: str | os.PathLike, **hashes: Any
) -> dict[str, Any]:
    """Ask what is not answered yet, then write study.json, study.md and transcripts.md; returns study.json's content.

    `hashes` (of the weights) go into the run's provenance. Raises RocLabError if `out` holds a study with other
    settings or anything else."""
    from roclab.course.study.report import summarize, write_report

    modes = [True, False] if tokenizer.has_thinking else [None]
    dtype = str(model.dtype or "quantized")
    config = {
        **asdict(study), "kind": "lm study", "seed": 0, "asked": study.asked, "modes": [MODES[m] for m in modes],
        "questions": Path(study.questions or "study_questions.json").name, "dtype": dtype,
        "device": model.device.type,
    }  # fmt: skip
    run = _open_run(Path(out), config, hashes)
    done = _read_transcripts(run.path / TRANSCRIPTS)
    total = len(study.asked) * len(study.runs) * len(modes)
    if done:
        run.log(f"{len(done)} of {total} answers are there already")
    remaining = _answers(model, tokenizer, study, modes, {_key(t) for t in done})
    with open(run.path / TRANSCRIPTS, "a", encoding="utf-8") as file:
        for transcript in track(remaining, "answers", total - len(done)):
            file.write(json.dumps(transcript, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done.append(transcript)
    order = {question["id"]: place for place, question in enumerate(study.asked)}
    done.sort(key=lambda t: (t["thinking"], order[t["question"]], study.runs.index(t["run"])))
    for transcript in done:  # scored last, so that a rule mended since holds for answers given before
        checks = study.asked[order[transcript["question"]]]["checks"]
        transcript["passed"], transcript["reasons"] = score(checks, transcript["turns"][-1]["answer"])
    atomic_write(run.path / TRANSCRIPTS, "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in done))
    summary = summarize(config, study.runs, done)
    write_report(run.path, config, summary, done)
    return summary


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
    before = read_json(run.path / "provenance.json").get("hashes")
    if before != hashes:
        raise RocLabError(f"{path} holds a study of other weights under the same name: choose another folder")
    return run


def _key(transcript: dict[str, Any]) -> tuple[str, str, str]:
    return transcript["question"], transcript["run"], transcript["thinking"]


def _read_transcripts(path: Path) -> list[dict[str, Any]]:
    """The answers so far. A last line cut by a crash is removed; a damaged line elsewhere raises."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(json.loads(line))
            _key(found[-1]), found[-1]["turns"][-1]["answer"]
        except (ValueError, LookupError, TypeError):
            raise RocLabError(f"{path} is damaged in line {number}: remove that line, or the file") from None
    if lines[-1]:
        atomic_write(path, b"".join(line + b"\n" for line in lines[:-1]))
    return found


def _answers(
    model: Runner, tokenizer: Tokenizer, study: Study, modes: Sequence[bool | None], done: set[Any]
) -> Iterator[dict[str, Any]]:
    """A transcript for every question, run and mode that is not in `done`, each as soon as it is finished."""
    size = study.batch_size
    for mode in modes:
        for run in study.runs:
            for first in range(0, len(study.asked), size):
                batch = study.asked[first : first + size]
                if all((q["id"], run, MODES[mode]) in done for q in batch):
                    continue
                for transcript in _ask(model, tokenizer, study, batch, run, mode, first):
                    if _key(transcript) not in done:
                        yield transcript


def _ask(
    model: Runner, tokenizer: Tokenizer, study: Study, batch: Sequence[dict[str, Any]], run: str,
    mode: bool | None, first: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One batch, turn by turn: each round asks the next message of every conversation that has one."""

    tokens = study.max_new_tokens + (study.thinking_tokens if mode else 0)
    greedy = run == "greedy"
    number = study.runs.index(run)
    histories: list[list[dict[str, Any]]] = [[] for _ in batch]
    turns: list[list[dict[str, Any]]] = [[] for _ in batch]
    for turn in range(max(len(question["turns"]) for question in batch)):
        open_ = [i for i, question in enumerate(batch) if turn < len(question["turns"])]
        for i in open_:
            histories[i].append({"role": "user", "content": batch[i]["turns"][turn]})
        prompts = [tokenizer.encode_chat(histories[i], enable_thinking=mode) for i in open_]
        # Every turn of every conversation draws from a seed of its own.
        seed = (number * 1000 + turn) * 100_000 + first
        params = [
            SamplingParams(
                temperature=0 if greedy else study.temperature, top_p=1 if greedy else study.top_p,
                max_new_tokens=tokens, seed=seed + place,
            )
            for place in range(len(prompts))
        ]  # fmt: skip
        results = [Completion(len(prompt)) for prompt in prompts]
        for event in stream(model, tokenizer, prompts, params):
            result, i = results[event.row], open_[event.row]
            result.token_ids.append(event.token_id)
            result.text += event.text
            result.thinking += event.thinking
            if not event.finish_reason:
                continue
            answer = {"role": "assistant", "content": result.text.strip()}
            if thought := result.thinking.strip():
                answer["reasoning_content"] = thought
            histories[i].append(answer)
            turns[i].append(
                {
                    "user": batch[i]["turns"][turn],
                    "thinking": thought,
                    "answer": answer["content"],
                    "finish_reason": event.finish_reason,
                    "new_tokens": len(result.token_ids),
                }
            )
            if len(turns[i]) == len(batch[i]["turns"]):
                yield {
                    "question": batch[i]["id"], "kind": batch[i]["kind"], "run": run, "thinking": MODES[mode],
                    "turns": turns[i],
                }  # fmt: skip
