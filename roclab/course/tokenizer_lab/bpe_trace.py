"""Byte-pair encoding step by step: why a text becomes these tokens and no others.

    trace = Tracer(tokenizer).trace("id:31842")
    for piece in trace.pieces:            # what the pre-tokenizer cut; no token ever reaches over its edges
        for merge in piece.merges:        # in the order in which they happen: lowest rank first, then leftmost
            print(merge.left, "+", merge.right, "rank", merge.rank)
    for boundary in trace.boundaries:     # why each cut is where it is
        print(boundary.left, "|", boundary.right, boundary.cause)

Ids are those of the `tokenizers` library, exactly. Its rules, for byte-level vocabularies: the text is normalized and
cut into pieces; a piece begins as its bytes; as long as two neighbours have a merge rule, the rule learned first
(lowest rank) is applied, at its leftmost place (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units"; on bytes: Radford et al. 2019).
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.pre_tokenizers import Sequence as StepsInTurn

from roclab.core.exceptions import RocLabError
from roclab.lm.text.tokenizer import NOT_TEXT, Tokenizer, bytes_to_unicode

CHAR_OF = bytes_to_unicode()
PRE_TOKENIZER, NO_RULE, ADDED = "pre-tokenizer", "no merge rule", "added token"


class Merge(NamedTuple):
    """One step: the symbols that begin at `at` (an index into the piece's first symbols) and the next became one."""

    rank: int
    at: int
    left: str
    right: str


class Piece(NamedTuple):
    """What the pre-tokenizer cut out. `symbols` are its bytes as the vocabulary writes them, without those that it
    lacks (`lost`). `cause` and `stage` are those of the cut before it (see `Boundary`)."""

    text: str
    symbols: tuple[str, ...]
    lost: tuple[str, ...]
    merges: tuple[Merge, ...]
    tokens: tuple[str, ...]
    cause: str
    stage: int | None

    def states(self) -> Iterator[list[str]]:
        """The symbols before the first merge, after it, and so on to the tokens. Quadratic: for short pieces."""
        standing = dict(enumerate(self.symbols))
        yield list(standing.values())
        for merge in self.merges:
            following = next(i for i in sorted(standing) if i > merge.at)
            standing[merge.at] += standing.pop(following)
            yield [standing[i] for i in sorted(standing)]


class Boundary(NamedTuple):
    """A cut between two tokens, and its cause: PRE_TOKENIZER with the number of the `stage` that cut, NO_RULE, or
    ADDED. `joined` is the id of the token that both would make together, where the vocabulary has one."""

    left: str
    right: str
    cause: str
    stage: int | None = None
    joined: int | None = None


class Trace(NamedTuple):
    """A text's way to its tokens. `normalized` is the text the pre-tokenizer saw."""

    text: str
    normalized: str
    pieces: tuple[Piece, ...]
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    boundaries: tuple[Boundary, ...]

    @property
    def lost(self) -> list[str]:
        return [symbol for piece in self.pieces for symbol in piece.lost]


class Stage(NamedTuple):
    """One step of the pre-tokenizer. `digits` is how it cuts a run of eight digits: the sizes of the parts."""

    kind: str
    pattern: str | None
    digits: tuple[int, ...]


def _stage(definition: Mapping[str, Any], step: Any) -> Stage:
    pattern = definition.get("pattern", {})
    cuts = step.pre_tokenize_str("12345678")
    return Stage(definition["type"], pattern.get("Regex") or pattern.get("String"), tuple(b - a for _, (a, b) in cuts))


def apply_merges(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> tuple[list[Merge], list[str]]:
    """The merges of single characters in their order, and the symbols that they leave. O(n log n).

    A queue entry whose neighbours have changed still counts if they now make the same token: so does the library."""
    standing = dict(enumerate(symbols))  # place of its first character → symbol
    start_of = {place + 1: place for place in standing}  # where a symbol ends → where it begins
    queue: list[tuple[int, int, str]] = []

    def look(at: int) -> None:
        """Queue the pair that begins at `at`, if it has a rule."""
        left = standing.get(at, "")
        right = standing.get(at + len(left), "")
        if (left, right) in ranks:
            heapq.heappush(queue, (ranks[left, right], at, left + right))

    for at in standing:
        look(at)
    merges = []
    while queue:
        _, at, makes = heapq.heappop(queue)
        left = standing.get(at, "")
        right = standing.get(at + len(left), "")
        if left + right == makes and (left, right) in ranks:
            merges.append(Merge(ranks[left, right], at, left, right))
            standing[at] = makes
            del standing[at + len(left)]
            start_of[at + len(makes)] = at
            look(at)
            if at in start_of:
                look(start_of[at])
    return merges, list(standing.values())


class Tracer:
    """Traces texts through one tokenizer. Raises RocLabError for a vocabulary that is not byte-level BPE."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        definition = tokenizer.definition
        model = definition["model"]
        pre_tokenizer = definition.get("pre_tokenizer") or {}
        parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
        others = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
        if any(map(model.get, others)) or not parts or parts[-1].get("type") != "ByteLevel":
            raise RocLabError(
                f"{tokenizer.origin}: only byte-level vocabularies can be traced (GPT-2's, Llama 3's, Qwen's)"
            )
        self.vocab: dict[str, int] = model["vocab"]
        merges = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        self._whole_words = bool(model.get("ignore_merges"))
        spaces = [token for token in definition["added_tokens"] if not token["content"].strip()]  # runs of spaces
        if any(token.get(flag) for token in spaces for flag in ("single_word", "lstrip", "rstrip")):
            raise RocLabError(f"{tokenizer.origin}: added tokens with lstrip, rstrip or single_word cannot be traced")
        self._added = {token["content"]: token["id"] for token in spaces}
        names = sorted(self._added, key=len, reverse=True)
        self._split_added = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")
        without_vocabulary: dict[str, Any] = {
            "version": "1.0", "added_tokens": [], "normalizer": definition.get("normalizer"), "post_processor": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}, "decoder": None,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }  # fmt: skip
        library = LibraryTokenizer.from_str(json.dumps(without_vocabulary))
        steps = [library.pre_tokenizer[number] for number in range(len(parts))]
        self._normalize = library.normalizer.normalize_str if library.normalizer else str
        self._cutters = [StepsInTurn(steps[: number + 1]) for number in range(len(parts))]
        self.stages = [_stage(part, step) for part, step in zip(parts, steps, strict=True)]

    def trace(self, text: str) -> Trace:
        """A text through normalizer, pre-tokenizer and merges."""
        text = NOT_TEXT.sub("\ufffd", text)
        normalized = ""
        pieces: list[Piece] = []
        for part in filter(None, self._split_added.split(text)):
            if part in self._added:
                normalized += part
                pieces.append(Piece(part, (part,), (), (), (part,), ADDED, None))
                continue
            part = self._normalize(part)
            normalized += part
            first_cut_by: dict[int, int] = {}  # a cut's place → the first stage that makes it
            for stage, cutter in enumerate(self._cutters):
                for _, (start, _) in cutter.pre_tokenize_str(part):
                    first_cut_by.setdefault(start, stage)
            for spelled, (start, end) in self._cutters[-1].pre_tokenize_str(part):
                known = tuple(symbol for symbol in spelled if symbol in self.vocab)
                lost = tuple(symbol for symbol in spelled if symbol not in self.vocab)
                whole = self._whole_words and spelled in self.vocab
                merges, left = ([], [spelled]) if whole else apply_merges(known, self.ranks)
                cut = (PRE_TOKENIZER, first_cut_by[start]) if start else (ADDED, None)
                pieces.append(Piece(part[start:end], known, lost, tuple(merges), tuple(left), *cut))
        cuts = [
            (token, (NO_RULE, None) if place else (piece.cause, piece.stage))
            for piece in pieces
            for place, token in enumerate(piece.tokens)
        ]
        boundaries = tuple(
            Boundary(left, right, *cut, self.vocab.get(left + right)) for (left, _), (right, cut) in pairwise(cuts)
        )
        tokens = tuple(token for token, _ in cuts)
        ids = tuple(self._added[token] if token in self._added else self.vocab[token] for token in tokens)
        return Trace(text, normalized, tuple(pieces), tokens, ids, boundaries)

    def without_pre_tokenizer(self, text: str) -> list[str]:
        """What the merges alone would make of a text: its bytes in one piece."""
        data = self._normalize(NOT_TEXT.sub("\ufffd", text)).encode()
        return apply_merges([c for b in data if (c := CHAR_OF[b]) in self.vocab], self.ranks)[1]

    def single(self, text: str) -> bool:
        """Whether a text becomes exactly one token."""
        return len(self.tokenizer.encode(text, bos=False)) == 1

    def spelling(self, text: str) -> str:
        """A text as the vocabulary writes it: its bytes' stand-ins (a space is Ġ)."""
        return "".join(CHAR_OF[b] for b in text.encode("utf-8", errors="replace"))
