"""What the endpoints answer, as the OpenAPI document shows it: the outer shape of each object."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Object = dict[str, Any]


class Problem(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: int | None = None


class ErrorReply(BaseModel):
    """OpenAI's shape; Anthropic's endpoints have `type` outside too, and neither `param` nor `code`."""

    error: Problem
    type: Literal["error"] | None = None


class Health(BaseModel):
    status: str


class ModelReply(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelReply]


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Object]
    usage: Object
    timings: Object


class CompletionReply(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Object]
    usage: Object
    timings: Object


class MessageReply(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Object]
    stop_reason: str | None
    stop_sequence: str | None
    usage: Object


class ResponseReply(BaseModel):
    id: str
    object: Literal["response"]
    created_at: float
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[Object]
    usage: Object | None


class DeletedReply(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[Object]
    model: str
    usage: Object


class TokenCount(BaseModel):
    input_tokens: int


def described(reply: type[BaseModel], streams: bool = False) -> dict[int | str, Object]:
    """FastAPI's `responses`: the object, or its events where the endpoint `streams`."""
    if not streams:
        return {200: {"model": reply}}
    return {
        200: {
            "model": reply,
            "content": {"text/event-stream": {}},
            "description": "The answer; with `stream`, its events.",
        }
    }
