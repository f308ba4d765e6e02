"""Chat templates: Jinja programs that come with a model and turn messages into its text.

They come from somewhere, so they run in Jinja's sandbox, which lets them read what they are given and nothing else.
`Mask` keeps the texts of the messages from becoming control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from roclab.core.exceptions import CheckpointError, RocLabError

ROLES = ("system", "user", "assistant", "tool", "developer")
# Unicode's noncharacters, reserved for use inside a program. They stand for other characters while a template runs; in
# text that comes from outside they are replaced, as are lone surrogates, which were bytes that are not UTF-8.
_STAND_INS = [chr(i) for i in range(0xFDD2, 0xFDF0)]
_NOT_CHAT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")


class Mask:
    """Hides control tokens in texts: a stand-in takes the place of every character that begins a control token."""

    def __init__(self, control_tokens: Iterable[str], origin: str):
        first = sorted({name[0] for name in control_tokens})
        if len(first) > len(_STAND_INS):
            raise CheckpointError(f"{origin}: control tokens begin with {len(first)} different characters")
        self._stand_ins = dict(zip(first, _STAND_INS, strict=False))

    def hide(self, value: Any) -> Any:
        """A copy of texts, lists and dicts in which no string holds a control token. Raises RocLabError for a value
        that JSON does not have."""
        if isinstance(value, str):
            value = _NOT_CHAT.sub("\ufffd", value)
            for character, stand_in in self._stand_ins.items():
                value = value.replace(character, stand_in)
            return value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise RocLabError(f"a chat may hold texts, numbers, lists and dicts, not {type(value).__name__}")

    def show(self, text: str) -> str:
        """The text with the hidden characters back in their places."""
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
        return text


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    origin: str,
    now: datetime | None = None,
) -> str:
    """The template's text; `now` is the time in it, if not that of the call. Raises RocLabError for an unknown role, or
    with the template's own complaint."""
    for message in messages:
        if message.get("role") not in ROLES:
            raise RocLabError(f"a chat message has the role {message.get('role')!r}")
    try:
        # Templates are written for callers that always pass tools and documents, None if there are none.
        values = {"tools": None, "documents": None, **variables, "messages": list(messages)}
        return _sandbox(now or datetime.now()).from_string(template).render(**values)
    except Exception as error:  # a template is a program: it may fail in any way a program can
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RocLabError(f"{origin}: the chat template fails: {reason}") from None


def _sandbox(now: datetime) -> Any:
    """The Jinja environment that chat templates are written for."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return now.strftime(pattern)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        text = json.dumps(value, ensure_ascii=False, **options)
        if not ensure_ascii:
            return text
        # Character by character: an escaped stand-in would no longer be found and taken back.
        return re.sub("[^\x00-\x7f\ufdd2-\ufdef]", lambda m: json.dumps(m.group())[1:-1], text)

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks what a model wrote, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
