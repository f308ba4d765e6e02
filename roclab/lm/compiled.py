"""The readable model with its step of one token compiled by torch.compile: for GPUs, where starting a hundred small
kernels from Python takes longer than they do.

    prompt → the model as it is fills a cache of fixed size → compiled: token, slot → logits, over the whole cache
    under a mask

Everything that changes from step to step is a tensor (which slot is written, which slots may be seen), and the shapes
never change while a batch lives, so that one compiled step serves it all; on CUDA it is replayed as a graph. Sizes of
caches are rounded up, so that the next batch finds its step compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roclab.errors import RocLabError
from roclab.lm.engine import TorchBatch
from roclab.lm.model import KVCache, RocLMForCausalLM

ROOM = 256  # capacities are multiples of it


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

    Compiling takes up to a minute on the first token of each batch size and cache size; torch keeps what it compiled.
    """

    def __init__(self, model: RocLMForCausalLM, backend: str = "inductor", mode: str | None = None):
        self.model, self.config = model, model.config
        self.parameters = model.parameters
        self.device = model.model.embed_tokens.weight.device
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
        if backend == "inductor":
            options["mode"] = mode or ("reduce-overhead" if self.device.type == "cuda" else "default")
        self.step = torch.compile(self._step, **options)

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
        """For `roclab.lm.engine`."""
        return CompiledBatch(self, prompts, new_tokens)


class CompiledBatch(TorchBatch):
    """Rows that have ended stay in the batch, unseen: a smaller batch would be another step to compile."""

    def __init__(self, compiled: CompiledRocLM, prompts: Sequence[Sequence[int]], new_tokens: int):
        longest = max(map(len, prompts)) + new_tokens
        super().__init__(compiled.model, prompts, new_tokens + -longest % ROOM)
        self.compiled = compiled
        self.rows = torch.arange(len(prompts), device=self.input_ids.device)
        for buffer in (*self.cache.keys, *self.cache.values):
            buffer.zero_()  # slots not yet written are multiplied by weights of 0, and 0 · NaN is NaN

    def begin(self) -> Tensor:
        logits = super().begin()
        real = self.cache.real[:, : self.cache.length]
        self.lengths = real.sum(-1, keepdim=True)  # (B, 1): the position of the next token
        return logits

    def step(self, token_ids: list[int]) -> Tensor:
        cache: KVCache = self.cache
        ids = torch.zeros_like(self.lengths)
        ids[self.rows, 0] = torch.tensor(token_ids, device=ids.device)
        cache.real[:, cache.length] = True
        slot = torch.tensor([cache.length], device=ids.device)
        seen = cache.real[:, None, None, :].clone()
        try:
            logits = self.compiled.step(ids, self.lengths.clone(), slot, seen, cache.keys, cache.values)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in reversed(str(error).splitlines()) if "rror" in line), str(error))
            raise RocLabError(f"torch.compile failed here ({reason.strip()}); use --engine torch") from error
        cache.length += 1
        self.lengths += 1
        return logits[self.rows].clone()  # a replayed graph writes its next result over this one

    def keep(self, rows: list[int]) -> None:
        self.rows = self.rows[rows]
