"""The same words are the same text, and what evaluate says about the text that it scored."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import unicodedata

import pytest
import torch

from roclab.core.exceptions import DataError, RocLabError
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.evaluate import evaluate_text, marks_of_pretokenizing
from roclab.lm.model import create_roclm_model
from roclab.lm.text.source import read_text
from roclab.lm.text.tokenizer import Tokenizer

from .build import roclab, tokenizer_definition
from .speaker import tokenizer

WORDS = "The sea is wide.\nÜber 漢字 🦊\n"
BOM, CRLF = "byte order mark left out", "Windows line ends (CRLF) read as LF"


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (WORDS.encode(), []),
        (WORDS.replace("\n", "\r\n").encode(), [CRLF]),
        (WORDS.encode("utf-8-sig"), [BOM]),
        (WORDS.replace("\n", "\r\n").encode("utf-8-sig"), [BOM, CRLF]),
    ],
)
def test_the_same_words_are_the_same_text_from_a_file_and_a_pipe(data, changes, tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_bytes(data)
    assert read_text(tmp_path / "x.txt") == (WORDS, changes)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))  # a terminal's own
    assert read_text(type(tmp_path)("-")) == (WORDS, changes)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(encoding, tmp_path):
    (tmp_path / "x.txt").write_bytes("Plain English words.\n".encode(encoding))
    with pytest.raises(DataError, match=rf"x\.txt: {encoding[:6].upper()} text; save it as UTF-8"):
        read_text(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("data", "text"), [(b"", ""), (b"\0" * 9, "\0" * 9), (b"a\rb\n", "a\rb\n"), ("\ufeff".encode(), "")]
)
def test_odd_texts_stay_as_they_are(data, text, tmp_path):
    (tmp_path / "x.txt").write_bytes(data)
    assert read_text(tmp_path / "x.txt").text == text
    (tmp_path / "x.txt").write_bytes("Köln".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 1\)"):
        read_text(tmp_path / "x.txt")


def test_commands_read_a_pipe_as_they_read_a_file(smollm_path, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    ask = ("lm", "generate", "-n", "3", "--json", "--logprobs", "2", "--prompt-file")
    plain, file = roclab(*ask, "-", stdin="one\ntwo\n"), roclab(*ask, tmp_path / "x.txt")
    pipe = roclab(*ask, "-", stdin="\ufeffone\r\ntwo\r\n", PYTHONIOENCODING="ascii")
    keep = ("text", "prompt_tokens", "logprobs")
    answers = [{key: json.loads(done.stdout)[key] for key in keep} for done in (plain, file, pipe)]
    assert answers[0] == answers[1] == answers[2]
    tokens = answers[0]["logprobs"]
    assert bytes(b for token in tokens for b in token["bytes"]).decode() == answers[0]["text"]
    for token in tokens:
        assert token["top"][0] == [token["token"], pytest.approx(token["logprob"]), token["bytes"]]
    done = roclab("lm", "evaluate", "--text", "-", "--json", stdin="\ufeffone two\r\nthree\r\n")
    found = json.loads(done.stdout)
    assert found["normalised"] == [BOM, CRLF]
    assert found["text_sha256"] == hashlib.sha256(b"one two\nthree\n").hexdigest()
    assert (found["engine"], found["dtype"], found["activations"]) == ("torch", "float32", "float32")
    assert found["bytes"] == len("one two\nthree\n")


@pytest.fixture(scope="module")
def runner() -> TorchRunner:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return TorchRunner(create_roclm_model(shape | heads).eval())


def lacking(*characters: str) -> Tokenizer:
    """A vocabulary without tokens for these bytes, as SmolLM2's is."""
    definition = tokenizer_definition()
    vocabulary = {t: i for t, i in definition["model"]["vocab"].items() if t not in characters}
    definition["model"] |= {"vocab": vocabulary, "merges": []}
    return Tokenizer(definition)


@pytest.mark.parametrize(
    ("text", "vanished"), [("abc" + "xy" * 5, 10), ("xaxb", 2), ("abc", 0), ("aé", 1)]
)  # é is two bytes, Ã the sign for its first
def test_bytes_without_a_token_are_counted_and_not_scored(runner, text, vanished):
    score = evaluate_text(runner, lacking("x", "y", "Ã"), text)
    assert (score.vanished_bytes, score.bytes) == (vanished, len(text.encode()) - vanished)
    assert score.bits_per_byte * score.bytes * math.log(2) == pytest.approx(math.log(score.perplexity) * score.tokens)


@pytest.mark.parametrize("text", ["ab é", " ab", "a  b", "é"])
def test_the_space_that_sentencepiece_puts_first_is_no_byte_of_the_text(runner, text):
    vocabulary = {**{f"<0x{i:02X}>": i for i in range(256)}, "▁": 256, "a": 257, "b": 258}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    definition = {
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None, "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True},
    }  # fmt: skip
    score = evaluate_text(runner, Tokenizer(definition), text)
    assert (score.bytes, score.vanished_bytes, score.normalised) == (len(text.encode()), 0, [])


def test_a_text_that_vanishes_is_refused(runner):
    with pytest.raises(DataError, match="no token for any of its 4 bytes"):
        evaluate_text(runner, lacking("x", "y"), "xyxx")


@pytest.mark.parametrize("text", ["Mu\u0308ller fa\u0308hrt", "\u212b e\u0301", unicodedata.normalize("NFD", "한국어")])
def test_bits_per_byte_count_the_text_that_the_tokens_stand_for(runner, text):
    composing = tokenizer(normalizer={"type": "NFC"})
    composed = unicodedata.normalize("NFC", text)
    found, wanted = evaluate_text(runner, composing, text), evaluate_text(runner, composing, composed)
    assert (found.bits_per_byte, found.bytes) == (wanted.bits_per_byte, len(composed.encode()))
    assert (found.normalised, wanted.normalised) == (["by the tokenizer"], [])
    assert found.text_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_bos_before_every_window(runner):
    plain, text = tokenizer(), "The quick brown fox jumps over the lazy dog. " * 3
    score = evaluate_text(runner, plain, text, window=16, stride=8, bos_every_window=True)
    ids, start, end, total = plain.encode(text), 0, 0, 0.0
    while end < len(ids):  # by hand: 15 tokens of the text and the BOS
        begin, end = end, min(start + 15, len(ids))
        with torch.inference_mode():
            logp = runner.model(torch.tensor([[0, *ids[start:end]]]))[0].log_softmax(-1)
        total -= sum(logp[at - start, ids[at]].item() for at in range(begin, end))
        start += 8
    assert (score.tokens, score.bos) == (len(ids), "every window")
    assert math.log(score.perplexity) * score.tokens == pytest.approx(total, rel=1e-5)
    assert "every window begins with a BOS" in score.protocol
    assert evaluate_text(runner, plain, text).bos == "nowhere"
    with pytest.raises(RocLabError, match="no BOS"):
        evaluate_text(runner, lacking(), text, bos_every_window=True)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("It is a well @-@ known fact .", [" @-@ "]),
        ("In 1990 , he said , and went , and came .", [" , "]),
        ("It costs 1 @,@ 000 or 2 @.@ 5 .", [" @,@ ", " @.@ "]),
        ("One, two, three. And , by mistake, one more. Four , five, six. Seven.", []),
        ("def f(a, b):\n    return a . b\n", []),
        ("", []),
    ],
)
def test_a_text_that_was_taken_apart_is_recognized(text, marks):
    assert marks_of_pretokenizing(text) == marks
