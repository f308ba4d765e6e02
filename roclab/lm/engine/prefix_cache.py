"""Finished and running sequences as the beginnings of new ones: a prefix that two prompts share is computed once."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

import torch

from roclab.lm.engine.runner import Runner, Sequence

SHARE_FROM = 8  # tokens in common, below which copying is not worth it


def common_length(a: Items[int], b: Items[int]) -> int:
    """How many tokens two texts share from the beginning."""
    n = min(len(a), len(b))
    if a[:SHARE_FROM] != b[:SHARE_FROM]:
        n = min(n, SHARE_FROM)
    if a[:n] == b[:n]:
        return n
    return int((torch.tensor(a[:n]) != torch.tensor(b[:n])).int().argmax())


class PrefixCache:
    """The KV caches of finished requests, least recently used first, at most `max_bytes` of them."""

    def __init__(self, runner: Runner, max_bytes: int):
        self.runner, self.max_bytes = runner, max_bytes
        self.idle: list[Sequence] = []

    def take(self, prompt: Items[int], capacity: int, running: Iterable[Sequence]) -> Sequence:
        """A sequence for this prompt that holds as much of it as any other sequence does, idle or running. At least
        the last token is left to compute, for its logits."""
        candidates = [*self.idle, *running]
        shared = [self.shared(sequence, prompt) for sequence in candidates]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or shared[best] < SHARE_FROM:
            return self.runner.new_sequence(capacity)
        sequence, length = candidates[best], shared[best]
        if best >= len(self.idle):
            return self.runner.copy(sequence, length, capacity)
        del self.idle[best]
        if 2 * length >= len(sequence.ids) and sequence.capacity >= capacity:  # the same conversation goes on
            sequence.cut(length)
            return sequence
        self.idle.append(sequence)
        return self.runner.copy(sequence, length, capacity)

    def shared(self, sequence: Sequence, prompt: Items[int]) -> int:
        """How many tokens of the prompt the sequence can give, in whole blocks."""
        length = min(common_length(sequence.ids, prompt), sequence.shareable, len(prompt) - 1)
        return length // self.runner.block * self.runner.block

    def put(self, sequence: Sequence) -> None:
        """A request has ended: its sequence is kept, and the oldest ones go if there are too many bytes."""
        self.idle.append(sequence)
        while self.idle and sum(s.bytes for s in self.idle) > self.max_bytes:
            self.idle.pop(0)

    def clear(self) -> None:
        self.idle.clear()
