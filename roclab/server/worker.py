"""An engine in a thread of its own. Coroutines submit requests and wait for their tokens; they never wait for a step.

    event loop                                  engine's thread
    submit → Engine.submit (no lock)      →     wake up
                                                step, step, …
    read: tokens → text → client          ←     "there are tokens" (one call into the loop a step)
    cancel → a note                       →     taken before the next step

The kernels let go of Python's lock, so the loop writes the texts of one step while the next is computed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roclab.core.devices import usable_cores
from roclab.core.exceptions import RocLabError
from roclab.lm.engine.runner import Runner
from roclab.lm.engine.scheduler import Engine, LogitsProcessor, Request
from roclab.lm.generate import TokenEvent, next_event
from roclab.lm.settings import SamplingParams
from roclab.lm.text.detokenizer import Detokenizer
from roclab.lm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Too many requests wait already."""


@dataclass(eq=False)
class Ticket:
    """A request on its way, read by one coroutine."""

    request: Request
    detokenizer: Detokenizer
    loop: asyncio.AbstractEventLoop
    news: asyncio.Event


class Worker:
    """Runs `runner` for any number of coroutines. `turn`: held during a step, so models take turns on the cores."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        max_running: int,
        max_waiting: int,
        cache_bytes: int,
        turn: threading.Lock,
    ):
        self.runner, self.tokenizer, self.max_waiting = runner, tokenizer, max_waiting
        self.engine = Engine(runner, max_running=max_running, cache_bytes=cache_bytes)
        self.ends = frozenset({*runner.config.eos_token_ids, *tokenizer.eos_token_ids})
        self._turn = turn
        self._tickets: dict[Request, Ticket] = {}
        self._cancelled: deque[tuple[Request, str]] = deque()
        self._work, self.closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, processors: Sequence[LogitsProcessor] = ()
    ) -> Ticket:
        """Queue a prompt, from a coroutine. Raises Busy, and RocLabError for one that the model cannot take."""
        if len(self.engine.waiting) >= self.max_waiting + max(0, self.engine.max_running - len(self.engine.running)):
            raise Busy
        request = self.engine.submit(prompt, params, end_token_ids=self.ends, processors=processors)
        detokenizer = Detokenizer(self.tokenizer, prompt, params.stop)
        ticket = Ticket(request, detokenizer, asyncio.get_running_loop(), asyncio.Event())
        self._tickets[request] = ticket
        self._work.set()
        return ticket

    def cancel(self, ticket: Ticket, reason: str = "cancelled") -> None:
        """End a request before the next step; one that has ended stays as it is."""
        self._tickets.pop(ticket.request, None)
        self._cancelled.append((ticket.request, reason))
        self._work.set()

    async def events(self, ticket: Ticket) -> AsyncIterator[TokenEvent]:
        """The ticket's tokens as text, in order; the last has a `finish_reason`. Raises RocLabError if it fails."""
        request = ticket.request
        while True:
            while request.tokens:
                event = next_event(0, request, ticket.detokenizer)
                if event.finish_reason:  # the engine does not know of stop strings
                    self.cancel(ticket, event.finish_reason)
                yield event
                if event.finish_reason:
                    return
            if request.done and not request.tokens:
                raise RocLabError(request.error or "the server is shutting down")
            ticket.news.clear()
            if not (request.tokens or request.done):
                await ticket.news.wait()

    def hidden(self, ids: Sequence[int]) -> Tensor:
        """The last hidden states (T, D) of a text, in pieces between the engine's steps."""
        return self.runner.hidden(ids).cpu()

    def close(self) -> None:
        """End what runs, and the thread. Requests that have not ended fail in one line."""
        self.closing = True
        self._work.set()
        self._thread.join()

    @property
    def idle(self) -> bool:
        return not (self.engine.running or self.engine.waiting)

    def _run(self) -> None:
        # The kernels have threads of their own. What torch does beside them, on a row of logits, is sooner done in one
        # than handed to a second that must first get a core.
        torch.set_num_threads(1 if self.runner.name == "fast" else usable_cores())
        while not self.closing:
            self._work.wait()
            self._work.clear()
            while not self.closing and (self._cancelled or not self.idle):
                self._step()
        for request in list(self._tickets):
            self.engine.cancel(request)
        self._tell()

    def _step(self) -> None:
        try:
            while self._cancelled:
                self.engine.cancel(*self._cancelled.popleft())
            with self._turn:
                self.engine.step()
        except Exception as error:  # out of memory, say: these requests fail, later ones may not
            logger.exception("a step failed; its requests are ended")
            for request in [*self.engine.running, *self.engine.waiting]:
                request.error = f"the engine failed: {str(error) or type(error).__name__}"
                self.engine.cancel(request, "error")
        self._tell()

    def _tell(self) -> None:
        """Wake every coroutine that has something to read: one call into its loop for all of them."""
        ready = [ticket for ticket in list(self._tickets.values()) if ticket.request.tokens or ticket.request.done]
        if not ready:
            return

        def wake() -> None:
            for ticket in ready:
                ticket.news.set()

        try:
            ready[0].loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop has ended, and with it everyone who waited
            self._tickets.clear()
