"""Answers held to a grammar: the tokens that it forces, computed together, change nothing but the time."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")
import torch

from roclab.lm.engine.cpu.build import find_compiler
from roclab.lm.engine.scheduler import Engine
from roclab.lm.loading import load
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import open_checkpoint
from roclab.server.grammar import Grammars, Held
from tests.server.test_stress import an_object

if find_compiler() is None:
    pytest.skip("no C compiler on this machine", allow_module_level=True)


@pytest.fixture(scope="module")
def smollm(smollm_path):
    runner, tokenizer = load(open_checkpoint(smollm_path), "fast")
    return runner, tokenizer, Grammars(tokenizer, runner.config.vocab_size)


class Unforced:
    def __init__(self, held):
        self.held = held

    def __call__(self, ids, logits):
        return self.held(ids, logits)


def answers(smollm, wrap, temperature):
    """(ids of six answers computed side by side, the engine's steps)"""
    runner, tokenizer, grammars = smollm
    engine, requests, steps = Engine(runner), [], 0
    for seed in range(6):
        prompt = tokenizer.encode_chat([{"role": "user", "content": f"Invent a record, number {seed}."}])
        schema = json.dumps(an_object(random.Random(seed), 2))
        held = wrap(Held(grammars.compile("json_schema", schema, "schema"), tokenizer, prompt, False))
        params = SamplingParams(max_new_tokens=120, temperature=temperature, seed=seed)
        requests.append(engine.submit(prompt, params, end_token_ids=tokenizer.eos_token_ids, processors=[held]))
    while not all(request.done for request in requests):
        engine.step()
        steps += 1
    return [request.ids for request in requests], steps


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_forced_tokens_change_no_answer_and_save_steps(smollm, temperature):
    alone, slow = answers(smollm, Unforced, temperature)
    together, fast = answers(smollm, lambda held: held, temperature)
    assert together == alone
    assert fast < 0.9 * slow


def test_the_mask_is_what_llguidance_allows(smollm):
    runner, tokenizer, grammars = smollm
    told = {"properties": {"a": {"enum": ["x", "yes"]}}, "required": ["a"], "additionalProperties": False}
    schema = json.dumps({"type": "object"} | told)
    matcher = grammars.compile("json_schema", schema, "schema")
    held, ids, logits = Held(matcher.deep_copy(), tokenizer, [], False), [], torch.randn(runner.config.vocab_size)
    while not matcher.is_stopped():
        bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = (bits[:, None] >> torch.arange(8) & 1).flatten()[: len(logits)].bool()
        assert torch.equal(held(ids, logits), logits.masked_fill(~allowed, -torch.inf))
        ids.append(int(held(ids, logits).argmax()))
        matcher.consume_token(ids[-1])
    assert json.loads(tokenizer.decode([i for i in ids if i not in tokenizer.eos_token_ids]))["a"] in ("x", "yes")
