"""The study: its questions, its runs cut and taken up again, what it says and what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.course.study.ask import Pace
from roclab.course.study.ask import run_study as run_named_study
from roclab.course.study.report import summarize, table, write_report
from roclab.course.study.settings import Study, load_questions
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.model import create_roclm_model
from roclab.lm.text.tokenizer import Tokenizer

from ..lm.build import CHAT_TEMPLATE, assert_one_line, roclab, tokenizer_definition

QUESTIONS = [
    {"id": "a-1", "kind": "a", "turns": ["the the"], "checks": [{"absent": "\0"}]},
    {"id": "a-2", "kind": "a", "turns": ["he", "she", "the"], "checks": [{"regex": "\0"}]},
    {"id": "a-3", "kind": "a", "turns": ["12"], "checks": [{"absent": "\0"}]},
    {"id": "b-1", "kind": "b", "turns": ["thee", "thou"], "checks": []},
    {"id": "b-2", "kind": "b", "turns": ["x"], "checks": [{"words": [0, 1000]}]},
]
FILES = {"study.json", "study.md", "transcripts.jsonl", "transcripts.md", "config.json", "provenance.json"}


@pytest.fixture(scope="module")
def model():
    """A model of no sense: what it says does not matter here, only that it says the same again."""
    torch.manual_seed(0)
    model = create_roclm_model(
        {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "eos_token_id": 2}
    )
    return TorchRunner(model.eval())


def tokenizer(template: str = CHAT_TEMPLATE) -> Tokenizer:
    return Tokenizer(tokenizer_definition(), eos_tokens=["<|im_end|>"], chat_template=template)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"questions": QUESTIONS}))
    return path


def study(questions, **changes) -> Study:
    settings = {"questions": str(questions), "seeds": 2, "max_new_tokens": 6, "batch_size": 2}
    return Study(**{**settings, **changes})


def run_study(model, tokenizer, *given, **hashes):
    return run_named_study("tiny", model, tokenizer, *given, **hashes)


# ── Questions ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_ours_are_64_of_eight_kinds():
    ours = load_questions()
    assert set(Counter(q["kind"] for q in ours).values()) == {8}
    assert len(ours) == 64
    assert sum(len(q["turns"]) > 1 for q in ours) == 8
    assert [q["id"] for q in ours if not q["checks"]] == ["writing-7", "writing-8"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "questions"),
        ('{"questions": []}', "questions"),
        ('{"questions": [{"kind": "a"}]}', "question 1"),
        ('{"questions": [{"id": "x", "kind": "a", "turns": []}]}', "turns"),
        ('{"questions": [{"id": "x", "kind": "a", "turns": [" "]}]}', "turns"),
        ('{"questions": [{"id": "x", "kind": "a", "turns": ["q"], "checks": [{"number": "1"}]}]}', "number"),
        ('{"questions": [{"id":"x","kind":"a","turns":["q"]},{"id":"x","kind":"a","turns":["q"]}]}', "twice"),
        ("{", "not valid JSON"),
    ],
)
def test_a_mistake_in_a_question_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(RocLabError, match=words):
        load_questions(path)


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_study_asks_everything_once_a_run_and_writes_its_folder(model, questions, tmp_path):
    out = tmp_path / "study"
    summary = run_study(model, tokenizer(), study(questions), out)
    assert {path.name for path in out.iterdir()} >= FILES
    assert json.loads((out / "study.json").read_text()) == summary
    rows = [json.loads(line) for line in (out / "transcripts.jsonl").read_text().splitlines()]
    assert Counter((r["question"], r["run"]) for r in rows) == {
        (q["id"], run): 1 for q in QUESTIONS for run in ("greedy", "seed-0", "seed-1")
    }
    turns = {q["id"]: q["turns"] for q in QUESTIONS}
    assert all([turn["user"] for turn in r["turns"]] == turns[r["question"]] for r in rows)
    a, b = summary["kinds"]["a"], summary["kinds"]["b"]
    assert (a["n"], a["scored"], a["passed"], a["questions"], a["rate"]) == (9, 9, 6, 3, pytest.approx(2 / 3))
    assert (b["n"], b["scored"], b["passed"], b["rate"]) == (6, 3, 3, 1.0)
    assert summary["thinking"]["available"] is False
    assert any("no thinking mode" in sentence["text"] for sentence in summary["sentences"])


@pytest.mark.parametrize("kept", [0, 1, 6, 11])
def test_a_run_that_was_cut_goes_on_and_ends_as_one_that_was_not(model, questions, tmp_path, kept):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_study(model, tokenizer(), study(questions), whole)
    run_study(model, tokenizer(), study(questions), cut)
    lines = (cut / "transcripts.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "transcripts.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])  # killed while it wrote
    (cut / "study.json").unlink()
    run_study(model, tokenizer(), study(questions), cut)
    assert (cut / "study.json").read_text() == (whole / "study.json").read_text()
    assert (cut / "transcripts.md").read_text() == (whole / "transcripts.md").read_text()


def test_a_finished_study_asks_nothing_more(model, questions, tmp_path):
    first = run_study(model, tokenizer(), study(questions), tmp_path / "s")
    before = (tmp_path / "s" / "transcripts.jsonl").read_bytes()
    assert run_study(model, tokenizer(), study(questions), tmp_path / "s") == first
    assert (tmp_path / "s" / "transcripts.jsonl").read_bytes() == before


def test_other_settings_questions_weights_or_a_strange_folder_are_refused(model, questions, tmp_path):
    out = tmp_path / "s"
    run_study(model, tokenizer(), study(questions, seeds=0), out, weights="a")
    for changes, hashes in (({"seeds": 1}, "a"), ({"seeds": 0, "temperature": 0.5}, "a"), ({"seeds": 0}, "b")):
        with pytest.raises(RocLabError, match=r"other (settings|weights)"):
            run_study(model, tokenizer(), study(questions, **changes), out, weights=hashes)
    questions.write_text(json.dumps({"questions": QUESTIONS[:2]}))
    with pytest.raises(RocLabError, match="the questions"):
        run_study(model, tokenizer(), study(questions, seeds=0), out, weights="a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("")
    for place in (tmp_path / "other", tmp_path / "other" / "letter.txt"):
        with pytest.raises(RocLabError, match="something else"):
            run_study(model, tokenizer(), study(questions), place)


@pytest.mark.parametrize("changes", [{"max_new_tokens": 9999}, {"max_new_tokens": 510, "quick": True}])
def test_a_study_refused_before_its_first_answer_leaves_its_folder_usable(model, questions, tmp_path, changes):
    out = tmp_path / "s"
    with pytest.raises(RocLabError, match="context has 512"):
        run_study(model, tokenizer(), study(questions, **changes), out, weights="a")
    summary = run_study(model, tokenizer(), study(questions, seeds=0), out, weights="b")  # corrected
    assert summary["overall"]["n"] == len(QUESTIONS)
    assert json.loads((out / "config.json").read_text())["max_new_tokens"] == 6
    with pytest.raises(RocLabError, match="other settings"):
        run_study(model, tokenizer(), study(questions, **changes), out, weights="b")


def test_a_study_goes_on_with_the_day_it_began(model, questions, tmp_path):
    dated, prompts = tokenizer("{{ strftime_now('%Y') }} " + CHAT_TEMPLATE), []
    encode = dated.encode_chat
    dated.encode_chat = lambda *words, **options: prompts.append(encode(*words, **options)) or prompts[-1]
    run_study(model, dated, study(questions, seeds=0), tmp_path / "s")
    begun = json.loads((tmp_path / "s" / "provenance.json").read_text())
    (tmp_path / "s" / "provenance.json").write_text(json.dumps(begun | {"time": "1999-07-01T12:00:00+00:00"}))
    first, *_ = (tmp_path / "s" / "transcripts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "s" / "transcripts.jsonl").write_bytes(first)
    prompts.clear()
    run_study(model, dated, study(questions, seeds=0), tmp_path / "s")
    assert {dated.decode(ids)[:5] for ids in prompts} == {"1999 "}


def test_a_damaged_transcript_is_named(model, questions, tmp_path):
    run_study(model, tokenizer(), study(questions, seeds=0), tmp_path / "s")
    path = tmp_path / "s" / "transcripts.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(RocLabError, match="line 1"):
        run_study(model, tokenizer(), study(questions, seeds=0), tmp_path / "s")


def test_a_model_that_can_think_is_asked_both_ways(model, questions, tmp_path):
    template = (
        CHAT_TEMPLATE.removesuffix("{% endif %}") + "{% if enable_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
    )
    summary = run_study(model, tokenizer(template), study(questions, seeds=0, thinking_tokens=4), tmp_path / "s")
    assert summary["thinking"]["available"] is True
    assert set(summary["thinking"]["modes"]) == {"on", "off"}
    rows = [json.loads(line) for line in (tmp_path / "s" / "transcripts.jsonl").read_text().splitlines()]
    longest = {mode: max(t["new_tokens"] for r in rows if r["thinking"] == mode for t in r["turns"]) for mode in
               ("on", "off")}  # fmt: skip
    assert longest == {"on": 10, "off": 6}
    assert all(not turn["answer"] for r in rows if r["thinking"] == "on" for turn in r["turns"] if turn["thinking"])
    assert any(sentence["text"].startswith("Thinking:") for sentence in summary["sentences"])


def test_quick_takes_two_questions_a_kind(questions):
    plan = study(questions, quick=True)
    assert [q["id"] for q in plan.asked] == ["a-1", "a-2", "b-1", "b-2"]
    assert plan.runs == ["greedy"]


@pytest.mark.parametrize("changes", [{"seeds": -1}, {"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(questions, changes):
    with pytest.raises(RocLabError):
        study(questions, **changes)


# ── What it says ────────────────────────────────────────────────────────────────────────────────────────────────


def made_up(passes: dict[str, list[bool]]) -> tuple[dict, list]:
    """A configuration and transcripts: kind → whether each of its questions passes."""
    asked, rows = [], []
    turn = {"user": "q", "thinking": "", "answer": "```\n<b>a</b>", "finish_reason": "stop", "new_tokens": 3}
    for kind, results in passes.items():
        for number, passed in enumerate(results):
            question = f"{kind}-{number}"
            asked.append({"id": question, "kind": kind, "turns": ["a | b"]})
            rows.append({"question": question, "kind": kind, "run": "greedy", "thinking": "auto", "passed": passed,
                         "reasons": [] if passed else ["`x`"], "turns": [turn]})  # fmt: skip
    config = {"model": "m", "asked": asked, "modes": ["auto"], "quick": False, "max_new_tokens": 9}
    return {**config, "temperature": 0.7, "top_p": 0.9}, rows


def said(passes: dict[str, list[bool]]) -> str:
    config, rows = made_up(passes)
    return "\n".join(s["text"] for s in summarize(config, ["greedy"], rows)["sentences"])


def test_sentences_claim_no_more_than_the_interval():
    text = said({"facts": [True] * 8, "code": [False] * 8, "writing": [True, False] * 4})
    assert "It is good at “facts”: 8 of 8 answers to 8 questions pass (100 %, 95 % interval 68–100 %)" in text
    assert "It is not good at “code”: 0 of 8" in text
    assert "Whether it is good at “writing” is open" in text
    assert "It is better at “facts” than at “code”: the intervals do not meet." in text
    assert "open" in said({"facts": [True, True]})  # all right, and still too few to say


def test_every_sentence_carries_its_evidence():
    config, rows = made_up({"facts": [True] * 8, "code": [False] * 8})
    assert all(s["evidence"] for s in summarize(config, ["greedy"], rows)["sentences"])


def test_the_write_up_is_markdown_that_nothing_in_it_can_break(tmp_path):
    config, rows = made_up({"facts": [True, False], "none|such": []})
    summary = summarize(config, ["greedy"], rows)
    write_report(tmp_path, config, summary, rows)
    page = (tmp_path / "transcripts.md").read_text()
    assert page.count("````\n```\n<b>a</b>\n````") == 2
    for line in table(summary).splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "a \\| b" in (tmp_path / "study.md").read_text()


# ── At the terminal ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command(smollm_path, tmp_path):
    path = tmp_path / "q.json"
    asked = [{"id": "f", "kind": "facts", "turns": ["What is the capital of France?"], "checks": [{"regex": "Paris"}]}]
    path.write_text(json.dumps({"questions": asked}))
    arguments = ("lm", "study", "--questions", str(path), "--seeds", "0", "-n", "12", "--out", str(tmp_path / "s"))
    done = roclab(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kinds"]["facts"]["passed"] == 1
    done = roclab(*arguments)
    assert "| facts | 1 | 1 of 1 | 100 % | 21–100 % |" in done.stdout
    assert_one_line(roclab(*arguments, "-t", "0.5", "--seeds", "1"), "other settings")
    assert_one_line(roclab("lm", "study", "--questions", "nowhere.json", "--out", str(tmp_path / "t")), "missing")
    assert "Example: roclab lm study" in " ".join(roclab("lm", "study", "--help").stdout.replace("│", " ").split())


def test_the_time_left_is_told_from_tokens_and_never_more_than_the_limits_allow():
    pace = Pace([100] * 10)
    assert pace.left() is None  # nothing to tell from
    pace.tokens, pace._began = 300, pace._began - 30  # ten tokens a second, no turn has ended
    assert pace.left() == pytest.approx(100, rel=0.05)
    pace.tokens, pace.ended = 200, 10
    assert pace.left() == 0
    pace.tokens, pace.ended = 300, 5  # about sixty tokens a turn: half of the turns are to come
    assert 20 < pace.left() < 30
