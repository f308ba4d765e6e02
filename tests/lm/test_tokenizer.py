"""Tokenizers against the library and transformers, for Qwen3's real vocabulary and those rebuilt from GGUF metadata."""

from __future__ import annotations

import json
import unicodedata

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_from_gguf

from .build import CONTROL, byte_vocabulary, tokenizer_definition

quick = settings(max_examples=150, deadline=None)

ODD_TEXTS = [
    "", " ", "   \n\n \t\r\n  x", "don't DON'T we'LL 'tis", "price: $1,234,567.89 or 12345678 ½ Ⅷ ٣٤", "naïve naïve",
    "한국어 日本語、中文。", "👩‍👩‍👧‍👦🏳️‍🌈", "\u200b\u00a0\u3000x", "ﬁﬂ Å Ω", "\x00\x01\x7f", "a\u0301\u0302\u0303",
    "def f(x):\n\treturn  x",
    "ZA̡͊͠͝LGO", "مرحبا بالعالم", "नमस्ते दुनिया", "\ufeffBOM", "\U0010fffd", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]  # fmt: skip
# Ordinary characters: no surrogates, and none of the noncharacters that stand for control tokens inside.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1"), max_size=60)
MIXED = st.lists(st.one_of(TEXT, st.sampled_from([*ODD_TEXTS, " ", "\n", "'s", "the", "1", "é", "…"])), max_size=8).map(
    "".join
)


@pytest.fixture(scope="session")
def qwen_library(qwen_folder) -> LibraryTokenizer:
    return LibraryTokenizer.from_file(str(qwen_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def qwen_from_gguf(qwen_folder) -> Tokenizer:
    """Qwen3's vocabulary as llama.cpp's converter writes it into GGUF metadata."""
    definition = json.loads((qwen_folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((qwen_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = definition["model"]["vocab"] | {t["content"]: t["id"] for t in definition["added_tokens"]}
    rows = 151936  # of the embedding: the converter fills up with unused tokens
    names = {i: name for name, i in ids.items()}
    types = dict.fromkeys(ids.values(), 1) | {t["id"]: 3 if t["special"] else 4 for t in definition["added_tokens"]}
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [names.get(i, f"[PAD{i}]") for i in range(rows)],
            "tokenizer.ggml.token_type": [types.get(i, 5) for i in range(rows)],
            "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]],
            "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": config["chat_template"],
        },
        "qwen3.gguf",
    )


@pytest.fixture(scope="session")
def real_texts(shared_data) -> list[str]:
    files = [shared_data / "text" / name for name in ("tinyshakespeare.txt", "instructions-1100.json")]
    texts = [file.read_text(encoding="utf-8")[:60000] for file in files if file.exists()]
    for file in sorted((shared_data / "text").glob("wikitext-2/*"))[:2]:
        texts.append(file.read_text(encoding="utf-8")[:60000])
    if not texts:
        pytest.skip("no texts on this machine")
    return texts


def library_ids(library: LibraryTokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


# ── The same ids ────────────────────────────────────────────────────────────────────────────────────────────────


def test_real_and_odd_texts_have_the_librarys_ids_from_both_sources(qwen, qwen_from_gguf, qwen_library, real_texts):
    for text in [*real_texts, *ODD_TEXTS]:
        expected = library_ids(qwen_library, text)
        assert qwen.encode(text) == expected
        assert qwen_from_gguf.encode(text) == expected
        assert qwen.decode(expected) == qwen_from_gguf.decode(expected) == unicodedata.normalize("NFC", text)


@quick
@given(text=MIXED)
def test_any_text_has_the_librarys_ids_and_comes_back(qwen, qwen_from_gguf, qwen_library, text):
    assume(not any(name in text for name in qwen.control))  # there the library sees control tokens, and we text
    expected = library_ids(qwen_library, text)
    assert qwen.encode(text) == expected
    assert qwen_from_gguf.encode(text) == expected
    assert qwen.decode(expected) == qwen_library.decode(expected)
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)  # Qwen's own normalizer


def test_both_sources_agree_on_everything_else(qwen, qwen_from_gguf):
    assert qwen_from_gguf.control == qwen.control
    assert qwen_from_gguf.eos_token_ids == qwen.eos_token_ids == [qwen.control["<|im_end|>"]]
    assert qwen_from_gguf.chat_template == qwen.chat_template
    assert not qwen.adds_bos
    assert not qwen_from_gguf.adds_bos
    assert qwen.control["</think>"] == 151668
    assert qwen.token_to_id("Ġthe") == qwen.encode(" the")[0]
    assert qwen.id_to_token(151668) == "</think>"
    for i in range(0, qwen.vocab_size, 97):
        assert qwen.token_bytes(i, control=True) == qwen_from_gguf.token_bytes(i, control=True)


# The regular expressions that llama.cpp documents for these names, tried one after the other on every piece.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BIG_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    "gpt2": [WORDS],
    "gpt-2": [WORDS],
    "smollm": [r"\p{N}", WORDS],
    "qwen2": [BIG_WORDS % r"\p{N}"],
    "llama-bpe": [BIG_WORDS % r"\p{N}{1,3}"],
    "llama3": [BIG_WORDS % r"\p{N}{1,3}"],
}
OLD = unicodedata.ucd_3_2_0  # two libraries know two versions of Unicode: only characters that are older than both
KNOWN = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0xFFFF).filter(
    lambda c: OLD.category(c) == unicodedata.category(c)
)
SPLITTABLE = st.lists(
    st.one_of(st.text(KNOWN, max_size=12), st.sampled_from(["  ", " \n", "'S", "'ll", "1234567", " a", "\r\n", "½"])),
    max_size=10,
).map("".join)


def pieces(name: str, text: str) -> list[str]:
    parts = [text]
    for expression in EXPRESSIONS[name]:
        split = []
        for part in parts:
            at = 0
            for match in regex.finditer(expression, part):
                split += [part[at : match.start()], match.group()]
                at = match.end()
            split.append(part[at:])
        parts = [part for part in split if part]
    return parts


def from_gguf(pre: str, **changes) -> Tokenizer:
    tokens, merges = byte_vocabulary()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": [" ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return tokenizer_from_gguf({k: v for k, v in {**metadata, **changes}.items() if v is not None}, "test.gguf")


@pytest.mark.parametrize("name", [n for n in EXPRESSIONS if n in PRE_TOKENIZERS])
def test_pre_tokenizers_split_where_llama_cpps_expressions_split(name):
    part = json.dumps({**tokenizer_definition(), **PRE_TOKENIZERS[name]})
    pre_tokenizer = LibraryTokenizer.from_str(part).pre_tokenizer

    @quick
    @given(text=SPLITTABLE)
    def check(text):
        spans = [span for _, span in pre_tokenizer.pre_tokenize_str(text)]
        assert [text[a:b] for a, b in spans] == pieces(name, text)

    check()
    for text in ODD_TEXTS:
        assert [text[a:b] for _, (a, b) in pre_tokenizer.pre_tokenize_str(text)] == pieces(name, text)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_gguf_vocabulary_encodes_each_piece_by_itself_and_comes_back(name):
    tokenizer = from_gguf(name)

    @quick
    @given(text=SPLITTABLE)
    def check(text):
        expected = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        ids = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(ids) == expected
        assert ids == [i for piece in pieces(name, expected) for i in tokenizer.encode(piece, bos=False)]

    check()


def test_merges_stop_at_the_borders_of_pieces():
    """Tokens that only a wrong split would use: digits join in threes for Llama 3, never for the others."""
    tokens, merges = byte_vocabulary()
    tokens, merges = [*tokens, "12", "123"], [*(" ".join(m) for m in merges), "1 2", "12 3"]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": None, "tokenizer.ggml.merges": merges}
    joined = {name: from_gguf(name, **changes).encode("1231", bos=False) for name in EXPRESSIONS}
    lengths = {name: len(ids) for name, ids in joined.items()}
    assert lengths == {"gpt2": 2, "gpt-2": 2, "smollm": 4, "qwen2": 4, "llama-bpe": 2, "llama3": 2}


def test_llama3_takes_a_whole_word_from_the_vocabulary_without_merges():
    tokens, _ = byte_vocabulary()
    changes = {"tokenizer.ggml.tokens": [*tokens, "zebra"], "tokenizer.ggml.token_type": None}
    assert from_gguf("llama-bpe", **changes).encode("zebra", bos=False) == [len(tokens)]
    assert len(from_gguf("gpt-2", **changes).encode("zebra")) == 5


def test_smollms_real_vocabulary_comes_back(smollm_path, real_texts):
    from roclab.lm.weights.checkpoint import open_checkpoint

    tokenizer = open_checkpoint(smollm_path).load_tokenizer()
    for text in real_texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("wanted", "stored", "expected"), [(None, True, True), (None, False, False), (True, False, True)]
)
def test_bos_comes_when_the_model_wants_it_or_the_caller_does(wanted, stored, expected):
    tokenizer = from_gguf("gpt-2", **{"tokenizer.ggml.add_bos_token": stored})
    assert (tokenizer.encode("x", bos=wanted)[0] == 0) == expected


def test_bos_without_such_a_token_is_refused(qwen):
    with pytest.raises(RocLabError, match="BOS"):
        qwen.encode("x", bos=True)


# ── SentencePiece style ─────────────────────────────────────────────────────────────────────────────────────────


def sentencepiece_definition() -> dict:
    """A vocabulary as converted from SentencePiece: ▁ for spaces, bytes as a last resort, in Llama 2's way."""
    control = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?0123456789é"]
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"], ["▁", "▁"]]
    tokens = [*control, *bytes_, *letters, *("".join(m) for m in merges)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "pre_tokenizer": None,
        "added_tokens": [{**flags, "id": i, "content": name, "special": True} for i, name in enumerate(control)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip


def test_a_sentencepiece_vocabulary_encodes_and_decodes_like_the_library():
    definition = sentencepiece_definition()
    ours = Tokenizer(definition, bos_token="<s>", eos_tokens=["</s>"], adds_bos=True)
    library = LibraryTokenizer.from_str(json.dumps(definition))

    @quick
    @given(text=MIXED.filter(lambda t: "▁" not in t))
    def check(text):
        ids = ours.encode(text, bos=False)
        assert ids == library_ids(library, text)
        assert ours.decode(ids) == library.decode(ids) == text

    check()
    assert ours.encode("the")[0] == 1
    assert ours.decode([1, *ours.encode("the cat", bos=False), 2]) == "the cat"
    assert not {0, 1, 2} & set(ours.encode("<s>x</s><unk>", bos=False))


# ── Damaged definitions ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"type": "Unigram", "vocab": []}},
        {"model": {"type": "BPE"}},
        {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}, "added_tokens": []},
        {"added_tokens": [{"id": 1}]},
        {"added_tokens": "many"},
        {"pre_tokenizer": {"type": "Telepathy"}},
    ],
    ids=str,
)
def test_a_damaged_definition_gives_one_line(change, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer_definition(), **change}))
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_special_token_that_is_nowhere_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_definition()))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|nowhere|>"}}')
    with pytest.raises(CheckpointError, match=r"<\|nowhere\|>"):
        Tokenizer.from_directory(tmp_path)


def test_a_stand_in_typed_as_plain_text_is_kept(qwen):
    """The noncharacters that stand for a control token's first letter are in use only while a template runs."""
    assert qwen.decode(qwen.encode("a\ufdd2b\ufdd5\ufdef")) == "a\ufdd2b\ufdd5\ufdef"
