"""From logits to the next token: the filters in their usual order, one row at a time random and reproducible.

logits → repetition penalty → temperature → top-k → top-p → min-p → draw        (temperature 0: the largest)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roclab.lm.model import filter_top_k, filter_top_p
from roclab.lm.settings import SamplingParams

LARGEST = 512  # logits that top-k and top-p look at before they look at all


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
