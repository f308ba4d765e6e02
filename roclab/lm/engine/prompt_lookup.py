"""The engine's batch on the fast kernels: every row a sequence of its own, nothing padded; what an earlier text left
in its cache is not read again, and where a text repeats itself several tokens are checked in one pass.

Prompt lookup (Saxena 2023): the last few tokens are looked up in the text so far; what followed them there is guessed
to follow now, and a guess of k tokens is computed together with the token just chosen, k + 1 rows in one pass. The
engine then asks for one step after the other as ever: while it chooses what was guessed, its logits are there already;
at the first other token the rest is cut off. Since a row's result does not depend on the rows computed beside it,
the logits, and so the tokens, are the same to the last bit, greedy or drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from roclab.lm.engine.cpu.runner import FastRocLM, Sequence

LONGEST_GUESS = 7
NGRAMS = (6, 4, 3, 2)  # tokens that must repeat before their continuation is guessed, longest first
USUAL = (1.0, 1.2, 1.4, 1.65, 1.9, 2.2, 2.5, 2.8)  # cost of 1, 2 … rows at first: measured with AVX-512
RIGHT = (0.0, 0.0, 0.25, 0.4, 0.55, 0.65, 0.75, 0.8, 0.85)  # at first: how often a guess after so many is right


class Costs:
    """What a pass over n rows costs in units of a pass over one row: `USUAL`, stretched by what is seen while writing.

    One number is learnt and not one for each n, it is bounded, and it tends back to 1 while nothing is guessed: what
    looks dear is not tried again, so a pass that was held up by another program would speak against guessing for good.
    """

    def __init__(self) -> None:
        self._one: float | None = None  # seconds, typical of recent passes over one row
        self._stretch = 1.0

    def add(self, rows: int, seconds: float) -> None:
        if rows == 1:
            one = self._one or seconds
            self._one = one + 0.2 * (min(seconds, 1.5 * one) - one)
            self._stretch += 0.01 * (1 - self._stretch)
        elif self._one:
            seen = max(0.0, seconds / self._one - 1) / (USUAL[rows - 1] - 1)
            self._stretch += 0.2 * (min(seen, 2 * self._stretch + 0.1, 5.0) - self._stretch)

    def of(self, rows: int) -> float:
        return 1 + self._stretch * (USUAL[rows - 1] - 1)


class Lookup:
    """Guesses how a text goes on from what it said before, and keeps count of how often that was right.

    The longer the stretch that repeats itself, the likelier it goes on: the share of right guesses is kept for each
    length. Guesses are counted whether or not a pass was spent on them, so trying costs nothing.
    """

    def __init__(self, ids: Items[int]):
        self.ids: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram → where it last went on
        self._next: int | None = None  # the place in `ids` whose token is guessed to come
        self._match = 0  # how many tokens before that place are known to be the last ones
        self._right = list(RIGHT)
        for token_id in ids:
            self.append(token_id)
        self._right = list(RIGHT)  # a prompt says little about an answer

    def append(self, token_id: int) -> None:
        """The text goes on with this token."""
        right = self._next is not None and self.ids[self._next] == token_id
        if self._next is not None:
            self._right[self._match] += 0.1 * (right - self._right[self._match])
        self.ids.append(token_id)
        if self._next is not None and right:
            self._next, self._match = self._next + 1, min(self._match + 1, len(RIGHT) - 1)
        else:
            self._next, self._match = None, 0
        for n in NGRAMS:  # the longest that was seen before, unless what goes on is longer
            if n <= self._match:
                break
            if (found := self._seen.get(tuple(self.ids[-n:]))) is not None:
                self._next, self._match = found, n
                break
        for n in NGRAMS:
            if n <= len(self.ids):
                self._seen[tuple(self.ids[-n:])] = len(self.ids)

    def guess(self, room: int, costs: Costs) -> list[int]:
        """The tokens worth computing along: as many as make the expected cost of a token smallest, often none."""
        if self._next is None:
            return []
        best, best_gain, expected, chance = 0, 1.05, 1.0, 1.0
        for k in range(1, min(LONGEST_GUESS, room, len(self.ids) - self._next) + 1):
            chance *= self._right[min(self._match + k - 1, len(RIGHT) - 1)]
            expected += chance
            if (gain := expected / costs.of(k + 1)) > best_gain:
                best, best_gain = k, gain
        return self.ids[self._next : self._next + best]


class FastBatch:
    """`roclab.lm.engine.scheduler.Batch` on a FastRocLM."""

    exact = True

    def __init__(self, model: FastRocLM, prompts: Items[Items[int]], new_tokens: int):
        self.model, self.prompts = model, [list(prompt) for prompt in prompts]
        self.rows: list[Sequence] = [model.take_sequence(p, len(p) + new_tokens) for p in self.prompts]
        self.lookup = Lookup(self.prompts[0]) if model.guessing and len(prompts) == 1 else None
        self._logits = model.new_logits(max(len(self.rows), 1 + LONGEST_GUESS))  # of the last step
        self._ahead: Tensor | None = None  # logits after each guessed token, (k, V), for row 0
        self._used = 0  # how many of them were right so far

    def begin(self) -> Tensor:
        return self.model.forward(
            [(row, prompt[len(row.ids) :], 1) for row, prompt in zip(self.rows, self.prompts, strict=True)],
            self._logits,
        )

    def step(self, token_ids: list[int]) -> Tensor:
        if self.lookup is None:
            return self.model.forward(
                [(row, [i], 1) for row, i in zip(self.rows, token_ids, strict=True)], self._logits
            )
        row, token_id = self.rows[0], token_ids[0]
        self.lookup.append(token_id)
        length = len(self.lookup.ids)  # with this token
        if self._ahead is not None:
            if self._used < len(self._ahead) and row.ids[length - 1] == token_id:
                self._used += 1
                return self._ahead[self._used - 1 : self._used]
            row.cut(length - 1)
        guess = self.lookup.guess(row.capacity - length, self.model.costs)
        started = time.perf_counter()
        logits = self.model.forward([(row, [token_id, *guess], 1 + len(guess))], self._logits)
        self.model.costs.add(1 + len(guess), time.perf_counter() - started)
        self._ahead, self._used = logits[1:], 0
        return logits[:1]

    def keep(self, rows: list[int]) -> None:
        for at, row in enumerate(self.rows):
            if at not in rows:
                self.model.put_back(row)
        self.rows = [self.rows[at] for at in rows]

    def alone(self, ids: Items[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)]), logits_to_keep=1)[:, -1]

    def end(self) -> None:
        if self.lookup is not None and self.rows:  # guesses that nobody asked for are not part of the text
            self.rows[0].cut(min(len(self.rows[0].ids), len(self.lookup.ids)))
        for row in self.rows:
            self.model.put_back(row)
        self.rows = []


def common_length(a: Items[int], b: Items[int]) -> int:
    """How many tokens two texts share from the beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    first, second = torch.tensor(a[:n]), torch.tensor(b[:n])
    return int((first != second).int().argmax())
