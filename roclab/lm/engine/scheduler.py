"""Requests in, tokens out: what goes into each call of a runner, and what is chosen from its logits.

    engine = Engine(runner)
    request = engine.submit(prompt_ids, SamplingParams(max_new_tokens=20), end_token_ids=[2])
    while not request.done:
        for token in engine.step():
            print(token.request, token.token_id)

Every step takes one token of each running request (decode) and, beside it, pieces of prompts that are not computed yet
(prefill). Requests come and go at any step. All that concerns a request belongs to it: sampling, seed, budget,
processors, timings; a request that fails ends alone.

On a batch-invariant runner an answer is the same, bit for bit, whoever else is asking. On torch in float32 a greedy
answer is: a choice between two logits closer than NEAR_TIE, where the order of additions could decide, is made from
logits computed alone. In bfloat16 and float16 neighbours may change an answer, as may they a drawn one on torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.prefix_cache import SHARE_FROM, PrefixCache, common_length
from roclab.lm.engine.prompt_lookup import MOST_DRAFT_TOKENS, Costs, Lookup
from roclab.lm.engine.runner import Runner, Sequence
from roclab.lm.engine.sampling import largest, penalize_repetition, sample
from roclab.lm.settings import SamplingParams

# Logits; more than ten times the largest difference seen between a row in a batch and alone (docs/log.md).
NEAR_TIE = 1e-3
PREFILL = 512  # prompt tokens a step at most
FIRST_PREFILL = 8  # beside decoding, before it is known what they cost
MEASURE_EVERY = 8  # steps, one without a prompt piece: what decoding takes changes with the requests and their lengths

LogitsProcessor = Callable[[Items[int], Tensor], Tensor]
"""(prompt and answer so far, logits (V,)) → logits (V,), before temperature and filters."""


@runtime_checkable
class Forcing(Protocol):
    """A logits processor that may know the next tokens before there are logits: they need not wait for each other."""

    def forced(self, ids: Items[int]) -> Items[int]:
        """The tokens that follow `ids` (prompt and answer so far) whatever the model says; often none."""
        ...


@dataclass
class RequestTimes:
    """When a request came, was taken up, had its first token and ended; time.perf_counter(), None: not yet."""

    submitted: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None

    @property
    def queue_seconds(self) -> float:
        return (self.started or time.perf_counter()) - self.submitted

    @property
    def seconds_to_first_token(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.submitted


@dataclass(eq=False)
class Request:
    """One prompt on its way. `ids` are the prompt and the answer so far; `finish_reason` is "stop", "length",
    "cancelled" or, with `error` in words, "error"."""

    prompt: list[int]
    params: SamplingParams
    end_token_ids: frozenset[int]
    processors: tuple[LogitsProcessor, ...]
    times: RequestTimes
    ids: list[int]
    finish_reason: str | None = None
    error: str = ""
    tokens: deque[Token] = field(default_factory=deque)  # chosen and not yet fetched by whoever submitted it
    cached_tokens: int = 0  # of the prompt, which the prefix cache had
    sequence: Sequence | None = None  # while it runs
    lookup: Lookup | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    seen: Tensor | None = None  # (1, V) bool, for the repetition penalty

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @cached_property
    def forcing(self) -> Forcing | None:
        """The processor that may know the next tokens."""
        processors: list[object] = [*self.processors]
        return next((processor for processor in processors if isinstance(processor, Forcing)), None)

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - len(self.prompt)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are not computed yet: 1 while it is decoding."""
        return len(self.ids) - len(self.sequence.ids) if self.sequence else len(self.ids)


@dataclass(frozen=True)
class Token:
    """One chosen token. `logprob` is a natural logarithm; `top_logprobs` are (token id, logprob)."""

    request: Request
    token_id: int
    finish_reason: str | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """What the last step computed, and in how many seconds."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    seconds: float = 0.0


class Engine:
    """Continuous batching over a runner. Safe to use from several threads.

    `max_running`: requests decoded together; more wait. `max_slowdown`: how many times as long a step may take because
    it computes pieces of prompts too, so that a long prompt does not hold up the others; None computes prompts as fast
    as possible. `cache_bytes`: KV caches of finished requests kept for prompts that begin alike.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_running: int = 64,
        max_slowdown: float | None = 2.0,
        cache_bytes: int = 1 << 29,
        prompt_lookup: bool = True,
    ):
        self.runner, self.max_running, self.max_slowdown = runner, max_running, max_slowdown
        self.prompt_lookup = prompt_lookup and runner.batch_invariant
        self.cache = PrefixCache(runner, cache_bytes)
        self.costs = Costs()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.last_step = Step()
        self._decode_seconds: deque[float] = deque(maxlen=3)  # of the last steps without a prompt piece
        self._prefill_seconds = 0.0  # of a prompt token beside decoding: a running mean
        self._prefilled = FIRST_PREFILL  # tokens of the last prompt piece beside decoding
        self._mixed_steps = 0  # since the last step without one
        self._lock = threading.RLock()

    def submit(
        self,
        prompt: Items[int],
        params: SamplingParams,
        *,
        end_token_ids: Collection[int] = (),
        processors: Items[LogitsProcessor] = (),
    ) -> Request:
        """Queue a prompt (token ids). Raises RocLabError for an empty one, or one that does not fit the context."""
        context = self.runner.config.max_position_embeddings
        if not prompt:
            raise RocLabError("the prompt is empty; give at least one token of text")
        wanted = params.max_new_tokens or max(context - len(prompt), 1)
        if len(prompt) + wanted > context:
            raise RocLabError(
                f"a prompt of {len(prompt)} tokens and {wanted} new ones need {len(prompt) + wanted} positions, but "
                f"the model's context has {context}; shorten the prompt or ask for fewer new tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.runner.config.vocab_size:
            raise RocLabError(f"token ids must lie between 0 and {self.runner.config.vocab_size - 1}")
        ends = frozenset() if params.ignore_eos else frozenset(end_token_ids)
        params = replace(params, max_new_tokens=wanted)
        request = Request(
            list(prompt), params, ends, tuple(processors), RequestTimes(time.perf_counter()), list(prompt)
        )
        request.generator.manual_seed(params.seed)
        self.waiting.append(request)  # one atomic act: a step in progress holds up nobody who submits
        return request

    def cancel(self, request: Request, finish_reason: str = "cancelled") -> None:
        """End a request now. One that has ended stays as it is."""
        with self._lock:
            if request in self.waiting:
                self.waiting.remove(request)
            if not request.done:
                self._finish(request, finish_reason)

    def shorten(self, request: Request) -> None:
        """Make the request's next token its last, with the reason "length"."""
        request.params = replace(request.params, max_new_tokens=request.new_tokens + 1)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Compute once and choose: the new tokens, which also stand in their requests' `tokens`."""
        with self._lock:
            started = time.perf_counter()
            self._admit()
            decoding = [r for r in self.running if r.pending == 1 and r.new_tokens]
            drafts = self._drafts(decoding)
            work = [(r, [r.ids[-1], *draft], 1 + len(draft)) for r, draft in zip(decoding, drafts, strict=True)]
            work += self._prefill(bool(decoding))
            if not work:
                self.last_step = Step()
                return []
            logits = self.runner.forward([(r.sequence, ids, n) for r, ids, n in work if r.sequence], scratch=True)
            if len(work) == len(decoding) == 1:
                self.costs.add(len(logits), time.perf_counter() - started)
            rows, at = [], 0
            for request, ids, n in work:
                if n:
                    rows.append((request, ids[len(ids) - n + 1 :], at))
                at += n
            tokens = self._choose(rows, logits)
            prefilled, decoded = sum(len(ids) for _, ids, _ in work[len(decoding) :]), set(decoding)
            self.last_step = Step(prefilled, sum(t.request in decoded for t in tokens), time.perf_counter() - started)
            self._learn(prefilled, bool(decoding), self.last_step.seconds)
            return tokens

    def _learn(self, prefilled: int, decoded: bool, seconds: float) -> None:
        """What a step without prefill takes, and a prompt token beside it."""
        if decoded and not prefilled:
            self._mixed_steps = 0
            self._decode_seconds.append(seconds)
        elif decoded:
            self._mixed_steps += 1
            self._prefilled = max(prefilled, FIRST_PREFILL)
            if self._decode_seconds:
                each = max(seconds - median(self._decode_seconds), 0.0) / prefilled
                self._prefill_seconds += 0.3 * (each - self._prefill_seconds) if self._prefill_seconds else each

    def _prefill_budget(self, decoding: bool) -> int:
        """How many prompt tokens this step may compute."""
        if not decoding or self.max_slowdown is None:
            return PREFILL
        if self._mixed_steps + 1 >= MEASURE_EVERY:
            return 0
        if not self._prefill_seconds or not self._decode_seconds:
            return FIRST_PREFILL
        wanted = int((self.max_slowdown - 1) * median(self._decode_seconds) / self._prefill_seconds)
        return max(1, min(PREFILL, wanted, 2 * self._prefilled))  # at most doubled: a step may be quick by chance

    def _admit(self) -> None:
        """Take up waiting requests, in their order, each with what others have computed of its prompt."""
        while self.waiting and len(self.running) < self.max_running:
            request = self.waiting[0]
            others = [r for r in self.running if r.sequence]
            if any(self._will_share_more(r, request) for r in others):
                return  # a running request is computing the same beginning right now
            capacity = len(request.prompt) + (request.params.max_new_tokens or 0)
            request.sequence = self.cache.take(request.prompt, capacity, [r.sequence for r in others if r.sequence])
            request.cached_tokens = len(request.sequence.ids)
            request.times.started = time.perf_counter()
            self.running.append(self.waiting.popleft())

    def _will_share_more(self, running: Request, request: Request) -> bool:
        if running.pending <= 1 or running.sequence is None:
            return False
        block, known = self.runner.block, self.cache.shared(running.sequence, request.prompt)
        shared = min(common_length(running.prompt, request.prompt), len(request.prompt) - 1) // block * block
        return shared >= known + SHARE_FROM

    def _drafts(self, decoding: list[Request]) -> list[list[int]]:
        """Draft tokens for each request: those that are forced, else those of the prompt lookup. The latter only where
        a request runs alone, as rows beside others gain less and cost more; the former at most as many as there are
        requests, so that nobody waits much longer for a step."""
        drafts, left = [], max(MOST_DRAFT_TOKENS, len(decoding))
        for request in decoding:
            room = (request.params.max_new_tokens or 0) - request.new_tokens - 1
            draft = self._forced(request, min(room, left))
            left -= len(draft)
            if not draft and room > 0 and self.prompt_lookup and len(self.running) == 1:
                if request.lookup is None:
                    request.lookup = Lookup(request.prompt)
                for token_id in request.ids[len(request.lookup.ids) :]:
                    request.lookup.append(token_id)
                draft = request.lookup.draft(room, self.costs)
            drafts.append(draft)
        return drafts

    def _forced(self, request: Request, room: int) -> list[int]:
        if not request.forcing or not self.runner.batch_invariant:
            return []
        return list(request.forcing.forced(request.ids)[: max(0, min(room, MOST_DRAFT_TOKENS))])

    def _prefill(self, decoding: bool) -> list[tuple[Request, list[int], int]]:
        """Pieces of the prompts, first come first served, that end at multiples of the runner's block."""
        left = self._prefill_budget(decoding)
        pieces = []
        for request in self.running:
            if left <= 0:
                break
            if request.new_tokens or request.sequence is None:
                continue
            past, block = len(request.sequence.ids), self.runner.block
            end = min(len(request.prompt), max(past + left, past // block * block + block))
            if end < len(request.prompt):
                end = end // block * block
            pieces.append((request, request.prompt[past:end], int(end == len(request.prompt))))
            left -= end - past
        return pieces

    def _choose(self, rows: list[tuple[Request, list[int], int]], logits: Tensor) -> list[Token]:
        """Tokens from logits (Σ n, V): `rows` are (request, its draft, its first row). Where a choice agrees with the
        draft, the next row is a choice as well."""
        tokens, depth = [], 0
        while rows:
            going_on = []
            chosen = self._choose_row([r for r, _, _ in rows], logits, [first + depth for _, _, first in rows])
            for (request, draft, first), token in zip(rows, chosen, strict=True):
                if token is None:
                    continue
                tokens.append(token)
                request.tokens.append(token)
                if token.finish_reason:
                    self._finish(request, token.finish_reason)
                elif depth < len(draft) and token.token_id == draft[depth]:
                    going_on.append((request, draft, first))
                elif request.sequence:
                    request.sequence.cut(len(request.ids) - 1)  # the rest of the draft was computed for nothing
            rows, depth = going_on, depth + 1
        return tokens

    def _choose_row(self, requests: list[Request], logits: Tensor, at: list[int]) -> list[Token | None]:
        """A token for each request from its row of the logits; None for one that fails."""
        neighbours = at == list(range(at[0], at[0] + len(at)))
        own = logits[at[0] : at[0] + len(at)] if neighbours else logits[torch.tensor(at, device=logits.device)]
        scores = own.float()
        if any(r.processors or r.params.repetition_penalty != 1.0 for r in requests):
            scores = torch.cat([self._scores(r, row[None]) for r, row in zip(requests, scores, strict=True)])
        best = largest(scores)
        fine = scores.gather(-1, best[:, None])[:, 0].isfinite().tolist()
        ids = best.tolist()
        if not self.runner.batch_invariant and logits.dtype == torch.float32:
            two = scores.topk(2, dim=-1).values
            near = ((two[:, 0] - two[:, 1]) < NEAR_TIE).tolist()
            for i, request in enumerate(requests):
                if near[i] and fine[i] and request.params.temperature == 0 and request.sequence:
                    ids[i] = int(self._scores(request, self.runner.settle(request.sequence)).argmax())
        drawn = [i for i, r in enumerate(requests) if fine[i] and r.params.temperature > 0]
        if drawn:
            params, generators = [requests[i].params for i in drawn], [requests[i].generator for i in drawn]
            for i, token_id in zip(drawn, sample(scores[drawn], params, generators), strict=True):
                ids[i] = token_id
        chosen: list[Token | None] = []
        for i, request in enumerate(requests):
            if fine[i]:
                chosen.append(self._append(request, ids[i], own[i]))
                continue
            request.error = "the model's output is not a number: damaged weights, or a --dtype too narrow for them"
            self._finish(request, "error")
            chosen.append(None)
        return chosen

    def _scores(self, request: Request, logits: Tensor) -> Tensor:
        """Logits (1, V) after the request's own penalty and processors."""
        if request.params.repetition_penalty != 1.0:
            if request.seen is None:
                request.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
                request.seen[0, request.ids] = True
            logits = penalize_repetition(logits, request.seen, request.params.repetition_penalty)
        for processor in request.processors:
            logits = processor(request.ids, logits[0])[None]
        return logits

    def _append(self, request: Request, token_id: int, logits: Tensor) -> Token:
        """The request goes on with this token; logits (V,) are the model's own."""
        request.ids.append(token_id)
        if request.seen is not None:
            request.seen[0, token_id] = True
        if request.times.first_token is None:
            request.times.first_token = time.perf_counter()
        ended = token_id in request.end_token_ids
        reason = "stop" if ended else "length" if request.new_tokens >= (request.params.max_new_tokens or 0) else None
        if request.params.logprobs is None:
            return Token(request, token_id, reason)
        distribution = logits.float().log_softmax(-1)
        top = distribution.topk(min(request.params.logprobs, len(distribution)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return Token(request, token_id, reason, distribution[token_id].item(), tuple(pairs))

    def _finish(self, request: Request, reason: str) -> None:
        request.finish_reason, request.times.finished = reason, time.perf_counter()
        if request in self.running:
            self.running.remove(request)
        if request.sequence is not None:
            request.sequence.cut(min(len(request.sequence.ids), len(request.ids) - 1))
            if reason != "error":
                self.cache.put(request.sequence)
        request.sequence = request.lookup = request.seen = None
