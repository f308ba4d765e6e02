"""Perplexity: every token once, and the same number transformers gives under the same windows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roclab.core.exceptions import DataError
from roclab.lm.evaluate import evaluate_text, windows


@given(st.integers(2, 400), st.integers(2, 60), st.data())
def test_windows_score_every_token_but_the_first_once(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    scored = []
    for start, first, end in windows(length, window, stride):
        assert 0 <= start < first < end <= length
        assert end - start <= window
        scored += range(first, end)
    assert scored == list(range(1, length))


def reference(logits_of, ids, window, stride):
    """Mean negative log-likelihood, written down a second time in the usual words of the field."""
    total, count, previous_end = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        logits = logits_of(torch.tensor([ids[begin:end]])).double().log_softmax(-1)[0]
        for t in range(max(previous_end, begin + 1), end):
            total -= logits[t - 1 - begin, ids[t]].item()
            count += 1
        previous_end = end
        if end == len(ids):
            break
    return total / count, count


@torch.inference_mode()
def test_perplexity_is_its_definition(smollm):
    model, tokenizer = smollm
    text = "The quick brown fox jumps over the lazy dog. " * 3 + "Grüße aus Köln, 12345!"
    score = evaluate_text(model, tokenizer, text, window=16, stride=5)
    mean, count = reference(model.model, tokenizer.encode(text), 16, 5)
    assert score.tokens == count == len(tokenizer.encode(text)) - 1
    assert score.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert score.bytes == len(text.encode())
    assert score.bits_per_byte == pytest.approx(mean * count / math.log(2) / len(text.encode()), rel=1e-4)
    assert "windows of 16 tokens, a new one every 5" in score.protocol


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "fewer than two tokens"),
        ("some text", {"window": 9000}, "9000 tokens: .* at most the model's context, 8192"),
        ("some text", {"window": 8, "stride": 8}, "stride"),
        ("some text", {"window": 1}, "window of 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(smollm, text, options, message):
    with pytest.raises(DataError, match=message):
        evaluate_text(*smollm, text, **options)


@pytest.mark.slow
@torch.inference_mode()
def test_wikitext_perplexity_equals_transformers(smollm, smollm_peer, shared_data):
    """The first 50,000 bytes of WikiText-2's test part, within 0.1 %."""
    model, tokenizer = smollm
    text = (shared_data / "text/wikitext-2/test.txt").read_bytes()[:50_000].decode(errors="ignore")
    score = evaluate_text(model, tokenizer, text)
    mean, count = reference(lambda ids: smollm_peer(ids).logits, tokenizer.encode(text), score.window, score.stride)
    print(f"\nperplexity {score.perplexity:.5f}, transformers {math.exp(mean):.5f}, {count} tokens")
    assert count == score.tokens
    assert score.perplexity == pytest.approx(math.exp(mean), rel=1e-3)
