"""The readable model as a runner, on any device torch has.

    decode   one token each of many sequences: packed into one row (1, N), so that the matrices are read once;
             attention looks at each sequence's own cache, whatever its length
    prefill  one sequence at a time, in blocks

A matrix product adds up in another order when it has other rows beside, which moves logits in their last digits. So a
greedy choice between two tokens that lie closer than that is made from logits computed alone (`settle`). They are a
function of the tokens only: whole blocks are always computed in calls of their own, and `settled` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.runner import Runner, Work
from roclab.lm.model import KVCache, RocLMAttention, RocLMConfig, RocLMForCausalLM

BLOCK = 256  # tokens


class TorchSequence:
    """`kv` (L, 2, 1, K, room, C): keys and values of each layer. It grows when it is full."""

    def __init__(self, config: RocLMConfig, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.num_hidden_layers, 2, 1, config.num_key_value_heads, capacity, config.head_dim)
        self.kv = torch.empty(shape, device=device, dtype=dtype)
        self.ids: list[int] = []
        self.capacity = config.max_position_embeddings
        self.settled = 0  # leading tokens, in whole blocks, whose keys and values depend on the tokens alone

    @property
    def shareable(self) -> int:
        return self.settled

    @property
    def bytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()

    def cut(self, length: int) -> None:
        del self.ids[length:]
        self.settled = min(self.settled, length // BLOCK * BLOCK)

    def reserve(self, length: int) -> None:
        """Make room for so many tokens."""
        *outer, room, width = self.kv.shape
        if length > room:
            larger = self.kv.new_empty(*outer, max(length, 2 * room), width)
            larger[..., : len(self.ids), :] = self.kv[..., : len(self.ids), :]
            self.kv = larger


class RaggedCache(KVCache):
    """The caches of the sequences whose new tokens lie one after the other in a packed row (1, N)."""

    def __init__(self, pieces: Items[tuple[TorchSequence, Items[int]]]):
        self.pieces = pieces
        self.length = 0

    def attend(self, attention: RocLMAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (1, H, N, C), k and v (1, K, N, C) → (1, H, N, C), each sequence by itself."""
        out, at = torch.empty_like(q), 0
        for sequence, ids in self.pieces:
            new = slice(at, at := at + len(ids))
            keys, values = sequence.kv[attention.layer_idx]  # (1, K, room, C)
            past, end = len(sequence.ids), len(sequence.ids) + len(ids)
            keys[:, :, past:end], values[:, :, past:end] = k[:, :, new], v[:, :, new]
            out[:, :, new] = attention.attend(q[:, :, new], keys[:, :, :end], values[:, :, :end], None)
        return out


class TorchRunner(Runner):
    """A RocLMForCausalLM as a `Runner`."""

    name = "torch"
    batch_invariant = False
    block = BLOCK

    def __init__(self, model: RocLMForCausalLM):
        self.model, self.config = model, model.config
        self.device = model.lm_head.weight.device
        self.dtype: torch.dtype = model.lm_head.weight.dtype
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self.activations = str(self.dtype).removeprefix("torch.")

    def new_sequence(self, capacity: int) -> TorchSequence:
        return TorchSequence(self.config, max(1, min(capacity, BLOCK)), self.device, self.dtype)

    def copy(self, sequence: TorchSequence, length: int, capacity: int) -> TorchSequence:
        copied = TorchSequence(self.config, max(1, min(capacity, length + BLOCK)), self.device, self.dtype)
        copied.kv[..., :length, :] = sequence.kv[..., :length, :]
        copied.ids, copied.settled = sequence.ids[:length], min(sequence.settled, length)
        return copied

    @torch.inference_mode()
    def forward(self, work: Items[Work], *, scratch: bool = False) -> Tensor:
        hidden: dict[int, Tensor] = {}  # entry → (n, D) of the positions whose logits are wanted
        steps = [i for i, (_, ids, _) in enumerate(work) if len(ids) == 1]
        if steps:
            rows = self._hidden([(work[i][0], work[i][1]) for i in steps])
            hidden = {i: row[: work[i][2]] for i, row in zip(steps, rows.split(1), strict=True)}
        for i, (sequence, ids, wanted) in enumerate(work):
            if i not in hidden:
                hidden[i] = self._prefill(sequence, ids, wanted)
        return self.model.lm_head(torch.cat([hidden[i] for i in range(len(work))]))

    @torch.inference_mode()
    def hidden(self, ids: Items[int]) -> Tensor:
        return self._prefill(self.new_sequence(len(ids)), ids, len(ids)).float()

    def settle(self, sequence: TorchSequence) -> Tensor:
        kept = min(sequence.settled, (len(sequence.ids) - 1) // BLOCK * BLOCK)
        ids = sequence.ids[kept:]
        sequence.cut(kept)
        return self.forward([(sequence, ids, 1)])

    def _prefill(self, sequence: TorchSequence, ids: Items[int], wanted: int) -> Tensor:
        """Append the tokens in pieces that end with a block; the last `wanted` hidden states (wanted, D)."""
        kept, done = [], 0
        while done < len(ids):
            past = len(sequence.ids)
            piece = ids[done : done + BLOCK - past % BLOCK]
            rows = self._hidden([(sequence, piece)])
            if len(piece) == BLOCK and sequence.settled == past:
                sequence.settled += BLOCK
            kept.append(rows[max(0, len(ids) - wanted - done) :])
            done += len(piece)
        return torch.cat(kept)

    def _hidden(self, pieces: Items[tuple[TorchSequence, Items[int]]]) -> Tensor:
        """Append the tokens of each piece; their last hidden states (N, D)."""
        tokens: list[int] = []
        positions: list[int] = []
        for sequence, ids in pieces:
            past = len(sequence.ids)
            if past + len(ids) > self.config.max_position_embeddings:
                context = self.config.max_position_embeddings
                raise RocLabError(f"{past + len(ids)} tokens do not fit: the context holds {context}")
            if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
                raise RocLabError(f"token ids must lie between 0 and {self.config.vocab_size - 1}")
            sequence.reserve(past + len(ids))
            tokens += ids
            positions += range(past, past + len(ids))
        input_ids, position_ids = torch.tensor([tokens, positions], device=self.device)[:, None]
        hidden = self.model.model(input_ids, position_ids, cache=RaggedCache(pieces))
        for sequence, ids in pieces:
            sequence.ids += ids
        return hidden[0]
