"""What tokenizers do to one student ID, in sentences that follow from the facts of `analysis.analyse`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from roclab.core.sentences import Sentence, counted, listed, pointer
from roclab.course.tokenizer_lab.bpe_trace import ADDED, NO_RULE, PRE_TOKENIZER

Facts = Mapping[str, Any]
Found = Iterator[tuple[str, str]]  # the key of the fact that a sentence follows from, and its text


def sentences(student_id: str, facts: Mapping[str, Facts]) -> list[Sentence]:
    """The analysis; `facts` by name of tokenizer. A sentence's key leads to its fact in lab.json."""
    found = []
    for name, fact in facts.items():
        for topic, write in TOPICS.items():
            for key, text in write(student_id, fact):
                where = pointer("tokenizers", name, *key.split("/"))
                found.append(Sentence(f"{name}: {text}.", key=where, topic=topic))
    if len(facts) > 1:
        found.append(Sentence(_together(facts), key="/tokenizers", topic="together"))
    return found


def bars(tokens: Iterable[Any]) -> str:
    return " · ".join(map(str, tokens))


def _split(student_id: str, fact: Facts) -> Found:
    tokens = fact["tokens"]
    size = f"{counted(len(student_id), 'character')} ({counted(fact['bytes'], 'byte')})"
    if len(tokens) == 1:
        yield "ids", f"the ID, {size}, is one token: {tokens[0]} (id {fact['ids'][0]})"
    else:
        yield "ids", f"the ID, {size}, becomes {len(tokens)} tokens: {bars(tokens)}"
    if fact["normalized"] != student_id:
        yield "normalized", f"before anything else the ID is normalized to {fact['normalized']}"
    if names := fact["control_names_in_id"]:
        text = f"the ID holds the name of a control token ({listed(names)}); RocLab's tokenizer encodes it as ordinary "
        yield "control_names_in_id", text + "text, so that nobody can type a control token"
    if fact["lost"]:
        text = f"the vocabulary lacks {counted(len(fact['lost']), 'byte')} of the ID, and they vanish"
        yield "lost", f"{text}: it decodes to {fact['decoded']}"
    elif fact["decoded"] == fact["normalized"]:
        yield "decoded", "decoding the tokens gives the ID back exactly"


def _causes(student_id: str, fact: Facts) -> Found:
    cuts = fact["boundaries"]
    by_cause = {cause: [cut for cut in cuts if cut["cause"] == cause] for cause in (PRE_TOKENIZER, ADDED, NO_RULE)}

    def part(some: Sequence[Facts]) -> str:
        return f"{len(some)} of {counted(len(cuts), 'cut')}"

    for number, stage in enumerate(fact["pre_tokenizer"]):
        here = [cut for cut in by_cause[PRE_TOKENIZER] if cut["stage"] == number]
        if here:
            pairs = listed([bars((cut["left"], cut["right"])) for cut in here], 6)
            text = (
                f"{part(here)} ({pairs}) {_are(here)} made before any merging, by step {number + 1} of the "
                f"pre-tokenizer ({stage['kind']})"
            )
            if any(map(_in_digits, here)):
                sizes = listed(map(str, stage["digits"]))
                alone = set(stage["digits"]) == {1}
                text += (
                    ", which sets every digit apart" if alone else f", which cuts eight digits into parts of {sizes}"
                )
            yield "boundaries", text
    if added := by_cause[ADDED]:
        yield "boundaries", f"{part(added)} {_are(added)} at a run of spaces that is a token of its own"
    if without_rule := by_cause[NO_RULE]:
        pairs = listed([f"{cut['left']} + {cut['right']}" for cut in without_rule], 6)
        yield "boundaries", f"{part(without_rule)} {_are(without_rule)} what merging leaves: no rule joins {pairs}"
    for number, cut in enumerate(cuts):
        if cut["joined"] is not None:
            why = (
                "the pre-tokenizer keeps its parts in different pieces" if cut["cause"] == PRE_TOKENIZER
                else "no rule builds it from these two parts"
            )  # fmt: skip
            token = f"{cut['left']}{cut['right']} (id {cut['joined']})"
            yield f"boundaries/{number}", f"the vocabulary does hold {token}, but here {why}"
    if by_cause[PRE_TOKENIZER]:
        alone = fact["without_pre_tokenizer"]
        text = f"without the pre-tokenizer the merges alone would give {bars(alone)}"
        if alone == fact["tokens"]:
            text = "without the pre-tokenizer the merges alone would split the ID in the same way"
            if any(map(_in_digits, cuts)) and not fact["multi_digit_tokens"]:
                text += ": the vocabulary has no token of two or more digits"
        yield "without_pre_tokenizer", text


def _are(items: Sequence[Any]) -> str:
    return "is" if len(items) == 1 else "are"


def _in_digits(cut: Facts) -> bool:
    """The cut is between two digits."""
    around = cut["left"][-1:] + cut["right"][:1]
    return around.isascii() and around.isdigit()


def _merges(student_id: str, fact: Facts) -> Found:
    merges = fact["merges"]
    if merges:
        path = [f"{m['left']} + {m['right']} → {m['makes']} (rank {m['rank']:,})" for m in merges]
        count = f"{counted(len(merges), 'merge')} of {fact['merge_rules']:,} rules"
        text = f"{count} {'builds' if len(merges) == 1 else 'build'} the tokens, in each piece the lowest rank first"
        yield "merges", f"{text}: {listed(path, 12)}"
    else:
        single = all(len(piece["tokens"]) == 1 for piece in fact["pieces"])
        why = "each piece that the pre-tokenizer cut is one byte already" if single else "no two neighbours have a rule"
        yield "merges", f"no merge happens inside the ID: {why}"


def _variants(student_id: str, fact: Facts) -> Found:
    own = fact["tokens"]
    for label, variant in fact["variants"].items():
        tokens, across = variant["tokens"], variant["across"]
        text = f"{label}: {bars(tokens)}"
        if label == "the ID alone":
            continue
        if label.endswith("case"):
            count = f"has {counted(len(tokens), 'token')} ({bars(tokens)}) instead of {len(own)}"
            same = f"has as many tokens, {len(own)}: {bars(tokens)}"
            text = f"{label} the ID {same if len(tokens) == len(own) else count}"
        elif variant["unchanged"]:
            text += f"; {counted(len(tokens) - len(own), 'more token')}, and the ID's own stay the same"
        elif across:
            reach = "reaches" if len(across) == 1 else "reach"
            text += f"; {listed(across)} {reach} over the ID's edge, so the ID is split differently than alone"
        elif variant["unchanged"] is not None:
            text += "; the ID is split differently than alone"
        yield f"variants/{label}", text


def _coverage(student_id: str, fact: Facts) -> Found:
    coverage = fact["coverage"]
    single, in_vocabulary = len(coverage["single"]), len(coverage["listed"])
    become = "becomes" if single == 1 else "become"
    text = f"of the ID's {counted(coverage['substrings'], 'substring')} {single} {become} a single token"
    if coverage["longest"]:
        text += f", the longest being {readable_text(coverage['longest'])}"
    if in_vocabulary != single:
        text += f"; {in_vocabulary} stand in the vocabulary"
    rate = len(fact["normalized"]) / max(len(fact["ids"]), 1)
    yield "coverage", f"{text}; in the whole ID a token stands for {rate:.2f} characters on average"


def readable_text(text: str) -> str:
    return text.replace(" ", "␣")


def _together(facts: Mapping[str, Facts]) -> str:
    alike = len({tuple(fact["tokens"]) for fact in facts.values()}) == 1
    text = f"{listed(facts)} split the ID {'alike' if alike else 'differently'}"
    if alike and len({tuple(fact["ids"]) for fact in facts.values()}) > 1:
        text += ", under other ids: an id means nothing without its vocabulary"
    return text + "."


TOPICS = {"split": _split, "causes": _causes, "merges": _merges, "variants": _variants, "coverage": _coverage}
