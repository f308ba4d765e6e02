"""Conversations: turns, thinking apart from the answer, saving and loading.

    conversation = Conversation(model, tokenizer, system="Answer briefly.", thinking=True)
    for part, text in conversation.reply("What is 7 · 8?"):     # part: "thinking" or "content"
        print(text, end="")

A thinking model first writes `<think> … </think>`. That part is kept beside the answer, as `reasoning_content`; the
chat template decides how much of it the next turn still sees (Qwen3's drops it).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roclab.errors import RocLabError
from roclab.lm.engine import Timings, stream
from roclab.lm.model import RocLMForCausalLM
from roclab.lm.sampling import SamplingParams
from roclab.lm.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


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


class ThinkingSplit:
    """Sorts generated tokens into "thinking" and "content" by the ids of `<think>` and `</think>`.

    Thinking has begun if the prompt ends inside an open `<think>`, as some templates do, or once the model writes one
    before anything else; it ends at the first `</think>`, after which further marks mean nothing.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._open, self._close = tokenizer.control.get(THINK), tokenizer.control.get(END_THINK)
        last = next((i for i in reversed(prompt) if i in (self._open, self._close)), None)
        self.part = "thinking" if last is not None and last == self._open else "content"
        self._may_open = self.part == "content"

    def feed(self, token_id: int) -> str:
        """The part this token belongs to."""
        if self._may_open and token_id == self._open:
            self.part = "thinking"
        elif token_id == self._close:
            self.part = "content"
        self._may_open = False
        return self.part


def split_thinking(tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int]) -> tuple[str, str]:
    """Generated ids → (thinking, content), each without the blank lines at its ends."""
    split = ThinkingSplit(tokenizer, prompt)
    parts: dict[str, list[int]] = {"thinking": [], "content": []}
    for token_id in token_ids:
        parts[split.feed(token_id)].append(token_id)
    return tokenizer.decode(parts["thinking"]).strip("\n"), tokenizer.decode(parts["content"]).strip("\n")


class Conversation:
    """A chat with one model. `thinking`: True, False, or None to leave it to the template."""

    def __init__(
        self,
        model: RocLMForCausalLM,
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
        self.system = system
        self.timings = Timings()  # of the last reply
        self.last: Reply | None = None
        self.prompt_ids([])  # a model without a usable chat template is refused now, not at the first question

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The system message, if there is one, and every turn so far."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns = []

    def prompt_ids(self, new: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids the model reads for the conversation so far and these messages."""
        messages = [*self.messages, *new] or [{"role": "user", "content": ""}]
        return self.tokenizer.encode_chat(messages, enable_thinking=self.thinking)

    def reply(self, text: str) -> Generator[tuple[str, str], None, None]:
        """Answer a user's message, as pieces (part, text). Both enter the history once the answer ends, and also when
        the reader stops listening (`close()`, ctrl-c): a reply cut short stays, marked by `last.finish_reason`.

        Raises RocLabError, and keeps the history as it was, if the conversation no longer fits the context.
        """
        question = {"role": "user", "content": text}
        prompt = self.prompt_ids([question])
        self._check_room(prompt)
        split = ThinkingSplit(self.tokenizer, prompt)
        self.timings = Timings()
        token_ids: list[int] = []
        shown = dict.fromkeys(("thinking", "content"), False)
        finish_reason = "cut"
        try:
            for event in stream(self.model, self.tokenizer, [prompt], self.params, self.timings):
                token_ids.append(event.token_id)
                finish_reason = event.finish_reason or finish_reason
                part = split.feed(event.token_id)
                piece = event.text if shown[part] else event.text.lstrip("\n")
                if piece:
                    shown[part] = True
                    yield part, piece
        finally:
            thinking, content = split_thinking(self.tokenizer, prompt, token_ids)
            full = self.tokenizer.decode(token_ids, control=True)
            self.last = Reply(thinking, content, full, finish_reason, len(prompt), len(token_ids))
            if token_ids:
                answer = {"role": "assistant", "content": content}
                if thinking:
                    answer["reasoning_content"] = thinking
                self.turns += [question, answer]

    def _check_room(self, prompt: Sequence[int]) -> None:
        context = self.model.config.max_position_embeddings
        if len(prompt) + (self.params.max_new_tokens or 1) > context:
            raise RocLabError(
                f"the conversation has grown to {len(prompt)} tokens and leaves no room for "
                f"{self.params.max_new_tokens or 1} more in the model's context of {context}; /reset begins a new one"
            )

    def to_dict(self) -> dict[str, Any]:
        """What /save writes and `load` reads."""
        return {"system": self.system, "thinking": self.thinking, "messages": self.turns}

    def load(self, saved: Mapping[str, Any], origin: str) -> None:
        """Take up a saved conversation. Raises RocLabError if it is not one; then nothing has changed."""
        turns = saved.get("messages") if isinstance(saved, Mapping) else None
        if not isinstance(turns, list) or not all(
            isinstance(m, dict) and m.get("role") in ("user", "assistant") and isinstance(m.get("content"), str)
            for m in turns
        ):
            raise RocLabError(f"{origin}: not a saved conversation")
        self.system, self.thinking, self.turns = saved.get("system"), saved.get("thinking"), list(turns)
