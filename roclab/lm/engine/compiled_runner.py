"""The readable model with its step of one token compiled by torch.compile: for GPUs, where starting a hundred small
kernels from Python takes longer than they do.

    prompt → the model as it is fills a cache of fixed size → compiled: token, slot → logits, over the whole cache
    under a mask

Everything that changes from step to step is a tensor (which slot is written, which slots may be seen), and the shapes
never change while a batch lives, so that one compiled step serves it all, and CUDA can replay it as a graph. Caches
come in few sizes and are used again, so that the next batch finds its step compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.scheduler import TorchBatch, left_pad
from roclab.lm.model import KVCache, RocLMForCausalLM

ROOM = 256  # positions of the smallest cache
STEPS = 64  # batch sizes times cache sizes that may be compiled; torch gives up after 8


class StepCache:
    """A `KVCache` seen by one step: what it appends goes to a slot that a tensor names, and all slots are returned."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], slot: Tensor):
        self.keys, self.values, self.slot = keys, values, slot

    def append(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, K, 1, C) in the slot; return (B, K, capacity, C) each."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.slot, k)
        values.index_copy_(2, self.slot, v)
        return keys, values


class CompiledRocLM:
    """A `RocLMForCausalLM` whose steps of one token are compiled. `backend` and `mode` are torch.compile's.

    Compiling takes up to a minute on the first token of each batch size and cache size. Caches double: these are few.
    """

    def __init__(self, model: RocLMForCausalLM, backend: Any = "inductor", mode: str | None = None):
        self.model, self.config = model, model.config
        self.parameters = model.parameters
        self.device = model.model.embed_tokens.weight.device
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
        if backend == "inductor":
            options["mode"] = mode or ("reduce-overhead" if self.device.type == "cuda" else "default")
        torch._dynamo.config.recompile_limit = max(STEPS, torch._dynamo.config.recompile_limit)
        self.step = torch.compile(self._step, **options)
        self._caches: dict[tuple[int, int], KVCache] = {}  # of finished batches: a graph is tied to their addresses

    def _step(
        self, ids: Tensor, positions: Tensor, slot: Tensor, seen: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        """ids and positions (B, 1), slot (1,), seen (B, 1, 1, capacity) → logits (B, V); the cache gains a token."""
        model = self.model.model
        x = model.embed_tokens(ids)
        position_embeddings = model.rotary_emb(x, positions)
        cache: Any = StepCache(keys, values, slot)
        for layer in model.layers:
            x = layer(x, position_embeddings, seen, cache)
        return self.model.lm_head(model.norm(x))[:, -1]

    def __call__(self, input_ids: Tensor, logits_to_keep: int = 0) -> Tensor:
        """Logits (B, n, V) of whole texts, by the model as it is."""
        return self.model(input_ids, logits_to_keep=logits_to_keep)

    def open_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> CompiledBatch:
        """For `roclab.lm.engine.scheduler`."""
        return CompiledBatch(self, prompts, new_tokens)

    def take_cache(self, batch_size: int, positions: int) -> KVCache:
        """An empty cache with room for so many positions: ROOM, or twice, four times … as many."""
        capacity = ROOM
        while capacity < positions:
            capacity *= 2
        cache = self._caches.pop((batch_size, capacity), None)
        if cache is None:
            dtype = self.model.model.embed_tokens.weight.dtype
            cache = KVCache(self.config, batch_size, capacity, self.device, dtype)
            for buffer in (*cache.keys, *cache.values):
                buffer.zero_()  # slots not yet written are multiplied by weights of 0, and 0 · NaN is NaN
                torch._dynamo.mark_static_address(buffer, guard=False)  # a graph may then write into it
        cache.real.zero_()
        cache.length, cache.padded = 0, False
        return cache

    def put_back(self, cache: KVCache) -> None:
        """The batch is finished; the next one of its size takes the same memory."""
        self._caches[len(cache.real), cache.capacity] = cache


class CompiledBatch(TorchBatch):
    """Rows that have ended are computed on and not looked at: a smaller batch would be another step to compile."""

    def __init__(self, compiled: CompiledRocLM, prompts: Sequence[Sequence[int]], new_tokens: int):
        self.compiled, self.model = compiled, compiled.model
        self.input_ids, self.mask = left_pad(prompts, compiled.device)
        self.cache = compiled.take_cache(len(prompts), self.input_ids.shape[1] + new_tokens)
        self.rows = torch.arange(len(prompts), device=compiled.device)

    def begin(self) -> Tensor:
        logits = super().begin()
        self.lengths = self.cache.real.sum(-1, keepdim=True)  # (B, 1): the position of the next token
        return logits

    def step(self, token_ids: list[int]) -> Tensor:
        cache = self.cache
        ids = torch.zeros_like(self.lengths)
        ids[self.rows, 0] = torch.tensor(token_ids, device=ids.device)
        cache.real[:, cache.length] = True
        slot = torch.tensor([cache.length], device=ids.device)
        seen = cache.real[:, None, None, :].clone()
        try:
            logits = self.compiled.step(ids, self.lengths.clone(), slot, seen, cache.keys, cache.values)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            lines = [
                line.strip() for line in str(error).splitlines()
            ]  # the first is often "backend='inductor' raised:"
            reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
            raise RocLabError(f"torch.compile failed here ({reason}); use --engine torch") from error
        cache.length += 1
        self.lengths += 1
        return logits[self.rows].clone()  # a replayed graph writes its next result over this one

    def keep(self, rows: list[int]) -> None:
        self.rows = self.rows[rows]

    def end(self) -> None:
        self.compiled.put_back(self.cache)
