"""`/v1/responses`: OpenAI's newer API, in which the server remembers the turns before (`previous_response_id`)."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
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
KEPT = 1024  # responses that the server remembers; the oldest go


class InputItem(BaseModel):
    """A message or a thought of the conversation so far, as earlier responses gave them out."""

    type: Literal["message", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[dict[str, Any]] | None = None
    summary: list[Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str) or self.content is None:
            return self.content or ""
        if wrong := [part.get("type") for part in self.content if not isinstance(part.get("text"), str)]:
            raise ApiError(400, f"input: parts of type {wrong[0]!r} are not served, only texts are", "input")
        return "".join(part["text"] for part in self.content)


class Reasoning(BaseModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Any = None


class ResponsesRequest(BaseModel):
    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    reasoning: Reasoning | None = None
    store: bool = True
    stream: bool = False
    metadata: dict[str, str] | None = None
    background: bool = False
    tools: list[Any] | None = None
    text: dict[str, Any] | None = None

    def items(self) -> list[InputItem]:
        if isinstance(self.input, str):
            return [InputItem(role="user", content=self.input)]
        return self.input

    def refuse_what_is_not_served(self) -> None:
        kind = ((self.text or {}).get("format") or {}).get("type", "text")
        for name, given in (("background", self.background), ("tools", self.tools), ("text.format", kind != "text")):
            if given:
                raise ApiError(400, f"{name} is not served yet", name)


@dataclass
class Stored:
    """A response and the turns it ends."""

    body: dict[str, Any]
    turns: list[chat.Message]


class Store:
    """The last responses, by their ids."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Stored] = OrderedDict()

    def put(self, stored: Stored) -> None:
        self._kept[stored.body["id"]] = stored
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def get(self, name: str) -> Stored:
        if name not in self._kept:
            raise ApiError(404, f"response {name!r} is not here: it was never stored, deleted, or is too old")
        return self._kept[name]

    def delete(self, name: str) -> None:
        self.get(name)
        del self._kept[name]


def turns_of(items: list[InputItem]) -> list[chat.Message]:
    """Chat messages; a thought goes into the answer that follows it."""
    turns, thought = [], ""
    for item in items:
        if item.type == "reasoning":
            thought = item.text
            continue
        own = thought if item.role == "assistant" else ""
        turns.append(chat.Message(role=item.role, content=item.text, reasoning_content=own or None))
        thought = ""
    return turns


@router.post("/v1/responses", response_model=None)
async def create(asked: ResponsesRequest, http: HttpRequest) -> Response:
    asked.refuse_what_is_not_served()
    store: Store = http.app.state.responses
    before = store.get(asked.previous_response_id).turns if asked.previous_response_id else []
    turns = [*before, *turns_of(asked.items())]
    async with http.app.state.models.use(asked.model) as model:
        call = begin(asked, model, turns)
        found = Running(asked, model, call, turns, store)
        if asked.stream:
            return EventStream(http, model, call, found.events(), named=True)
        return JSONResponse(await until_gone(http, found.whole()))


def begin(asked: ResponsesRequest, model: Model, turns: list[chat.Message]) -> Call:
    own = [chat.Message(role="system", content=asked.instructions)] if asked.instructions else []
    effort = asked.reasoning.effort if asked.reasoning else None
    prompt = chat.encode(model.worker.tokenizer, [*own, *turns], None if effort is None else effort != "none")
    call = model.call()
    sampling = Sampling(temperature=asked.temperature, top_p=asked.top_p)
    call.submit(prompt, sampling.params(), asked.max_output_tokens)
    return call


@router.get("/v1/responses/{response_id}")
async def get(response_id: str, http: HttpRequest) -> dict[str, Any]:
    return http.app.state.responses.get(response_id).body


@router.delete("/v1/responses/{response_id}")
async def delete(response_id: str, http: HttpRequest) -> dict[str, Any]:
    http.app.state.responses.delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


class Running:
    """A response on its way: its object, its items, its events."""

    def __init__(self, asked: ResponsesRequest, model: Model, call: Call, turns: list[chat.Message], store: Store):
        self.asked, self.model, self.call, self.turns, self.store = asked, model, call, turns, store
        self.answer = Answer()
        self.ids = {kind: f"{kind}_{uuid.uuid4().hex}" for kind in ("resp", "rs", "msg")}
        self.created = time.time()

    def body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked, cut = self.asked, status == "incomplete"
        return {
            "id": self.ids["resp"], "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "model": self.model.name, "output": output, "parallel_tool_calls": True,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": asked.store, "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p, "truncation": "disabled", "background": False,
            "usage": self.usage() if status in ("completed", "incomplete") else None,
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        (request,) = self.call.requests
        new = len(self.answer.tokens)
        return {
            "input_tokens": len(request.prompt), "input_tokens_details": {"cached_tokens": request.cached_tokens},
            "output_tokens": new, "output_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "total_tokens": len(request.prompt) + new,
        }  # fmt: skip

    def reasoning_item(self, status: str) -> dict[str, Any]:
        parts = [{"type": "reasoning_text", "text": self.answer.thought}] if self.answer.thought else []
        return {"type": "reasoning", "id": self.ids["rs"], "summary": [], "content": parts, "status": status}

    def message_item(self, status: str) -> dict[str, Any]:
        parts = [] if status == "in_progress" else [self.part(self.answer.content)]
        return {"type": "message", "id": self.ids["msg"], "role": "assistant", "status": status, "content": parts}

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def finished(self) -> dict[str, Any]:
        """The whole response, remembered if that is asked for."""
        status = "incomplete" if self.answer.finish_reason == "length" else "completed"
        output = [self.reasoning_item("completed")] if self.answer.thought else []
        body = self.body(status, [*output, self.message_item(status)])
        if self.asked.store:
            own = chat.Message(role="assistant", content=self.answer.content, reasoning_content=self.answer.thought)
            self.store.put(Stored(body, [*self.turns, own]))
        return body

    async def whole(self) -> dict[str, Any]:
        async with events_of(self.call) as found:
            async for _, event in found:
                self.answer.add(event)
        return self.finished()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The response as a stream, numbered."""
        number = 0
        async for event in self._events():
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": self.body("in_progress", [])}
        index, kind = -1, ""
        async with events_of(self.call) as found:
            async for _, event in found:
                for gained in self.answer.add(event):
                    new, piece = ("reasoning", gained.thinking) if gained.thinking else ("message", gained.text)
                    if new != kind:
                        for ended in self._end(kind, index):
                            yield ended
                        index, kind = index + 1, new
                        for begun in self._begin(kind, index):
                            yield begun
                    name = "reasoning_text" if kind == "reasoning" else "output_text"
                    yield {"type": f"response.{name}.delta", "delta": piece, **self._where(kind, index)}
        for ended in self._end(kind, index):
            yield ended
        if kind != "message":  # an answer without a word is one all the same
            for made in (*self._begin("message", index + 1), *self._end("message", index + 1)):
                yield made
        body = self.finished()
        yield {"type": f"response.{body['status']}", "response": body}

    def _where(self, kind: str, index: int) -> dict[str, Any]:
        where = {"item_id": self.ids["rs" if kind == "reasoning" else "msg"], "output_index": index, "content_index": 0}
        return where if kind == "reasoning" else {**where, "logprobs": []}

    def _begin(self, kind: str, index: int) -> list[dict[str, Any]]:
        if kind == "reasoning":
            item = {**self.reasoning_item("in_progress"), "content": []}
            return [{"type": "response.output_item.added", "output_index": index, "item": item}]
        item = self.message_item("in_progress")
        where = self._where(kind, index)
        return [
            {"type": "response.output_item.added", "output_index": index, "item": item},
            {"type": "response.content_part.added", "part": self.part(""), **where},
        ]

    def _end(self, kind: str, index: int) -> list[dict[str, Any]]:
        if not kind:
            return []
        where = self._where(kind, index)
        if kind == "reasoning":
            item, text = self.reasoning_item("completed"), self.answer.thought or ""
            ends: list[dict[str, Any]] = [{"type": "response.reasoning_text.done", "text": text, **where}]
        else:
            status = "incomplete" if self.answer.finish_reason == "length" else "completed"
            item, text = self.message_item(status), self.answer.content
            ends = [
                {"type": "response.output_text.done", "text": text, **where},
                {"type": "response.content_part.done", "part": self.part(text), **where},
            ]
        return [*ends, {"type": "response.output_item.done", "output_index": index, "item": item}]
