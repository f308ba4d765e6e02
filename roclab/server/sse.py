"""Server-sent events: one `data:` line an object, `[DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from roclab.server.errors import ApiError, error_body
from roclab.server.generation import Call
from roclab.server.models import Model

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy shall pass each event on at once


def line(found: dict[str, Any], event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(found, ensure_ascii=False)}\n\n".encode()


class EventStream(StreamingResponse):
    """Streams `objects`; `named`: each is sent under its `type`, and nothing marks the end. What fails on the way is
    the last object. However it ends, even before it began, the call's requests end and the model is free to go."""

    def __init__(
        self, http: HttpRequest, model: Model, call: Call, objects: AsyncIterator[dict[str, Any]], named: bool = False
    ):
        self._model, self._call = model, call
        model.hold()
        super().__init__(_lines(http.url.path, objects, named), media_type="text/event-stream", headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.close()
            self._model.release()


async def _lines(path: str, objects: AsyncIterator[dict[str, Any]], named: bool) -> AsyncIterator[bytes]:
    try:
        async for found in objects:
            yield line(found, found["type"] if named else None)
    except ApiError as error:
        yield line(error_body(path, error.status, error.message), "error" if named else None)
    if not named:
        yield b"data: [DONE]\n\n"
