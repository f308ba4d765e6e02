"""Conversations: turns, thinking apart from the answer, saving and loading.

    conversation = Conversation(model, tokenizer, system="Answer briefly.", thinking=True)
    for part, text in conversation.reply("What is 7 · 8?"):     # part: "thinking" or "content"
        print(text, end="")

A thinking model first writes `<think> … </think>`. That part is kept beside the answer, as `reasoning_content`; the
chat template decides how much of it the next turn still sees (Qwen3's drops it). Where a model leaves out the
`<think>`, its thought comes as "content", and ("unannounced", "") says so when it ends: it is the thinking after all.

Some templates put today's date before the conversation (`strftime_now`). It is the day on which the conversation began,
also when it is taken up later: a saved conversation holds that day.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.runner import Runner
from roclab.lm.generate import Timings, stream
from roclab.lm.settings import SamplingParams
from roclab.lm.text.detokenizer import END_THINK, THINK
from roclab.lm.text.tokenizer import Tokenizer

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of other programs, ours first


@dataclass(frozen=True)
class Reply:
    """A finished answer. `full_response` is the text as generated, control tokens shown; `finish_reason` is "stop",
    "length" or, when the reader broke it off, "cut"."""

    thinking_content: str
    content: str
    full_response: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int


class Conversation:
    """A chat with one model. `thinking`: True, False, or None to leave it to the template."""

    def __init__(
        self,
        model: Runner,
        tokenizer: Tokenizer,
        params: SamplingParams | None = None,
        *,
        system: str | None = None,
        thinking: bool | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.params = params or SamplingParams()
        self.thinking = thinking
        self.turns: list[dict[str, Any]] = []
        self.began = datetime.now()
        self.system: str | None = None
        self.timings = Timings()  # of the last reply
        self.last: Reply | None = None
        self.set_system(system)  # also refuses a model without a usable chat template now, not at the first question

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The system message, if there is one, and every turn so far."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def set_system(self, text: str | None) -> None:
        """Set the system message, or remove it with None. Raises RocLabError, and leaves it as it was, if the chat
        template does not take it."""
        before, self.system = self.system, text
        try:
            self.prompt_ids([{"role": "user", "content": "?"}])
        except RocLabError:
            self.system = before
            raise

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns, self.began = [], datetime.now()

    def prompt_ids(self, new: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids the model reads for the conversation so far and these messages."""
        return self.tokenizer.encode_chat([*self.messages, *new], enable_thinking=self.thinking, now=self.began)

    def reply(self, text: str) -> Generator[tuple[str, str], None, None]:
        """Answer a user's message, as pieces (part, text); part is "thinking", "content" or "unannounced".

        Question and answer enter the history once the answer ends, and also when the reader stops listening
        (`close()`, ctrl-c): a reply cut short stays, marked by `last.finish_reason`.

        A reply is no longer than the context has room for. Raises RocLabError, and keeps the history as it was, if
        the message itself does not fit.
        """
        question = {"role": "user", "content": text}
        prompt = self.prompt_ids([question])
        params = replace(self.params, max_new_tokens=self._room(prompt))
        self.timings = Timings()
        token_ids: list[int] = []
        parts = {"thinking": "", "content": ""}
        finish_reason = "cut"
        try:
            for event in stream(self.model, self.tokenizer, [prompt], params, self.timings):
                token_ids.append(event.token_id)
                finish_reason = event.finish_reason or finish_reason
                if event.was_thinking:
                    parts["thinking"], parts["content"] = parts["content"], ""
                    yield "unannounced", ""
                for part, piece in (("thinking", event.thinking), ("content", event.text)):
                    if piece := piece if parts[part] else piece.lstrip():
                        parts[part] += piece
                        yield part, piece
        finally:
            thinking, content = parts["thinking"].strip(), parts["content"].strip()
            full = self.tokenizer.decode(token_ids, control=True)
            self.last = Reply(thinking, content, full, finish_reason, len(prompt), len(token_ids))
            if token_ids:
                answer = {"role": "assistant", "content": content}
                if thinking:
                    answer["reasoning_content"] = thinking
                self.turns += [question, answer]

    def _room(self, prompt: Sequence[int]) -> int:
        """How many tokens the reply may have."""
        context = self.model.config.max_position_embeddings
        if len(prompt) >= context:
            raise RocLabError(
                f"the conversation with this message has {len(prompt)} tokens, and the model's context holds "
                f"{context}; shorten the message, or begin a new conversation with /reset"
            )
        room = context - len(prompt)
        return min(self.params.max_new_tokens or room, room)

    def to_dict(self) -> dict[str, Any]:
        """What /save writes and `load` reads."""
        saved = {"system": self.system, "thinking": self.thinking, "messages": self.turns}
        if self.tokenizer.uses_date:
            saved["began"] = self.began.isoformat(timespec="seconds")
        return saved

    def load(self, saved: Any, origin: str) -> None:
        """Take up a saved conversation, ours or one in OpenAI's format: a list of messages or an object with them, the
        system message among them, thoughts as "reasoning_content", "reasoning" or in <think> tags. A system message or
        thinking mode chosen already stays. Raises RocLabError if it is not one; then nothing has changed."""
        try:
            system, turns, settings = read_saved(saved)
            began = datetime.fromisoformat(settings["began"]) if "began" in settings else self.began
        except (RocLabError, ValueError, TypeError) as error:
            raise RocLabError(f"{origin}: not a saved conversation: {error}") from None
        before = self.turns, self.began
        self.turns, self.began = turns, began
        try:
            self.set_system(system if self.system is None else self.system)
        except RocLabError:  # the template's complaint
            self.turns, self.began = before
            raise
        if self.thinking is None:
            self.thinking = settings.get("thinking")


def read_saved(saved: Any) -> tuple[str | None, list[dict[str, Any]], Mapping[str, Any]]:
    """System message, turns and the rest of a saved conversation. Raises RocLabError that says what it is not."""
    settings = saved if isinstance(saved, Mapping) else {}
    messages = saved if isinstance(saved, list) else settings.get("messages")
    if not isinstance(messages, list) or saved == []:
        raise RocLabError("it has no list of messages")
    system = settings.get("system")
    if not isinstance(system, (str, type(None))):
        raise RocLabError("system is not a text")
    if settings.get("thinking") not in (True, False, None):
        raise RocLabError("thinking is neither true, false nor null")
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise RocLabError(f"message {number} is not an object")
        turn = _read_message(message, f"message {number}")
        if turn["role"] not in ("system", "developer"):
            turns.append(turn)
        elif number == 1 and system is None:
            system = turn["content"]
        else:
            raise RocLabError(f"message {number} is one more system message; only the first message may be one")
    return system, turns, settings


def _read_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One message with its texts alone, an assistant's thought as "reasoning_content"."""
    turn = {key: value for key, value in message.items() if value not in (None, [], {})}  # not given, in other words
    role, content = turn.get("role"), turn.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise RocLabError(f"{where} has the role {role!r}; a conversation has system, user and assistant")
    if isinstance(content, list):  # OpenAI's parts
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(texts) < len(content):
            raise RocLabError(f"{where} holds something else than text")
        turn["content"] = content = "".join(texts)
    if wrong := [key for key, value in turn.items() if not isinstance(value, str)]:
        raise RocLabError(f"{where}: {', '.join(map(str, wrong))} cannot be taken up, only texts can")
    thoughts = [turn.pop(key) for key in THOUGHTS if key in turn] if role == "assistant" else []
    if content is None and not thoughts:  # a reply may have been cut short while it thought
        raise RocLabError(f"{where} has no content")
    turn["content"] = content = content or ""
    if role == "assistant":
        bare = THINK not in content and f"\n{END_THINK}\n" in content  # the template had written the beginning
        if not thoughts and (bare or content.lstrip().startswith(THINK)):
            thought, _, content = content.lstrip().removeprefix(THINK).partition(END_THINK)
            thoughts, turn["content"] = [thought.strip()], content.strip()
        if thoughts and thoughts[0]:
            turn["reasoning_content"] = thoughts[0]
    return turn
