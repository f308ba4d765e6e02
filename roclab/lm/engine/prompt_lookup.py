"""Prompt lookup (Saxena 2023): draft tokens from the text itself, checked in the step that computes the next token.

The last few tokens are looked up in the text so far; what followed them there is the draft. k draft tokens are computed
together with the token just chosen, k + 1 rows in one step; the draft is kept as far as the choices agree with it. On a
batch-invariant runner the logits, and so the tokens, are the same to the last bit, greedy or drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

MOST_DRAFT_TOKENS = 7
NGRAMS = (6, 4, 3, 2)  # tokens that must repeat before what followed them becomes a draft, longest first
USUAL = (1.0, 1.2, 1.4, 1.65, 1.9, 2.2, 2.5, 2.8)  # cost of a step of 1, 2 … rows: measured with AVX-512
ACCEPTED = (0.0, 0.0, 0.25, 0.4, 0.55, 0.65, 0.75, 0.8, 0.85)  # share of drafts after so many, at first


class Costs:
    """What a step of n rows costs, in units of a step of one row: `USUAL` times one factor that is measured.

    The factor is bounded, and tends back to 1 while there are no drafts: otherwise one step that another program held
    up would end drafting for good, since what looks expensive is never measured again.
    """

    def __init__(self) -> None:
        self._one: float | None = None  # seconds, typical of recent steps of one row
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
    """Draft tokens from what the text said before, and how often they were accepted.

    The longer the repetition, the likelier it goes on, so the accepted share is kept for each length. Drafts count
    whether or not they were computed.
    """

    def __init__(self, ids: Items[int]):
        self.ids: list[int] = []
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram → where it last went on
        self._next: int | None = None  # the place in `ids` whose token is the next draft
        self._match = 0  # how many tokens before that place are known to be the last ones
        self._accepted = list(ACCEPTED)
        for token_id in ids:
            self.append(token_id)
        self._accepted = list(ACCEPTED)  # a prompt says little about its answer

    def append(self, token_id: int) -> None:
        """The text goes on with this token."""
        accepted = self._next is not None and self.ids[self._next] == token_id
        if self._next is not None:
            self._accepted[self._match] += 0.1 * (accepted - self._accepted[self._match])
        self.ids.append(token_id)
        if self._next is not None and accepted:
            self._next, self._match = self._next + 1, min(self._match + 1, len(ACCEPTED) - 1)
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

    def draft(self, room: int, costs: Costs) -> list[int]:
        """The draft tokens worth computing: as many as make the expected cost of a token smallest, often none."""
        if self._next is None:
            return []
        best, best_gain, expected, chance = 0, 1.05, 1.0, 1.0
        for k in range(1, min(MOST_DRAFT_TOKENS, room, len(self.ids) - self._next) + 1):
            chance *= self._accepted[min(self._match + k - 1, len(ACCEPTED) - 1)]
            expected += chance
            if (gain := expected / costs.of(k + 1)) > best_gain:
                best, best_gain = k, gain
        return self.ids[self._next : self._next + best]
