"""Learning rates over a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate at `step` of `steps`: a linear rise to `peak` over the share `warmup` of the steps, then half a
    cosine down to zero (Loshchilov and Hutter 2017)."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
