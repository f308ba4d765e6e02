"""Prompts in, tokens out: batches of unequal prompts, streaming, stop strings, log-probabilities.

    for event in stream(model, tokenizer, [tokenizer.encode("Once upon a time")], SamplingParams(max_new_tokens=20)):
        print(event.text, end="")

    prompts → left-padded batch → one pass fills the cache → choose a token per row → one step for all rows → …

A prompt's greedy output is the same alone and in any batch (float32). A batch adds the same numbers in another order,
which moves logits in their last digits; where the two best tokens lie closer than NEAR_TIE that could decide, so such
a step is settled by a pass over that row's tokens alone, which does not know its batch-mates.

What computes the logits is a `Batch`: the readable model on torch (`TorchBatch`), on any device; the same with its
steps compiled by torch (`compiled_runner`); or the C kernels (`cpu.runner`), whose rows never depend on their
batch-mates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.sampling import SamplingParams, draw, penalize_repetition
from roclab.lm.model import KVCache, RocLMForCausalLM
from roclab.lm.text.detokenizer import TextStream, ThinkingSplit
from roclab.lm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from roclab.lm.engine.compiled_runner import CompiledRocLM
    from roclab.lm.engine.cpu.runner import FastRocLM

LanguageModel: TypeAlias = "RocLMForCausalLM | CompiledRocLM | FastRocLM"

# Logits; more than ten times the largest difference seen between a batch and a row alone (docs/log.md).
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class TokenEvent:
    """One new token of one row. `text` is what the answer and `thinking` what the thought before it gains for the
    reader: whole characters only, so they can lag behind."""

    row: int
    token_id: int
    text: str
    thinking: str = ""
    finish_reason: str | None = None  # "stop": end token or stop string; "length": max_new_tokens
    logprob: float | None = None  # natural logarithm
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass
class Timings:
    """Seconds and tokens of reading the prompts (prefill) and of writing (decode), the caller's own time left out."""

    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Completion:
    """What one prompt became. `token_ids` are the new ones, an end token included; `text` holds neither the end token
    nor anything from a stop string on, nor the `thinking` before it."""

    prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    thinking: str = ""
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


class Batch(Protocol):
    """Texts being continued together: what the engine asks of a model."""

    exact: bool  # a row's logits are the same bits whatever stands beside it

    def begin(self) -> Tensor:
        """Read the prompts; logits (B, V) of each one's next token."""

    def step(self, token_ids: list[int]) -> Tensor:
        """Append a token to each row; logits (B, V) of the next."""

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""

    def alone(self, ids: Sequence[int]) -> Tensor:
        """Logits (1, V) after one text computed by itself."""

    def end(self) -> None:
        """Nothing more is wanted."""


class TorchBatch:
    """The readable model: left-padded prompts, one KV cache for all rows."""

    exact = False

    def __init__(self, model: RocLMForCausalLM, prompts: Sequence[Sequence[int]], new_tokens: int):
        self.model, weight = model, model.model.embed_tokens.weight
        self.input_ids, self.mask = left_pad(prompts, weight.device)
        capacity = self.input_ids.shape[1] + new_tokens
        self.cache = KVCache(model.config, len(prompts), capacity, weight.device, weight.dtype)

    def begin(self) -> Tensor:
        return self.model(self.input_ids, self.mask, self.cache, logits_to_keep=1)[:, -1]

    def step(self, token_ids: list[int]) -> Tensor:
        return self.model(torch.tensor(token_ids, device=self.input_ids.device)[:, None], cache=self.cache)[:, -1]

    def keep(self, rows: list[int]) -> None:
        cache = self.cache
        for buffers in (cache.keys, cache.values):
            for i, old in enumerate(buffers):  # only the slots in use: the rest was never touched and costs no memory
                buffers[i] = old.new_empty(len(rows), *old.shape[1:])
                buffers[i][:, :, : cache.length] = old[rows, :, : cache.length]
        cache.real = cache.real[rows]

    def alone(self, ids: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)], device=self.input_ids.device), logits_to_keep=1)[:, -1]

    def end(self) -> None:
        pass


def device_of(model: LanguageModel) -> torch.device:
    return model.model.embed_tokens.weight.device if isinstance(model, RocLMForCausalLM) else model.device


def open_batch(model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
    """The batch of a model's kind, with room for `new_tokens` behind the longest prompt."""
    if isinstance(model, RocLMForCausalLM):
        return TorchBatch(model, prompts, new_tokens)
    return model.open_batch(prompts, new_tokens)


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    timings: Timings | None = None,
    progress: Callable[[Iterator[TokenEvent]], Iterable[TokenEvent]] = iter,
) -> list[Completion]:
    """`stream`, collected: a Completion per prompt, in their order. `progress` wraps the events, to be seen passing."""
    results = [Completion(len(prompt)) for prompt in prompts]
    for event in progress(stream(model, tokenizer, prompts, params, timings)):
        result = results[event.row]
        result.token_ids.append(event.token_id)
        result.text += event.text
        result.thinking += event.thinking
        if event.logprob is not None:
            result.logprobs.append(event.logprob)
            result.top_logprobs.append(event.top_logprobs)
        if event.finish_reason:
            result.finish_reason = event.finish_reason
    for result in results:
        if result.thinking:  # the blank lines around a thought belong to neither part
            result.thinking, result.text = result.thinking.strip(), result.text.strip()
    return results


class _Row:
    """One prompt on its way: its ids so far, its text, its own random numbers."""

    def __init__(self, index: int, prompt: Sequence[int], params: SamplingParams, tokenizer: Tokenizer):
        self.index = index
        self.split = ThinkingSplit(tokenizer, prompt)
        self.ids = list(prompt)
        self.new_tokens = 0
        self.text, self.thinking = TextStream(params.stop), TextStream()  # stop strings end answers, not thoughts
        self.generator = torch.Generator().manual_seed(params.seed + index)


@torch.inference_mode()
def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    timings: Timings | None = None,
) -> Iterator[TokenEvent]:
    """Continue each prompt (token ids); events of all rows interleave. Raises RocLabError for an empty prompt or one
    that, with `max_new_tokens`, does not fit the model's context."""
    timings = timings if timings is not None else Timings()
    max_new_tokens = _room(model.config.max_position_embeddings, prompts, params)
    end_tokens = set() if params.ignore_eos else {*model.config.eos_token_ids, *tokenizer.eos_token_ids}
    rows = [_Row(i, prompt, params, tokenizer) for i, prompt in enumerate(prompts)]

    batch = open_batch(model, prompts, max_new_tokens)
    try:
        yield from _stream(batch, rows, tokenizer, params, end_tokens, max_new_tokens, timings)
    finally:
        batch.end()


def _stream(
    batch: Batch,
    rows: list[_Row],
    tokenizer: Tokenizer,
    params: SamplingParams,
    end_tokens: set[int],
    max_new_tokens: int,
    timings: Timings,
) -> Iterator[TokenEvent]:
    started = time.perf_counter()
    logits = batch.begin()
    timings.prefill_seconds += time.perf_counter() - started
    timings.prefill_tokens += sum(len(row.ids) for row in rows)

    while True:
        started = time.perf_counter()
        chosen = _choose(batch, rows, logits, params)
        distribution = logits.float().log_softmax(-1) if params.logprobs is not None else None
        timings.decode_seconds += time.perf_counter() - started

        going_on = []
        for at, (row, token_id) in enumerate(zip(rows, chosen, strict=True)):
            row.ids.append(token_id)
            row.new_tokens += 1
            ended = token_id in end_tokens
            data = b"" if ended else tokenizer.token_bytes(token_id)
            in_thought = row.split.feed(token_id) == "thinking"
            thinking = row.thinking.feed(data if in_thought else b"", final=not in_thought)
            text = row.text.feed(b"" if in_thought else data)
            reason = "stop" if ended or row.text.stopped else "length" if row.new_tokens == max_new_tokens else None
            if reason:
                text, thinking = text + row.text.finish(), thinking + row.thinking.finish()
            else:
                going_on.append(at)
            logprobs = _logprobs(distribution, at, token_id, params)
            yield TokenEvent(row.index, token_id, text, thinking, reason, *logprobs)
        if not going_on:
            return

        started = time.perf_counter()
        if len(going_on) < len(rows):  # rows that have ended cost nothing more
            rows = [rows[at] for at in going_on]
            batch.keep(going_on)
        logits = batch.step([row.ids[-1] for row in rows])
        timings.decode_seconds += time.perf_counter() - started
        timings.decode_tokens += len(rows)


def _room(context: int, prompts: Sequence[Sequence[int]], params: SamplingParams) -> int:
    """How many new tokens are wanted, checked against the context."""
    if not prompts or not all(prompts):
        raise RocLabError("the prompt is empty; give at least one token of text")
    longest = max(map(len, prompts))
    wanted = params.max_new_tokens or max(context - longest, 1)
    if longest + wanted > context:
        raise RocLabError(
            f"a prompt of {longest} tokens and {wanted} new ones need {longest + wanted} positions, but the model's "
            f"context has {context}; shorten the prompt or ask for fewer new tokens"
        )
    return wanted


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) with the shorter prompts moved right, and the mask of what is real; no mask if nothing is padded."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    if all(len(p) == longest for p in prompts):
        return ids, None
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


def _choose(batch: Batch, rows: list[_Row], logits: Tensor, params: SamplingParams) -> list[int]:
    """A token per row from logits (B, V)."""

    def penalized(logits: Tensor, rows: list[_Row]) -> Tensor:
        if params.repetition_penalty == 1.0:
            return logits
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for at, row in enumerate(rows):
            seen[at, row.ids] = True
        return penalize_repetition(logits, seen, params.repetition_penalty)

    scores = penalized(logits, rows)
    best = scores.max(dim=-1)
    if not torch.isfinite(best.values).all():  # a NaN counts as the largest
        raise RocLabError("the model's output is not a number: damaged weights, or a --dtype too narrow for them")
    if params.temperature > 0:
        return [draw(scores[at].cpu(), params, row.generator) for at, row in enumerate(rows)]
    chosen = best.indices.tolist()
    if not batch.exact and scores.dtype == torch.float32:
        two = scores.topk(2, dim=-1).values
        for at in (two[:, 0] - two[:, 1] < NEAR_TIE).nonzero()[:, 0].tolist():
            alone = batch.alone(rows[at].ids)
            chosen[at] = int(penalized(alone, [rows[at]]).argmax())
    return chosen


def _logprobs(
    distribution: Tensor | None, at: int, token_id: int, params: SamplingParams
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if distribution is None:
        return None, ()
    top = distribution[at].topk(params.logprobs or 0)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return distribution[at, token_id].item(), tuple(pairs)
