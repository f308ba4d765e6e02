"""The answers of one call, put together from their events: thought, content, tokens, why they ended."""

from __future__ import annotations

import time
from typing import Any

from roclab.lm.engine.scheduler import Request
from roclab.lm.generate import TokenEvent
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.tools import Gained, ToolCall, ToolReader


class Answer:
    """One answer so far: `reasoning` and `content`, without the blanks around a thought, and the tool `calls`."""

    def __init__(self, tools: ToolReader | None = None):
        self.reasoning, self.content = "", ""
        self.tokens: list[TokenEvent] = []
        self.finish_reason: str | None = None
        self._tools = tools

    @property
    def calls(self) -> list[ToolCall]:
        return self._tools.calls if self._tools else []

    def add(self, event: TokenEvent) -> list[Gained]:
        """Takes an event; returns what a streaming reader gains."""
        self.tokens.append(event)
        if event.was_thinking:  # the text so far was the thought, which the model ends here and never opened
            self.reasoning, self.content = self.content, ""
        found = []
        if thinking := event.thinking if self.reasoning else event.thinking.lstrip():
            self.reasoning += thinking
            found.append(Gained(thinking=thinking))
        text = event.text if self.content or not self.reasoning else event.text.lstrip()
        if self._tools:
            gained = self._tools.feed(event.token_id, text, bool(event.finish_reason))
        else:
            gained = [Gained(text=text)] if text else []
        self.content += "".join(piece.text for piece in gained)
        if event.finish_reason:
            called = self._tools is not None and self._tools.complete and event.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else event.finish_reason
        return [*found, *gained]

    @property
    def reasoning_tokens(self) -> int:
        """How many of its tokens belong to the thought: all up to its last."""
        last = max((i for i, e in enumerate(self.tokens) if e.thinking or e.was_thinking), default=-1)
        return last + 1

    @property
    def thought(self) -> str | None:
        return self.reasoning.strip() or None


def logprob_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """A token as OpenAI's chat API shows it: its text, and the bytes it stands for."""
    data = tokenizer.token_bytes(token_id, control=True)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}


def logprobs_of(tokenizer: Tokenizer, event: TokenEvent) -> dict[str, Any]:
    """The chosen token with its most likely alternatives."""
    entry = logprob_entry(tokenizer, event.token_id, event.logprob or 0.0)
    return {**entry, "top_logprobs": [logprob_entry(tokenizer, i, value) for i, value in event.top_logprobs]}


def usage_of(requests: list[Request], completion_tokens: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's count of tokens; `requests`: one for each prompt, whose several answers it counts once."""
    prompt = sum(len(request.prompt) for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(r.cached_tokens for r in requests)},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def timings_of(request: Request, completion_tokens: int) -> dict[str, Any]:
    """Milliseconds in the queue, to the first token and for each token after it."""
    times, now = request.times, time.perf_counter()
    first = times.seconds_to_first_token
    decode = (times.finished or now) - times.first_token if times.first_token else 0.0
    each = decode / (completion_tokens - 1) if completion_tokens > 1 else None
    return {
        "queue_ms": round(1000 * times.queue_seconds, 3),
        "first_token_ms": None if first is None else round(1000 * first, 3),
        "token_ms": None if each is None else round(1000 * each, 3),
        "cached_tokens": request.cached_tokens,
    }
