"""GGUF files out: configuration, tokenizer and tensors as `gguf_file`, llama.cpp and others read them.

    write_gguf(path, config, tokenizer, [("model.norm.weight", "F32", array), …])

Needs the `gguf` package (`pip install 'roclab[gguf]'`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.model import ROPE_SCALING, RocLMConfig, rope_frequencies
from roclab.lm.text.tokenizer import CONTROL, END_TOKENS, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED, Tokenizer
from roclab.lm.weights.gguf_names import LAYER_NAMES, WHOLE_NAMES, llama3_scaling, row_order

_LLAMA_CPP_NAMES = {"gpt2": "gpt-2"}  # of pre-tokenizers, where it knows no other


def write_gguf(
    path: Path, config: RocLMConfig, tokenizer: Tokenizer, tensors: Iterable[tuple[str, str, np.ndarray]]
) -> None:
    """`tensors`: a parameter's name, its block type ("F32", "Q4_1", …) and its rows: float32 numbers, or the bytes of
    its blocks, uint8 (R, bytes of a row). Raises RocLabError as `check` does."""
    writer = new_writer(path, config)
    for key, value in tokenizer_entries(tokenizer, config).items():
        getattr(writer, f"add_{key}")(value)
    for name, kind, rows in tensors:
        add_tensor(writer, config, name, kind, rows)
    finish(writer)


def check(config: RocLMConfig, tokenizer: Tokenizer) -> None:
    """Raises RocLabError without the `gguf` package, and for what GGUF has no words for: other pre-tokenizers than
    those that are read, and stretched positions other than linear and Llama 3's."""
    _package()
    _divisors(config)
    tokenizer_entries(tokenizer, config)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise RocLabError("writing GGUF files needs the gguf package: pip install 'roclab[gguf]'") from None
    return gguf


def _divisors(config: RocLMConfig) -> torch.Tensor | None:
    """What each angle is divided by in Llama 3's scaling, (C/2,), as GGUF stores it; None without it."""
    if config.rope_type != "llama3":
        return None
    divisors = rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)
    if llama3_scaling(config, divisors) is None:
        raise RocLabError("GGUF cannot hold this model's rope_scaling: its constants are not those of Llama 3")
    return divisors


def new_writer(path: Path, config: RocLMConfig) -> Any:
    """The `gguf` package's writer with the configuration already in it. Raises RocLabError as `check` does."""
    gguf = _package()
    writer = gguf.GGUFWriter(path, _architecture(config), use_temp_file=False)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kind = config.rope_type
    constants = [(config.rope_scaling or {})[name] for name in ROPE_SCALING[kind]]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(constants[0])
    if (divisors := _divisors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", divisors.numpy())
    return writer


def _architecture(config: RocLMConfig) -> str:
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.attention_bias and config.o_proj_bias is False else "llama"


def add_tensor(writer: Any, config: RocLMConfig, name: str, kind: str, rows: np.ndarray) -> None:
    """One tensor under GGUF's name and with its order of rows; arguments as of `write_gguf`."""
    gguf = _package()
    stem, _, leaf = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        stem = f"blk.{layer}.{LAYER_NAMES[part]}"
    else:
        stem = WHOLE_NAMES[stem]
    if (order := row_order(config, _architecture(config), name)) is not None:
        rows = rows[torch.argsort(order).numpy()]  # row_order tells where our rows lie in the file
    raw = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
    writer.add_tensor(f"{stem}.{leaf}", np.ascontiguousarray(rows), raw_dtype=raw)


def finish(writer: Any) -> None:
    """Write everything and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokenizer_entries(tokenizer: Tokenizer, config: RocLMConfig) -> dict[str, Any]:
    """What `Tokenizer.from_gguf` reads, by the names of the writer's add_… functions. Raises RocLabError."""
    definition = tokenizer.definition
    pre = next((name for name, family in PRE_TOKENIZERS.items() if _same_family(definition, name, family)), None)
    if pre is None:
        raise RocLabError(
            f"{tokenizer.origin}: GGUF names a pre-tokenizer instead of describing it, and this one is not among those "
            f"that are known here ({', '.join(PRE_TOKENIZERS)})"
        )
    special = {token["id"]: bool(token.get("special")) for token in definition["added_tokens"]}
    tokens, types = [], []
    for i in range(config.vocab_size):
        name = tokenizer.id_to_token(i)
        tokens.append(f"[PAD{i}]" if name is None else name)  # an embedding often has more rows than there are tokens
        added = {None: NORMAL, True: CONTROL, False: USER_DEFINED}[special.get(i)]
        types.append(UNUSED if name is None else added)
    entries: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": _LLAMA_CPP_NAMES.get(pre, pre),
        "token_list": tokens,
        "token_types": types,
        "token_merges": [" ".join(merge) for merge in definition["model"]["merges"]],
        "add_bos_token": tokenizer.adds_bos,
    }
    # There are keys for three. An ordinary token among them would be read as a control token.
    controls = set(tokenizer.control.values())
    ends = [i for i in dict.fromkeys([*tokenizer.eos_token_ids, *config.eos_token_ids]) if i in controls]
    given = {
        "bos_token_id": config.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "chat_template": tokenizer.chat_template,
        **dict(zip((f"{key}_token_id" for key in END_TOKENS), ends, strict=False)),
    }
    # Older configurations have −1 for "none".
    there = {
        key: value for key, value in given.items() if not (value is None or (isinstance(value, int) and value < 0))
    }
    return entries | there


def _same_family(definition: Mapping[str, Any], name: str, family: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json splits texts as the files do that name this pre-tokenizer."""
    parts = [{"normalizer": d.get("normalizer"), "pre_tokenizer": d.get("pre_tokenizer")} for d in (definition, family)]
    whole_words = bool(definition["model"].get("ignore_merges"))
    return _plain(parts[0]) == _plain(parts[1]) and whole_words == (name == "llama-bpe")


def _plain(part: Any) -> Any:
    """Without what changes no token: defaults, and how offsets are counted."""
    if isinstance(part, Mapping):
        usual = {"trim_offsets": part.get("trim_offsets"), "use_regex": True, "invert": False}
        return {key: _plain(value) for key, value in part.items() if key not in usual or usual[key] != value}
    return [_plain(item) for item in part] if isinstance(part, list) else part
