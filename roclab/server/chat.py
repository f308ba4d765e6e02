"""`/v1/chat/completions`: OpenAI's chat API."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.core.exceptions import RocLabError
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.errors import ApiError
from roclab.server.generation import Call, Sampling, events_of, until_gone
from roclab.server.models import Model
from roclab.server.sse import EventStream
from roclab.server.text import Answer, logprobs_of, timings_of, usage_of

router = APIRouter()


class TextPart(BaseModel):
    type: Literal["text", "input_text", "output_text"] = "text"
    text: str


class Message(BaseModel):
    """A message of a chat. The thought of an earlier answer may be given as `reasoning_content` or `reasoning`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: texts alone."""
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        thought = self.reasoning_content or self.reasoning
        more = {"reasoning_content": thought} if thought and self.role == "assistant" else {}
        return {"role": self.role, "content": content, **more}


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(Sampling):
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=64)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall think: None leaves it to its template."""
        asked = (self.chat_template_kwargs or {}).get("enable_thinking")
        if isinstance(asked, bool):
            return asked
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"


def encode(tokenizer: Tokenizer, messages: Sequence[Message], thinking: bool | None, more: dict[str, Any]) -> list[int]:
    """The prompt's ids. Raises ApiError where the template does not take the messages."""
    variables = {name: value for name, value in more.items() if name not in ("enable_thinking", "messages", "now")}
    try:
        return tokenizer.encode_chat(
            [message.for_template() for message in messages], enable_thinking=thinking, now=datetime.now(), **variables
        )
    except (RocLabError, TypeError) as error:
        raise ApiError(400, str(error), "messages") from None


def not_supported(asked: ChatRequest) -> None:
    """Refuses what would otherwise be left out in silence."""
    if asked.tools:
        raise ApiError(400, "tools are not served yet", "tools")
    if asked.response_format and asked.response_format.get("type", "text") != "text":
        raise ApiError(400, "response_format: only text is served yet", "response_format")


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(asked: ChatRequest, http: HttpRequest) -> Response:
    not_supported(asked)
    async with http.app.state.models.use(asked.model) as model:
        call = begin(asked, model)
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return EventStream(http, model, call, chunks(model, call, about, asked.logprobs, usage))
        return JSONResponse(await until_gone(http, whole(model, call, about, asked.logprobs)))


def begin(asked: ChatRequest, model: Model) -> Call:
    """The call's requests, submitted."""
    prompt = encode(model.worker.tokenizer, asked.messages, asked.thinking, asked.chat_template_kwargs or {})
    params = asked.params(logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)
    processors = asked.processors(prompt, model.worker.runner.config.vocab_size)
    call = model.call()
    call.submit(prompt, params, asked.max_completion_tokens or asked.max_tokens, processors, asked.n)
    return call


async def whole(model: Model, call: Call, about: dict[str, Any], logprobs: bool) -> dict[str, Any]:
    """The answers in one object."""
    answers = [Answer() for _ in call.tickets]
    async with events_of(call) as events:
        async for number, event in events:
            answers[number].add(event)
    tokenizer, requests = model.worker.tokenizer, call.requests
    choices = []
    for number, answer in enumerate(answers):
        message = {"role": "assistant", "content": answer.content}
        if answer.thought:
            message |= {"reasoning_content": answer.thought, "reasoning": answer.thought}
        shown = {"content": [logprobs_of(tokenizer, event) for event in answer.tokens]} if logprobs else None
        choices.append({"index": number, "message": message, "logprobs": shown, "finish_reason": answer.finish_reason})
    done = sum(len(answer.tokens) for answer in answers)
    return {
        **about, "object": "chat.completion", "choices": choices, "usage": usage_of(requests[:1], done),
        "timings": timings_of(requests[0], len(answers[0].tokens)),
    }  # fmt: skip


async def chunks(
    model: Model, call: Call, about: dict[str, Any], logprobs: bool, usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The answers as they come: `chat.completion.chunk` objects."""
    answers, tokenizer = [Answer() for _ in call.tickets], model.worker.tokenizer
    about = {**about, "object": "chat.completion.chunk"}

    def chunk(number: int, delta: dict[str, Any], reason: str | None = None, shown: Any = None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": shown, "finish_reason": reason}
        return {**about, "choices": [choice], **({"usage": None} if usage else {})}

    for number in range(len(answers)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async with events_of(call) as events:
        async for number, event in events:
            thinking, text = answers[number].add(event)
            delta: dict[str, Any] = {"content": text} if text else {}
            if thinking:
                delta |= {"reasoning_content": thinking, "reasoning": thinking}
            shown = {"content": [logprobs_of(tokenizer, event)]} if logprobs else None
            if delta or shown:
                yield chunk(number, delta, None, shown)
            if event.finish_reason:
                yield chunk(number, {}, event.finish_reason)
    done = sum(len(answer.tokens) for answer in answers)
    if usage:
        yield {
            **about,
            "choices": [],
            "usage": usage_of(call.requests[:1], done),
            "timings": timings_of(call.requests[0], done),
        }
