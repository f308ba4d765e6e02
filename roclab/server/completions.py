"""`/v1/completions`: OpenAI's older API, a text in and its continuation out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.lm.generate import TokenEvent
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.chat import StreamOptions
from roclab.server.generation import Call, Prompts, Sampling, events_of, prompts_of, until_gone
from roclab.server.models import Model
from roclab.server.replies import CompletionReply, described
from roclab.server.sse import EventStream
from roclab.server.text import Answer, logprobs_of, timings_of, usage_of

router = APIRouter()
MOST = 256  # prompts a request


class CompletionRequest(Sampling):
    model: str
    prompt: Prompts = Field(description="Texts, or token ids.")
    max_tokens: int | None = Field(default=16, ge=1)
    n: int = Field(default=1, ge=1, le=64)
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Literal[1] | None = Field(default=None, description="Not served.")
    suffix: None = Field(default=None, description="Not served.")

    @model_validator(mode="after")
    def _served(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("log-probabilities of the prompt are not served: ask for echo or for logprobs")
        return self


@router.post("/v1/completions", response_model=None, responses=described(CompletionReply, streams=True))
async def completions(asked: CompletionRequest, http: HttpRequest) -> Response:
    async with http.app.state.models.use(asked.model) as model:
        call = model.call()
        size = model.worker.runner.config.vocab_size
        prompts = await asyncio.to_thread(prompts_of, asked.prompt, model.worker, "prompt", MOST)
        call.check(len(prompts) * asked.n)
        for prompt in prompts:
            processors = partial(asked.processors, prompt, size)
            call.submit(prompt, asked.params(asked.logprobs), asked.max_tokens, processors, asked.n)
        about = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": model.name,
        }  # fmt: skip
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return EventStream(http, model, call, chunks(model, call, about, asked, usage))
        return JSONResponse(await until_gone(http, whole(model, call, about, asked)))


def echoed(call: Call, number: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(call.requests[number].prompt, control=True)


def legacy_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenEvent], at: int) -> dict[str, Any]:
    """Log-probabilities in the shape of the older API: lists, and where each token begins in the text; the first
    at `at`."""
    shown, offsets = [logprobs_of(tokenizer, event) for event in tokens], []
    for event in tokens:
        offsets.append(at)
        at += len(event.thinking + event.text)
    return {
        "tokens": [entry["token"] for entry in shown],
        "token_logprobs": [entry["logprob"] for entry in shown],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in shown],
        "text_offset": offsets,
    }


async def whole(model: Model, call: Call, about: dict[str, Any], asked: CompletionRequest) -> dict[str, Any]:
    answers = [Answer() for _ in call.tickets]
    async with events_of(call) as events:
        async for number, event in events:
            answers[number].add(event)
    tokenizer, choices = model.worker.tokenizer, []
    for number, answer in enumerate(answers):
        before = echoed(call, number, tokenizer) if asked.echo else ""
        text = before + answer.reasoning + answer.content
        shown = None if asked.logprobs is None else legacy_logprobs(tokenizer, answer.tokens, len(before))
        choices.append({"index": number, "text": text, "logprobs": shown, "finish_reason": answer.finish_reason})
    done = sum(len(answer.tokens) for answer in answers)
    usage = usage_of(call.requests[:: asked.n], done)
    return {
        **about,
        "choices": choices,
        "usage": usage,
        "timings": timings_of(call.requests[0], len(answers[0].tokens)),
    }


async def chunks(
    model: Model, call: Call, about: dict[str, Any], asked: CompletionRequest, usage: bool
) -> AsyncIterator[dict[str, Any]]:
    answers, tokenizer = [Answer() for _ in call.tickets], model.worker.tokenizer

    def chunk(number: int, text: str, reason: str | None, shown: Any = None) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": shown, "finish_reason": reason}
        return {**about, "choices": [choice], **({"usage": None} if usage else {})}

    sent = [0] * len(answers)  # characters
    if asked.echo:
        for number in range(len(answers)):
            before = echoed(call, number, tokenizer)
            sent[number] = len(before)
            yield chunk(number, before, None)
    async with events_of(call) as events:
        async for number, event in events:
            text = "".join(gained.thinking + gained.text for gained in answers[number].add(event))
            shown = None if asked.logprobs is None else legacy_logprobs(tokenizer, [event], sent[number])
            sent[number] += len(text)
            yield chunk(number, text, event.finish_reason, shown)
    if usage:
        done = sum(len(answer.tokens) for answer in answers)
        yield {**about, "choices": [], "usage": usage_of(call.requests[:: asked.n], done)}
