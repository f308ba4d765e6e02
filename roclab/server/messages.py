"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.server.chat import begin, chat_request, prompt_of
from roclab.server.errors import ApiError
from roclab.server.fields import Asked, Many, StopStrings
from roclab.server.generation import Call, events_of, until_gone
from roclab.server.replies import MessageReply, TokenCount, described
from roclab.server.sse import EventStream
from roclab.server.text import Answer
from roclab.server.tools import Gained, ToolCall

router = APIRouter()
ENDS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Block(Asked):
    """A piece of a message: a text, the thought of an earlier answer, a tool's use or its result."""

    type: Literal["text", "thinking", "tool_use", "tool_result"]
    text: str = ""
    thinking: str = ""
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str | None = None
    content: str | Many[Block] | None = None


class Turn(Asked):
    role: Literal["user", "assistant"]
    content: str | Many[Block]

    def for_chat(self) -> list[dict[str, Any]]:
        """Messages as the chat API has them: results of tools are messages of their own."""
        blocks = [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        found: list[dict[str, Any]] = [
            {"role": "tool", "content": text_of(block.content), "tool_call_id": block.tool_use_id}
            for block in blocks
            if block.type == "tool_result"
        ]
        calls = [
            {"id": block.id, "function": {"name": block.name, "arguments": json.dumps(block.input)}}
            for block in blocks
            if block.type == "tool_use"
        ]
        text, thought = text_of(blocks), "".join(block.thinking for block in blocks)
        if text or thought or calls or not found:
            more = {"reasoning_content": thought or None, "tool_calls": calls or None}
            found.append({"role": self.role, "content": text, **more})
        return found


def text_of(content: str | list[Block] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content or [] if block.type == "text")


class Thinking(Asked):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1)


class OfferedTool(Asked):
    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any]

    def for_chat(self) -> dict[str, Any]:
        return {"function": {"name": self.name, "description": self.description, "parameters": self.input_schema}}


class ToolChoice(Asked):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    def for_chat(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {"any": "required", "tool": {"function": {"name": self.name}}}
        return {
            "tool_choice": kinds.get(self.type, self.type),
            "parallel_tool_calls": not self.disable_parallel_tool_use,
        }


class Prompt(Asked):
    model: str
    messages: Many[Turn] = Field(min_length=1)
    system: str | Many[Block] | None = None
    thinking: Thinking | None = None
    tools: Many[OfferedTool] | None = None
    tool_choice: ToolChoice | None = None

    def for_chat(self) -> dict[str, Any]:
        """What the chat API would be asked. Raises ApiError."""
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "to continue an answer is not served: the last message must be the user's", "messages")
        system = text_of(self.system)
        turns = [{"role": "system", "content": system}] if system else []
        turns += [message for turn in self.messages for message in turn.for_chat()]
        asked: dict[str, Any] = {"model": self.model, "messages": turns}
        if self.thinking and self.thinking.type != "adaptive":
            asked["chat_template_kwargs"] = {"enable_thinking": self.thinking.type == "enabled"}
        if self.tools:
            asked["tools"] = [tool.for_chat() for tool in self.tools]
        return asked | (self.tool_choice.for_chat() if self.tool_choice else {})


class OutputFormat(Asked):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Asked):
    format: OutputFormat | None = None


class MessagesRequest(Prompt):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    stop_sequences: StopStrings | None = None
    output_config: OutputConfig | None = None
    stream: bool = False

    def for_chat(self) -> dict[str, Any]:
        own: dict[str, Any] = {"max_tokens": self.max_tokens, "stop": self.stop_sequences}
        if self.output_config and self.output_config.format:
            own["response_format"] = {
                "type": "json_schema", "json_schema": {"schema": self.output_config.format.schema_},
            }  # fmt: skip
        same = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        return super().for_chat() | own | same


@router.post("/v1/messages", response_model=None, responses=described(MessageReply, streams=True))
async def create(asked: MessagesRequest, http: HttpRequest) -> Response:
    chatting = chat_request(asked.for_chat())
    async with http.app.state.models.use(asked.model) as model:
        begun = await begin(chatting, model)
        call, answer = begun.call, begun.answers[0]
        about = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model.name}
        if asked.stream:
            return EventStream(http, model, call, events(call, answer, about), named=True)
        return JSONResponse(await until_gone(http, whole(call, answer, about)))


@router.post("/v1/messages/count_tokens", responses=described(TokenCount))
async def count_tokens(asked: Prompt, http: HttpRequest) -> dict[str, int]:
    chatting = chat_request(asked.for_chat())
    async with http.app.state.models.use(asked.model) as model:
        return {"input_tokens": len(await asyncio.to_thread(prompt_of, chatting, model.worker.tokenizer))}


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


async def whole(call: Call, answer: Answer, about: dict[str, Any]) -> dict[str, Any]:
    async with events_of(call) as found:
        async for _, event in found:
            answer.add(event)
    thought = [{"type": "thinking", "thinking": answer.thought, "signature": ""}] if answer.thought else []
    uses = [
        {"type": "tool_use", "id": one.id, "name": one.name, "input": json.loads(one.arguments)}
        for one in (answer.calls if answer.finish_reason == "tool_calls" else answer.calls[:-1])  # the last was cut
    ]
    text = answer.content.strip() if uses else answer.content
    blocks = [*thought, *([{"type": "text", "text": text}] if text or not uses else []), *uses]
    return {**about, "content": blocks, **ending(call, answer), "usage": usage(call, answer)}


EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


async def events(call: Call, answer: Answer, about: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The message as Anthropic's stream: blocks that begin, grow and end."""
    index, kind = -1, ""
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(call, answer)}
    yield {"type": "message_start", "message": {**about, **empty}}
    async with events_of(call) as found:
        async for _, event in found:
            for gained in answer.add(event):
                new, delta = block_delta(gained)
                if new != kind or gained.call is not None:
                    if kind:
                        yield {"type": "content_block_stop", "index": index}
                    index, kind = index + 1, new
                    block = EMPTY[new] if gained.call is None else tool_block(gained.call)
                    yield {"type": "content_block_start", "index": index, "content_block": block}
                if delta:
                    yield {"type": "content_block_delta", "index": index, "delta": delta}
    if not kind:
        index = 0
        yield {"type": "content_block_start", "index": index, "content_block": EMPTY["text"]}
    yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": ending(call, answer), "usage": usage(call, answer)}
    yield {"type": "message_stop"}


def block_delta(gained: Gained) -> tuple[str, dict[str, Any] | None]:
    """The kind of block that a piece belongs to, and what it adds there."""
    if gained.thinking:
        return "thinking", {"type": "thinking_delta", "thinking": gained.thinking}
    if gained.text:
        return "text", {"type": "text_delta", "text": gained.text}
    return "tool_use", {"type": "input_json_delta", "partial_json": gained.arguments} if gained.arguments else None


def tool_block(called: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": called.id, "name": called.name, "input": {}}
