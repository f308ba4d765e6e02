"""Generation with SmolLM2's real weights: batches, stops, seeds, log-probabilities, streaming."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roclab.core.exceptions import RocLabError
from roclab.lm.engine import scheduler
from roclab.lm.engine.runner import score
from roclab.lm.engine.sampling import filter_all, filter_largest, filter_min_p, penalize_repetition, sample
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.generate import Timings, complete, stream
from roclab.lm.model import create_roclm_model
from roclab.lm.settings import SamplingParams

GRAVITY = "What is gravity? Explain in two sentences."
ANSWER = (
    "Gravity is a fundamental concept in physics that describes the curvature of spacetime caused by the presence of "
    "matter and energy."
)
TEXTS = ["The sea", "Once upon a time there was a small robot who", "def fibonacci(n):", "1, 2, 3,", "Paris is"]


def ask(tokenizer, text):
    return tokenizer.encode_chat([{"role": "user", "content": text}])


def test_the_question_of_the_demo(smollm):
    model, tokenizer = smollm
    answer = complete(model, tokenizer, [ask(tokenizer, GRAVITY)], SamplingParams(max_new_tokens=64))[0]
    assert answer.text.startswith(ANSWER)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in tokenizer.eos_token_ids


def test_greedy_is_the_same_alone_and_in_any_batch(smollm):
    model, tokenizer = smollm
    prompts = [tokenizer.encode(text) for text in TEXTS]
    params = SamplingParams(max_new_tokens=12)
    alone = [complete(model, tokenizer, [p], params)[0].token_ids for p in prompts]
    together = complete(model, tokenizer, prompts, params)
    assert [c.token_ids for c in together] == alone
    assert [c.token_ids for c in complete(model, tokenizer, prompts[3:0:-1], params)] == alone[3:0:-1]
    assert [c.prompt_tokens for c in together] == [len(p) for p in prompts]


def test_progress_sees_every_token_pass(smollm):
    model, tokenizer = smollm
    seen = []

    def watch(events):
        for event in events:
            seen.append(event.token_id)
            yield event

    prompt = tokenizer.encode(TEXTS[0])
    assert complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=3), progress=watch)[0].token_ids == seen
    assert len(seen) == 3


def test_a_near_tie_is_settled_by_the_row_alone(smollm, monkeypatch):
    """Every step treated as a near tie takes the tokens of whole passes over each row alone."""
    model, tokenizer = smollm
    prompts = [tokenizer.encode(text) for text in TEXTS[:2]]
    params = SamplingParams(max_new_tokens=4)
    usual = complete(model, tokenizer, prompts, params)
    monkeypatch.setattr(scheduler, "NEAR_TIE", float("inf"))
    settled = complete(model, tokenizer, prompts, params)
    assert [c.token_ids for c in settled] == [c.token_ids for c in usual]
    for prompt, completion in zip(prompts, settled, strict=True):
        ids = list(prompt)
        for token_id in completion.token_ids:
            assert int(model.model(torch.tensor([ids]))[0, -1].argmax()) == token_id
            ids.append(token_id)


def test_a_batch_and_a_row_alone_differ_far_less_than_a_near_tie(smollm):
    """The margin behind NEAR_TIE."""
    model, tokenizer = smollm
    prompts = [tokenizer.encode(text) for text in TEXTS]
    sequences = [model.new_sequence(40) for _ in prompts]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        model.forward([(sequence, prompt[:-1], 0)])
    together = model.forward([(s, p[-1:], 1) for s, p in zip(sequences, prompts, strict=True)])
    alone = torch.cat([score(model, p, 1) for p in prompts])
    assert (together - alone).abs().max() < scheduler.NEAR_TIE / 5


def test_rows_that_end_early_leave_the_others_alone(smollm):
    model, tokenizer = smollm
    prompts = [ask(tokenizer, "Hi"), tokenizer.encode(TEXTS[1])]
    params = SamplingParams(max_new_tokens=20)
    together = complete(model, tokenizer, prompts, params)
    assert together[0].finish_reason == "stop"
    assert together[1].finish_reason == "length"
    assert together[1].token_ids == complete(model, tokenizer, prompts[1:], params)[0].token_ids


def test_stop_strings_end_across_token_borders_and_are_never_shown(smollm):
    model, tokenizer = smollm
    prompt = ask(tokenizer, GRAVITY)
    params = SamplingParams(max_new_tokens=40)
    full = complete(model, tokenizer, [prompt], params)[0].text
    for stop in ("mental concept", "sics that descr", "y of spacetime"[2:]):
        got = complete(model, tokenizer, [prompt], dataclasses.replace(params, stop=(stop, "not there")))[0]
        assert got.text == full[: full.index(stop)]
        assert got.finish_reason == "stop"
        assert len(got.token_ids) < 40
    unfinished = complete(model, tokenizer, [prompt], dataclasses.replace(params, stop=("energy.<never>",)))[0]
    assert unfinished.text == full  # a beginning of a stop string is held back, not lost


def test_streamed_pieces_are_the_text_in_whole_characters(smollm):
    model, tokenizer = smollm
    prompt = ask(tokenizer, "Repeat exactly: 🙂🙂 naïve 日本")
    pieces = [event.text for event in stream(model, tokenizer, [prompt], SamplingParams(max_new_tokens=24))]
    result = complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=24))[0]
    assert "".join(pieces) == result.text == tokenizer.decode(result.token_ids)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(smollm):
    model, tokenizer = smollm
    prompt = tokenizer.encode("My favourite")
    params = SamplingParams(temperature=1.0, top_k=50, max_new_tokens=12, seed=5)
    first = complete(model, tokenizer, [prompt], params)[0].token_ids
    assert complete(model, tokenizer, [prompt], params)[0].token_ids == first
    assert complete(model, tokenizer, [prompt], dataclasses.replace(params, seed=6))[0].token_ids != first
    beside = complete(model, tokenizer, [tokenizer.encode("The"), prompt], params)[1]
    assert beside.token_ids == first  # the place in the batch does not matter
    two = [params, dataclasses.replace(params, seed=6)]
    assert len({tuple(c.token_ids) for c in complete(model, tokenizer, [prompt, prompt], two)}) == 2


def test_log_probabilities_are_the_model_s_own(smollm):
    model, tokenizer = smollm
    prompt = tokenizer.encode("Paris is the capital of")
    params = SamplingParams(max_new_tokens=5, logprobs=3, repetition_penalty=1.3)
    result = complete(model, tokenizer, [prompt], params)[0]
    with torch.inference_mode():
        logits = model.model(torch.tensor([prompt + result.token_ids[:-1]]))[0, len(prompt) - 1 :]
    expected = logits.log_softmax(-1)
    chosen = expected[torch.arange(5), torch.tensor(result.token_ids)]
    assert torch.allclose(torch.tensor(result.logprobs), chosen, atol=1e-4)
    for step, top in enumerate(result.top_logprobs):
        assert [i for i, _ in top] == expected[step].topk(3).indices.tolist()


def test_the_repetition_penalty_counts_the_prompt_and_equals_transformers(smollm):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(3, 50) * 4
    ids = torch.randint(0, 50, (3, 9))
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter(1, ids, True)
    peer = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    assert torch.equal(penalize_repetition(logits, seen, 1.7), peer)

    model, tokenizer = smollm
    prompt = tokenizer.encode("red red red red red red red")
    without = complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=6))[0].text
    with_penalty = complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=6, repetition_penalty=1.5))[
        0
    ].text
    assert "red" in without
    assert " red" not in with_penalty


def test_min_p_equals_transformers():
    from transformers import MinPLogitsWarper

    logits = torch.randn(4, 60) * 3
    for p in (0.01, 0.1, 0.5, 1.0):
        assert torch.equal(filter_min_p(logits, p), MinPLogitsWarper(p)(torch.zeros(4, 1), logits.clone()))


def draw(logits, params, generator):
    return sample(logits[None], [params], [generator])[0]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(logits, SamplingParams(temperature=0.7), generator)] += 1
    assert torch.allclose(counts / 4000, (logits / 0.7).softmax(-1), atol=0.03)


@pytest.mark.parametrize(
    ("spread", "top_k", "top_p", "min_p"),
    [(4, 50, 1.0, 0.0), (4, 0, 0.9, 0.0), (4, 40, 0.8, 0.0), (4, 0, 0.5, 0.1), (0.1, 0, 0.9, 0.0), (4, 700, 0.9, 0.0),
     (4, 511, 1.0, 0.01), (4, 512, 1.0, 0.0), (0, 50, 0.9, 0.0)],
)  # fmt: skip
def test_the_largest_logits_stand_for_all_where_the_filters_reach_no_further(spread, top_k, top_p, min_p):
    row = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * spread
    row = row - row.max()
    params = SamplingParams(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)
    # another row beside it, with other filters, changes nothing
    kept, ids = filter_largest(torch.stack([row, row * 2]), [params, SamplingParams(temperature=1, top_k=3)])
    assert bool(kept[0].isfinite().any()) == (spread == 4 and top_k < 512)
    if kept[0].isfinite().any():
        found = torch.zeros(3000).scatter(0, ids[0], kept[0].softmax(-1))
        expected = filter_all(row, params).softmax(-1)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(found > 0, expected > 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 5, 50, 600]),
            st.floats(0.05, 1),
            st.sampled_from([0, 0.05, 0.5]),
            st.floats(0.1, 3),
            st.integers(0, 99),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_a_row_s_draw_depends_on_itself_alone(rows, seed):
    logits = torch.randn(len(rows), 2000, generator=torch.Generator().manual_seed(seed)) * 3
    params = [SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=s) for k, p, m, t, s in rows]
    together = sample(logits, params, [torch.Generator().manual_seed(p.seed) for p in params])
    alone = [draw(row, p, torch.Generator().manual_seed(p.seed)) for row, p in zip(logits, params, strict=True)]
    assert together == alone


def test_a_tiny_temperature_is_as_good_as_none():
    logits = torch.randn(50) * 10
    for temperature in (1e-40, 1e-300):  # the second is 0 in float32
        assert draw(logits, SamplingParams(temperature=temperature), torch.Generator()) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_weights_are_named_and_not_spoken(temperature, smollm):
    _, tokenizer = smollm
    small = create_roclm_model({"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16})
    small.model.norm.weight.data[3] = float("nan")
    with pytest.raises(RocLabError, match="not a number"):
        complete(TorchRunner(small), tokenizer, [[1, 2]], SamplingParams(temperature=temperature, max_new_tokens=3))


def test_timings_count_tokens(smollm):
    model, tokenizer = smollm
    timings = Timings()
    prompts = [tokenizer.encode(text) for text in TEXTS[:2]]
    complete(model, tokenizer, prompts, SamplingParams(max_new_tokens=4), timings)
    assert timings.prefill_tokens == sum(map(len, prompts))
    assert timings.decode_tokens == 2 * 3  # the first token of each row comes out of the prefill
    assert timings.prefill_tokens_per_second > 0
    assert timings.decode_tokens_per_second > 0


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[]], {}, "empty"),
        ([], {}, "empty"),
        ([[49152]], {}, "token ids must lie between 0 and 49151"),
        ([[1] * 8193], {"max_new_tokens": 1}, "8194 positions, but the model's context has 8192"),
        ([[1] * 10], {"max_new_tokens": 8190}, "8200 positions"),
    ],
)
def test_what_does_not_fit_is_refused(smollm, prompts, params, message):
    with pytest.raises(RocLabError, match=message):
        complete(*smollm, prompts, SamplingParams(**params))


@pytest.mark.parametrize(
    "params",
    [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"max_new_tokens": 0}, {"seed": -1},
     {"repetition_penalty": 0}, {"logprobs": 1000}, {"temperature": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range_are_named(params):
    with pytest.raises(RocLabError, match=next(iter(params)).replace("_", "-")):
        SamplingParams(**params)


@pytest.mark.slow
def test_greedy_64_tokens_equal_transformers_on_ten_prompts(smollm, smollm_peer):
    """The same dequantized weights in transformers' own Llama."""
    model, tokenizer = smollm
    questions = [
        GRAVITY, "Write a poem about autumn.", "How do I boil an egg?", "What is 12 times 12?", "Name three rivers.",
        "Why is the sky blue?", "Write a Python function that reverses a list.", "Who was Ada Lovelace?",
        "Give me a recipe for pancakes.", "Explain photosynthesis to a child.",
    ]  # fmt: skip
    for question in questions:
        prompt = ask(tokenizer, question)
        ours = complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=64))[0].token_ids
        theirs = smollm_peer.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_ids,
            pad_token_id=0,
        )  # fmt: skip
        assert ours == theirs[0, len(prompt) :].tolist(), question
