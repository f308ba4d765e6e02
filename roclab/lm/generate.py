"""Prompts in, text out: `stream` and `complete` over the engine, one event for each token.

    runner, tokenizer = lm.load("smollm2-135m")
    for event in stream(runner, tokenizer, [tokenizer.encode("Once upon a time")], SamplingParams(max_new_tokens=20)):
        print(event.text, end="")

Every prompt is a request of its own: with its own budget and its own draws from its seed, alone or beside others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.runner import Runner
from roclab.lm.engine.scheduler import Engine, LogitsProcessor, Request
from roclab.lm.settings import SamplingParams
from roclab.lm.text.detokenizer import Detokenizer
from roclab.lm.text.tokenizer import Tokenizer


def engine_of(runner: Runner) -> Engine:
    """The engine that `stream` and `complete` use for this runner: one, so that later calls find its prefix cache."""
    if runner.engine is None:  # a proxy: the runner owns the engine, and both are freed with the last reference to it
        runner.engine = Engine(weakref.proxy(runner), max_slowdown=None)
    return runner.engine


@dataclass(frozen=True)
class TokenEvent:
    """One new token of one row. `text` is what the answer and `thinking` what the thought before it gains for the
    reader: whole characters only, so they can lag behind. `was_thinking`: the row's text so far turns out to have been
    the thought, since the model ends one here that it never opened."""

    row: int
    token_id: int
    text: str
    thinking: str = ""
    finish_reason: str | None = None  # "stop": end token or stop string; "length": max_new_tokens; "error"
    logprob: float | None = None  # natural logarithm
    top_logprobs: tuple[tuple[int, float], ...] = ()
    error: str = ""  # why this row failed; its token_id is then -1
    was_thinking: bool = False


@dataclass
class Timings:
    """Seconds and tokens of prefill and decode, without the caller's own time. A step that does both is prefill."""

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
    nor anything from a stop string on, nor the `thinking` before it. `error` says why a row failed."""

    prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    thinking: str = ""
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    error: str = ""

    def add(self, event: TokenEvent) -> None:
        """Its next token, or why there is none."""
        self.finish_reason, self.error = event.finish_reason or self.finish_reason, event.error
        if event.error:
            return
        self.token_ids.append(event.token_id)
        if event.was_thinking:
            self.thinking, self.text = self.text, ""
        self.text += event.text
        self.thinking += event.thinking
        if event.logprob is not None:
            self.logprobs.append(event.logprob)
            self.top_logprobs.append(event.top_logprobs)


def complete(
    runner: Runner,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    timings: Timings | None = None,
    progress: Callable[[Iterator[TokenEvent]], Iterable[TokenEvent]] = iter,
) -> list[Completion]:
    """`stream`, collected: a Completion per prompt, in their order. `progress` wraps the events. Raises RocLabError if
    every prompt failed."""
    results = [Completion(len(prompt)) for prompt in prompts]
    for event in progress(stream(runner, tokenizer, prompts, params, timings)):
        results[event.row].add(event)
    if all(result.error for result in results):
        raise RocLabError(results[0].error)
    for result in results:
        if result.thinking:  # the blank lines around a thought belong to neither part
            result.thinking, result.text = result.thinking.strip(), result.text.strip()
    return results


def stream(
    runner: Runner,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    timings: Timings | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[TokenEvent]:
    """Continue each prompt (token ids) under `params`, one for all or one each; events of all rows interleave.

    A row that fails (an empty prompt, one that does not fit the context, a NaN) gives an event with `error`, and the
    others go on; if it is the only row, RocLabError is raised.
    """
    if not prompts:
        raise RocLabError("the prompt is empty; give at least one token of text")
    engine, timings = engine_of(runner), timings if timings is not None else Timings()
    own = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    ends = {*runner.config.eos_token_ids, *tokenizer.eos_token_ids}
    rows: dict[int, tuple[Request, Detokenizer]] = {}
    failed: dict[int, str] = {}
    for row, (prompt, settings) in enumerate(zip(prompts, own, strict=True)):
        try:
            request = engine.submit(prompt, settings, end_token_ids=ends, processors=processors)
        except RocLabError as error:
            failed[row] = str(error)
        else:
            rows[row] = request, Detokenizer(tokenizer, prompt, settings.stop)
    try:
        while rows or failed:
            for row in [r for r, (request, _) in rows.items() if request.error]:
                failed[row] = rows.pop(row)[0].error
            for row, reason in failed.items():
                if len(prompts) == 1:
                    raise RocLabError(reason)
                yield TokenEvent(row, -1, "", finish_reason="error", error=reason)
            failed = {}
            for row, (request, detokenizer) in list(rows.items()):
                while request.tokens and row in rows:
                    event = next_event(row, request, detokenizer)
                    if event.finish_reason:
                        engine.cancel(request, event.finish_reason)
                        del rows[row]
                    yield event
            if rows and not any(request.tokens or request.error for request, _ in rows.values()):
                engine.step()
                step = engine.last_step
                if step.prefill_tokens:
                    timings.prefill_seconds += step.seconds
                else:
                    timings.decode_seconds += step.seconds
                timings.prefill_tokens += step.prefill_tokens
                timings.decode_tokens += step.decode_tokens
    finally:
        for request, _ in rows.values():
            engine.cancel(request)


def next_event(row: int, request: Request, detokenizer: Detokenizer) -> TokenEvent:
    """The request's next token as text; there must be one. With a `finish_reason` the row is done, and the engine may
    not know it yet (a stop string): cancel the request."""
    token, before = request.tokens.popleft(), detokenizer.unannounced
    thinking, text = detokenizer.feed(token.token_id, ended=token.token_id in request.end_token_ids)
    reason = "stop" if detokenizer.stopped else token.finish_reason
    if reason:
        rest = detokenizer.finish()
        thinking, text = thinking + rest[0], text + rest[1]
    return TokenEvent(
        row, token.token_id, text, thinking, reason, token.logprob, token.top_logprobs,
        was_thinking=detokenizer.unannounced and not before,
    )  # fmt: skip
