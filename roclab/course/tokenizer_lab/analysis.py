"""What tokenizers do to one student ID, as facts.

tokenizers, missing = open_tokenizers()             # SmolLM2's, and Qwen3's where it is found
facts = {name: analyse("31842067", Tracer(tokenizer)) for name, tokenizer in tokenizers.items()}
for sentence in sentences("31842067", facts):       # `sentences.sentences`
    print(sentence.text)
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.course.tokenizer_lab.bpe_trace import Trace, Tracer
from roclab.lm.text.tokenizer import BYTE_OF, Tokenizer, bytes_to_unicode
from roclab.lm.weights.checkpoint import open_checkpoint
from roclab.lm.weights.sources import SHORT_NAMES, tokenizer_from_hub

SPACE = bytes_to_unicode()[ord(" ")]  # as a byte-level vocabulary writes it
SMOLLM, QWEN = "SmolLM2", "Qwen3"
LONGEST_ID = 64  # characters; a coverage picture holds half the square of it
VARIANTS = {  # label → text before and after the ID
    "the ID alone": ("", ""),
    "with “id:” before it": ("id:", ""),
    "with “ID:” before it": ("ID:", ""),
    "with a space before it": (" ", ""),
    "with a space behind it": ("", " "),
    "with “id:” and a space before it": ("id: ", ""),
    "in a sentence": ("My student ID is ", "."),
}


def check_student_id(student_id: str) -> str:
    """The ID, if it is one. Raises RocLabError that says why not."""
    if not student_id.strip():
        raise RocLabError("the student ID is empty: give it with --student-id")
    if len(student_id) > LONGEST_ID:
        raise RocLabError(f"a student ID has at most {LONGEST_ID} characters; this one has {len(student_id):,}")
    for char in student_id:
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in "\ufdd0\ufdd1":
            raise RocLabError(f"a student ID holds no line breaks or control characters; this one holds {char!a}")
    return student_id


def open_tokenizers(qwen3: str | None = None) -> tuple[dict[str, Tokenizer], dict[str, str]]:
    """SmolLM2's tokenizer, from the package of its weights, and Qwen3's, from `qwen3` (a folder or Hub id), else from
    ROCLAB_QWEN3, else from the folder qwen3-tokenizer of ROCLAB_SHARED_DATA, else from the Hub's copy on this machine.
    And for what is missing, why: name → reason. Raises RocLabError if what was named cannot be opened."""
    found = {SMOLLM: open_tokenizer("smollm2-135m")}
    named = qwen3 or find_qwen3()
    if named is None:
        return found, {
            QWEN: "Qwen3's tokenizer was not there: name its folder or Hub id with --qwen3 or in ROCLAB_QWEN3"
        }
    return found | {QWEN: open_tokenizer(named)}, {}


def find_qwen3() -> str | None:
    """Where Qwen3's tokenizer is: what ROCLAB_QWEN3 names, or a folder on this machine."""
    shared = Path(os.environ.get("ROCLAB_SHARED_DATA", "../shared/data")) / "qwen3-tokenizer"
    return os.environ.get("ROCLAB_QWEN3") or (str(shared) if shared.exists() else _hub_copy())


def _hub_copy() -> str | None:
    """The folder of Qwen3's tokenizer where the Hub's library keeps one on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache("Qwen/Qwen3-0.6B", "tokenizer.json")
    return str(Path(file).parent) if isinstance(file, str) else None


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, of a GGUF file, or of a Hub repository without its weights."""
    path = Path(name).expanduser()
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_directory(path)
    source = SHORT_NAMES.get(name.lower(), name)
    if not path.exists() and isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/")):
        return Tokenizer.from_directory(tokenizer_from_hub(source))
    return open_checkpoint(name).load_tokenizer()


def readable(token: str) -> str:
    """A token of a byte-level vocabulary for people: a space is ␣, bytes that are no whole character are in hex."""
    if not all(char in BYTE_OF for char in token):
        return token.replace(" ", "␣")
    data = bytes(BYTE_OF[char] for char in token)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "⟨" + data.hex(" ") + "⟩"
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def analyse(student_id: str, tracer: Tracer) -> dict[str, Any]:
    """Everything the lab says about one ID and one tokenizer, as JSON's types."""
    tokenizer, trace = tracer.tokenizer, tracer.trace(student_id)
    spellings = [token for token in tracer.vocab if all(char in BYTE_OF for char in token)]
    texts = {label: (before, student_id, after) for label, (before, after) in VARIANTS.items()}
    for label, changed in (("in lower case", student_id.lower()), ("in upper case", student_id.upper())):
        if changed != student_id:  # an ID of digits has no case
            texts[label] = ("", changed, "")
    return {
        "vocab_size": tokenizer.vocab_size,
        "control_tokens": dict(sorted(tokenizer.control.items(), key=lambda item: item[1])),
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "merge_rules": len(tracer.ranks),
        "pre_tokenizer": [stage._asdict() | {"digits": list(stage.digits)} for stage in tracer.stages],
        "multi_digit_tokens": sum(token.isascii() and token.isdigit() and len(token) > 1 for token in spellings),
        "digit_merges": sum((left + right).isascii() and (left + right).isdigit() for left, right in tracer.ranks),
        "space_tokens": sum(token[0] == SPACE and len(token) > 1 for token in spellings),
        "token_lengths": dict(sorted(Counter(map(len, spellings)).items())),
        "normalized": trace.normalized,
        "control_names_in_id": [name for name in tokenizer.control if name in student_id],
        "lost": trace.lost,
        "decoded": tokenizer.decode(trace.ids),
        "ids": list(trace.ids),
        "tokens": _readable(trace.tokens),
        "bytes": len(student_id.encode()),
        "pieces": [{"text": piece.text, "tokens": _readable(piece.tokens)} for piece in trace.pieces],
        "merges": [
            {
                "piece": piece.text, "rank": merge.rank, "left": readable(merge.left), "right": readable(merge.right),
                "makes": readable(merge.left + merge.right),
            }
            for piece in trace.pieces
            for merge in piece.merges
        ],
        "boundaries": [
            cut._asdict() | {"left": readable(cut.left), "right": readable(cut.right)} for cut in trace.boundaries
        ],
        "without_pre_tokenizer": _readable(tracer.without_pre_tokenizer(student_id)),
        "variants": {label: _variant(tracer, trace, parts) for label, parts in texts.items()},
        "coverage": _coverage(tracer, trace.normalized),
    }  # fmt: skip


def _readable(tokens: Iterable[str]) -> list[str]:
    return [readable(token) for token in tokens]


def _variant(tracer: Tracer, alone: Trace, parts: tuple[str, str, str]) -> dict[str, Any]:
    """A variant's tokens, those before the ID, those that reach over one of its edges, and what happens at each."""
    before, student_id, after = parts
    trace = tracer.trace(before + student_id + after)
    start = len(tracer.spelling(before))
    end = start + len(tracer.spelling(tracer.trace(student_id).normalized))
    at, in_front, inside, across = 0, [], [], []
    for token in trace.tokens:  # a token's characters are bytes
        if at + len(token) <= start:
            in_front.append(token)
        elif at >= start and at + len(token) <= end:
            inside.append(token)
        elif at < end and at + len(token) > start:
            across.append(token)
        at += len(token)
    return {
        "text": trace.text,
        "tokens": _readable(trace.tokens),
        "ids": list(trace.ids),
        # where bytes are lost, no token's place in the text is known
        "across": None if trace.lost else _readable(across),
        "in_front": None if trace.lost else _readable(in_front),
        "edges": [] if trace.lost else [_edge(trace, edge) for edge, text in ((start, before), (end, after)) if text],
        "unchanged": None if trace.lost else inside == list(alone.tokens) and not across,
        "merges": sum(len(piece.merges) for piece in trace.pieces),
    }


def _edge(trace: Trace, place: int) -> dict[str, Any]:
    """What happens between the bytes on both sides of `place`: a cut with its cause, or the merge that joins them
    ("makes")."""
    ends = list(accumulate(map(len, trace.tokens)))
    if place in ends:
        cut = trace.boundaries[ends.index(place)]
        return cut._asdict() | {"left": readable(cut.left), "right": readable(cut.right)}
    begin = 0
    for piece in trace.pieces:
        for merge in piece.merges:
            if begin + merge.at + len(merge.left) == place:
                return {
                    "left": readable(merge.left), "right": readable(merge.right), "rank": merge.rank,
                    "makes": readable(merge.left + merge.right),
                }  # fmt: skip
        begin += sum(map(len, piece.symbols))
    return {"makes": "", "rank": None}  # a whole word of the vocabulary, taken without merging


def _coverage(tracer: Tracer, text: str) -> dict[str, Any]:
    """Which substrings of the ID are one token (`single`), and which stand in the vocabulary at all (`listed`):
    lists of [start, length]. The pre-tokenizer can make a listed token unreachable."""
    places = [(start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    single = [[a, b - a] for a, b in places if tracer.single(text[a:b])]
    listed = [[a, b - a] for a, b in places if tracer.spelling(text[a:b]) in tracer.vocab]
    longest = max(single, key=lambda place: place[1], default=[0, 0])
    return {
        "substrings": len(places),
        "single": single,
        "listed": listed,
        "longest": text[longest[0] : longest[0] + longest[1]],
    }
