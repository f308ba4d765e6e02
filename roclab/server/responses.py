"""`/v1/responses`: OpenAI's newer API, in which the server remembers the turns before (`previous_response_id`)."""

from __future__ import annotations

import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.server.chat import Begun, begin, chat_request
from roclab.server.errors import ApiError
from roclab.server.fields import Asked, Many
from roclab.server.generation import events_of, until_gone
from roclab.server.replies import DeletedReply, ResponseReply, described
from roclab.server.sse import EventStream
from roclab.server.tools import Gained, ToolCall

router = APIRouter()
DELTAS = {"reasoning": "reasoning_text", "message": "output_text", "function_call": "function_call_arguments"}
KEPT, KEPT_SIZE = 1024, 64 << 20  # responses that the server remembers, and characters of them; the oldest go


class InputItem(Asked):
    """A message, a thought, a tool's call or its result, as earlier responses gave them out."""

    type: Literal["message", "reasoning", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str = "{}"
    output: str | list[dict[str, Any]] | None = None


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's parts. Raises ApiError for parts of another kind."""
    if isinstance(content, str) or content is None:
        return content or ""
    if wrong := [part.get("type") for part in content if not isinstance(part.get("text"), str)]:
        raise ApiError(400, f"input: parts of type {wrong[0]!r} are not served, only texts are", "input")
    return "\n".join(part["text"] for part in content)


def turns_of(items: list[InputItem]) -> list[dict[str, Any]]:
    """Messages as the chat API has them: a thought and calls go into the answer that they belong to."""
    turns: list[dict[str, Any]] = []
    for item in items:
        if item.type == "function_call_output":
            turns.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
            continue
        mine = item.type != "message" or item.role == "assistant"
        open_turn = mine and turns and turns[-1]["role"] == "assistant" and not turns[-1].get("content")
        turn: dict[str, Any] = turns.pop() if open_turn else {"role": "assistant" if mine else item.role, "content": ""}
        if item.type == "reasoning":
            turn["reasoning_content"] = text_of(item.content)
        elif item.type == "function_call":
            call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
            turn["tool_calls"] = [*turn.get("tool_calls", []), call]
        else:
            turn["content"] = text_of(item.content)
        turns.append(turn)
    return turns


class Reasoning(Asked):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Any = None


class OfferedTool(Asked):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        empty = {"type": "object", "properties": {}}
        return {
            "function": {"name": self.name, "description": self.description, "parameters": self.parameters or empty}
        }


class NamedTool(Asked):
    type: Literal["function"]
    name: str


class Format(Asked):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None
    description: str | None = None

    def for_chat(self) -> dict[str, Any]:
        schema = {"name": self.name or "answer", "schema": self.schema_}
        return {"type": self.type, **({"json_schema": schema} if self.type == "json_schema" else {})}


class TextOptions(Asked):
    format: Format = Field(default_factory=Format)
    verbosity: Any = None


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]


class ResponsesRequest(Asked):
    model: str
    input: str | Annotated[Many[InputItem], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    reasoning: Reasoning | None = None
    tools: Many[OfferedTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    store: bool = True
    stream: bool = False
    metadata: Annotated[dict[MetadataKey, MetadataText], Field(max_length=16)] | None = None
    conversation: None = Field(default=None, description="Not served: give previous_response_id.")
    prompt: None = Field(default=None, description="Not served.")
    background: bool = False

    def turns(self) -> list[dict[str, Any]]:
        items = [InputItem(content=self.input)] if isinstance(self.input, str) else self.input
        return turns_of(items)

    def for_chat(self, turns: list[dict[str, Any]]) -> dict[str, Any]:
        """What the chat API would be asked, with all turns."""
        own = [{"role": "system", "content": self.instructions}] if self.instructions else []
        effort, choice = self.reasoning and self.reasoning.effort, self.tool_choice
        return {
            "model": self.model, "messages": [*own, *turns], "max_tokens": self.max_output_tokens,
            "temperature": self.temperature, "top_p": self.top_p,
            "reasoning_effort": effort,
            "tools": [tool.for_chat() for tool in self.tools] if self.tools else None,
            "tool_choice": {"function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice,
            "parallel_tool_calls": self.parallel_tool_calls, "response_format": self.text.format.for_chat(),
        }  # fmt: skip


@dataclass
class Stored:
    """A response, and the turns up to and with it."""

    body: dict[str, Any]
    turns: list[dict[str, Any]]

    @cached_property
    def size(self) -> int:
        return len(json.dumps([self.body, self.turns]))


class Store:
    """The last responses, by their ids."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._size = 0

    def put(self, stored: Stored) -> None:
        self._kept[stored.body["id"]] = stored
        self._size += stored.size
        while len(self._kept) > KEPT or (self._size > KEPT_SIZE and len(self._kept) > 1):
            self._size -= self._kept.popitem(last=False)[1].size

    def get(self, name: str) -> Stored:
        if name not in self._kept:
            raise ApiError(404, f"response {name!r} is not here: it was never stored, deleted, or is too old")
        return self._kept[name]

    def delete(self, name: str) -> None:
        self._size -= self.get(name).size
        del self._kept[name]


@router.post("/v1/responses", response_model=None, responses=described(ResponseReply, streams=True))
async def create(asked: ResponsesRequest, http: HttpRequest) -> Response:
    if asked.background:
        raise ApiError(400, "background is not served: stream the response instead", "background")
    store: Store = http.app.state.responses
    before = store.get(asked.previous_response_id).turns if asked.previous_response_id else []
    turns = [*before, *asked.turns()]
    chatting = chat_request(asked.for_chat(turns))
    async with http.app.state.models.use(asked.model) as model:
        begun = await begin(chatting, model)
        running = Running(asked, model.name, begun, turns, store)
        if asked.stream:
            return EventStream(http, model, begun.call, running.events(), named=True)
        return JSONResponse(await until_gone(http, running.whole()))


@router.get("/v1/responses/{response_id}", responses=described(ResponseReply))
async def get(response_id: str, http: HttpRequest) -> dict[str, Any]:
    return http.app.state.responses.get(response_id).body


@router.delete("/v1/responses/{response_id}", responses=described(DeletedReply))
async def delete(response_id: str, http: HttpRequest) -> dict[str, Any]:
    http.app.state.responses.delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/v1/responses/{response_id}/cancel", responses=described(ResponseReply))
async def cancel(response_id: str, http: HttpRequest) -> dict[str, Any]:
    http.app.state.responses.get(response_id)
    raise ApiError(400, "only background responses can be cancelled: close the stream instead")


class Running:
    """A response on its way: its object, its items, its events."""

    def __init__(self, asked: ResponsesRequest, model: str, begun: Begun, turns: list[dict[str, Any]], store: Store):
        self.asked, self.model, self.turns, self.store = asked, model, turns, store
        self.call, self.answer = begun.call, begun.answers[0]
        self.id, self.created = f"resp_{uuid.uuid4().hex}", time.time()
        self.items: list[dict[str, Any]] = []

    def body(self, status: str) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "model": self.model,
            "output": [] if status == "in_progress" else self.items,
            "parallel_tool_calls": asked.parallel_tool_calls, "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": asked.store, "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": asked.text.model_dump(by_alias=True, exclude_none=True), "truncation": "disabled",
            "tool_choice": asked.model_dump(include={"tool_choice"})["tool_choice"] or "auto",
            "tools": [tool.model_dump() for tool in asked.tools or []],
            "top_p": 1.0 if asked.top_p is None else asked.top_p, "background": False,
            "usage": None if status == "in_progress" else self.usage(),
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        (request,) = self.call.requests
        new = len(self.answer.tokens)
        return {
            "input_tokens": len(request.prompt), "input_tokens_details": {"cached_tokens": request.cached_tokens},
            "output_tokens": new, "output_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "total_tokens": len(request.prompt) + new,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        async for event in self._events():
            last = event
        return last["response"]

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The response as a stream, numbered."""
        number = 0
        async for event in self._events():
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self.body("in_progress")}
        async with events_of(self.call) as found:
            async for _, event in found:
                for gained in self.answer.add(event):
                    for made in self._take(gained):
                        yield made
        if not self.items or self.items[-1]["type"] == "reasoning":  # an answer without a word is one all the same
            for made in self._begin("message", None):
                yield made
        for made in self._end():
            yield made
        status = "incomplete" if self.answer.finish_reason == "length" else "completed"
        body = self.body(status)
        if self.asked.store:
            self.store.put(Stored(body, [*self.turns, *turns_of([InputItem(**item) for item in self.items])]))
        yield {"type": f"response.{status}", "response": body}

    def _take(self, gained: Gained) -> list[dict[str, Any]]:
        """The events of one piece: an item may end and the next begin."""
        kind = "reasoning" if gained.thinking else "message" if gained.text else "function_call"
        made: list[dict[str, Any]] = []
        if not self.items or self.items[-1]["type"] != kind or gained.call is not None:
            if kind == "message" and self.items and not gained.text.strip():
                return []  # the line between two calls
            made = [*self._end(), *self._begin(kind, gained.call)]
        if piece := gained.thinking or gained.text or gained.arguments:
            made.append({"type": f"response.{DELTAS[kind]}.delta", "delta": piece, **self._where()})
            item = self.items[-1]
            if kind == "function_call":
                item["arguments"] += piece
            else:
                item["content"][0]["text"] += piece
        return made

    def _where(self) -> dict[str, Any]:
        item = self.items[-1]
        where = {"item_id": item["id"], "output_index": len(self.items) - 1}
        if item["type"] == "function_call":
            return where
        return {**where, "content_index": 0, **({"logprobs": []} if item["type"] == "message" else {})}

    def _begin(self, kind: str, call: ToolCall | None) -> list[dict[str, Any]]:
        """A new item: as it is announced it is empty."""
        item: dict[str, Any] = {"type": kind, "id": f"{kind}_{uuid.uuid4().hex}", "status": "in_progress"}
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if call is not None:
            item |= {"call_id": call.id, "name": call.name, "arguments": ""}
            self.items.append(item)
            return [{"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(item)}]
        if kind == "reasoning":
            part, item["summary"] = {"type": "reasoning_text", "text": ""}, []
        else:
            item["role"] = "assistant"
        self.items.append({**item, "content": [part]})
        added = {"type": "response.output_item.added", "output_index": len(self.items) - 1}
        where = {key: value for key, value in self._where().items() if key != "logprobs"}
        return [
            {**added, "item": {**item, "content": []}},
            {"type": "response.content_part.added", "part": dict(part), **where},
        ]

    def _end(self) -> list[dict[str, Any]]:
        """The last item is complete."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return []
        item, where = self.items[-1], self._where()
        item["status"] = "incomplete" if self.answer.finish_reason == "length" else "completed"
        done = {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
        kind = f"response.{DELTAS[item['type']]}.done"
        if item["type"] == "function_call":
            return [{"type": kind, "arguments": item["arguments"], "name": item["name"], **where}, done]
        part = item["content"][0]
        ends = {key: value for key, value in where.items() if key != "logprobs"}
        return [
            {"type": kind, "text": part["text"], **where},
            {"type": "response.content_part.done", "part": part, **ends},
            done,
        ]
