"""The RocLM half of the report: lines by name, facts by RocLM's own functions, sentences that vary with the facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roclab.core.exceptions import DataError
from roclab.core.sentences import sentences_from
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import Tokenizer
from roclab.report import kit, source_code
from roclab.report.conversations import LONGEST, choose, thinking_prompts
from roclab.report.kit import TEMPLATES
from tests.lm.build import CHAT_TEMPLATE, tokenizer_definition

SOURCE = '''
class Ring:
    def turn(self, x):
        """Says what it does."""
        y = x + 1  # one further
        if x:
            y = y * 2
        z = y
        return z


def plain(a):
    return a
'''


def test_lines_come_by_name_without_the_docstring():
    found = source_code.lines_of(SOURCE, "Ring.turn")
    assert found["text"].splitlines()[:2] == ["def turn(self, x):", "    y = x + 1  # one further"]
    assert "Says" not in found["text"]
    assert found["lines"] == [3, 9]
    assert source_code.lines_of(SOURCE, "plain")["text"] == "def plain(a):\n    return a"


def test_of_a_function_only_the_statements_that_assign_a_name():
    found = source_code.lines_of(SOURCE, "Ring.turn:y,return")
    assert found["text"] == "y = x + 1  # one further\nif x:\n    y = y * 2\nreturn z"


@pytest.mark.parametrize("name", ["nowhere", "Ring.nothing", "plain.turn", "Ring.turn:w"])
def test_a_name_that_is_not_there_is_an_error(name):
    with pytest.raises(LookupError):
        source_code.lines_of(SOURCE, name)


def test_every_part_of_the_report_is_in_the_model_s_file():
    lines = source_code.model_file().read_text("utf-8").splitlines()
    found = source_code.parts()["parts"]
    assert set(found) == {"RMSNorm", "SwiGLU", "GQA", "RoPE", "mask", "layer"}
    for piece in (piece for pieces in found.values() for piece in pieces):
        assert all(line.strip() in "\n".join(lines) for line in piece["text"].splitlines())
    assert "masked_fill" in found["mask"][0]["text"]


# ── Facts of RocLM ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def without_model():
    from roclab.report.roclm import examine

    return examine(None)


def test_the_cache_is_counted_by_the_formula():
    from roclab.report.roclm import cache

    config = RocLMConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=16)
    found = cache(config)
    assert found["grouped"]["token"] == 2 * 3 * 2 * 16 * 2
    assert found["multi_head"]["token"] == 4 * found["grouped"]["token"]
    assert found["grouped"]["context"] == 32768 * found["grouped"]["token"]


def test_scores_depend_on_the_distance_and_a_wrong_rotation_would_show(without_model, monkeypatch):
    from roclab.report import roclm

    assert max(without_model["rope"]["apart"].values()) < 1e-3 * without_model["rope"]["largest"]
    turn = roclm.apply_rotary_pos_emb
    monkeypatch.setattr(roclm, "apply_rotary_pos_emb", lambda q, k, cos, sin: (turn(q, k, cos, sin)[0], k))
    assert max(roclm.rope(RocLMConfig())["apart"].values()) > 1


def test_nothing_of_the_future_is_seen_and_rows_add_up(without_model):
    seen = without_model["attention"]
    assert seen["future"] == 0
    assert seen["sum_off"] < 1e-5
    assert seen["random"]


def test_without_a_model_nothing_is_compared_or_timed(without_model):
    assert without_model["agreement"] is None
    assert without_model["speed"] == []
    text = said(roclm=without_model)
    assert "No model’s weights were at hand" in text
    assert "was not compared with another program" in text
    assert "the pattern below the diagonal means nothing" in text
    assert "tokens a second" not in text


def test_a_small_model_agrees_with_transformers_and_is_timed(tmp_path):
    pytest.importorskip("transformers")
    from roclab.report.roclm import examine
    from tests.lm.build import peer, write_folder

    found = examine(str(write_folder(tmp_path / "m", peer("qwen3"))))
    assert found["agreement"]["peer"] == "Qwen3ForCausalLM"
    assert max(row["largest"] for row in found["agreement"]["rows"].values()) < 1e-4
    assert all(row["decode"] > 0 for row in found["speed"])


# ── Sentences on made-up facts ──────────────────────────────────────────────────────────────────────────────────


def said(verify=None, roclm=None) -> str:
    passed = sum(check["passed"] for check in (verify or {"checks": []})["checks"])
    facts = {"verify": verify, "roclm": roclm}
    found = sentences_from(TEMPLATES / "report" / "roclm.txt", facts, verify=verify, passed=passed)
    return "\n".join(f"{s.topic}: {s.text}" for s in found)


def check(name, passed=True, deviation=1e-7, tolerance=1e-4, hint=""):
    return {"component": name.split(":")[0], "name": name, "passed": passed, "deviation": deviation,
            "tolerance": tolerance, "hint": hint}  # fmt: skip


def test_passing_checks_name_the_formula_and_the_nearest_to_its_limit():
    text = said({"checks": [check("RMSNorm: the formula"), check("RMSNorm: float16", deviation=5e-5)]})
    assert "RocLM RMSNorm: Both checks of this part pass." in text
    assert "“the formula” is off from the reference by 1.0e-07 at most, of 1e-04 allowed" in text
    assert "nearest to its limit is “float16”, 5.0e-05 of 1e-04" in text


def test_a_failing_check_is_said_with_its_hint_and_its_part_is_not_right():
    checks = [check("RoPE: positions", False, 0.5, hint="rotates v too"), check("SwiGLU: the formula")]
    text = said({"checks": checks})
    assert "1 of 1 check of this part fails, so it is not shown to be right: “positions”, off by 5.0e-01" in text
    assert "(rotates v too)" in text
    assert "SwiGLU: The one check of this part passes." in text
    assert "1 passed, 1 failed" in text


def test_nothing_is_said_of_checks_that_were_not_run():
    assert said() == ""


def test_sentences_follow_the_facts(without_model):
    facts = json.loads(json.dumps(without_model)) | {"model": "m"}
    facts["config"]["num_key_value_heads"] = facts["config"]["num_attention_heads"]
    facts["attention"] |= {"random": False, "first": 0.6, "first_if_even": 0.2, "future": 0.01}
    facts["rope"]["apart"]["1000"] = 5.0
    row = {"largest": 2.0, "same": 9}
    facts["agreement"] = {"peer": "P", "version": "1", "positions": 10, "vocabulary": 7, "largest_logit": 3.0,
                          "rows": {"eager": row, "sdpa": row}}  # fmt: skip
    text = said(roclm=facts)
    for words in (
        "grouping saves nothing here", "attention sink", "the mask does not hold",
        "they do not depend on the distance alone", "another next token highest at 1 of 10",
    ):  # fmt: skip
        assert words in text


# ── Conversations ───────────────────────────────────────────────────────────────────────────────────────────────


def transcript(question, passed, answer="Yes.", mode="auto", run="greedy", reasons=(), thinking=""):
    turn = {"user": "Is it?", "thinking": thinking, "answer": answer, "finish_reason": "stop", "new_tokens": 3}
    return {"question": question, "kind": question.split("-")[0], "run": run, "thinking": mode, "turns": [turn],
            "passed": passed, "reasons": list(reasons)}  # fmt: skip


def study(folder: Path, transcripts: list) -> tuple[Path, dict]:
    path = folder / "transcripts.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in transcripts), encoding="utf-8")
    rates: dict[str, float] = {}
    for t in transcripts:
        if t["passed"] is not None:
            rates[t["question"]] = rates.get(t["question"], 0) or float(t["passed"])
    kinds: dict[str, dict] = {}
    for question, rate in rates.items():
        row = kinds.setdefault(question.split("-")[0], {"rate": 0})
        row["rate"] = max(row["rate"], rate)
    return path, {"by_question": rates, "kinds": kinds}


def test_good_ones_of_the_best_kinds_bad_ones_of_the_worst(tmp_path):
    found = choose(*study(tmp_path, [
        transcript("code-1", True), transcript("code-2", True),
        transcript("sums-1", False, reasons=["32; 42 is right"]), transcript("facts-1", True, "x " * LONGEST),
        transcript("facts-2", False), transcript("essay-1", None), transcript("sums-2", True, run="seed-0"),
    ]))  # fmt: skip
    assert [talk["question"] for talk in found["good"]] == ["code-1", "facts-1"]  # one of a kind, greedy ones only
    assert [talk["question"] for talk in found["bad"]] == ["sums-1", "facts-2"]
    assert found["bad"][0]["reasons"] == ["32; 42 is right"]
    assert found["good"][1]["turns"][0]["answer"].endswith("x […]")
    assert found["thinking"] == []


def test_thinking_stands_beside_no_thinking_where_only_one_passes_first(tmp_path):
    found = choose(*study(tmp_path, [
        transcript("a-1", True, mode="on", thinking="Hm."), transcript("a-1", True, mode="off"),
        transcript("b-1", True, mode="on", thinking="So."), transcript("b-1", False, mode="off"),
    ]))  # fmt: skip
    assert [pair[0]["question"] for pair in found["thinking"]] == ["b-1", "a-1"]
    assert found["thinking"][0][0]["turns"][0]["thinking"] == "So."


def test_a_study_without_transcripts_or_with_damaged_ones(tmp_path):
    assert choose(tmp_path / "none", {"by_question": {}, "kinds": {}}) == {"good": [], "bad": [], "thinking": []}
    path, found = study(tmp_path, [transcript("a-1", True)])
    path.write_text('{"no": "answer"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="does not hold a study's answers"):
        choose(path, found)


def test_a_thinking_template_is_shown_with_both_prompts_and_the_split():
    off = "{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"
    template = CHAT_TEMPLATE.removesuffix("{% endif %}") + off
    found = thinking_prompts(Tokenizer(tokenizer_definition(), eos_tokens=["<|im_end|>"], chat_template=template))
    assert found["prompts"]["off"].endswith("<think></think>")
    assert "<think>" not in found["prompts"]["on"]
    parts = [part for _, _, part in found["split"]]
    assert parts == sorted(parts, reverse=True)  # thinking first, then content
    assert set(parts) == {"thinking", "content"}


def test_said_words_keep_their_lines_and_are_no_markup():
    pypandoc = pytest.importorskip("pypandoc")
    text = kit.quoted("def f(x):\n    return *x*\n\n| a | b |\n# no heading")
    page = pypandoc.convert_text(kit.tidy(str(text) + "\n"), "html", format="markdown")
    assert "*x*" in page
    assert "    return".replace(" ", "\u00a0") in page or "&nbsp;&nbsp;&nbsp;&nbsp;return" in page
    assert "<h1" not in page
    assert "<table" not in page
    assert page.count("<br") == 4


def test_the_chapters_survive_every_format(trained, tmp_path, without_model):
    from roclab.report.build import report
    from roclab.report.settings import Settings

    out = tmp_path / "report"
    checks = {"checks": [check("RMSNorm: the formula"), check("RoPE: positions", False, 0.5, hint="rotates | v")]}
    thinker = {"origin": "a_b", "prompts": {"on": "<|x|>", "off": "```"}, "lengths": {"on": 1, "off": 2}, "end": 7,
               "split": [["<think>", 6, "thinking"], ["|", 1, "thinking"], ["</think>", 7, "content"]]}  # fmt: skip
    report([trained], out, Settings(), verify=checks, roclm=without_model | {"thinking": thinker})
    assert {p.name for p in (out / "figures").iterdir()} >= {"architecture.png", "rope.png", "mask.png"}
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "<math" in (out / "report.html").read_text(encoding="utf-8")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "# RocLMRMSNorm.forward, lines" in text
    assert r"**failed**: rotates \| v" in text
    assert "no model has spoken here" in text
    assert "No study of the demo was given" in text
