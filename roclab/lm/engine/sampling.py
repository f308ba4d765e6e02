"""From logits to the next token: the filters in their usual order, each request with its own random numbers.

logits → repetition penalty, logits processors → temperature → top-k → top-p → min-p → draw     (temperature 0: argmax)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from roclab.lm.model import filter_top_k, filter_top_p
from roclab.lm.settings import SamplingParams

LARGEST = 512  # logits that top-k and top-p look at before they look at all


def largest(logits: Tensor) -> Tensor:
    """The index (R,) of the largest of each row of logits (R, V), the first of equals; a NaN counts as the largest.

    On a CPU NumPy takes 4 µs for a row of 49,152 and 82 for sixteen, torch's argmax 122 and 1,927 (its max as long)."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


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


def sample(logits: Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator]) -> list[int]:
    """One token for each row of logits (R, V), temperatures above 0. A row's token depends on its own logits, params
    and generator only, to the last bit: what adds up over the vocabulary is computed row by row."""
    # The largest becomes 0 first: divided by a tiny temperature it would overflow. Below float32's range that is 0/0,
    # above it −∞/∞.
    single = torch.finfo(torch.float32)
    temperatures = torch.tensor(
        [[min(max(p.temperature, single.tiny), single.max)] for p in params], dtype=torch.float32, device=logits.device
    )
    logits = logits.float()
    scores = (logits - logits.gather(-1, largest(logits)[:, None])) / temperatures
    few, order = filter_largest(scores, params)
    points = torch.tensor([torch.rand((), generator=g, dtype=torch.float64).item() for g in generators])
    chosen = []
    for i, (p, point) in enumerate(zip(params, points, strict=True)):
        if few is not None and few[i].isfinite().any():
            kept, ids = few[i], order[i]
        else:
            kept, ids = filter_all(scores[i], p), None
        # The inverse of the distribution function: torch.multinomial takes twenty times as long for one draw of many.
        cumulative = kept.softmax(-1, dtype=torch.float64).cumsum(-1)
        at = int(torch.searchsorted(cumulative, point.to(cumulative.device) * cumulative[-1], right=True))
        if at == len(cumulative):  # the product was rounded up to the sum of all
            at = int(kept.argmax())
        chosen.append(at if ids is None else int(ids[at]))
    return chosen


def filter_all(row: Tensor, params: SamplingParams) -> Tensor:
    """Logits (V,) after top-k, top-p and min-p, by the formulas."""
    return filter_min_p(filter_top_p(filter_top_k(row[None], params.top_k), params.top_p), params.min_p)[0]


def filter_largest(scores: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor | None, Tensor]:
    """The filters over the LARGEST logits of each row only, for all rows at once: their values after filtering and
    their ids, (R, LARGEST) each. Sorting a whole vocabulary takes longer than a small model.

    A row where a smaller logit could pass the filters too is −∞ throughout: `filter_all` has to be used. (None if that
    holds for all rows.) Of equal logits at the edge of top-p, the two ways may keep different ones.
    """
    wanted = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1]
    if not wanted or scores.shape[-1] <= LARGEST:
        return None, scores
    values, order = scores.topk(LARGEST, dim=-1)  # descending

    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([[getattr(p, name)] for p in params], dtype=dtype, device=scores.device)

    top_k, top_p, min_p = column("top_k", torch.long), column("top_p"), column("min_p")
    kth = values.gather(-1, (top_k.clamp(1, LARGEST) - 1))  # the k-th and its equals stay
    kept = values.masked_fill((top_k > 0) & (values < kth), -math.inf)
    probabilities = kept.softmax(-1)
    # Of the whole vocabulary where there is no top-k; the sum over it row by row, see `sample`.
    totals = torch.stack([scores[i].logsumexp(-1) for i in range(len(params))])[:, None]
    share = torch.where(top_k > 0, 1.0, (values.logsumexp(-1, keepdim=True) - totals).exp())
    before = (probabilities.cumsum(-1) - probabilities) * share  # the mass ahead of each token
    kept = kept.masked_fill((top_p < 1) & (before >= top_p) & (before > 0), -math.inf)
    kept = kept.masked_fill((min_p > 0) & (values < values[:, :1] + min_p.clamp(min=1e-45).log()), -math.inf)
    enough = torch.where(top_k > 0, (top_k < LARGEST) & (kth > values[:, -1:]), (top_p < 1) & (share > top_p))
    return kept.masked_fill(~enough, -math.inf), order
