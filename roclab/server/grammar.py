"""Answers held to a JSON schema, a regular expression or a grammar, by llguidance as a logits processor.

A grammar is compiled before the request is queued: what llguidance cannot honour, or what would take more than its
bounds of time and memory, is refused in one line. The mask of a step leaves only tokens after which the text can still
be finished.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from
from torch import Tensor

from roclab.lm.text.detokenizer import END_THINK, THINK, ThinkingSplit
from roclab.lm.text.tokenizer import Tokenizer
from roclab.server.errors import ApiError
from roclab.server.tools import Function, Style

# A byte of the mask → what its eight tokens' logits gain: half the time of unpacking bits and choosing by them.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
BIASES = np.where(_BITS, 0, -np.inf).astype(np.float32)
LARGEST = 200_000  # characters of a schema or grammar
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Vocabulary:
    """A tokenizer as llguidance takes it: the bytes of every token."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_ids[0], tokenizer.bos_token_id
        known = range(min(size, tokenizer.vocab_size))
        self.tokens = [tokenizer.token_bytes(i, control=True) for i in known]
        self.special_token_ids = sorted(i for i in tokenizer.control.values() if i < len(self.tokens))

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=False)


class Grammars:
    """Compiles grammars for one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer, self._size = tokenizer, vocab_size
        self._library: LLTokenizer | None = None  # a second for a large vocabulary: made when it is first needed

    def compile(self, kind: str, text: str, param: str) -> LLMatcher:
        """The matcher of a grammar; `kind` is json_schema, regex, lark or gbnf. Raises ApiError that says what is wrong
        with it."""
        if len(text) > LARGEST:
            raise ApiError(400, f"{param}: more than {LARGEST} characters", param)
        try:
            grammar = _grammar(kind, text)
            if self._library is None:
                vocabulary = TokenizerWrapper(Vocabulary(self._tokenizer, self._size))
                self._library = LLTokenizer(vocabulary, n_vocab=self._size, eos_token=self._tokenizer.eos_token_ids)
            wrong, notes = LLMatcher.validate_grammar_with_warnings(grammar, self._library)
            matcher = LLMatcher(self._library, grammar, log_level=0)
        except ValueError as error:
            raise ApiError(400, f"{param}: {_first_line(error)}", param) from None
        if wrong or matcher.is_error():
            raise ApiError(400, f"{param}: {_first_line(notes[0] if notes else matcher.get_error())}", param)
        return matcher


def _grammar(kind: str, text: str) -> str:
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)
    return grammar_from(kind, text)  # type: ignore[arg-type]


def _first_line(error: Any) -> str:
    return (str(error).strip() or "it cannot be compiled").splitlines()[0]


def tool_grammar(style: Style, tokenizer: Tokenizer, tools: Sequence[Function], must: bool, several: bool) -> str:
    """The Lark grammar of an answer with calls. `must`: it is calls and nothing else; `several`: there may be more
    than one."""

    def literal(text: str) -> str:
        """Lark's terminals for a text, the control tokens in it by their names."""
        parts = re.split(r"(</?tool_call>)", text)
        shown = [part if part in tokenizer.control else json.dumps(part) for part in parts if part]
        return " ".join(shown)

    def body(tool: Function, skipped: str) -> str:
        begin = (style.begin + style.head(tool.name)).removeprefix(skipped)
        return f"{literal(begin)} %json {json.dumps({**tool.parameters, 'x-guidance': COMPACT})} {literal(style.end)}"

    names = [f"call_{i}" for i in range(len(tools))]
    rules = ["%llguidance {}"]
    either, more = f"({' | '.join(names)})", '("\\n" ' if style.begin else '("; " '
    if must:
        rules.append(f"start: {either}" + (f" {more}{either})*" if several else ""))
        rules += [f"{name}: {body(tool, '')}" for name, tool in zip(names, tools, strict=True)]
        return "\n".join(rules)
    trigger = "<tool_call>" if style.begin else '{"name": "'
    rules += [f"start: {either}{'*' if several else '?'} end", "end: TEXT", r"TEXT: /(.|\n)*/"]
    for name, tool in zip(names, tools, strict=True):
        if trigger in tokenizer.control:
            rules.append(f"{name}: TEXT {trigger} {body(tool, trigger)}")
        else:
            rules += [f"{name}_begin[lazy]: TEXT {json.dumps(trigger)}", f"{name}: {name}_begin {body(tool, trigger)}"]
    return "\n".join(rules)


class Held:
    """A logits processor (scheduler.Forcing): the answer follows the matcher's grammar, after the thought if there is
    one."""

    def __init__(self, matcher: LLMatcher, tokenizer: Tokenizer, prompt: Sequence[int], may_think: bool):
        self._matcher, self._split = matcher, ThinkingSplit(tokenizer, prompt)
        self._open, self._close = tokenizer.control.get(THINK), tokenizer.control.get(END_THINK)
        self._may_open = may_think and self._split.part == "content"
        self._read = len(prompt)
        self._forced, self._forced_at = list[int](), 0  # tokens that must stand from there on
        self._mask, self._bias = np.zeros(0, np.int32), np.zeros((0, 8), np.float32)

    def forced(self, ids: Sequence[int]) -> list[int]:
        """What the grammar leaves no choice about, such as a schema's keys."""
        self._follow(ids)
        at = len(ids) - self._forced_at
        if not 0 <= at < len(self._forced):
            free = self._split.part == "thinking" or (self._may_open and self._open is not None)
            self._forced = [] if free or self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
            self._forced_at, at = len(ids), 0
        return self._forced[at:]

    def __call__(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        if forced := self.forced(ids):  # asked of every token, so that it does not depend on what a step computes
            only = torch.full_like(logits, -torch.inf)
            only[forced[0]] = logits[forced[0]]
            return only
        if self._split.part == "thinking":
            return logits
        words = (len(logits) + 31) // 32
        if len(self._mask) != words:
            self._mask, self._bias = np.zeros(words, np.int32), np.zeros((4 * words, 8), np.float32)
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        np.take(BIASES, self._mask.view(np.uint8), axis=0, out=self._bias, mode="clip")
        bias = self._bias.reshape(-1)[: len(logits)]
        if self._may_open and self._open is not None:
            bias[self._open] = 0
        return logits + torch.from_numpy(bias).to(logits.device)

    def _follow(self, ids: Sequence[int]) -> None:
        for token_id in ids[self._read :]:
            self._take(token_id)
        self._read = len(ids)

    def _take(self, token_id: int) -> None:
        part = self._split.feed(token_id)
        if part == "thinking" or token_id in (self._open, self._close):
            return
        self._may_open = False
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)
