"""The tokenizer in a GGUF file: rebuilt from the metadata, and described for the writer.

GGUF stores vocabulary and merges, but only the name of the pre-tokenizer; what the name means is in PRE_TOKENIZERS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.lm.model import RocLMConfig
from roclab.lm.text.sentencepiece import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Piece,
    sentencepiece_definition,
    sentencepiece_pieces,
)
from roclab.lm.text.tokenizer import ADDED_TOKEN, Tokenizer

logger = logging.getLogger(__name__)

END_TOKENS = ("eos", "eot", "eom")  # the keys of tokens that end a text
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")  # how control tokens are spelled

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"


def _split_then_bytes(words: str, digits: str, marks: str = r"\r\n") -> dict[str, Any]:
    """The pre-tokenizer that Qwen, Llama 3 and Mistral's Tekken share: words with one leading mark, numbers, runs of
    marks with what may follow them, line ends, spaces."""
    pattern = rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[{marks}]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


# What a GGUF file names in tokenizer.ggml.pre → the normalizer and pre-tokenizer of that family's tokenizer.json.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}],
        },
    },
    "qwen2": {"normalizer": {"type": "NFC"}, "pre_tokenizer": _split_then_bytes(_WORDS, r"\p{N}")},
    "llama-bpe": {"normalizer": None, "pre_tokenizer": _split_then_bytes(_WORDS, r"\p{N}{1,3}")},
    "tekken": {"normalizer": None, "pre_tokenizer": _split_then_bytes(_CASED_WORDS, r"\p{N}", r"\r\n/")},
    "gpt2": {"normalizer": None, "pre_tokenizer": {**_BYTE_LEVEL, "use_regex": True}},
}
# Other names that llama.cpp uses for the same, and the one that it knows of "gpt2".
_OTHER_NAMES = {"gpt-2": "gpt2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_WRITTEN_NAMES = {"gpt2": "gpt-2"}
# Families that take a whole word from the vocabulary if it is there, and put a BOS before every text.
_WHOLE_WORDS = ("llama-bpe", "tekken")


def tokenizer_from_gguf(metadata: Mapping[str, Any], origin: str) -> Tokenizer:
    """Raises CheckpointError for a kind of vocabulary or pre-tokenizer that is not supported: a wrong guess would split
    texts otherwise than the model was trained on."""
    kind, get = metadata.get("tokenizer.ggml.model"), metadata.get
    template = get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    if kind == "llama":
        tokens, scores, types = _checked_lists(metadata, "scores", origin)
        types = _marks_as_control(tokens, types, template, set())
        pieces = [Piece(*piece) for piece in zip(tokens, scores, types, strict=True)]
        definition = sentencepiece_definition(
            pieces, prefix=bool(get("tokenizer.ggml.add_space_prefix", True)),
            strip=bool(get("tokenizer.ggml.remove_extra_whitespaces", False)),
        )  # fmt: skip
        wants_bos = True
    elif kind == "gpt2":
        pre = get("tokenizer.ggml.pre", "")
        pre = _OTHER_NAMES.get(pre, pre) if isinstance(pre, str) else repr(pre)
        if pre not in PRE_TOKENIZERS:
            raise CheckpointError(
                f"{origin}: the file names no pre-tokenizer that is known here (tokenizer.ggml.pre is {pre!r}, "
                f"supported: {', '.join(PRE_TOKENIZERS)}); give the original tokenizer with --tokenizer FOLDER"
            )
        tokens, merges, types = _checked_lists(metadata, "merges", origin)
        types = _marks_as_control(tokens, types, template, {merge.replace(" ", "", 1) for merge in merges})
        definition, wants_bos = _bpe_definition(tokens, merges, types, pre), pre in _WHOLE_WORDS
    else:
        raise CheckpointError(
            f"{origin}: tokenizer model {kind!r} is not supported (supported: gpt2, that is BPE, and llama, that is "
            "SentencePiece); give the original tokenizer with --tokenizer FOLDER"
        )

    def named(*keys: str) -> list[str]:
        ids = (get(f"tokenizer.ggml.{key}_token_id") for key in keys)
        return list(dict.fromkeys(tokens[i] for i in ids if isinstance(i, int) and 0 <= i < len(tokens)))

    bos, vocabulary = named("bos"), definition["model"]["vocab"]
    if not bos and (i := get("tokenizer.ggml.bos_token_id")) is not None:
        logger.warning("%s: the BOS token is id %r, but there are %d tokens: no BOS is added", origin, i, len(tokens))
    return Tokenizer(
        definition, bos_token=bos[0] if bos else None, eos_tokens=named(*END_TOKENS),
        adds_bos=bool(get("tokenizer.ggml.add_bos_token", wants_bos)), chat_template=template,
        twins={i: name for i, name in enumerate(tokens) if vocabulary.get(name, i) != i and types[i] != UNUSED},
        origin=origin,
    )  # fmt: skip


def _marks_as_control(tokens: list[str], types: list[int], template: str | None, merged: set[str]) -> list[int]:
    """The token types, with CONTROL for tokens that some writers call NORMAL: those that the chat template writes, that
    are spelled like control tokens, and that no merge makes."""
    marks = {mark for mark in _MARK.findall(template or "") if mark not in merged}
    return [CONTROL if kind == NORMAL and name in marks else kind for name, kind in zip(tokens, types, strict=True)]


def _bpe_definition(tokens: list[str], merges: list[str], types: list[int], pre: str) -> dict[str, Any]:
    added = [
        {**ADDED_TOKEN, "id": i, "content": tokens[i], "special": kind == CONTROL}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if UNUSED in types:  # rows of the embedding that stand for nothing
        vocabulary = {token: i for token, i in vocabulary.items() if types[i] != UNUSED}
    return {
        "version": "1.0",
        "added_tokens": added,
        **PRE_TOKENIZERS[pre],
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS, "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip


def _checked_lists(metadata: Mapping[str, Any], second: str, origin: str) -> tuple[list[str], list[Any], list[int]]:
    """Tokens, merges or scores, and token types."""
    try:
        tokens, others = metadata["tokenizer.ggml.tokens"], metadata[f"tokenizer.ggml.{second}"]
    except KeyError as error:
        raise CheckpointError(f"{origin}: the tokenizer is incomplete: {error.args[0]} is missing") from None
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    of_others = float if second == "scores" else str
    for key, entries, of in (("tokens", tokens, str), (second, others, of_others), ("token_type", types, int)):
        if not isinstance(entries, list) or not set(map(type, entries)) <= {of}:
            raise CheckpointError(f"{origin}: tokenizer.ggml.{key} is damaged; fetch the file again")
    if len(types) != len(tokens) or (second == "scores" and len(others) != len(tokens)):
        raise CheckpointError(f"{origin}: {len(tokens)} tokens but {len(types)} token types; fetch the file again")
    return tokens, others, types


def gguf_entries(tokenizer: Tokenizer, config: RocLMConfig) -> dict[str, Any]:
    """What `tokenizer_from_gguf` reads, by the names of the `gguf` writer's add_… functions. Raises RocLabError for a
    pre-tokenizer that has no name in PRE_TOKENIZERS and is not SentencePiece's."""
    definition, size = tokenizer.definition, config.vocab_size
    pre = next((name for name, family in PRE_TOKENIZERS.items() if _same_family(definition, name, family)), None)
    if pre is not None:
        types_of = {t["id"]: CONTROL if t.get("special") else USER_DEFINED for t in definition["added_tokens"]}
        names = [tokenizer.id_to_token(i) for i in range(size)]
        entries: dict[str, Any] = {
            "tokenizer_model": "gpt2",
            "tokenizer_pre": _WRITTEN_NAMES.get(pre, pre),
            # An embedding often has more rows than there are tokens.
            "token_list": [f"[PAD{i}]" if name is None else name for i, name in enumerate(names)],
            "token_types": [UNUSED if name is None else types_of.get(i, NORMAL) for i, name in enumerate(names)],
            "token_merges": [" ".join(merge) for merge in definition["model"]["merges"]],
        }
    elif spelled := sentencepiece_pieces(tokenizer.public_definition(), size):
        pieces, prefix, strip = spelled
        texts, scores, kinds = map(list, zip(*pieces, strict=True))
        entries = {
            "tokenizer_model": "llama", "tokenizer_pre": "default", "token_list": texts, "token_scores": scores,
            "token_types": kinds, "add_space_prefix": prefix, "remove_extra_whitespaces": strip,
        }  # fmt: skip
    else:
        raise RocLabError(
            f"{tokenizer.origin}: GGUF names a pre-tokenizer instead of describing it, and this one is not among those "
            f"that are known here ({', '.join(PRE_TOKENIZERS)}, SentencePiece); `roclab lm export` without --format "
            "gguf writes a folder instead"
        )
    entries["add_bos_token"] = tokenizer.adds_bos
    # There are keys for three end tokens. An ordinary token among them would be read as a control token.
    controls = set(tokenizer.control.values())
    ends = [i for i in dict.fromkeys([*tokenizer.eos_token_ids, *config.eos_token_ids]) if i in controls]
    optional = {
        "bos_token_id": config.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "chat_template": tokenizer.chat_template,
        **dict(zip((f"{key}_token_id" for key in END_TOKENS), ends, strict=False)),
    }
    # Older configurations have −1 for "none".
    return entries | {k: v for k, v in optional.items() if v is not None and not (isinstance(v, int) and v < 0)}


def _same_family(definition: Mapping[str, Any], name: str, family: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json splits texts as the files do that name this pre-tokenizer."""
    parts = [{"normalizer": d.get("normalizer"), "pre_tokenizer": d.get("pre_tokenizer")} for d in (definition, family)]
    whole_words = bool(definition["model"].get("ignore_merges"))
    return _plain(parts[0]) == _plain(parts[1]) and whole_words == (name in _WHOLE_WORDS)


def _plain(part: Any) -> Any:
    """Without what changes no token: defaults, and how offsets are counted."""
    if isinstance(part, Mapping):
        usual = {"trim_offsets": part.get("trim_offsets"), "use_regex": True, "invert": False}
        return {key: _plain(value) for key, value in part.items() if key not in usual or usual[key] != value}
    return [_plain(item) for item in part] if isinstance(part, list) else part
