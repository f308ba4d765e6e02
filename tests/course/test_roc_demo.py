"""The handout's three demos, as functions and as the script a hand-in carries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roclab.course import roc_demo
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.model import create_roclm_model
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer

from ..lm.build import CHAT_TEMPLATE, learn_by_heart, tokenizer_definition
from ..processes import ENVIRONMENT

QUESTION, THOUGHT, ANSWER = "7 * 8?", "7 * 8 = 56.", "It is 56."

ROOT = Path(roc_demo.__file__).parents[2]
PARAMS = SamplingParams(max_new_tokens=60)


@pytest.fixture(scope="module")
def tokenizer():
    """256 bytes, chat marks, and a template that shuts an empty thought when thinking is off, as Qwen3's does."""
    off = "{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"
    template = CHAT_TEMPLATE.removesuffix("{% endif %}") + off
    return Tokenizer(tokenizer_definition(), eos_tokens=["<|im_end|>"], chat_template=template)


@pytest.fixture(scope="module")
def thinker(tokenizer):
    """A tiny RocLM that has learned one answer by heart, with thinking and without."""
    t, question = tokenizer, [{"role": "user", "content": QUESTION}]
    end = [t.control["<|im_end|>"]]
    thought = [t.control["<think>"], *t.encode(THOUGHT), t.control["</think>"]]
    texts = [
        (t.encode_chat(question, enable_thinking=True), [*thought, *t.encode(ANSWER), *end]),
        (t.encode_chat(question, enable_thinking=False), [*t.encode(ANSWER), *end]),
    ]
    torch.manual_seed(0)
    model = create_roclm_model(
        {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_theta": 10000.0}
        | {"eos_token_id": end[0]}
    )
    return TorchRunner(learn_by_heart(model, texts, lr=5e-3, steps=150))


def run(*arguments: str, stdin: str = "", script: Path | None = None, cwd: Path | None = None):
    command = [str(script)] if script else ["-m", "roclab.course.roc_demo"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        input=stdin,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        cwd=cwd,
    )


def test_a_completion_has_thought_answer_and_the_whole(thinker, tokenizer):
    answer = roc_demo.chat_completion(thinker, tokenizer, QUESTION, PARAMS, enable_thinking=True)
    assert set(answer) == {"thinking_content", "content", "full_response"}
    assert (answer["thinking_content"], answer["content"]) == (THOUGHT, ANSWER)
    assert answer["full_response"].startswith("<think>")
    assert "</think>" in answer["full_response"]


def test_a_completion_without_thinking(thinker, tokenizer):
    answer = roc_demo.chat_completion(thinker, tokenizer, QUESTION, PARAMS, enable_thinking=False)
    assert (answer["thinking_content"], answer["content"]) == ("", ANSWER)


def test_the_chat_switches_thinking_and_ends_at_quit(thinker, tokenizer, monkeypatch, capsys):
    lines = iter(["", "thinking off", QUESTION, "thinking  ON", "quit", "never asked"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    roc_demo.interactive_chat(thinker, tokenizer, PARAMS)
    out = capsys.readouterr().out
    assert "Thinking is off." in out
    assert "Thinking is on." in out
    assert f"RocLM: {ANSWER}" in out
    assert next(lines) == "never asked"


def test_a_thought_is_marked_in_the_chat(thinker, tokenizer, monkeypatch, capsys):
    lines = iter(["thinking on", QUESTION])

    def read(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    roc_demo.interactive_chat(thinker, tokenizer, PARAMS)
    out = capsys.readouterr().out
    assert f"[thinking] {THOUGHT}" in out
    assert f"[answer] {ANSWER}" in out


def test_a_message_too_long_does_not_end_the_chat(thinker, tokenizer, monkeypatch, capsys):
    lines = iter(["word " * 500, "thinking off", QUESTION, "quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    roc_demo.interactive_chat(thinker, tokenizer, PARAMS)
    said = capsys.readouterr()
    assert "context" in said.err
    assert ANSWER in said.out


def test_all_three_with_a_scripted_reader(smollm_path):
    done = run("--max-new-tokens", "8", stdin="thinking on\nHello!\nthinking off\nquit\nnot read\n")
    assert done.returncode == 0, done.stderr
    for heading in ("Demo 1", "Demo 2", "Demo 3"):
        assert heading in done.stdout
    assert done.stdout.count(roc_demo.NO_THINKING) == 3  # said plainly, before the completion and at each command
    assert "full_response:" in done.stdout
    assert done.stdout.count("RocLM: ") == 1


def test_one_demo_with_a_prompt_of_ones_own(smollm_path):
    done = run("--demo", "1", "--prompt", "1, 2, 3, 4,", "--max-new-tokens", "4")
    assert "1, 2, 3, 4, 5," in done.stdout
    assert "Demo 2" not in done.stdout


@pytest.mark.parametrize(
    "arguments", [("--model", "no-such-model"), ("--temperature", "-1"), ("--max-new-tokens", "0"), ("--demo", "4")]
)
def test_a_mistake_is_a_line_and_exit_code_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_in_a_hand_in_the_package_lies_beside_its_folder(smollm_path, tmp_path):
    """Code/part2/roc_demo.py with Code/roclab, and no roclab installed: the script finds it."""
    code = tmp_path / "Code"
    shutil.copytree(ROOT / "roclab", code / "roclab", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "part2").mkdir()
    script = shutil.copy(roc_demo.__file__, code / "part2" / "roc_demo.py")
    hidden = (
        "import sys, runpy\n"
        "class Hidden:\n"  # stands for a Python in which roclab is not installed
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'roclab' and {str(code)!r} not in sys.path: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        f"sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        f"sys.path.insert(0, {str(code / 'part2')!r})\n"
        "sys.argv = ['roc_demo.py', '--demo', '1', '--max-new-tokens', '2']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "import roclab; print(roclab.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden], env={**os.environ, **ENVIRONMENT, "PYTHONPATH": ""},
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(code / "roclab") in done.stdout


def test_a_transcript_holds_all_three_and_names_the_model(thinker, tokenizer, tmp_path, capsys):
    roc_demo.write_transcript(tmp_path / "demo.txt", "tiny", thinker, tokenizer, PARAMS, prompt=QUESTION)
    text = (tmp_path / "demo.txt").read_text(encoding="utf-8")
    assert "model tiny, engine torch" in text
    assert all(f"── Demo {number}" in text for number in (1, 2, 3))
    assert f"thinking_content: {THOUGHT}" in text
    assert all(f"You: {line}" in text for line in roc_demo.READER)
    assert "Thinking is on." in text
    assert capsys.readouterr().out == ""


def test_a_transcript_of_a_model_without_thinking_says_so(smollm_path, tmp_path):
    done = run("--demo", "2", "--max-new-tokens", "4", "--transcript", str(tmp_path / "demo.txt"))
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "demo.txt"))
    assert roc_demo.NO_THINKING in (tmp_path / "demo.txt").read_text(encoding="utf-8")


def test_the_course_s_folders_one_beside_the_other(tokenizer, tmp_path):
    values = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}
    values |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = create_roclm_model(values)
    weights, beside = tmp_path / "weights", tmp_path / "tokenizer"
    for folder in (weights, beside):
        folder.mkdir()
    torch.save(model.state_dict(), weights / "custom_model_state_dict.pth")
    (weights / "model_config.json").write_text(json.dumps(values))
    (beside / "tokenizer.json").write_text(json.dumps(tokenizer_definition()))
    (beside / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    words = ("--demo", "1", "--prompt", "abc", "--max-new-tokens", "3", "--model", str(weights))
    found = run(*words)
    assert found.returncode == 0, found.stderr
    named = run(*words, "--tokenizer", str(beside))
    assert named.stdout == found.stdout
    assert "abc" in found.stdout
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "tokenizer.json").write_text("{}")  # two beside it: which one is meant must be said
    assert run(*words).returncode == 2
    assert run(*words, "--tokenizer", str(beside)).stdout == found.stdout
