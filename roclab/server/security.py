"""Who may ask the server: the key, the Host and the Origin of a request, the size of its body.

A page in somebody's browser can send requests to a server on the same machine, and by pointing its own name at
127.0.0.1 (DNS rebinding) read the answers too. So a request must carry a Host by which this server is known, and an
Origin, where there is one, must be allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roclab.server.errors import error_body
from roclab.server.settings import LOOPBACK, ServerSettings

OPEN = ("/health",)  # for probes: says nothing but whether the server is up
ALLOWED = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"


def host_name(header: str) -> str:
    """The name in a Host header, without the port; "" for what is none."""
    try:
        return "" if "@" in header else urlsplit(f"//{header}").hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self.settings = app, settings
        self.hosts = {*LOOPBACK, settings.host, *(host_name(name) or name for name in settings.allow_host)}
        # It has names that we cannot know. Without a key a name could be anybody's, so only addresses will do.
        self.any_host = settings.host not in LOOPBACK and not settings.allow_host
        self.origins = set(settings.allow_origin)
        self.bound = int(settings.max_body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        origin = headers.get("origin")
        answer = self._refused(scope, headers, origin)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and origin in self.origins:
                message["headers"] = [*message["headers"], *self._cors(str(origin), headers)]
            await send(message)

        if answer is None and scope["method"] == "OPTIONS" and origin in self.origins:
            answer = JSONResponse({})
        if answer is not None:
            await answer(scope, receive, sending)
            return
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.bound:
                raise HTTPException(413, self._too_large)  # which FastAPI lets through to our handler
            return message

        await self.app(scope, receiving, sending)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self.settings.max_body_mb:g} MB (--max-body-mb)"

    def _refused(self, scope: Scope, headers: Mapping[str, str], origin: str | None) -> JSONResponse | None:
        """Why this request is not answered, or None."""
        host = host_name(headers.get("host", ""))
        if scope["path"] in OPEN:
            return None
        if sum(key == b"host" for key, _ in scope["headers"]) > 1:
            return self._error(scope, 400, "more than one Host")
        if host not in self.hosts and not (self.any_host and (self.settings.api_key or _is_address(host))):
            return self._error(scope, 403, f"Host {host!r} is not this server's: --allow-host names more")
        if origin is not None and origin not in self.origins and origin.partition("://")[2] != headers.get("host"):
            return self._error(scope, 403, f"Origin {origin!r} may not ask: --allow-origin names those that may")
        if scope["method"] == "OPTIONS":
            return None
        if not self._has_key(headers):
            return self._error(scope, 401, "the API key is missing or wrong: send Authorization: Bearer KEY")
        if headers.get("content-length", "").isdecimal() and int(headers["content-length"]) > self.bound:
            return self._error(scope, 413, self._too_large)
        return None

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        if not self.settings.api_key:
            return True
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (key.strip() if kind.lower() == "bearer" else "")
        return hmac.compare_digest(given.encode(), self.settings.api_key.encode())

    @staticmethod
    def _cors(origin: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        return [
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-allow-headers", headers.get("access-control-request-headers", ALLOWED).encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"vary", b"Origin"),
        ]

    @staticmethod
    def _error(scope: Scope, status: int, message: str) -> JSONResponse:
        return JSONResponse(error_body(scope["path"], status, message), status)
