"""Token bytes to text: whole characters, stop strings, and the thought apart from the answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from roclab.lm.text.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


class ThinkingSplit:
    """Sorts generated tokens into "thinking" and "content" by the ids of `<think>` and `</think>`.

    Thinking has begun if the prompt ends inside an open `<think>`, as some templates do, or once the model writes one
    before anything but blanks; it ends at the first `</think>`, after which further marks mean nothing. A `</think>`
    that nothing opened ends a thought too: `unannounced` is true from then on, and all before it was the thought.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._open, self._close = tokenizer.control.get(THINK), tokenizer.control.get(END_THINK)
        self._bytes = tokenizer.token_bytes
        last = next((i for i in reversed(prompt) if i in (self._open, self._close)), None)
        self.part = "thinking" if last is not None and last == self._open else "content"
        self._may_open = self._may_close = self.part == "content"
        self.unannounced = False

    def feed(self, token_id: int) -> str:
        """The part this token belongs to."""
        if self._may_open and token_id == self._open:
            self.part = "thinking"
        elif token_id == self._close:
            self.unannounced = self.unannounced or self._may_close
            self.part = "content"
        if token_id in (self._open, self._close):
            self._may_open = self._may_close = False
        elif self._may_open and self._bytes(token_id).strip():
            self._may_open = False
        return self.part


def overlap(text: str, wanted: str) -> int:
    """How many characters at the end of the text begin what is wanted."""
    longest = min(len(wanted) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(wanted[:n])), 0)


class TextStream:
    """Bytes of tokens in, whole characters out, nothing of a stop string ever shown.

    `feed` returns what may be shown now: it keeps back half a character and anything that may yet become a stop
    string. `stopped` is true once one was found; `finish` returns the rest.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [s for s in stop if s]
        self._held = ""
        self.stop_string: str | None = None  # the one that was found

    @property
    def stopped(self) -> bool:
        return self.stop_string is not None

    def feed(self, data: bytes, final: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final)
        found = [(at + len(s), at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:  # the one that is complete first, however the bytes arrive; of two that end together the longer
            _, at, self.stop_string = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        keep = 0 if final else max((overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        return self.feed(b"", final=True)


class Detokenizer:
    """Tokens of one answer in, text for the reader out: the thought and the answer apart. Stop strings end answers,
    not thoughts. Once `unannounced` is true, all text before was a thought (`ThinkingSplit`)."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self._tokenizer, self._split = tokenizer, ThinkingSplit(tokenizer, prompt)
        self._thinking, self._text = TextStream(), TextStream(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._text.stopped

    @property
    def stop_string(self) -> str | None:
        return self._text.stop_string

    @property
    def unannounced(self) -> bool:
        return self._split.unannounced

    def feed(self, token_id: int, ended: bool = False) -> tuple[str, str]:
        """What the thought and the answer gain; nothing of a token that ends the text."""
        data, before = b"" if ended else self._tokenizer.token_bytes(token_id), self.unannounced
        if self._split.feed(token_id) == "thinking":
            return self._thinking.feed(data), ""
        if self.unannounced and not before:
            return self._text.finish(), ""
        return self._thinking.finish(), self._text.feed(data)

    def finish(self) -> tuple[str, str]:
        """What was still held back."""
        return self._thinking.finish(), self._text.finish()
