"""Token bytes to text: whole characters, stop strings, and the thought apart from the answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from roclab.lm.text.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


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


class TextStream:
    """Bytes of tokens in, whole characters out, nothing of a stop string ever shown.

    `feed` returns what may be shown now: it keeps back half a character and anything that may yet become a stop
    string. `stopped` is true once one was found; `finish` returns the rest.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [s for s in stop if s]
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes, final: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final)
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:  # the one that is complete first, however the bytes arrive; of two that end together the longer
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = 0 if final else max((self._overlap(s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        return self.feed(b"", final=True)

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of what is held begin the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Detokenizer:
    """Tokens of one answer in, text for the reader out: the thought and the answer apart. Stop strings end answers,
    not thoughts."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self._tokenizer, self._split = tokenizer, ThinkingSplit(tokenizer, prompt)
        self._thinking, self._text = TextStream(), TextStream(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._text.stopped

    def feed(self, token_id: int, ended: bool = False) -> tuple[str, str]:
        """What the thought and the answer gain; nothing of a token that ends the text."""
        data = b"" if ended else self._tokenizer.token_bytes(token_id)
        if self._split.feed(token_id) == "thinking":
            return self._thinking.feed(data), ""
        return self._thinking.finish(), self._text.feed(data)

    def finish(self) -> tuple[str, str]:
        """What was still held back."""
        return self._thinking.finish(), self._text.finish()
