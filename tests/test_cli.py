"""The command line as a user meets it: processes, exit codes, what is printed where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lm.test_engine import ANSWER, GRAVITY
from tests.processes import roclab


def refused(done) -> str:
    """The one line of a user's mistake."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("roclab: ")
    return lines[0]


@pytest.fixture(scope="module", autouse=True)
def _weights(smollm_path):
    """Skips the module where the weights are not installed."""


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['roclab', '--help']\n"
        "from roclab.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'tokenizers', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-500:] + done.stderr


@pytest.mark.parametrize("command", ["generate", "chat", "evaluate"])
def test_every_command_has_help_with_an_example(command):
    done = roclab("lm", command, "--help")
    assert done.returncode == 0
    assert f"Example: roclab lm {command}" in " ".join(done.stdout.replace("│", " ").split())


def test_generate_answers_with_the_promised_json():
    done = roclab("lm", "generate", "--model", "smollm2-135m", "--chat", "-p", GRAVITY, "-n", "30", "-t", "0", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {
        "text", "prompt_tokens", "new_tokens", "finish_reason", "seed", "load_seconds", "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }  # fmt: skip
    assert answer["text"].startswith(ANSWER)
    assert (answer["new_tokens"], answer["finish_reason"], answer["prompt_tokens"]) == (30, "length", 39)


def test_generate_streams_text_and_reads_a_prompt_from_a_pipe():
    done = roclab("lm", "generate", "--prompt-file", "-", "-n", "5", stdin="1, 2, 3, 4,")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("5,")
    # echo ends its line; the prompt does not: a model would take it for the end of the paragraph.
    assert roclab("lm", "generate", "--prompt-file", "-", "-n", "5", stdin="1, 2, 3, 4,\n").stdout == done.stdout


def test_a_batch_gives_a_line_of_json_a_prompt():
    done = roclab(
        "lm", "generate", "-p", "1, 2, 3,", "-p", "The capital of France is", "-n", "4", "--json", "--logprobs", "2"
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    assert "Paris" in lines[1]["text"]
    assert len(lines[0]["logprobs"]) == 4
    assert len(lines[0]["logprobs"][0]["top"]) == 2


def test_typed_control_tokens_stay_text():
    """The same number of control tokens whatever the message says, seen from outside: the token counts."""
    plain = json.loads(roclab("lm", "generate", "--chat", "-p", "x", "-n", "1", "--json").stdout)["prompt_tokens"]
    typed = json.loads(roclab("lm", "generate", "--chat", "-p", "<|im_end|>", "-n", "1", "--json").stdout)[
        "prompt_tokens"
    ]
    assert typed > plain  # spelled out in several tokens; as a control token it would be one, like x


def test_evaluate_prints_numbers_and_protocol(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. Ünïcode.", encoding="utf-8")
    done = roclab("lm", "evaluate", "--text", text, "--window", "16", "--json")
    result = json.loads(done.stdout)
    assert {"perplexity", "tokens", "bits_per_byte", "protocol", "window", "stride"} <= set(result)
    assert result["perplexity"] > 1
    assert "perplexity" in roclab("lm", "evaluate", "--text", text).stdout
    cut = json.loads(roclab("lm", "evaluate", "--text", text, "--max-bytes", "46", "--json").stdout)
    assert cut["bytes"] == 45  # byte 46 would have halved the Ü


def test_pull_says_where_the_weights_are(smollm_path):
    assert roclab("pull", "smollm2-135m").stdout.strip() == f"smollm2-135m: {smollm_path}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "--prompt"),
        (("generate", "-p", ""), "the prompt is empty"),
        (("generate", "-p", "x", "--model", "no-such-model"), "no-such-model: no such file or folder"),
        (("generate", "-p", "x", "--temperature", "-1"), "--temperature -1.0: must be at least 0"),
        (("generate", "-p", "x", "--dtype", "int3"), "--dtype int3"),
        (("generate", "-p", "x", "--device", "gpu9"), "--device gpu9"),
        (("generate", "-p", "x", "--thinking", "maybe"), "choose on, off or auto"),
        (("generate", "-p", "x", "--chat", "--thinking", "on"), "no switch for thinking"),
        (("generate", "-p", "x", "--thinking", "on"), "--thinking needs --chat"),
        (("generate", "-p", "x", "--system", "x"), "--system needs --chat"),
        (("generate", "-p", "x", "--logprobs", "2"), "--logprobs needs --json"),
        (("generate", "-p", "x", "--top-k", "abc"), "--top-k"),
        (("generate", "-p", "x", "--device", "meta"), "--device meta"),
        (("generate", "-p", "x", "--model", ""), "name is empty"),
        (("generate", "-p", "x", "--model", "README.md"), "README.md: neither a GGUF nor a .pth file"),
        (("generate", "-p", "x", "--tokenizer", "no/such"), "tokenizer.json"),
        (("evaluate", "--text", "README.md", "--max-bytes", "-5"), "--max-bytes"),
        (("evaluate", "--text", "README.md", "--window", "0"), "window of 0"),
        (("nonsense",), "No such command 'nonsense'. (see "),
        (("generate", "-p", "x", "-n", "9000"), "the model's context has 8192"),
        (("generate", "--prompt-file", "no/such/file.txt"), "no/such/file.txt: cannot be read"),
        (("evaluate", "--text", "two\nlines.txt"), r"two\nlines.txt: cannot be read"),
        (("evaluate", "--text", "no/such/file.txt"), "no/such/file.txt: cannot be read"),
        (("chat", "--load", "no/such/talk.json"), "no/such/talk.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message):
    assert message in refused(roclab("lm", *arguments))


def test_a_damaged_model_file_is_one_line_and_debug_shows_the_traceback(smollm_path: Path, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm_path.read_bytes()[:5_000_000])
    assert "cut off: tensor" in refused(roclab("lm", "generate", "--model", cut, "-p", "x"))
    done = roclab("--debug", "lm", "generate", "--model", cut, "-p", "x")
    assert "Traceback" in done.stderr
