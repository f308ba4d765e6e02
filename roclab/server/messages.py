"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.server import chat
from roclab.server.errors import ApiError
from roclab.server.generation import Call, Sampling, events_of, until_gone
from roclab.server.models import Model
from roclab.server.sse import EventStream
from roclab.server.text import Answer

router = APIRouter()
ENDS = {"stop": "end_turn", "length": "max_tokens"}


class Block(BaseModel):
    """A piece of a message: text, or the thought of an earlier answer."""

    type: Literal["text", "thinking"]
    text: str = ""
    thinking: str = ""


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[Block]

    def for_chat(self) -> chat.Message:
        if isinstance(self.content, str):
            return chat.Message(role=self.role, content=self.content)
        text = "".join(block.text for block in self.content if block.type == "text")
        thought = "".join(block.thinking for block in self.content if block.type == "thinking")
        return chat.Message(role=self.role, content=text, reasoning_content=thought or None)


class Thinking(BaseModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1)


class Prompt(BaseModel):
    model: str
    messages: list[Turn] = Field(min_length=1)
    system: str | list[Block] | None = None
    thinking: Thinking | None = None
    tools: list[Any] | None = None

    def encode(self, model: Model) -> list[int]:
        if self.tools:
            raise ApiError(400, "tools are not served yet", "tools")
        system = self.system if isinstance(self.system, str) else "".join(b.text for b in self.system or [])
        turns = [chat.Message(role="system", content=system)] if system else []
        turns += [turn.for_chat() for turn in self.messages]
        asked = None if self.thinking is None or self.thinking.type == "adaptive" else self.thinking.type == "enabled"
        return chat.encode(model.worker.tokenizer, turns, asked)


class MessagesRequest(Prompt):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    stop_sequences: list[str] | None = None
    stream: bool = False

    def begin(self, model: Model) -> Call:
        prompt = self.encode(model)
        sampling = Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=self.stop_sequences or []
        )
        call = model.call()
        call.submit(prompt, sampling.params(), self.max_tokens)
        return call


@router.post("/v1/messages", response_model=None)
async def create(asked: MessagesRequest, http: HttpRequest) -> Response:
    async with http.app.state.models.use(asked.model) as model:
        call = asked.begin(model)
        about = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model.name}
        if asked.stream:
            return EventStream(http, model, call, events(call, about), named=True)
        return JSONResponse(await until_gone(http, whole(call, about)))


@router.post("/v1/messages/count_tokens")
async def count_tokens(asked: Prompt, http: HttpRequest) -> dict[str, int]:
    async with http.app.state.models.use(asked.model) as model:
        return {"input_tokens": len(asked.encode(model))}


def usage(call: Call, answer: Answer) -> dict[str, Any]:
    (request,) = call.requests
    cached = request.cached_tokens
    return {
        "input_tokens": len(request.prompt) - cached, "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0, "output_tokens": len(answer.tokens),
    }  # fmt: skip


def ending(call: Call, answer: Answer) -> dict[str, Any]:
    """Why the answer ended: Anthropic tells a stop string from the model's own end."""
    found = call.tickets[0].detokenizer.stop_string
    reason = "stop_sequence" if found else ENDS.get(str(answer.finish_reason), "end_turn")
    return {"stop_reason": reason, "stop_sequence": found}


async def whole(call: Call, about: dict[str, Any]) -> dict[str, Any]:
    answer = Answer()
    async with events_of(call) as found:
        async for _, event in found:
            answer.add(event)
    thought = [{"type": "thinking", "thinking": answer.thought, "signature": ""}] if answer.thought else []
    blocks = [*thought, {"type": "text", "text": answer.content}]
    return {**about, "content": blocks, **ending(call, answer), "usage": usage(call, answer)}


async def events(call: Call, about: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The message as Anthropic's stream: blocks that begin, grow and end."""
    answer, index, kind = Answer(), -1, ""

    def begin_block(new: str) -> dict[str, Any]:
        block = {"type": "text", "text": ""} if new == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "content_block_start", "index": index, "content_block": block}

    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(call, answer)}
    yield {"type": "message_start", "message": {**about, **empty}}
    async with events_of(call) as found:
        async for _, event in found:
            for gained in answer.add(event):
                new, piece = ("thinking", gained.thinking) if gained.thinking else ("text", gained.text)
                if new != kind:
                    if kind:
                        yield {"type": "content_block_stop", "index": index}
                    index, kind = index + 1, new
                    yield begin_block(new)
                yield {"type": "content_block_delta", "index": index, "delta": {"type": f"{new}_delta", new: piece}}
    if not kind:
        index = 0
        yield begin_block("text")
    yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": ending(call, answer), "usage": usage(call, answer)}
    yield {"type": "message_stop"}
