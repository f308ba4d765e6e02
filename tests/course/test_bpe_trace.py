"""The step-by-step encoder against the library, for real vocabularies and for random merge tables."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer

from roclab.core.exceptions import RocLabError
from roclab.course.tokenizer_lab.bpe_trace import ADDED, NO_RULE, PRE_TOKENIZER, Tracer, apply_merges
from roclab.lm.text.tokenizer import Tokenizer

from ..lm.build import tokenizer_definition
from ..lm.test_tokenizer import MIXED, ODD_TEXTS

quick = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="session")
def smollm_tracer(smollm_path) -> Tracer:
    from roclab.lm.weights.checkpoint import open_checkpoint

    return Tracer(open_checkpoint(smollm_path).load_tokenizer())


@pytest.fixture(scope="session")
def qwen_tracer(qwen) -> Tracer:
    return Tracer(qwen)


@pytest.fixture(params=["smollm_tracer", "qwen_tracer"])
def tracer(request) -> Tracer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", [*ODD_TEXTS, "<|im_start|>user", "a\ud800b", "\ufdd0x\ufdd1", "x" * 3000, "1" * 3000])
def test_the_trace_ends_in_the_library_s_ids(tracer, text):
    assert list(tracer.trace(text).ids) == tracer.tokenizer.encode(text, bos=False)


@given(text=MIXED)
@quick
def test_any_text_ends_in_the_library_s_ids_smollm(smollm_tracer, text):
    _agrees(smollm_tracer, text)


@given(text=MIXED)
@quick
def test_any_text_ends_in_the_library_s_ids_qwen(qwen_tracer, text):
    _agrees(qwen_tracer, text)


def _agrees(tracer, text):
    trace = tracer.trace(text)
    assert list(trace.ids) == tracer.tokenizer.encode(text, bos=False)
    assert "".join(piece.text for piece in trace.pieces) == trace.normalized
    assert len(trace.boundaries) == max(len(trace.tokens) - 1, 0)
    for piece in trace.pieces:
        states = list(piece.states())
        assert states[0] == list(piece.symbols)
        assert states[-1] == list(piece.tokens)
        assert len(states) == len(piece.merges) + 1
    for boundary in trace.boundaries:
        if boundary.cause == NO_RULE:  # else the merge would have happened
            assert (boundary.left, boundary.right) not in tracer.ranks


@st.composite
def merge_tables(draw):
    """Merges over three letters, in any order that a tokenizer.json may have, and a word of those letters."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 12))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if len("".join(pair)) <= 8 and pair not in merges:
            merges.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    return tokens, draw(st.permutations(merges)), draw(st.text("abc", max_size=40))


@given(merge_tables())
@settings(max_examples=400, deadline=None)
def test_random_merge_tables_give_what_the_library_gives(table):
    tokens, merges, word = table
    library = LibraryTokenizer.from_str(
        json.dumps(
            {
                "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                "post_processor": None, "decoder": None,
                "model": {
                    "type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)},
                    "merges": [list(m) for m in merges],
                },
            }
        )
    )  # fmt: skip
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    assert apply_merges(word, ranks)[1] == library.encode(word).tokens


def test_merges_go_by_rank_then_from_the_left():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    merges, symbols = apply_merges("abcabc", ranks)
    assert [(m.rank, m.at) for m in merges] == [(0, 1), (0, 4), (2, 0), (2, 3)]
    assert symbols == ["abc", "abc"]


def test_causes_of_cuts(smollm_tracer, qwen_tracer):
    """SmolLM2 cuts digits apart in a step of its own, Qwen3 within its regular expression."""
    for tracer, stage in ((smollm_tracer, "Digits"), (qwen_tracer, "Split")):
        trace = tracer.trace("31842")
        assert [tracer.stages[b.stage].kind for b in trace.boundaries] == [stage] * 4
        assert tracer.stages[0].digits == (1,) * 8
        assert {b.cause for b in trace.boundaries} == {PRE_TOKENIZER}
    assert {b.cause for b in qwen_tracer.trace("xqzvk").boundaries} == {NO_RULE}


def test_bytes_that_a_vocabulary_lacks_are_named(smollm_tracer):
    lacking = [c for c in map(chr, range(128)) if smollm_tracer.spelling(c) not in smollm_tracer.vocab]
    assert lacking, "the vocabulary has every ASCII character: this test needs another"
    trace = smollm_tracer.trace(f"a{lacking[0]}b")
    assert [symbol for piece in trace.pieces for symbol in piece.lost] == [smollm_tracer.spelling(lacking[0])]


def test_runs_of_spaces_that_are_added_tokens_cut_the_text():
    definition = tokenizer_definition()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    size = max(definition["model"]["vocab"].values()) + 1
    definition["added_tokens"].append({**flags, "id": size, "content": "   "})
    tokenizer = Tokenizer(definition)
    trace = Tracer(tokenizer).trace("the    the")
    assert list(trace.ids) == tokenizer.encode("the    the")
    assert [b.cause for b in trace.boundaries] == [ADDED, ADDED]


def test_other_vocabularies_are_refused():
    definition = tokenizer_definition()
    definition["pre_tokenizer"] = None
    with pytest.raises(RocLabError, match="byte-level"):
        Tracer(Tokenizer(definition))
