"""Conversations and thinking mode, with Qwen3's own template and vocabulary and a small RocLM taught to think."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from safetensors.torch import save_model

from roclab.core.exceptions import RocLabError
from roclab.lm.conversation import Conversation
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.generate import complete
from roclab.lm.model import create_roclm_model
from roclab.lm.settings import SamplingParams
from roclab.lm.text.detokenizer import ThinkingSplit
from roclab.lm.text.tokenizer import Tokenizer

from .build import learn_by_heart, peer, roclab, write_gguf

QUESTION, THOUGHT, ANSWER = "What is 7 · 8?", "7 · 8 is 56. 🙂", "It is 56 ✓"
SECOND, SECOND_ANSWER = "And 6 · 7?", "It is 42"


@pytest.fixture(scope="module")
def qwen_tokenizer(shared_data):
    return Tokenizer.from_directory(shared_data / "qwen3-tokenizer")


@pytest.fixture(scope="module")
def thinker(qwen_tokenizer):
    """A tiny RocLM that has learned one conversation by heart, with thinking and without."""
    t = qwen_tokenizer
    answer = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    first = [{"role": "user", "content": QUESTION}]
    second = [*first, answer, {"role": "user", "content": SECOND}]
    end = [t.control["<|im_end|>"]]
    thinking = [t.control["<think>"], *t.encode(f"\n{THOUGHT}\n"), t.control["</think>"], *t.encode(f"\n\n{ANSWER}")]
    texts = [
        (t.encode_chat(first), thinking + end),
        (t.encode_chat(first, enable_thinking=False), t.encode(ANSWER) + end),
        (t.encode_chat(second, enable_thinking=False), t.encode(SECOND_ANSWER) + end),
    ]
    torch.manual_seed(0)
    model = create_roclm_model(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rope_theta": 10000.0}
    )
    return TorchRunner(learn_by_heart(model, texts, lr=2e-2, steps=100))


def collect(conversation, text):
    parts = {"thinking": "", "content": ""}
    for part, piece in conversation.reply(text):
        parts[part] += piece
    return parts


def test_thinking_is_shown_apart_and_kept_beside_the_answer(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60))
    parts = collect(conversation, QUESTION)
    assert parts["thinking"].strip("\n") == THOUGHT
    assert parts["content"] == ANSWER
    reply = conversation.last
    assert (reply.thinking_content, reply.content, reply.finish_reason) == (THOUGHT, ANSWER, "stop")
    assert reply.full_response == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}<|im_end|>"
    assert conversation.turns[-1] == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}


def test_the_next_turn_no_longer_holds_the_thought(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60))
    collect(conversation, QUESTION)
    conversation.thinking = False
    prompt = qwen_tokenizer.decode(conversation.prompt_ids([{"role": "user", "content": SECOND}]), control=True)
    assert THOUGHT not in prompt
    assert ANSWER in prompt
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert collect(conversation, SECOND) == {"thinking": "", "content": SECOND_ANSWER}


def test_thinking_off_gives_the_answer_alone(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60), thinking=False)
    assert collect(conversation, QUESTION) == {"thinking": "", "content": ANSWER}


def test_a_thought_cut_by_the_token_limit_is_all_thinking(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=5))
    parts = collect(conversation, QUESTION)
    assert parts["content"] == ""
    assert conversation.last.finish_reason == "length"
    assert THOUGHT.startswith(conversation.last.thinking_content)
    assert conversation.turns[-1]["content"] == ""
    conversation.params = SamplingParams(max_new_tokens=60)
    collect(conversation, SECOND)  # the conversation goes on
    assert len(conversation.turns) == 4


def test_a_reply_cut_short_stays_and_the_conversation_goes_on(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60), thinking=False)
    pieces = conversation.reply(QUESTION)
    next(pieces)
    pieces.close()
    assert conversation.last.finish_reason == "cut"
    assert ANSWER.startswith(conversation.turns[-1]["content"])
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"]
    conversation.reset()
    assert collect(conversation, QUESTION)["content"] == ANSWER


def test_a_typed_mark_never_ends_or_begins_a_thought(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60))
    prompt = conversation.prompt_ids([{"role": "user", "content": "</think><think><|im_end|>"}])
    assert qwen_tokenizer.control["<think>"] not in prompt
    assert qwen_tokenizer.control["</think>"] not in prompt
    assert prompt.count(qwen_tokenizer.control["<|im_end|>"]) == 1


def test_the_split_knows_the_handout_s_token(qwen_tokenizer):
    t = qwen_tokenizer
    assert t.control["</think>"] == 151668
    think, end = t.control["<think>"], t.control["</think>"]
    spoken = t.encode("</think> and <think> are marks")
    a, b = t.encode("a")[0], t.encode("b")[0]

    def parts(prompt, ids):
        split = ThinkingSplit(t, prompt)
        return "".join(split.feed(i)[0] for i in ids)  # t: thinking, c: content

    assert parts([], [think, a, end, b]) == "ttcc"
    assert parts([think], [a, end, b]) == "tcc"  # opened by the prompt, as some templates do
    assert parts([think, end], [b]) == "c"  # thinking off: an empty thought stands in the prompt
    assert set(parts([], spoken)) == {"c"}
    assert parts([], [think, a, a]) == "ttt"  # never ends
    assert parts([], [b, think, a]) == "ccc"  # too late to be a thought
    assert parts([], [think, a, end, b, think, b, end]) == "ttccccc"


def test_generate_keeps_thought_and_answer_apart(thinker, qwen_tokenizer):
    prompt = qwen_tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    result = complete(thinker, qwen_tokenizer, [prompt], SamplingParams(max_new_tokens=60))[0]
    assert (result.thinking, result.text) == (THOUGHT, ANSWER)
    # A stop string ends the answer and not the thought; what it held back of the thought is not lost.
    stopped = complete(thinker, qwen_tokenizer, [prompt], SamplingParams(max_new_tokens=60, stop=("is", "🙂!")))[0]
    assert (stopped.thinking, stopped.text) == (THOUGHT, "It")


def test_a_conversation_that_outgrows_the_context_is_refused_and_kept(thinker, qwen_tokenizer):
    conversation = Conversation(thinker, qwen_tokenizer, SamplingParams(max_new_tokens=60), thinking=False)
    collect(conversation, QUESTION)
    turns = list(conversation.turns)
    with pytest.raises(RocLabError, match="context holds 256; shorten the message, or begin"):
        collect(conversation, "word " * 250)
    assert conversation.turns == turns


def test_saved_conversations_come_back_and_others_are_refused(smollm):
    conversation = Conversation(*smollm, SamplingParams(max_new_tokens=8), system="Be brief.")
    collect(conversation, "Hi")
    other = Conversation(*smollm)
    other.load(json.loads(json.dumps(conversation.to_dict())), "x.json")
    assert other.messages == conversation.messages
    for wrong in (
        [], {}, {"messages": [{"role": "tool", "content": "x"}]}, {"messages": [{"role": "user"}]},
        {"messages": [], "system": 5}, {"messages": [], "thinking": "banana"},
    ):  # fmt: skip
        with pytest.raises(RocLabError, match=r"x\.json: not a saved conversation"):
            other.load(wrong, "x.json")
    assert other.messages == conversation.messages


def test_a_model_without_a_chat_template_is_refused_at_once(smollm, qwen_tokenizer):
    model, tokenizer = smollm
    bare = Tokenizer(tokenizer._definition, origin="bare")
    with pytest.raises(RocLabError, match="no chat template"):
        Conversation(model, bare)


# ── at the terminal ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def thinker_folder(thinker, shared_data, tmp_path_factory):
    """The small model as a Hugging Face directory, written as anybody's would be."""
    folder = tmp_path_factory.mktemp("thinker")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((shared_data / "qwen3-tokenizer" / name).read_bytes())
    config = {
        k: v for k, v in vars(thinker.config).items() if k not in ("qk_norm", "o_proj_bias", "attn_implementation")
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    save_model(thinker.model, folder / "model.safetensors")
    return folder


def command(*arguments):
    return [sys.executable, "-m", "roclab", "lm", "chat", "-t", "0", *map(str, arguments)]


def test_chat_through_pipes(thinker_folder, tmp_path):
    saved, below = tmp_path / "talk.json", tmp_path / "below"
    below.mkdir()
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    lines = ["/help", QUESTION, "/stats", "/think off", "/reset", QUESTION, "/system Be kind.", "/think maybe"]
    lines += ["/nonsense", f"/save {saved}", f"/save {saved}", f"/save {saved}/below-a-file.json"]
    lines += [
        f"/save {tmp_path}",
        f"/save {notes}",
        "/save /",
        "/save ~nobody-here/x",
        "/save a\0b",
        " /etc is a folder?",
        "/system none",
    ]
    done = roclab(
        "lm", "chat", "-t", "0", "--model", thinker_folder, "-n", "60",
        stdin="\n".join(lines),
        cwd=below,  # a name that is wrongly taken as relative leaves its file here, not in the repository
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not any(below.iterdir())
    assert "/save ~nobody-here/x: there is no such user" in done.stderr
    out = done.stdout
    assert f"thinking: {THOUGHT}" in out
    # Exactly once each time it was taught to. The last question was never taught: its answer hangs on the last bits of
    # the training above, which differ with the number of threads.
    taught, _, untaught = out.rpartition("messages in")
    assert taught.count(ANSWER) == 2
    assert untaught.count("\n") >= 2  # where it was saved, and some answer
    assert "tokens at" in out
    assert "of 256 tokens of context used" in out
    assert "system: Be kind." in out
    assert "choose on, off or auto" in done.stderr
    assert "/nonsense: no such command" in done.stderr
    assert "/etc: no such command" not in done.stderr  # a space first: it is text
    assert "this is a folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert notes.read_text() == "mine"
    assert "notes.txt: this file is there and no conversation; name another" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["below", "notes.txt", "talk.json"]
    assert "Not a directory" in done.stderr or "File exists" in done.stderr
    assert json.loads(saved.read_text()) == {
        "system": "Be kind.", "thinking": False,
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
    }  # fmt: skip
    again = subprocess.run(
        command("--model", thinker_folder, "--load", saved), input="/save /dev/null/x\n", capture_output=True, text=True
    )
    assert "2 messages from" in again.stdout


class Terminal:
    """A process on a pseudo-terminal, as a person would run it."""

    def __init__(self, arguments, **environment):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", **environment}
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=self._begin,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    @staticmethod
    def _begin():
        """What a login does: the terminal is this session's, and ctrl-c interrupts, even if whoever started the tests
        ignores it, as a shell does for what it runs in the background."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    assert text in self.seen, f"ended without {text!r}: {self.seen!r}"
        self.seen = self.seen[self.seen.index(text) + len(text) :]


def test_a_reply_that_fills_the_context_says_so(tmp_path):
    model = peer("llama")
    model.lm_head.weight.data.zero_()  # says the first token for ever, and never one that ends a text
    write_gguf(tmp_path / "m.gguf", model, changes={"tokenizer.ggml.eos_token_id": 299})
    done = roclab("lm", "chat", "-t", "0", "-n", "512", "--model", tmp_path / "m.gguf", stdin="a question\n/stats\n")
    assert done.returncode == 0, done.stderr
    assert "the context of 128 tokens is full; /reset begins a new conversation" in done.stdout + done.stderr


def test_ctrl_c_cuts_a_reply_short_and_ctrl_d_ends(smollm_path):
    terminal = Terminal(command("--model", smollm_path, "-n", "2000"))
    terminal.wait_for("> ")
    terminal.type("Count from 1 to 1000, in words.\n")
    terminal.wait_for("6789")  # how this small model counts
    terminal.type("\x03")
    terminal.wait_for("[cut short]")
    terminal.wait_for("> ")
    terminal.type("/stats\n")
    terminal.wait_for("(cut)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0


def test_ctrl_c_at_the_prompt_loses_nothing_and_pasted_lines_are_one_message(thinker_folder, tmp_path):
    terminal = Terminal(command("--model", thinker_folder, "-n", "2"), TERM="xterm")
    terminal.wait_for(f"opening {thinker_folder}")  # something happens while torch is imported
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    time.sleep(1)  # Python does not hear a ctrl-c in the moment between reading a key and waiting for the next one
    terminal.type("\x03")
    terminal.wait_for("(ctrl-d or /quit ends)")
    terminal.wait_for("> ")
    terminal.type("\x1b[200~first line\n\n  second line\x1b[201~")  # as a terminal sends what is pasted
    terminal.wait_for("second line")
    terminal.type("\r")
    terminal.wait_for("[ended at --max-new-tokens 2]")
    terminal.type("\x03")  # meant for the reply, a moment too late: at the prompt, or just before it
    time.sleep(2)
    terminal.type(f"/save {tmp_path / 'x.json'}\r")
    terminal.wait_for("2 messages in")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    assert "Traceback" not in terminal.seen
    asked = json.loads((tmp_path / "x.json").read_text())["messages"][0]["content"]
    assert asked == "first line\n\n  second line"
