"""Tool calls: the tools in the prompt, calls held to their schemas while they are written, and read as they come.

Two ways to write a call are known, by what the model's own template shows:

    Hermes, Qwen    <tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>
    Llama 3         {"name": "f", "parameters": {…}}

A template that knows nothing of tools gets them in the system message, in the first way.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from roclab.lm.text.detokenizer import overlap
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.errors import ApiError
from roclab.server.fields import Asked

HOW = """# Tools

You may call functions. They are, as JSON inside <tools></tools>:
<tools>
{tools}
</tools>

To call one, write a JSON object with its name and arguments inside <tool_call></tool_call>:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


class Function(Asked):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


class Tool(Asked):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Asked):
    name: str


class NamedTool(Asked):
    type: Literal["function"] = "function"
    function: NamedFunction


Choice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True)
class Style:
    """How a model writes a call: `begin`, the name, `key`, the arguments, `end`."""

    begin: str
    key: str
    end: str
    in_template: bool  # the template takes the tools itself

    def head(self, name: str) -> str:
        """What stands before the arguments, after `begin`."""
        return f'{{"name": {json.dumps(name)}, "{self.key}": '

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Style:
        template = tokenizer.chat_template or ""
        knows = bool(re.search(r"\btools\b", template))
        if knows and "<tool_call>" not in template and '"parameters"' in template:
            return cls("", "parameters", "}", True)
        return cls("<tool_call>\n", "arguments", "}\n</tool_call>", knows)


def chosen(tools: Sequence[Tool], choice: Choice | None) -> tuple[list[Function], bool]:
    """The tools that may be called, and whether the answer must be calls. Raises ApiError for an unknown name, and
    for a call that is required where there is no tool."""
    functions = [tool.function for tool in tools]
    if choice == "none":
        return [], False
    if isinstance(choice, NamedTool):
        named = [function for function in functions if function.name == choice.function.name]
        if not named:
            raise ApiError(400, f"tool_choice: there is no tool {choice.function.name!r}", "tool_choice")
        return named, True
    if choice == "required" and not functions:
        raise ApiError(400, "tool_choice: a call is required, but there are no tools", "tool_choice")
    return functions, choice == "required"


@dataclass
class ToolCall:
    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass
class Gained:
    """What a reader gains: of the thought, of the text, a new call (its arguments still empty), or more of a call's
    arguments. `index`: the number of that call."""

    thinking: str = ""
    text: str = ""
    call: ToolCall | None = None
    arguments: str = ""
    index: int = 0


class ToolReader:
    """Text of an answer in, text and calls out, as they come."""

    def __init__(self, style: Style, tokenizer: Tokenizer):
        self._begin = style.begin.strip() or '{"name": "'
        self._keep = not style.begin  # what begins a call is part of its head
        self._end = style.end.strip().removeprefix("}").strip()
        self._control = {i: name for name, i in tokenizer.control.items() if name in ("<tool_call>", "</tool_call>")}
        self._head = re.compile(r'\s*\{\s*"name":\s*"([^"]*)",\s*"' + style.key + r'":\s*')
        self.calls: list[ToolCall] = []
        self._held, self._state = "", "text"
        self._depth, self._in_string, self._escaped = 0, False, False

    @property
    def complete(self) -> bool:
        """Whether there are calls, and the last one is not cut short."""
        return bool(self.calls) and self._state not in ("head", "arguments")

    def feed(self, token_id: int, text: str, final: bool = False) -> list[Gained]:
        """What one more token gives; `final`: it was the last."""
        self._held += text + self._control.get(token_id, "")
        found: list[Gained] = []
        while self._step(found, final):
            pass
        return found

    def _step(self, found: list[Gained], final: bool) -> bool:
        """One transition; whether there may be another."""
        if self._state == "text":
            at = self._held.find(self._begin)
            if at < 0:
                keep = 0 if final else overlap(self._held, self._begin)
                cut = len(self._held) - keep
                self._show(found, self._held[:cut])
                self._held = self._held[cut:]
                return False
            self._show(found, self._held[:at].rstrip("\n"))
            self._held = self._held[at if self._keep else at + len(self._begin) :]
            self._state = "head"
        elif self._state == "head":
            if not (match := self._head.match(self._held)):
                return False
            self.calls.append(ToolCall(match[1]))
            found.append(Gained(call=self.calls[-1], index=len(self.calls) - 1))
            self._held, self._state = self._held[match.end() :], "arguments"
        elif self._state == "arguments":
            return self._arguments(found)
        else:
            at = self._held.find(self._end or "}")
            if at < 0:
                return False
            self._held, self._state = self._held[at + len(self._end or "}") :].lstrip("\n"), "text"
        return True

    def _arguments(self, found: list[Gained]) -> bool:
        """The arguments as far as they have come: a JSON object, whose end is where its braces close."""
        piece = ""
        for character in self._held:
            if not self._depth and character.isspace():
                continue  # before the object
            piece += character
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character == '"':
                self._in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0:
                    self._state = "after"
                    break
        if piece:
            self.calls[-1].arguments += piece
            found.append(Gained(arguments=piece, index=len(self.calls) - 1))
        self._held = self._held[self._held.index(piece) + len(piece) :]
        return self._state == "after"

    @staticmethod
    def _show(found: list[Gained], text: str) -> None:
        if text:
            found.append(Gained(text=text))


def in_system(messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The messages for a template that knows no tools: they stand in the system message, if there are any, and earlier
    calls and their results in the texts."""
    shown = HOW.format(tools="\n".join(json.dumps(tool.model_dump(exclude_none=True)) for tool in tools))
    first = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(first) :]
    found = first
    if tools:
        found = [{"role": "system", "content": "\n\n".join([*(message["content"] for message in first), shown])}]
    for message in rest:
        if message["role"] == "tool":
            found.append({"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"})
            continue
        calls = [call["function"] for call in message.pop("tool_calls", [])]
        texts = [message["content"], *(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)]
        found.append({**message, "content": "\n".join(text for text in texts if text)})
    return found
