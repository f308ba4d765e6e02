"""How well a model predicts a text: perplexity and bits per byte, with the protocol in words beside the number.

The text is cut into windows of `window` tokens, each beginning `stride` tokens after the one before. A token is scored
once, in the first window that holds it, so that it is predicted from at least window − stride tokens where the text
has them. The very first token is not scored, unless the vocabulary puts a BOS before it.

    perplexity = exp( −mean log p(token | tokens before it in its window) )
    bits per byte = −Σ log₂ p / bytes of the text: comparable between tokenizers, which perplexity is not
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from roclab.core.exceptions import DataError
from roclab.core.progress import track
from roclab.lm.engine.runner import Runner, score
from roclab.lm.text.tokenizer import Tokenizer

DEFAULT_WINDOW = 1024


@dataclass(frozen=True)
class TextScore:
    """What `evaluate_text` found; `tokens` are those scored, `bytes` the whole text's."""

    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, end) of each window over `length` tokens; the scored parts join without gap or overlap."""
    scored = 1  # nothing precedes the first token
    start = 0
    while scored < length:
        end = min(start + window, length)
        yield start, scored, end
        scored, start = end, start + stride


@torch.inference_mode()
def evaluate_text(
    runner: Runner,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> TextScore:
    """Score `text`. `window` (tokens) defaults to 1,024 or the model's context, `stride` to half a window.

    Raises DataError for a text of fewer than two tokens, or a window or stride that does not fit.
    """
    context = runner.config.max_position_embeddings
    window = min(DEFAULT_WINDOW, context) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if not 2 <= window <= context:
        raise DataError(
            f"a window of {window} tokens: it must have at least 2, and at most the model's context, {context}"
        )
    if not 1 <= stride < window:
        raise DataError(f"the stride must be at least 1 and below the window of {window}: got {stride}")
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise DataError("the text has fewer than two tokens: there is nothing to predict")

    total, count = 0.0, 0
    for start, first, end in track(list(windows(len(ids), window, stride)), "windows"):
        targets = torch.tensor(ids[first:end], device=runner.device)
        logits = score(runner, ids[start:end], len(targets) + 1)[:-1]  # each position predicts the next token
        total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
        count += len(targets)

    if not total / count < 700:  # NaN, or more than exp can hold: no language model of this text
        raise DataError(f"the model gives this text {total / count:.3g} nats a token, which is no perplexity")
    size = len(text.encode("utf-8"))
    first_token = "scored after the BOS" if tokenizer.adds_bos else "not scored"
    return TextScore(
        perplexity=math.exp(total / count),
        bits_per_byte=total / math.log(2) / size,
        tokens=count,
        bytes=size,
        window=window,
        stride=stride,
        protocol=(
            f"windows of {window} tokens, a new one every {stride}; each token scored once, in the first window that "
            f"holds it; the text's first token {first_token}; perplexity per token, bits per byte of UTF-8"
        ),
    )
