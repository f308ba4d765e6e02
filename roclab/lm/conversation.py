"""Conversations: turns, thinking apart from the answer, saving and loading.

    conversation = Conversation(model, tokenizer, system="Answer briefly.", thinking=True)
    for part, text in conversation.reply("What is 7 · 8?"):     # part: "thinking" or "content"
        print(text, end="")

A thinking model first writes `<think> … </think>`. That part is kept beside the answer, as `reasoning_content`; the
chat template decides how much of it the next turn still sees (Qwen3's drops it).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.runner import Runner
from roclab.lm.generate import Timings, stream
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer


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
        self.turns = []

    def prompt_ids(self, new: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids the model reads for the conversation so far and these messages."""
        return self.tokenizer.encode_chat([*self.messages, *new], enable_thinking=self.thinking)

    def reply(self, text: str) -> Generator[tuple[str, str], None, None]:
        """Answer a user's message, as pieces (part, text). Both enter the history once the answer ends, and also when
        the reader stops listening (`close()`, ctrl-c): a reply cut short stays, marked by `last.finish_reason`.

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
        return {"system": self.system, "thinking": self.thinking, "messages": self.turns}

    def load(self, saved: Any, origin: str) -> None:
        """Take up a saved conversation; a system message or thinking mode chosen already stays. Raises RocLabError if
        it is not one; then nothing has changed."""
        if not _is_saved_conversation(saved):
            raise RocLabError(f"{origin}: not a saved conversation")
        self.turns = list(saved["messages"])
        if self.system is None:
            self.set_system(saved.get("system"))
        if self.thinking is None:
            self.thinking = saved.get("thinking")


def _is_saved_conversation(saved: Any) -> bool:
    if not isinstance(saved, Mapping) or not isinstance(saved.get("messages"), list):
        return False
    return (
        all(
            isinstance(message, dict)
            and message.get("role") in ("user", "assistant")
            and all(isinstance(value, str) for value in message.values())
            for message in saved["messages"]
        )
        and all("content" in message for message in saved["messages"])
        and isinstance(saved.get("system"), (str, type(None)))
        and saved.get("thinking") in (True, False, None)
    )
