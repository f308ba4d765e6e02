"""How GGUF names and orders RocLM's configuration and tensors, for the reader and the writer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from roclab.lm.model import RocLMConfig, rope_frequencies

# GGUF's key, behind the architecture's name → RocLMConfig's field.
CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
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
_OUR_WHOLE_NAMES = {gguf: ours for ours, gguf in WHOLE_NAMES.items()}
_OUR_LAYER_NAMES = {gguf: ours for ours, gguf in LAYER_NAMES.items()}
ROPE_DIVISORS = "rope_freqs.weight"  # Llama 3's rope_scaling, as a tensor


def gguf_name(name: str) -> str:
    """The GGUF name of one of our parameters."""
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{WHOLE_NAMES[stem]}.{leaf}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{leaf}"


def our_name(name: str) -> str:
    """Our name of a GGUF tensor; one that we do not know keeps its own, to be reported."""
    stem, _, leaf = name.rpartition(".")
    if stem in _OUR_WHOLE_NAMES:
        return f"{_OUR_WHOLE_NAMES[stem]}.{leaf}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and part in _OUR_LAYER_NAMES:
        return f"model.layers.{block}.{_OUR_LAYER_NAMES[part]}.{leaf}"
    return name


def row_order(config: RocLMConfig, architecture: str, name: str, rows: int) -> Tensor | None:
    """Which row of a GGUF file's tensor is each of the `rows` rows of our parameter `name`; None if they are the same.

    Files of Llama pair neighbouring rows (2i, 2i + 1) of each head for RoPE; RocLM pairs i with i + C/2.
    """
    if architecture not in ("llama", "mistral") or not (".q_proj." in name or ".k_proj." in name):
        return None
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    if rows % (2 * heads):  # of a damaged file: its shape is reported later
        return None
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def llama3_scaling(config: RocLMConfig, divisors: Tensor) -> dict[str, Any] | None:
    """The `rope_scaling` of Llama 3 that divides each angle by `divisors` (C/2,), as GGUF stores it; None if there is
    none. The largest divisor is the factor; the other three constants are the same in every release of Llama 3."""
    scaling = {
        "rope_type": "llama3", "factor": divisors.max().item(), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    plain, scaled = (rope_frequencies(replace(config, rope_scaling=kind))[0] for kind in (None, scaling))
    return scaling if torch.allclose(plain / scaled, divisors, rtol=1e-3) else None
