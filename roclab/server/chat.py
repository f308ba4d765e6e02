"""`/v1/chat/completions`: OpenAI's chat API."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from llguidance import LLMatcher
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.scheduler import LogitsProcessor
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.errors import ApiError, first_error
from roclab.server.fields import Asked, Many
from roclab.server.generation import Call, Sampling, events_of, until_gone
from roclab.server.grammar import Held, tool_grammar
from roclab.server.models import Model
from roclab.server.replies import ChatReply, described
from roclab.server.sse import EventStream
from roclab.server.text import Answer, logprobs_of, timings_of, usage_of
from roclab.server.tools import Choice, Function, Gained, NamedTool, Style, Tool, ToolReader, chosen, in_system

router = APIRouter()


class TextPart(Asked):
    type: Literal["text", "input_text", "output_text"] = "text"
    text: str


class CalledFunction(Asked):
    name: str
    arguments: str = "{}"


class EarlierCall(Asked):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Templates take the arguments as an object. Raises ApiError if they are none."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            raise ApiError(400, f"the arguments of a call of {self.function.name!r} are not JSON", "messages") from None
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", "function": function, **({"id": self.id} if self.id else {})}


class Message(Asked):
    """A message of a chat. The thought of an earlier answer may be given as `reasoning_content` or `reasoning`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Many[EarlierCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: texts alone."""
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        thought = self.reasoning_content or self.reasoning
        more: dict[str, Any] = {"reasoning_content": thought} if thought and self.role == "assistant" else {}
        if self.tool_calls and self.role == "assistant":
            more["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.role == "tool":
            more |= {key: value for key in ("tool_call_id", "name") if (value := getattr(self, key))}
        return {"role": self.role, "content": content, **more}


class StreamOptions(Asked):
    include_usage: bool = False


class JsonSchema(Asked):
    name: str = "answer"
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Asked):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to it alone")
        return self


class TemplateKwargs(BaseModel, extra="allow"):
    """Variables of the model's chat template."""

    enable_thinking: bool | None = None


class ChatRequest(Sampling):
    model: str
    messages: Many[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=64)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    tools: Many[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(default=None, description="A grammar in GBNF or Lark that the answer follows.")
    functions: None = Field(default=None, description="Not served: give tools.")

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall think: None leaves it to its template."""
        if self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    thinking: bool | None = None,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] = {},
) -> list[int]:
    """The prompt's ids. Raises ApiError where the template does not take the messages."""
    shown = [message.for_template() for message in messages]
    more = {name: value for name, value in variables.items() if name not in ("messages", "now")}
    if not Style.of(tokenizer).in_template:
        shown = in_system(shown, tools)
    elif tools:
        more["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    try:
        return tokenizer.encode_chat(shown, enable_thinking=thinking, now=datetime.now(), **more)
    except (RocLabError, TypeError) as error:
        raise ApiError(400, str(error), "messages") from None
    except RecursionError:
        raise ApiError(400, "the messages are nested too deeply", "messages") from None


def prompt_of(asked: ChatRequest, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids, with the tools that may be called in it. Raises ApiError."""
    functions, _ = chosen(asked.tools or [], asked.tool_choice)
    tools = [tool for tool in asked.tools or [] if tool.function in functions]
    variables = asked.chat_template_kwargs and asked.chat_template_kwargs.model_extra
    return encode(tokenizer, asked.messages, asked.thinking, tools, variables or {})


def chat_request(asked: Mapping[str, Any]) -> ChatRequest:
    """What another API asks, as this one has it. Raises ApiError."""
    try:
        return ChatRequest.model_validate(asked)
    except ValidationError as error:
        raise ApiError(400, *first_error(error.errors())) from None


def held_to(asked: ChatRequest, model: Model, functions: Sequence[Function], must: bool) -> LLMatcher | None:
    """What the answer must follow, compiled; None if nothing."""
    form, tokenizer = asked.response_format, model.worker.tokenizer
    kind = form.type if form else "text"
    if sum([kind != "text", asked.grammar is not None, must]) > 1:
        raise ApiError(400, "response_format, grammar and a tool that must be called exclude each other")
    if asked.grammar is not None:
        return model.grammars.compile("gbnf", asked.grammar, "grammar")
    if functions and kind == "text":
        several = asked.parallel_tool_calls and not isinstance(asked.tool_choice, NamedTool)
        lark = tool_grammar(Style.of(tokenizer), tokenizer, functions, must, several)
        return model.grammars.compile("lark", lark, "tools")
    if kind == "json_object":
        return model.grammars.compile("json_schema", '{"type": "object"}', "response_format")
    if form and form.json_schema:
        text = json.dumps(form.json_schema.schema_)
        return model.grammars.compile("json_schema", text, "response_format.json_schema.schema")
    return None


@router.post("/v1/chat/completions", response_model=None, responses=described(ChatReply, streams=True))
async def chat_completions(asked: ChatRequest, http: HttpRequest) -> Response:
    async with http.app.state.models.use(asked.model) as model:
        running = Running(asked, model, await begin(asked, model))
        if asked.stream:
            return EventStream(http, model, running.call, running.chunks())
        return JSONResponse(await until_gone(http, running.whole()))


@dataclass(frozen=True)
class Begun:
    """The requests of a call, submitted, and for each the answer that its events are put together to."""

    call: Call
    answers: list[Answer]


async def begin(asked: ChatRequest, model: Model) -> Begun:
    """Submits what is asked; the other APIs for chats come here too. Raises ApiError."""
    tokenizer, size = model.worker.tokenizer, model.worker.runner.config.vocab_size
    functions, must = chosen(asked.tools or [], asked.tool_choice)
    prompt = await asyncio.to_thread(prompt_of, asked, tokenizer)  # a long one takes a while, and others stream
    params = asked.params(logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)
    try:
        matcher = await asyncio.to_thread(held_to, asked, model, functions, must)
    except RecursionError:
        raise ApiError(400, "a schema is nested too deeply") from None
    may_think = tokenizer.has_thinking and asked.thinking is not False

    def processors() -> list[LogitsProcessor]:
        held = [] if matcher is None else [Held(matcher.deep_copy(), tokenizer, prompt, may_think)]
        return [*asked.processors(prompt, size), *held]

    call = model.call()
    call.check(asked.n)
    call.submit(prompt, params, asked.max_completion_tokens or asked.max_tokens, processors, asked.n)
    style = Style.of(tokenizer) if functions else None
    return Begun(call, [Answer(ToolReader(style, tokenizer) if style else None) for _ in range(asked.n)])


class Running:
    """The answers of a chat on their way."""

    def __init__(self, asked: ChatRequest, model: Model, begun: Begun):
        self.asked, self.call, self.answers = asked, begun.call, begun.answers
        self.tokenizer = model.worker.tokenizer
        self.about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}

    def totals(self) -> dict[str, Any]:
        done = sum(len(answer.tokens) for answer in self.answers)
        reasoning = sum(answer.reasoning_tokens for answer in self.answers)
        requests = self.call.requests
        timings = timings_of(requests[0], len(self.answers[0].tokens))
        return {"usage": usage_of(requests[:1], done, reasoning), "timings": timings}

    async def whole(self) -> dict[str, Any]:
        """The answers in one object."""
        async with events_of(self.call) as events:
            async for number, event in events:
                self.answers[number].add(event)
        choices = [self._choice(number, answer) for number, answer in enumerate(self.answers)]
        return {**self.about, "object": "chat.completion", "choices": choices, **self.totals()}

    def _choice(self, number: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.thought:
            message |= {"reasoning_content": answer.thought, "reasoning": answer.thought}
        if answer.calls:
            message |= {
                "content": answer.content.strip() or None,
                "tool_calls": [call.as_json() for call in answer.calls],
            }
        shown = {"content": [logprobs_of(self.tokenizer, event) for event in answer.tokens]}
        reason, logprobs = answer.finish_reason, shown if self.asked.logprobs else None
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answers as they come: `chat.completion.chunk` objects."""
        options = self.asked.stream_options
        usage = options is not None and options.include_usage
        about = {**self.about, "object": "chat.completion.chunk"}

        def chunk(number: int, delta: dict[str, Any], reason: str | None = None, shown: Any = None) -> dict[str, Any]:
            choice = {"index": number, "delta": delta, "logprobs": shown, "finish_reason": reason}
            return {**about, "choices": [choice], **({"usage": None} if usage else {})}

        for number in range(len(self.answers)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async with events_of(self.call) as events:
            async for number, event in events:
                deltas = [_delta(gained) for gained in self.answers[number].add(event)]
                if self.asked.logprobs:
                    shown = {"content": [logprobs_of(self.tokenizer, event)]}
                    first, *deltas = deltas or [{}]
                    yield chunk(number, first, None, shown)
                for delta in deltas:
                    yield chunk(number, delta)
                if event.finish_reason:
                    yield chunk(number, {}, self.answers[number].finish_reason)
        if usage:
            yield {**about, "choices": [], **self.totals()}


def _delta(gained: Gained) -> dict[str, Any]:
    """A piece of an answer as the stream has it."""
    if gained.thinking:
        return {"reasoning_content": gained.thinking, "reasoning": gained.thinking}
    if gained.text:
        return {"content": gained.text}
    if gained.call is not None:
        begun = {**gained.call.as_json(), "function": {"name": gained.call.name, "arguments": ""}}
        return {"tool_calls": [{"index": gained.index, **begun}]}
    return {"tool_calls": [{"index": gained.index, "function": {"arguments": gained.arguments}}]}
