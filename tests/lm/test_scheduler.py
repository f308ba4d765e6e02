"""The engine under load, by properties: whatever comes and goes beside a request, its answer is that it has alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.scheduler import FIRST_PREFILL, MEASURE_EVERY, Engine
from roclab.lm.engine.torch_runner import BLOCK, TorchRunner
from roclab.lm.model import create_roclm_model
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import open_checkpoint

from .build import peer, write_gguf

VOCAB = 101
SMALL = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 400}  # fmt: skip


@pytest.fixture(scope="module", params=["torch", "kernels"])
def runner(request, tmp_path_factory):
    if request.param == "torch":
        torch.manual_seed(0)
        model = create_roclm_model(SMALL | {"head_dim": 16, "eos_token_id": 7}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return TorchRunner(model)
    path = write_gguf(tmp_path_factory.mktemp("m") / "m.gguf", peer("llama", **SMALL), block_type="Q8_0")
    return CPURunner(open_checkpoint(path), threads=1)


def finish(engine: Engine, *requests) -> None:
    for _ in range(10_000):
        if all(request.done for request in requests):
            return
        engine.step()
    raise AssertionError("requests do not end")


def answer_alone(runner, prompt, params) -> list[int]:
    engine = Engine(runner, prompt_lookup=False, cache_bytes=0)
    request = engine.submit(prompt, params, end_token_ids=[7])
    finish(engine, request)
    return request.ids[len(prompt) :]


begin = st.sampled_from([[], list(range(20, 60)), list(range(20, 45)), [5, 6] * 30])  # many prompts begin alike
prompts = st.builds(lambda a, b: a + b, begin, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=50))
sampling = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 5),
    max_new_tokens=st.integers(1, 30),
    logprobs=st.sampled_from([None, 2]),
)
arrivals = st.lists(
    st.tuples(prompts, sampling, st.integers(0, 6), st.one_of(st.none(), st.integers(0, 12))), min_size=1, max_size=9
)


@given(arrivals=arrivals, max_slowdown=st.sampled_from([1.0, 2.0, None]), max_running=st.sampled_from([1, 3, 64]))
@settings(deadline=None, max_examples=25)
def test_answers_do_not_depend_on_neighbours(runner, arrivals, max_slowdown, max_running):
    """Random arrivals, lengths, samplings and cancels. Greedy answers equal the ones alone on both runners, drawn ones
    too where the runner is batch-invariant; every sequence is given back."""
    engine = Engine(runner, max_slowdown=max_slowdown, max_running=max_running)
    running, cancels = [], {}
    for prompt, params, wait, cancel_after in arrivals:
        for _ in range(wait):
            engine.step()
        request = engine.submit(prompt, params, end_token_ids=[7])
        running.append(request)
        if cancel_after is not None:
            cancels[request] = cancel_after
        for known, after in list(cancels.items()):
            if known.new_tokens >= after:
                engine.cancel(known)
                del cancels[known]
    for request in cancels:
        engine.cancel(request)
    finish(engine, *running)
    for request in running:
        expected = answer_alone(runner, request.prompt, request.params)
        got = request.ids[len(request.prompt) :]
        if request.params.temperature == 0 or runner.batch_invariant:
            assert got == (expected if request.finish_reason != "cancelled" else expected[: len(got)])
        assert [t.token_id for t in request.tokens] == got
        assert request.sequence is None
    assert not engine.running
    assert not engine.waiting


def test_a_prefix_is_computed_once_for_all(runner):
    engine = Engine(runner, prompt_lookup=False)
    shared = [(i * 7) % VOCAB for i in range(BLOCK + 40)]
    requests = [engine.submit([*shared, 60 + i], SamplingParams(max_new_tokens=2)) for i in range(6)]
    computed = 0
    while not all(request.done for request in requests):
        engine.step()
        computed += engine.last_step.prefill_tokens
    repeated = 1 if runner.batch_invariant else 41  # torch shares whole blocks
    assert computed == len(shared) + 1 + 5 * repeated


def test_kept_caches_stay_within_their_bytes(runner):
    for limit in (0, 40_000):
        engine = Engine(runner, cache_bytes=limit)
        for i in range(8):
            finish(engine, engine.submit([i] * 30, SamplingParams(max_new_tokens=2)))
        assert sum(s.bytes for s in engine.cache.idle) <= limit


def test_a_long_prompt_does_not_hold_up_the_others(runner):
    engine = Engine(runner, max_slowdown=1.0)
    first = engine.submit([1, 2, 3], SamplingParams(max_new_tokens=200, ignore_eos=True))
    engine.step()
    second = engine.submit([9] * 100, SamplingParams(max_new_tokens=1))
    at_a_time = []
    while not second.done:
        before = first.new_tokens
        engine.step()
        at_a_time.append(engine.last_step.prefill_tokens)
        assert first.new_tokens > before or first.done
    assert max(at_a_time) <= max(FIRST_PREFILL, runner.block)
    # what decoding takes by itself is measured again and again
    assert all(0 in at_a_time[i : i + MEASURE_EVERY] for i in range(len(at_a_time) - MEASURE_EVERY))


def test_a_request_that_fails_ends_alone(runner):
    engine = Engine(runner)
    good = engine.submit([1, 2, 3], SamplingParams(max_new_tokens=5, ignore_eos=True))

    def broken(ids, logits):
        return logits * float("nan")

    bad = engine.submit([1, 2, 4], SamplingParams(max_new_tokens=5), processors=[broken])
    finish(engine, good, bad)
    assert (bad.finish_reason, bad.new_tokens) == ("error", 0)
    assert "not a number" in bad.error
    assert good.ids[3:] == answer_alone(runner, [1, 2, 3], good.params)
    for prompt, params in (([], {}), ([VOCAB], {}), ([1] * 400, {"max_new_tokens": 1})):
        with pytest.raises(RocLabError):
            engine.submit(prompt, SamplingParams(**params))


def test_every_request_has_its_own_budget_and_times(runner):
    engine = Engine(runner)
    short = engine.submit([4], SamplingParams(max_new_tokens=20, ignore_eos=True))
    long = engine.submit([4] * 380, SamplingParams(ignore_eos=True))  # what the context holds
    finish(engine, short, long)
    assert (short.new_tokens, long.new_tokens) == (20, 20)
    for request in (short, long):
        assert 0 <= request.times.queue_seconds <= request.times.seconds_to_first_token
        assert request.times.finished >= request.times.first_token


def test_processors_choose_before_the_filters(runner):
    def only(*allowed):
        def processor(ids, logits):
            return torch.full_like(logits, -1e9).index_copy_(0, torch.tensor(allowed), logits[list(allowed)])

        return processor

    engine = Engine(runner)
    params = SamplingParams(max_new_tokens=12, temperature=1.0, top_k=5, ignore_eos=True)
    request = engine.submit([1, 2], params, processors=[only(11, 12)])
    finish(engine, request)
    assert set(request.ids[2:]) <= {11, 12}


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 30])
def test_near_ties_are_settled_from_the_last_whole_block(length, monkeypatch):
    """With every choice treated as a near tie, the answer is that of whole passes, and no pass computes more than the
    tokens since the last whole block."""
    torch.manual_seed(1)
    model = create_roclm_model(SMALL | {"head_dim": 16, "eos_token_id": None}).eval()
    runner = TorchRunner(model)
    monkeypatch.setattr("roclab.lm.engine.scheduler.NEAR_TIE", float("inf"))
    prompt = [(5 * i) % VOCAB for i in range(length)]
    engine = Engine(runner)
    request = engine.submit(prompt, SamplingParams(max_new_tokens=6))
    finish(engine, request)
    ids = list(prompt)
    with torch.no_grad():
        for token_id in request.ids[length:]:
            assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token_id
            ids.append(token_id)
    assert engine.cache.idle[0].settled == (length + 5) // BLOCK * BLOCK
