"""Errors as clients expect them: a status, and one line in the shape of the API that was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "request_too_large", 422: "invalid_request_error",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip


FIELD = re.compile("[a-z_][A-Za-z0-9_]*$")
FORMS = ("str", "int", "float", "bool", "none")  # pydantic's names for the forms of a field stand between its fields


class ApiError(Exception):
    """What is wrong with a request, for its client: HTTP `status`, `message`, and where it is known the `param`."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def first_error(found: Sequence[Any]) -> tuple[str, str | None]:
    """Of pydantic's errors the one that got furthest (of the forms that a field may have, the one that was meant): a
    line, and where it is."""
    error = max(found, key=lambda one: len(one["loc"]))
    path = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        return f"the body is not JSON (character {path[0]})", None
    if not path and error["type"] in ("model_attributes_type", "dict_type", "missing"):
        return "the body is no JSON object, or was sent without Content-Type: application/json", None
    where = ".".join(str(part) for part in path if isinstance(part, int) or (FIELD.match(part) and part not in FORMS))
    message = error["msg"].removeprefix("Value error, ")
    return (f"{where}: {message}" if where else message), where or None


def error_body(path: str, status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error under `path`: Anthropic's shape for its own endpoints, OpenAI's for all others."""
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
