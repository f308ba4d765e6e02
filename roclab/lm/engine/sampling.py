"""From logits to the next token: the filters in their usual order, one row at a time random and reproducible.

logits → repetition penalty → temperature → top-k → top-p → min-p → draw        (temperature 0: the largest)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.model import filter_top_k, filter_top_p

LARGEST = 512  # logits that top-k and top-p look at before they look at all


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. The defaults choose greedily and end with the model's end token.

    `logprobs`: None for none, n for the chosen token's log-probability and the n most likely ones beside it; they are
    the model's own, before any penalty, temperature or filter. `max_new_tokens` None: up to the model's context.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    stop: Sequence[str] = field(default=())
    logprobs: int | None = None
    ignore_eos: bool = False  # for benchmarks: go on until max_new_tokens

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (0, math.inf), "top_k": (0, math.inf), "top_p": (0, 1), "min_p": (0, 1),
            "seed": (0, 2**63 - 1), "max_new_tokens": (1, math.inf), "logprobs": (0, 100),
            "repetition_penalty": (0.01, 100),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and (not low <= value <= high or value == math.inf):
                allowed = f"between {low} and {high}" if high < math.inf else f"at least {low}"
                raise RocLabError(f"{name} must be {allowed}: got {value}")
        if "" in self.stop:
            raise RocLabError("a stop string is empty: give the text that ends an answer")


def filter_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Drop tokens less likely than min_p times the most likely one (Nguyen et al. 2024). logits (B, V)."""
    if min_p <= 0:
        return logits
    # p_i < min_p · p_max, in logits: no softmax needed.
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens in `seen` (B, V), true where a row holds the token, less likely: a positive logit is divided by
    the penalty, a negative one multiplied (Keskar et al. 2019, CTRL)."""
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """One token from one row of logits (V,), temperature above 0."""
    logits = logits.float()
    # The largest becomes 0 first: divided by a tiny temperature it would overflow. Below float32's range that is 0/0.
    temperature = max(params.temperature, torch.finfo(torch.float32).tiny)
    row = (logits - logits.max()) / temperature
    kept, ids = filtered(row, params)
    # The inverse of the distribution function: torch.multinomial takes twenty times as long for one draw of many.
    cumulative = kept.softmax(-1, dtype=torch.float64).cumsum(-1)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative[-1]
    chosen = int(torch.searchsorted(cumulative, point, right=True))
    if chosen == len(cumulative):  # the product was rounded up to the sum of all
        chosen = int(kept.argmax())
    return chosen if ids is None else int(ids[chosen])


def filtered(row: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Logits (V,) after top-k, top-p and min-p; or those of the few largest, if no others can outlast the filters, and
    their ids: sorting a whole vocabulary takes longer than a small model. (Of equal logits at the edge of top-p, the
    two ways may keep different ones.)"""
    top_p, ids = params.top_p, None
    if len(row) > LARGEST and (params.top_k or top_p < 1):
        largest, order = row.topk(LARGEST)
        if 0 < params.top_k < LARGEST:
            enough = bool(largest[params.top_k - 1] > largest[-1])  # the k-th and its equals are all here
        else:
            share = float((largest.logsumexp(-1) - row.logsumexp(-1)).exp())
            enough = params.top_k == 0 and share > top_p
            top_p = top_p / share if enough else top_p  # of the part, for a share of all
        if enough:
            row, ids = largest, order
    kept = filter_min_p(filter_top_p(filter_top_k(row[None], params.top_k), top_p), params.min_p)
    return kept[0], ids
