"""What all endpoints that generate have in common: the fields of sampling, the requests of one call, their limits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Annotated, NoReturn, TypeVar

import torch
from pydantic import Field
from starlette.requests import Request as HttpRequest
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.scheduler import LogitsProcessor, Request
from roclab.lm.generate import TokenEvent
from roclab.lm.settings import SamplingParams
from roclab.server.errors import ApiError
from roclab.server.fields import Asked, Many, StopString, StopStrings
from roclab.server.settings import ServerSettings
from roclab.server.worker import Busy, Ticket, Worker

T = TypeVar("T")


class Sampling(Asked):
    """The fields of sampling that OpenAI's API has, and those that open servers add (top_k, min_p, …)."""

    temperature: float | None = Field(
        default=None, ge=0, le=100, description="1 if not given; 0 takes the likeliest token."
    )
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1, description="0 or -1: all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="Token id → what is added to its logit."
    )
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StopString | StopStrings | None = None
    ignore_eos: bool = Field(default=False, description="Go on to max_tokens: for benchmarks.")

    def params(self, logprobs: int | None = None) -> SamplingParams:
        """As the engine takes them; a seed is drawn where none is given."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=secrets.randbits(62) if self.seed is None else self.seed % 2**63,
            stop=tuple(stop),
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )

    def processors(self, prompt: Sequence[int], vocab_size: int) -> list[LogitsProcessor]:
        found: list[LogitsProcessor] = []
        if self.frequency_penalty or self.presence_penalty:
            found.append(Penalties(len(prompt), self.frequency_penalty or 0.0, self.presence_penalty or 0.0))
        if self.logit_bias:
            found.append(bias(self.logit_bias, vocab_size))
        return found


class Penalties:
    """OpenAI's penalties: for each token of the answer so far, `frequency` times how often it stands there, and
    `presence` once, are taken from its logit."""

    def __init__(self, prompt_tokens: int, frequency: float, presence: float):
        self.prompt_tokens, self.frequency, self.presence = prompt_tokens, frequency, presence

    def __call__(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        new = torch.tensor(ids[self.prompt_tokens :], dtype=torch.long, device=logits.device)
        tokens, counts = new.unique(return_counts=True)
        return logits.index_add(0, tokens, -(self.frequency * counts + self.presence).to(logits.dtype))


def bias(given: dict[str, float], vocab_size: int) -> LogitsProcessor:
    """Adds to the logits of the named tokens. Raises ApiError for what is no token id."""
    ids = [int(key) if key.strip().isdecimal() else -1 for key in given]
    if not all(0 <= i < vocab_size for i in ids):
        raise ApiError(400, f"logit_bias: keys are token ids from 0 to {vocab_size - 1}", "logit_bias")
    where, values = torch.tensor(ids), torch.tensor(list(given.values()), dtype=torch.float32)
    return lambda _, logits: logits.index_add(0, where.to(logits.device), values.to(logits))


class Call:
    """The requests that one HTTP call makes of a model: submitted together, read together, ended together."""

    def __init__(self, worker: Worker, limits: ServerSettings, count: Callable[[Request, str], None]):
        """`count` is told of every request that has ended, and why."""
        self.worker, self._limits, self._count = worker, limits, count
        self.tickets: list[Ticket] = []
        self._reasons: dict[int, str] = {}
        self._closed = False

    @property
    def requests(self) -> list[Request]:
        return [ticket.request for ticket in self.tickets]

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int | None,
        processors: Callable[[], Sequence[LogitsProcessor]],
        answers: int = 1,
    ) -> None:
        """So many more requests, each with its own draws and `processors`, of at most `max_tokens` new tokens (None:
        the context's room). Raises ApiError."""
        context = self.worker.runner.config.max_position_embeddings
        room = context - len(prompt)
        most = min(n for n in (room, max_tokens, self._limits.max_tokens) if n is not None)
        try:
            if room < 1:
                raise RocLabError(f"the prompt has {len(prompt)} tokens, and the model's context holds {context}")
            for number in range(answers):
                budget = replace(params, max_new_tokens=most, seed=(params.seed + number) % 2**63)
                self.tickets.append(self.worker.submit(prompt, budget, processors()))
        except Busy:
            self.close()
            raise ApiError(429, "too many requests wait: try again in a moment", retry_after=1) from None
        except RocLabError as error:
            self.close()
            raise ApiError(400, str(error)) from None

    def check(self, answers: int) -> None:
        """Raises ApiError if so many can never be taken at once."""
        most = self._limits.max_running + self._limits.max_waiting
        if answers > most:
            raise ApiError(400, f"{answers} answers are asked for, and at most {most} can run and wait: ask for fewer")

    def close(self) -> None:
        """End what still runs. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        for number, ticket in enumerate(self.tickets):
            reason = self._reasons.get(number, "abort")
            self.worker.cancel(ticket, "abort" if reason == "error" else reason)  # what it computed stays in the cache
            self._count(ticket.request, reason)

    def _fail(self, status: int, why: str) -> NoReturn:
        for number in range(len(self.tickets)):
            self._reasons.setdefault(number, "error")
        raise ApiError(status, why) from None

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        """(number of the request, event), as they come. When the time is up, all answers end with "length" at the next
        token. Raises ApiError if one fails, or none has begun by then."""
        queue: asyncio.Queue[tuple[int, TokenEvent | RocLabError]] = asyncio.Queue()

        async def read(number: int, ticket: Ticket) -> None:
            try:
                async for event in self.worker.events(ticket):
                    queue.put_nowait((number, event))
            except RocLabError as error:
                queue.put_nowait((number, error))

        tasks = [asyncio.create_task(read(number, ticket)) for number, ticket in enumerate(self.tickets)]
        left = len(tasks)
        deadline: float | None = time.monotonic() + self._limits.max_seconds
        try:
            while left:
                try:
                    still = None if deadline is None else max(0.0, deadline - time.monotonic())
                    number, event = await asyncio.wait_for(queue.get(), still)
                except asyncio.TimeoutError:
                    if all(request.times.first_token is None for request in self.requests):
                        self._fail(408, f"no answer within {self._limits.max_seconds:g} seconds")
                    for request in self.requests:
                        self.worker.engine.shorten(request)
                    deadline = None
                    continue
                if isinstance(event, RocLabError):
                    self._fail(503 if self.worker.closing else 500, str(event))
                if event.finish_reason:
                    self._reasons[number] = event.finish_reason
                    left -= 1
                yield number, event
        finally:
            for task in tasks:
                task.cancel()
            self.close()


Prompts = str | Many[str] | Many[int] | Many[Many[int]]


def prompts_of(given: Prompts, worker: Worker, param: str, most: int) -> list[list[int]]:
    """Token ids of each text. A text never becomes a control token; ids are taken as they are. Raises ApiError."""
    tokenizer, config = worker.tokenizer, worker.runner.config
    if isinstance(given, str):
        found = [tokenizer.encode(given)]
    elif given and all(isinstance(item, int) for item in given):
        found = [[int(item) for item in given]]  # type: ignore[arg-type]
    else:
        found = [item if isinstance(item, list) else tokenizer.encode(str(item)) for item in given]
    if not 1 <= len(found) <= most:
        raise ApiError(400, f"{param}: give 1 to {most} texts", param)
    for ids in found:
        if not 1 <= len(ids) <= config.max_position_embeddings:
            raise ApiError(
                400, f"{param}: a text of 1 to {config.max_position_embeddings} tokens, not {len(ids)}", param
            )
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise ApiError(400, f"{param}: token ids lie between 0 and {config.vocab_size - 1}", param)
    return found


async def until_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """The result of `work`, which is given up when the client goes away."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away")
        return await task
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


def events_of(call: Call) -> aclosing[AsyncGenerator[tuple[int, TokenEvent], None]]:
    """`call.events()` as a context: left early, its requests end at once."""
    return aclosing(call.events())
