"""How RocLM lies in a GGUF file: names of tensors, configuration, order of rows; for reading and for writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from roclab.core.exceptions import CheckpointError
from roclab.lm.model import RocLMConfig, rope_frequencies
from roclab.lm.text.tokenizer import END_TOKENS
from roclab.lm.weights.gguf_file import GGUFFile

SUPPORTED = ("qwen3", "qwen2", "llama", "mistral")

# Our module → GGUF's, of the whole model and of a layer.
WHOLE_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def names_in(file: GGUFFile) -> dict[str, str]:
    """RocLM's name of each tensor → the file's; a tensor we do not know keeps its own name, to be reported."""
    whole = {gguf: ours for ours, gguf in WHOLE_NAMES.items()}
    layer = {gguf: ours for ours, gguf in LAYER_NAMES.items()}
    names = {}
    for name in file.tensors:
        stem, _, leaf = name.rpartition(".")
        block, _, rest = stem.removeprefix("blk.").partition(".")
        if stem in whole:
            names[f"{whole[stem]}.{leaf}"] = name
        elif stem.startswith("blk.") and rest in layer:
            names[f"model.layers.{block}.{layer[rest]}.{leaf}"] = name
        elif name != "rope_freqs.weight":  # Llama 3's scaling, read into the configuration
            names[name] = name
    return names


def config_of(file: GGUFFile) -> RocLMConfig:
    """The configuration that the metadata describes. Raises CheckpointError for what is missing or not supported, and
    what RocLMConfig raises for values that are none."""
    meta = file.metadata
    kind = meta.get("general.architecture")
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
    heads, hidden = value("attention.head_count"), value("embedding_length")
    head_dim = value("attention.key_length", hidden // heads)
    if (turned := value("rope.dimension_count", head_dim)) != head_dim:
        raise CheckpointError(f"{file.path}: rotary positions on {turned} of {head_dim} dimensions: not supported")
    eos = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in END_TOKENS]
    config = RocLMConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=value("context_length"),
        rope_theta=value("rope.freq_base", 10000.0),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        o_proj_bias="blk.0.attn_output.bias" in file.tensors,
        pad_token_id=meta.get("tokenizer.ggml.padding_token_id"),
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=list(dict.fromkeys(i for i in eos if i is not None)) or None,
        tie_word_embeddings="output.weight" not in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
    )
    config.rope_scaling = _rope_scaling(file, config, value)
    return config


def _rope_scaling(file: GGUFFile, config: RocLMConfig, value: Callable[..., Any]) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        divisors = file.load("rope_freqs.weight")
        if divisors.shape != (config.head_dim // 2,):
            raise CheckpointError(f"{file.path}: rope_freqs.weight has shape {tuple(divisors.shape)}, not one per pair")
        if (scaling := llama3_scaling(config, divisors)) is None:
            raise CheckpointError(f"{file.path}: rope_freqs.weight is no scaling that Llama 3 uses; not supported")
        return scaling
    factor = value("rope.scaling.factor", value("rope.scale_linear", 1.0))  # the second: older files
    kind = value("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise CheckpointError(f"{file.path}: rope scaling {kind!r} is not supported (supported: linear, llama3)")
    return {"rope_type": "linear", "factor": float(factor)}


def row_order(config: RocLMConfig, architecture: str, name: str) -> Tensor | None:
    """Which row of a GGUF file's tensor is each row of RocLM's parameter `name`; None if they are the same.

    Files of Llama pair neighbouring rows (2i, 2i + 1) of each head for RoPE; RocLM pairs i with i + C/2.
    """
    if architecture in ("llama", "mistral"):
        for proj, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f".{proj}." in name:
                rows = torch.arange(heads * config.head_dim)
                return rows.view(heads, config.head_dim // 2, 2).transpose(1, 2).reshape(-1)
    return None


def llama3_scaling(config: RocLMConfig, divisors: Tensor) -> dict[str, Any] | None:
    """The `rope_scaling` of Llama 3 that divides each angle by `divisors` (C/2,), as GGUF stores it; None if it is
    none. The largest divisor is the factor; the other three constants are the same in every release of Llama 3."""
    scaling = {
        "rope_type": "llama3", "factor": divisors.max().item(), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    plain, scaled = (rope_frequencies(replace(config, rope_scaling=kind)) for kind in (None, scaling))
    return scaling if torch.allclose(plain / scaled, divisors, rtol=1e-3) else None
