"""A model from a GGUF file: configuration, tensors, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import CheckpointError
from roclab.lm.model import RocLMConfig
from roclab.lm.weights.gguf_file import GGUFFile
from roclab.lm.weights.gguf_names import CONFIG_KEYS, ROPE_DIVISORS, llama3_scaling, our_name, row_order
from roclab.lm.weights.gguf_tokenizer import END_TOKENS, tokenizer_from_gguf
from roclab.lm.weights.tensors import SUPPORTED, Contents, StoredTensor


def read_gguf(path: Path) -> Contents:
    """Raises CheckpointError for a damaged file and for an architecture or feature that is not supported."""
    file = GGUFFile(path)
    try:
        config = _config(file)
        architecture = file.metadata["general.architecture"]
        tensors: dict[str, StoredTensor] = {}
        for gguf_name, tensor in file.tensors.items():
            if gguf_name != ROPE_DIVISORS:
                name = our_name(gguf_name)
                tensors[name] = replace(tensor, row_order=row_order(config, architecture, name, tensor.shape[0]))
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{path}: the metadata does not describe a model: {error}") from None
    return Contents(config, tensors, lambda: tokenizer_from_gguf(file.metadata, str(path)))


def _config(file: GGUFFile) -> RocLMConfig:
    """The configuration that the metadata describes. Raises CheckpointError for what is missing or not supported, and
    what RocLMConfig raises for impossible values."""
    meta, kind = file.metadata, file.metadata.get("general.architecture")
    if kind not in SUPPORTED:
        raise CheckpointError(
            f"{file.path}: architecture {kind!r} is not supported (supported: {', '.join(SUPPORTED)})"
        )

    def value(key: str, default: Any = None) -> Any:
        found = meta.get(f"{kind}.{key}", default)
        if found is None:
            raise CheckpointError(f"{file.path}: the metadata lacks {kind}.{key}")
        return found

    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
    if meta.get(f"{kind}.attention.sliding_window"):
        raise CheckpointError(f"{file.path}: sliding-window attention is not supported")
    if (parts := meta.get("split.count", 1)) != 1:
        raise CheckpointError(f"{file.path}: one of {parts} parts; join them with llama-gguf-split --merge")
    heads = value("attention.head_count")
    head_dim = value("attention.key_length", value("embedding_length") // heads)
    if (turned := value("rope.dimension_count", head_dim)) != head_dim:
        raise CheckpointError(f"{file.path}: rotary positions on {turned} of {head_dim} dimensions: not supported")
    defaults = {"attention.head_count_kv": heads, "attention.key_length": head_dim, "rope.freq_base": 10000.0}
    eos = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in END_TOKENS]
    config = RocLMConfig(
        **{field: value(key, defaults.get(key)) for key, field in CONFIG_KEYS.items()},
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        o_proj_bias="blk.0.attn_output.bias" in file.tensors,
        pad_token_id=meta.get("tokenizer.ggml.padding_token_id"),
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=list(dict.fromkeys(i for i in eos if i is not None)) or None,
        tie_word_embeddings="output.weight" not in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
    )
    return replace(config, rope_scaling=_rope_scaling(file, config, value))


def _rope_scaling(file: GGUFFile, config: RocLMConfig, value: Callable[..., Any]) -> dict[str, Any] | None:
    if ROPE_DIVISORS in file.tensors:
        divisors = file.tensors[ROPE_DIVISORS].load()
        if divisors.shape != (config.head_dim // 2,):
            raise CheckpointError(f"{file.path}: {ROPE_DIVISORS} has shape {tuple(divisors.shape)}, not one per pair")
        if (scaling := llama3_scaling(config, divisors)) is None:
            raise CheckpointError(f"{file.path}: {ROPE_DIVISORS} is no scaling that Llama 3 uses; not supported")
        return scaling
    factor = value("rope.scaling.factor", value("rope.scale_linear", 1.0))  # the second: older files
    kind = value("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise CheckpointError(f"{file.path}: rope scaling {kind!r} is not supported (supported: linear, llama3)")
    return {"rope_type": "linear", "factor": float(factor)}
