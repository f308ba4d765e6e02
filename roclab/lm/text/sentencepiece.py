"""SentencePiece vocabularies (Llama 2, Mistral, TinyLlama) as the content of a tokenizer.json.

SentencePiece's BPE joins the two neighbours whose union has the highest score. A tokenizer.json lists pairs in the
order in which they are joined. So every way to cut a piece into two others is a pair, the highest scores first.
Source of the file's layout: sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from roclab.core.exceptions import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the kinds of pieces; GGUF has the same numbers
SPACE = "▁"  # stands for a space in pieces
BPE = 2  # trainer_spec.model_type


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


def sentencepiece_definition(pieces: Sequence[Piece], *, prefix: bool = True, strip: bool = False) -> dict[str, Any]:
    """`prefix`: a space is put before a text. `strip`: runs of spaces become one, those at the ends none."""
    vocabulary = {piece.text: i for i, piece in enumerate(pieces) if piece.kind != UNUSED}
    scores = {p.text: p.score for p in pieces if p.kind in (NORMAL, USER_DEFINED)}
    pairs = [
        (score, vocabulary[text[:cut]], vocabulary[text[cut:]], text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    replaced = [({"String": " "}, SPACE)]
    if strip:
        replaced += [({"Regex": rf"\A{SPACE}+|{SPACE}+\z"}, ""), ({"Regex": SPACE + "{2,}"}, SPACE)]
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": old, "content": new} for old, new in replaced]
    if prefix:
        normalizers.append({"type": "Prepend", "prepend": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    has_bytes = any(piece.kind == BYTE for piece in pieces)
    unknown = None if has_bytes else next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    special = {CONTROL: True, USER_DEFINED: False} | ({UNKNOWN: True} if has_bytes else {})
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": piece.text, "special": special[piece.kind]}
            for i, piece in enumerate(pieces)
            if piece.kind in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": has_bytes, "ignore_merges": False,
            "vocab": vocabulary, "merges": [pair[3:] for pair in pairs],
        },
    }  # fmt: skip


def sentencepiece_pieces(definition: Mapping[str, Any], count: int) -> tuple[list[Piece], bool, bool] | None:
    """The other way: `count` pieces, `prefix` and `strip` that give a tokenizer.json's content, or None if none do.

    BPE only compares scores, so the order in which pieces are joined first says as much.
    """
    model, normalizers = definition["model"], (definition.get("normalizer") or {}).get("normalizers", [])
    order: dict[str, float] = {}
    for a, b in model["merges"]:
        order.setdefault(a + b, -float(len(order)))
    added = definition["added_tokens"]
    kinds = {token["content"]: CONTROL if token.get("special") else USER_DEFINED for token in added}
    kinds[model.get("unk_token") or "<unk>"] = UNKNOWN
    if model.get("byte_fallback"):
        kinds |= dict.fromkeys((f"<0x{byte:02X}>" for byte in range(256)), BYTE)
    pieces = [Piece(f"[PAD{i}]", 0.0, UNUSED) for i in range(count)]  # an embedding often has more rows
    for text, i in model["vocab"].items():
        pieces[i] = Piece(text, order.get(text, 0.0), kinds.get(text, NORMAL))
    prefix, strip = any(part.get("type") == "Prepend" for part in normalizers), len(normalizers) > 2
    again = sentencepiece_definition(pieces, prefix=prefix, strip=strip)
    same_order = again["normalizer"]["normalizers"]  # or the space is put first before the others are replaced
    if normalizers not in (same_order, same_order if strip else same_order[::-1]) or definition.get("pre_tokenizer"):
        return None
    joined = [[a + b for a, b in of["merges"]] for of in (model, again["model"])]
    pairs = [{(a, b) for a, b in of["merges"]} for of in (model, again["model"])]
    fits = joined[0] == joined[1] and pairs[0] == pairs[1] and model["vocab"] == again["model"]["vocab"]
    alike = ("byte_fallback", "ignore_merges", "fuse_unk")
    fits = fits and all(bool(model.get(key)) == again["model"][key] for key in alike)
    return (pieces, prefix, strip) if fits and definition.get("decoder") == again["decoder"] else None


def read_sentencepiece(path: Path) -> dict[str, Any]:
    """The definition in a tokenizer.model. Raises CheckpointError if it is damaged or not BPE."""
    try:
        pieces: list[Piece] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece[2])
                pieces.append(Piece(piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise CheckpointError(f"{path}: cannot be read as a SentencePiece model; fetch the file again") from None
    if trainer.get(3, 1) != BPE or not pieces:
        raise CheckpointError(f"{path}: SentencePiece models of this kind are not supported (supported: BPE)")
    if normalizer.get(2):  # a compiled map; the tokenizers library applies such maps otherwise than SentencePiece
        rule = normalizer.get(1, b"").decode(errors="replace")
        raise CheckpointError(f"{path}: its normalization {rule!r} is not supported (supported: 'identity')")
    return sentencepiece_definition(pieces, prefix=bool(normalizer.get(3, 1)), strip=bool(normalizer.get(4, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Protocol Buffers: the fields of a message, whole numbers as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size
