"""RocLM's logits for weights that a formula gives, so that no random generator takes part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roclab.lm.model import KVCache, pack_documents
from tests.golden.common import assert_near, assert_same, bits_of, machine_key, read_record, sha256
from tests.golden.small import MODELS, SHAPE, roclm

POSITIONS, FIRST = (0, 7, 23), 8  # what is kept of each row: these positions, and so many logits of each


@torch.no_grad()
def logits_of(kind: str) -> dict[str, torch.Tensor]:
    """By each way to the same logits: at once, in steps with a cache, with left padding, attention written out."""
    ids = (torch.arange(48).view(2, 24) * 37 + 11) % SHAPE["vocab_size"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would add in another order
    try:
        model = roclm(kind)
        cache = KVCache(model.config, 2, 24)
        padded, real = torch.nn.functional.pad(ids, (3, 0)), torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
        return {
            "at once": model(ids),
            "with a cache": torch.cat([model(part, cache=cache) for part in ids.split([9, 6, *[1] * 9], dim=1)], dim=1),
            "padded": model(padded, *pack_documents(real))[:, 3:],
            "written out": roclm(kind, attn_implementation="eager")(ids),
        }
    finally:
        torch.set_num_threads(threads)


def now() -> dict[str, Any]:
    found: dict[str, Any] = {"logits": {}, "parameters": {}, "greedy": {}}
    bits: dict[str, Any] = {}
    for kind in MODELS:
        by_way = logits_of(kind)
        kept = by_way["at once"][:, POSITIONS, :FIRST].double()
        found["logits"][kind] = [[[round(v, 6) for v in position] for position in row] for row in kept.tolist()]
        model = roclm(kind)
        found["parameters"][kind] = {name: list(value.shape) for name, value in model.named_parameters()}
        found["greedy"][kind] = model.generate(torch.tensor([[3, 1, 4, 1, 5]]), max_length=25, do_sample=False).tolist()
        bits[kind] = {way: sha256(value.contiguous().numpy().tobytes()) for way, value in by_way.items()}
    return found | {"machines": {machine_key(): bits}}


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_the_same(kind):
    record = read_record("logits")["logits"][kind]
    for way, logits in logits_of(kind).items():
        # Both are rounded to six digits, and other machines add in another order: logits here are about 1.
        assert_near({way: logits[:, POSITIONS, :FIRST].tolist()}, {way: record}, 1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_have_the_same_bits(kind):
    record = bits_of(read_record("logits"), machine_key())[kind]
    assert_same({way: sha256(value.contiguous().numpy().tobytes()) for way, value in logits_of(kind).items()}, record)


def test_parameters_have_the_same_names_and_shapes_and_generate_says_the_same():
    found, record = now(), read_record("logits")
    assert_same([found["parameters"], found["greedy"]], [record["parameters"], record["greedy"]])
