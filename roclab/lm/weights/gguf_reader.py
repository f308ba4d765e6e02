"""A model from a GGUF file, or from the parts of one that was split: configuration, tensors, tokenizer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import CheckpointError
from roclab.lm.model import RocLMConfig
from roclab.lm.weights.gguf_file import GGUFFile, GGUFTensor
from roclab.lm.weights.gguf_names import CONFIG_KEYS, ROPE_DIVISORS, llama3_scaling, our_name, row_order
from roclab.lm.weights.gguf_tokenizer import END_TOKENS, tokenizer_from_gguf
from roclab.lm.weights.tensors import Contents, StoredTensor, checked_architecture, checked_rope_scaling

# What RocLM's YaRN has built in; another value is refused.
_USUAL_SCALING = {
    "scaling.attn_factor": 1.0, "scaling.yarn_attn_factor": 1.0, "scaling.yarn_ext_factor": 1.0,
    "scaling.yarn_beta_fast": 32.0, "scaling.yarn_beta_slow": 1.0,
}  # fmt: skip
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # as llama-gguf-split names them


def model_files(folder: Path) -> list[Path]:
    """The GGUF models in a folder: of a split one its first part, and no projectors of images (mmproj)."""
    files = [file for file in sorted(folder.glob("*.gguf")) if "mmproj" not in file.name.lower()]
    parts: dict[str, Path] = {}
    for file in files:
        found = _PART.fullmatch(file.name)
        parts.setdefault(f"{found[1]} of {found[3]}" if found else file.name, file)
    return list(parts.values())


def read_gguf(path: Path) -> Contents:
    """`path` may be any part of a split file. Raises CheckpointError for a damaged file, a part that is missing, and
    an architecture or feature that is not supported."""
    file = GGUFFile(path)
    try:
        file = _with_all_parts(file)
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


def _with_all_parts(file: GGUFFile) -> GGUFFile:
    """The first part, which has the metadata, with the tensors of all; `file` is any of them."""
    count = file.metadata.get("split.count", 1)
    if count == 1:
        return file
    name = _PART.fullmatch(file.path.name)
    if name is None or int(name[3]) != count:
        raise CheckpointError(
            f"{file.path}: one of {count} parts, which are found by their names: call them "
            f"NAME-00001-of-{count:05}.gguf and so on, or join them with llama-gguf-split --merge"
        )
    first = file
    tensors: dict[str, GGUFTensor] = {}
    for number in range(1, count + 1):
        path = file.path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf")
        if not path.exists():
            raise CheckpointError(f"{file.path}: part {number} of {count} is missing: {path.name}; fetch it as well")
        part = file if path == file.path else GGUFFile(path)
        if (found := (part.metadata.get("split.no"), part.metadata.get("split.count"))) != (number - 1, count):
            raise CheckpointError(f"{path}: is part {found[0]} (from 0) of {found[1]}; fetch the parts again")
        first = part if number == 1 else first
        tensors |= part.tensors
    if (wanted := first.metadata.get("split.tensors.count", len(tensors))) != len(tensors):
        raise CheckpointError(f"{first.path}: the {count} parts hold {len(tensors)} tensors, not {wanted}")
    first.tensors = tensors
    return first


def _config(file: GGUFFile) -> RocLMConfig:
    """The configuration that the metadata describes. Raises CheckpointError for what is missing or not supported, and
    what RocLMConfig raises for impossible values."""
    meta, kind = file.metadata, file.metadata.get("general.architecture")
    kind = checked_architecture(kind, bool(meta.get(f"{kind}.expert_count")), str(file.path))

    def value(key: str, default: Any = None) -> Any:
        found = meta.get(f"{kind}.{key}", default)
        if found is None:
            raise CheckpointError(f"{file.path}: the metadata lacks {kind}.{key}")
        return found

    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
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
        sliding_window=meta.get(f"{kind}.attention.sliding_window") or None,
    )
    return replace(config, rope_scaling=_rope_scaling(file, config))


def _rope_scaling(file: GGUFFile, config: RocLMConfig) -> dict[str, Any] | None:
    if ROPE_DIVISORS in file.tensors:
        divisors = file.tensors[ROPE_DIVISORS].load()
        if divisors.shape != (config.head_dim // 2,):
            raise CheckpointError(f"{file.path}: {ROPE_DIVISORS} has shape {tuple(divisors.shape)}, not one per pair")
        if (scaling := llama3_scaling(config, divisors)) is None:
            raise CheckpointError(f"{file.path}: {ROPE_DIVISORS} is no scaling that Llama 3 uses; not supported")
        return scaling
    prefix = f"{file.metadata['general.architecture']}.rope."
    given = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    factor = given.get("scaling.factor", given.get("scale_linear"))  # the second: older files
    kind = given.get("scaling.type", "none" if factor in (None, 1.0) else "linear")
    if kind == "none" and factor in (None, 1.0):
        return None
    rope = {"rope_type": "default" if kind == "none" else kind, "factor": factor}
    if kind == "yarn":
        original = given.get("scaling.original_context_length", config.max_position_embeddings)
        rope["original_max_position_embeddings"] = original
    rope |= {key: given[key] for key, usual in _USUAL_SCALING.items() if given.get(key, usual) != usual}
    return checked_rope_scaling(rope, config.max_position_embeddings, str(file.path))
