"""The compiled step against the model as it is, by the path a GPU takes; a slow test compiles it for the CPU."""

from __future__ import annotations

import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.compiled_runner import ROOM, CompiledRocLM
from roclab.lm.engine.sampling import SamplingParams
from roclab.lm.engine.scheduler import complete, device_of
from roclab.lm.load import open_model
from roclab.lm.model import create_roclm_model

SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": None}  # fmt: skip


@pytest.fixture
def small():
    torch.manual_seed(0)
    torch.compiler.reset()
    return create_roclm_model(SMALL).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_steps_give_the_logits_of_the_whole_text(small, attention):
    small.config.attn_implementation = attention
    compiled = CompiledRocLM(small, backend="eager")  # traced whole as for a GPU, not turned into machine code
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    batch = compiled.open_batch(prompts, 10)
    texts = [list(p) for p in prompts]
    logits = batch.begin()
    rows = [0, 1, 2]
    for step in range(ROOM - 20):  # more than was asked for: capacities are rounded up
        if step == 4:  # a row has ended
            rows = [0, 2]
            batch.keep(rows)
            logits = logits[rows]
        if step < 8:
            for at, row in enumerate(rows):
                expected = small(torch.tensor([texts[row]]), logits_to_keep=1)[0, -1]
                assert torch.allclose(logits[at], expected, atol=1e-5)
        chosen = [(7 * step + row) % 300 for row in rows]
        for row, token in zip(rows, chosen, strict=True):
            texts[row].append(token)
        logits = batch.step(chosen)
    expected = small(torch.tensor([texts[2]]), logits_to_keep=1)[0, -1]
    assert torch.allclose(logits[1], expected, atol=1e-5)


def test_the_engine_writes_the_same_texts(smollm):
    model, tokenizer = smollm
    torch.compiler.reset()
    compiled = CompiledRocLM(model, backend="eager")
    prompts = [tokenizer.encode(text) for text in ("The sea", "Once upon a time there was a boat that", "1, 2,")]
    params = SamplingParams(max_new_tokens=8, logprobs=1)
    ours, theirs = (complete(m, tokenizer, prompts, params) for m in (compiled, model))
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    assert ours[0].logprobs == pytest.approx(theirs[0].logprobs, abs=1e-3)
    assert device_of(compiled).type == "cpu"
    assert torch.equal(compiled(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2]])))


def test_it_is_chosen_by_name(smollm_path):
    from roclab.lm.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(smollm_path)
    assert isinstance(open_model(checkpoint, "compiled"), CompiledRocLM)
    with pytest.raises(RocLabError, match="belong to the fast engine"):
        open_model(checkpoint, "compiled", threads=2)


def test_a_compiler_that_fails_is_one_line(small):
    def broken(graph, inputs):
        raise OSError("no compiler here")

    batch = CompiledRocLM(small, backend=broken).open_batch([[1, 2]], 4)
    with torch.inference_mode():
        batch.begin()
        with pytest.raises(RocLabError, match=r"failed here \(.*no compiler here.*\); use --engine torch$") as raised:
            batch.step([3])
    assert "\n" not in str(raised.value)


@torch.inference_mode()
def test_many_sizes_are_compiled_and_caches_used_again(small):
    """torch gives up after eight of them if it is not told otherwise."""
    compiled = CompiledRocLM(small, backend="eager")
    for size in (*range(1, 11), 3):
        batch = compiled.open_batch([[1, 2, 3 + row] for row in range(size)], 4)
        batch.begin()
        logits = batch.step([9] * size)
        expected = small(torch.tensor([[1, 2, 3 + row, 9] for row in range(size)]))[:, -1]
        assert torch.allclose(logits, expected, atol=1e-5), size
        first = batch.cache.keys[0].data_ptr()
        batch.end()
        assert compiled.take_cache(size, 5).keys[0].data_ptr() == first
    assert compiled.take_cache(1, ROOM + 1).capacity == 2 * ROOM


@pytest.mark.slow
def test_compiled_for_this_processor(smollm):
    model, tokenizer = smollm
    torch.compiler.reset()
    prompts = [tokenizer.encode(text) for text in ("The sea", "Once upon a time there was a boat that")]
    params = SamplingParams(max_new_tokens=24)
    ours, theirs = (complete(m, tokenizer, prompts, params) for m in (CompiledRocLM(model), model))
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
