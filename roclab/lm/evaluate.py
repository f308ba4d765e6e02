"""How well a model predicts a text: perplexity and bits per byte, with the protocol in words beside the number.

The text is cut into windows of `window` tokens, each beginning `stride` tokens after the one before. A token is scored
once, in the first window that holds it, so that it is predicted from at least window − stride tokens where the text
has them. The very first token is not scored, unless a BOS stands before it.

    perplexity = exp( −mean log p(token | tokens before it in its window) )
    bits per byte = −Σ log₂ p / bytes of the text: comparable between tokenizers, which perplexity is not

The bytes are those of the text that the tokens stand for: after the tokenizer has normalised it, and without bytes that
it has no token for.
"""

from __future__ import annotations

import hashlib
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
# What tokenizers of the nineties left behind: signs as words of their own, and WikiText's joints inside words.
_JOINTS, _LONELY = (" @-@ ", " @,@ ", " @.@ "), (" , ", " . ", " 's ", " n't ")


@dataclass(frozen=True)
class TextScore:
    """What `evaluate_text` found; `tokens` are those scored, `bytes` those that the whole text's tokens stand for."""

    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int
    protocol: str
    bos: str  # where a BOS stood: "nowhere", "first window", "every window"
    text_sha256: str  # of the text that was given to the tokenizer, as UTF-8
    normalised: list[str]  # what the tokenizer changed in it
    vanished_bytes: int  # for which it has no token
    pretokenized: list[str]  # marks of a text whose words another program took apart

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def windows(length: int, window: int, stride: int, scored: int = 1) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, end) of each window over `length` tokens; the scored parts join without gap or overlap.
    The first `scored` tokens are not scored: by default one, as nothing precedes it."""
    start = 0
    while scored < length:
        end = min(start + window, length)
        yield start, scored, end
        scored, start = end, start + stride


def check_windows(window: int | None, stride: int | None, context: int | None = None) -> None:
    """Raises DataError for a window or stride that does not fit; `context` may not be known yet."""
    if window is not None and not 2 <= window <= (context or window):
        raise DataError(
            f"a window of {window} tokens: it must have at least 2, and at most the model's context"
            + (f", {context}" if context else "")
        )
    if stride is not None and not 1 <= stride < (window or context or stride + 1):
        raise DataError(f"the stride must be at least 1 and below the window of {window}: got {stride}")


def marks_of_pretokenizing(text: str) -> list[str]:
    """The marks in a text whose words and signs another program took apart, as in WikiText; [] for a usual text."""
    apart = sum(text.count(mark) for mark in _LONELY[:2])
    usual = text.count(",") + text.count(". ") - apart
    if any(mark in text for mark in _JOINTS) or apart > max(2, usual):
        return [mark for mark in (*_JOINTS, *_LONELY) if mark in text]
    return []


@torch.inference_mode()
def evaluate_text(
    runner: Runner,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    bos_every_window: bool = False,
) -> TextScore:
    """Score `text`. `window` (tokens) defaults to 1,024 or the model's context, `stride` to half a window.
    `bos_every_window`: each window begins with a BOS, which takes one of its places; otherwise only the text does, if
    the vocabulary wants it.

    Raises DataError for a text of fewer than two tokens, or a window or stride that does not fit.
    """
    context = runner.config.max_position_embeddings
    window = min(DEFAULT_WINDOW, context) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    check_windows(window, stride, context)
    ids = tokenizer.encode(text, bos=True if bos_every_window else None)
    lead, ids = (ids[:1], ids[1:]) if bos_every_window else ([], ids)
    normal = tokenizer.normalized(text)
    size = len(tokenizer.decode_bytes(ids))
    vanished = max(0, len(normal.encode("utf-8")) - size)
    if text and not size:
        raise DataError(f"the text vanishes: this vocabulary has no token for any of its {vanished} bytes")
    if len(lead) + len(ids) < 2:
        raise DataError("the text has fewer than two tokens: there is nothing to predict")

    total, count = 0.0, 0
    for start, first, end in track(list(windows(len(ids), window - len(lead), stride, 1 - len(lead))), "windows"):
        targets = torch.tensor(ids[first:end], device=runner.device)
        # Each position predicts the next token.
        logits = score(runner, [*lead, *ids[start:end]], len(targets) + 1)[:-1]
        total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
        count += len(targets)

    if not total / count < 700:  # NaN, or more than exp can hold: no language model of this text
        raise DataError(f"the model gives this text {total / count:.3g} nats a token, which is no perplexity")
    bos = "every window" if lead else "first window" if tokenizer.adds_bos else "nowhere"
    first_token = {
        "every window": "scored, as every window begins with a BOS", "first window": "scored after the BOS",
        "nowhere": "not scored",
    }[bos]  # fmt: skip
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
        bos=bos,
        text_sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        normalised=["by the tokenizer"] if normal != text else [],
        vanished_bytes=vanished,
        pretokenized=marks_of_pretokenizing(text),
    )
