"""What tokenizers do to one student ID, as facts, and as sentences that follow from them.

tokenizers = open_tokenizers()                      # SmolLM2's, and Qwen3's where it is found
facts = {name: analyse("31842067", Tracer(t)) for name, t in tokenizers.found.items()}
for sentence in sentences("31842067", facts):
    print(sentence["text"])
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.course.tokenizer_lab.bpe_trace import ADDED, NO_RULE, PRE_TOKENIZER, Trace, Tracer
from roclab.lm.text.tokenizer import BYTE_OF, Tokenizer

SMOLLM, QWEN = "SmolLM2", "Qwen3"
LONGEST_ID = 64  # characters; a coverage picture holds half the square of it


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


# ── Tokenizers ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Tokenizers:
    """Name → tokenizer, and for those that are not there name → why."""

    found: dict[str, Tokenizer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def open_tokenizers(qwen3: str | None = None, say: Callable[[str], None] = lambda _: None) -> Tokenizers:
    """SmolLM2's tokenizer, from the package of its weights, and Qwen3's, from `qwen3` (a folder or Hub id), else from
    ROCLAB_QWEN3, else from the folder qwen3-tokenizer of ROCLAB_SHARED_DATA, else from the Hub's copy on this machine.
    Raises RocLabError if what was named cannot be opened; Qwen3's merely not being there is no error."""
    from roclab.lm.weights.checkpoint import open_checkpoint

    tokenizers = Tokenizers({SMOLLM: open_checkpoint("smollm2-135m", say).load_tokenizer()})
    named = qwen3 or os.environ.get("ROCLAB_QWEN3")
    if named:
        tokenizers.found[QWEN] = open_tokenizer(named, say)
    elif folder := _qwen3_here():
        tokenizers.found[QWEN] = Tokenizer.from_directory(folder)
    else:
        tokenizers.missing[QWEN] = (
            "Qwen3's tokenizer was not there: name its folder or Hub id with --qwen3 or in ROCLAB_QWEN3"
        )
    return tokenizers


def open_tokenizer(name: str, say: Callable[[str], None] = lambda _: None) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, of a GGUF file, or of a Hub repository without its weights."""
    from roclab.lm.weights.checkpoint import open_checkpoint
    from roclab.lm.weights.sources import SHORT_NAMES, tokenizer_from_hub

    path = Path(name).expanduser()
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_directory(path)
    source = SHORT_NAMES.get(name.lower(), name)
    if not path.exists() and isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/")):
        return Tokenizer.from_directory(tokenizer_from_hub(source, say))
    return open_checkpoint(name, say).load_tokenizer()


def _qwen3_here() -> Path | None:
    """A copy that nobody has to fetch."""
    shared = Path(os.environ.get("ROCLAB_SHARED_DATA", "../shared/data")) / "qwen3-tokenizer"
    if (shared / "tokenizer.json").exists():
        return shared
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache("Qwen/Qwen3-0.6B", "tokenizer.json")
    return Path(cached).parent if isinstance(cached, str) else None


# ── Facts ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


def variants(student_id: str) -> dict[str, tuple[str, str, str]]:
    """Label → (before, ID, after): the ID as it stands in texts."""
    listed = {
        "the ID alone": ("", student_id, ""),
        "with “id:” before it": ("id:", student_id, ""),
        "with “ID:” before it": ("ID:", student_id, ""),
        "with a space before it": (" ", student_id, ""),
        "with a space behind it": ("", student_id, " "),
        "with “id:” and a space before it": ("id: ", student_id, ""),
        "in a sentence": ("My student ID is ", student_id, "."),
        "in lower case": ("", student_id.lower(), ""),
        "in upper case": ("", student_id.upper(), ""),
    }
    return {
        label: parts
        for label, parts in listed.items()
        if not label.endswith("case") or parts[1] != student_id  # an ID of digits has no case
    }


def analyse(student_id: str, tracer: Tracer) -> dict[str, Any]:
    """Everything the lab says about one ID and one tokenizer, as JSON's types."""
    tokenizer, trace = tracer.tokenizer, tracer.trace(student_id)
    spellings = [token for token in tracer.vocab if all(char in BYTE_OF for char in token)]
    alone = tracer.without_pre_tokenizer(student_id)
    return {
        "vocab_size": tokenizer.vocab_size,
        "control_tokens": dict(sorted(tokenizer.control.items(), key=lambda item: item[1])),
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "merge_rules": len(tracer.ranks),
        "pre_tokenizer": [{"kind": s.kind, "pattern": s.pattern, "digits": list(s.digits)} for s in tracer.stages],
        "multi_digit_tokens": sum(token.isascii() and token.isdigit() and len(token) > 1 for token in spellings),
        "token_lengths": dict(sorted(Counter(map(len, spellings)).items())),
        "normalized": trace.normalized,
        "control_names_in_id": [name for name in tokenizer.control if name in student_id],
        "lost": [symbol for piece in trace.pieces for symbol in piece.lost],
        "decoded": tokenizer.decode(trace.ids),
        "ids": list(trace.ids),
        "tokens": [readable(token) for token in trace.tokens],
        "bytes": len(student_id.encode()),
        "pieces": [{"text": p.text, "tokens": [readable(t) for t in p.tokens]} for p in trace.pieces],
        "merges": _merges(trace),
        "boundaries": [
            {
                "left": readable(b.left), "right": readable(b.right), "cause": b.cause, "stage": b.stage,
                "joined": b.joined,
            }
            for b in trace.boundaries
        ],
        "without_pre_tokenizer": [readable(token) for token in alone],
        "variants": {label: _variant(tracer, trace, parts) for label, parts in variants(student_id).items()},
        "coverage": _coverage(tracer, trace.normalized),
    }  # fmt: skip


def _merges(trace: Trace) -> list[dict[str, Any]]:
    return [
        {"piece": piece.text, "rank": m.rank, "left": readable(m.left), "right": readable(m.right),
         "makes": readable(m.left + m.right)}
        for piece in trace.pieces
        for m in piece.merges
    ]  # fmt: skip


def _variant(tracer: Tracer, alone: Trace, parts: tuple[str, str, str]) -> dict[str, Any]:
    """A variant's tokens, those wholly inside the ID, and those that reach over one of its edges."""
    before, student_id, after = parts
    trace = tracer.trace(before + student_id + after)
    start = len(tracer.spelling(before))
    end = start + len(tracer.spelling(tracer.trace(student_id).normalized))
    at, inside, across = 0, [], []
    for token in trace.tokens:  # a token's characters are bytes
        if at >= start and at + len(token) <= end:
            inside.append(token)
        elif at < end and at + len(token) > start:
            across.append(token)
        at += len(token)
    placed = not any(piece.lost for piece in trace.pieces)  # else the bytes cannot be counted off
    return {
        "text": before + student_id + after,
        "tokens": [readable(token) for token in trace.tokens],
        "ids": list(trace.ids),
        "across": [readable(token) for token in across] if placed else None,
        "unchanged": (inside == list(alone.tokens) and not across) if placed else None,
        "merges": len([m for piece in trace.pieces for m in piece.merges]),
    }


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


# ── Sentences ───────────────────────────────────────────────────────────────────────────────────────────────────


def sentences(student_id: str, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The analysis: {"tokenizer", "topic", "text", "evidence"}, each following from the facts it carries."""
    said: list[dict[str, Any]] = []
    for name, fact in facts.items():

        def say(topic: str, text: str, name: str = name, **evidence: Any) -> None:
            said.append({"tokenizer": name, "topic": topic, "text": f"{name}: {text}", "evidence": evidence})

        _say_split(student_id, fact, say)
        _say_causes(fact, say)
        _say_merges(fact, say)
        _say_variants(fact, say)
        _say_coverage(fact, say)
    if len(facts) > 1:
        splits = {name: fact["tokens"] for name, fact in facts.items()}
        alike = len({tuple(tokens) for tokens in splits.values()}) == 1
        names = " and ".join(facts)
        text = f"{names} split the ID {'alike' if alike else 'differently'}"
        ids = {name: fact["ids"] for name, fact in facts.items()}
        if alike and len({tuple(i) for i in ids.values()}) > 1:
            text += ", under other ids: an id means nothing without its vocabulary"
        said.append({"tokenizer": None, "topic": "together", "text": text + ".", "evidence": {"ids": ids, **splits}})
    return said


def bars(tokens: Sequence[str]) -> str:
    return " · ".join(tokens)


def _some(items: Sequence[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _number(n: int, singular: str, plural: str | None = None) -> str:
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def _say_split(student_id: str, fact: Mapping[str, Any], say: Any) -> None:
    tokens = fact["tokens"]
    size = f"{_number(len(student_id), 'character')} ({_number(fact['bytes'], 'byte')})"
    if len(tokens) == 1:
        say("split", f"the ID, {size}, is one token: {tokens[0]} (id {fact['ids'][0]}).", ids=fact["ids"])
    else:
        say("split", f"the ID, {size}, becomes {len(tokens)} tokens: {bars(tokens)}.", ids=fact["ids"])
    if fact["normalized"] != student_id:
        say("split", f"before anything else the ID is normalized to {fact['normalized']}.", normalized=True)
    if names := fact["control_names_in_id"]:
        say(
            "split",
            f"the ID holds the name of a control token ({_some(names)}); RocLab's tokenizer spells it out as ordinary "
            "text, so that nobody can type a control token.",
            names=names,
        )
    if fact["lost"]:
        say(
            "split",
            f"the vocabulary lacks {_number(len(fact['lost']), 'byte')} of the ID, and they vanish: it decodes to "
            f"{fact['decoded']}.",
            lost=fact["lost"],
        )
    elif fact["decoded"] == fact["normalized"]:
        say("split", "decoding the tokens gives the ID back exactly.", decoded=fact["decoded"])


def _say_causes(fact: Mapping[str, Any], say: Any) -> None:
    cuts = fact["boundaries"]
    for number, stage in enumerate(fact["pre_tokenizer"], start=1):
        here = [b for b in cuts if b["cause"] == PRE_TOKENIZER and b["stage"] == number - 1]
        if here:
            text = (
                f"{len(here)} of {_number(len(cuts), 'cut')} ({_some([_pair(b) for b in here])}) "
                f"{'is' if len(here) == 1 else 'are'} made before any merging, by step {number} of the pre-tokenizer "
                f"({stage['kind']})"
            )
            if any(_digit(b["left"][-1:]) and _digit(b["right"][:1]) for b in here):
                sizes = stage["digits"]
                text += (
                    ", which sets every digit apart" if set(sizes) == {1}
                    else f", which cuts eight digits into parts of {', '.join(map(str, sizes))}"
                )  # fmt: skip
            say("causes", text + ".", cuts=here, stage=stage)
    if added := [b for b in cuts if b["cause"] == ADDED]:
        say("causes", f"{_number(len(added), 'cut')} stand at a run of spaces that is a token of its own.", cuts=added)
    if unruled := [b for b in cuts if b["cause"] == NO_RULE]:
        pairs = _some([f"{b['left']} + {b['right']}" for b in unruled])
        say(
            "causes",
            f"{len(unruled)} of {_number(len(cuts), 'cut')} {'is' if len(unruled) == 1 else 'are'} what merging "
            f"leaves: no rule joins {pairs}.",
            cuts=unruled,
        )
    for b in cuts:
        if b["joined"] is not None:
            why = "the pre-tokenizer keeps its parts in different pieces" if b["cause"] == PRE_TOKENIZER else (
                "no rule builds it from these two parts"
            )  # fmt: skip
            say(
                "causes",
                f"the vocabulary does hold {b['left']}{b['right']} (id {b['joined']}), but here {why}.",
                cut=b,
            )
    alone = fact["without_pre_tokenizer"]
    if any(b["cause"] == PRE_TOKENIZER for b in cuts):
        if alone == fact["tokens"]:
            text = "without the pre-tokenizer the merges alone would split the ID in the same way"
            if any(_digit(b["left"][-1:]) and _digit(b["right"][:1]) for b in cuts) and not fact["multi_digit_tokens"]:
                text += ": the vocabulary has no token of two or more digits"
        else:
            text = f"without the pre-tokenizer the merges alone would give {bars(alone)}"
        say("causes", text + ".", tokens=alone, multi_digit_tokens=fact["multi_digit_tokens"])


def _pair(boundary: Mapping[str, Any]) -> str:
    return f"{boundary['left']} · {boundary['right']}"


def _digit(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _say_merges(fact: Mapping[str, Any], say: Any) -> None:
    merges = fact["merges"]
    if not merges:
        single = all(len(piece["tokens"]) == 1 for piece in fact["pieces"])
        why = "each piece that the pre-tokenizer cut is one byte already" if single else "no two neighbours have a rule"
        say("merges", f"no merge happens inside the ID: {why}.", merges=0)
        return
    path = [f"{m['left']} + {m['right']} → {m['makes']} (rank {m['rank']:,})" for m in merges]
    say(
        "merges",
        f"{_number(len(merges), 'merge')} of {fact['merge_rules']:,} rules {'builds' if len(merges) == 1 else 'build'} "
        f"the tokens, in each piece the lowest rank first: {_some(path, 12)}.",
        merges=merges,
    )


def _say_variants(fact: Mapping[str, Any], say: Any) -> None:
    own = fact["tokens"]
    for label, variant in fact["variants"].items():
        tokens = variant["tokens"]
        if label == "the ID alone":
            continue
        if label.endswith("case"):
            text = f"{label} the ID has {_number(len(tokens), 'token')} ({bars(tokens)}) instead of {len(own)}"
            if len(tokens) == len(own):
                text = f"{label} the ID has as many tokens, {len(own)}: {bars(tokens)}"
        elif variant["unchanged"]:
            more = len(tokens) - len(own)
            text = f"{label}: {bars(tokens)}; {_number(more, 'token')} more, and the ID's own stay as they were"
        elif variant["across"]:
            text = (
                f"{label}: {bars(tokens)}; {' and '.join(variant['across'])} "
                f"{'reaches' if len(variant['across']) == 1 else 'reach'} over the ID's edge, so the ID begins or ends "
                "otherwise than alone"
            )
        else:
            text = f"{label}: {bars(tokens)}; the ID is split otherwise than alone"
        if variant["unchanged"] is None:
            text = f"{label}: {bars(tokens)}"
        say("variants", text + ".", variant=label, **{k: v for k, v in variant.items() if k != "text"})


def _say_coverage(fact: Mapping[str, Any], say: Any) -> None:
    coverage = fact["coverage"]
    single, listed = len(coverage["single"]), len(coverage["listed"])
    text = (
        f"of the ID's {_number(coverage['substrings'], 'substring')} {single} "
        f"{'becomes' if single == 1 else 'become'} a single token"
    )
    if coverage["longest"]:
        text += f", the longest being {readable_text(coverage['longest'])}"
    if listed != single:
        text += f"; {listed} stand in the vocabulary"
    rate = len(fact["normalized"]) / max(len(fact["ids"]), 1)
    text += f"; in the whole ID a token stands for {rate:.2f} characters on average"
    say("coverage", f"{text}.", single=single, listed=listed,
        substrings=coverage["substrings"], characters_per_token=rate)  # fmt: skip


def readable_text(text: str) -> str:
    return text.replace(" ", "␣")
