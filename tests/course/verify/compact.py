"""RocLM in another hand: fused projections behind the same names, cosines and sines in buffers, no cache, einsum.

A right implementation that shares no code with `roclab.lm.model`; the checker has to pass it.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn


@dataclass
class RocLMConfig:
    vocab_size: int = 151936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 32768
    rope_theta: float = 1000000.0
    rope_scaling: Optional[dict] = None  # noqa: UP045  (as older files write it)
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: Optional[int] = None  # noqa: UP045
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    tie_word_embeddings: bool = True
    layer_types: Optional[list] = None  # noqa: UP045


class RocLMRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = torch.einsum("...d,...d->...", hidden_states, hidden_states)[..., None] / hidden_states.shape[-1]
        return (hidden_states / (variance + self.variance_epsilon) ** 0.5 * self.weight).to(dtype)


class Fused(nn.Module):
    """One matrix; its rows are loaded, saved and trained under the names of several."""

    def __init__(self, inputs, **outputs):
        super().__init__()
        self.sizes = outputs
        for name, size in outputs.items():
            linear = nn.Linear(inputs, size, bias=False)
            setattr(self, name, linear)

    def fused(self, x):
        weight = torch.cat([getattr(self, name).weight for name in self.sizes], dim=0)
        return (x @ weight.t()).split(list(self.sizes.values()), dim=-1)


class RocLMMLP(Fused):
    def __init__(self, config):
        super().__init__(config.hidden_size, gate_proj=config.intermediate_size, up_proj=config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.fused(x)
        return self.down_proj(gate / (1 + torch.exp(-gate)) * up)


def rotate_half(x):
    middle = x.shape[-1] // 2
    return torch.cat((x[..., middle:].neg(), x[..., :middle]), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def repeat_kv(hidden_states, n_rep):
    batch, heads, length, dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    hidden_states = hidden_states.unsqueeze(2).expand(batch, heads, n_rep, length, dim)
    return hidden_states.reshape(batch, heads * n_rep, length, dim)


class RocLMRotaryEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        steps = torch.arange(config.max_position_embeddings, dtype=torch.float32)
        frequencies = torch.exp(-math.log(config.rope_theta) * torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(steps, frequencies).repeat(1, 2)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x, seq_len):
        return self.cos_cached[None, :seq_len].to(x.dtype), self.sin_cached[None, :seq_len].to(x.dtype)


class RocLMAttention(Fused):
    def __init__(self, config, layer_idx):
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        super().__init__(config.hidden_size, q_proj=heads * dim, k_proj=kv_heads * dim, v_proj=kv_heads * dim)
        self.o_proj = nn.Linear(heads * dim, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = (RocLMRMSNorm(dim, eps=config.rms_norm_eps) for _ in range(2))
        self.dim, self.groups, self.p = dim, heads // kv_heads, config.attention_dropout

    def forward(self, hidden_states, cos, sin, attention_mask):
        batch, length, _ = hidden_states.shape
        q, k, v = (t.unflatten(-1, (-1, self.dim)) for t in self.fused(hidden_states))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = repeat_kv(k, self.groups), repeat_kv(v, self.groups)
        weights = torch.einsum("bhtc,bhsc->bhts", q, k).mul(self.dim**-0.5) + attention_mask
        weights = nn.functional.dropout(torch.softmax(weights, dim=-1), p=self.p, training=self.training)
        return self.o_proj(torch.einsum("bhts,bhsc->bthc", weights, v).reshape(batch, length, -1))


class RocLMDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = RocLMAttention(config, layer_idx)
        self.mlp = RocLMMLP(config)
        self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, **rest):
        residual = hidden_states
        hidden_states = residual + self.self_attn(self.input_layernorm(hidden_states), **rest)
        residual = hidden_states
        return residual + self.mlp(self.post_attention_layernorm(hidden_states))


class RocLMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(RocLMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RocLMRotaryEmbedding(config)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        mask = torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1) > 0, float("-inf"))
        cos, sin = self.rotary_emb(x, length)
        for layer in self.layers:
            x = layer(x, cos=cos, sin=sin, attention_mask=mask[None, None])
        return self.norm(x)


class RocLMForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = RocLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids):
        return self.lm_head(self.model(input_ids))

    @torch.no_grad()
    def generate(self, input_ids, max_length=50, temperature=1.0, top_k=50, top_p=0.9, do_sample=True):
        self.eval()
        while input_ids.size(1) < max_length:
            logits = self(input_ids)[:, -1, :]
            if do_sample:
                logits = logits / temperature
                if top_k > 0:
                    smallest = torch.topk(logits, min(top_k, logits.size(-1)))[0][..., -1, None]
                    logits[logits < smallest] = float("-inf")
                if top_p < 1.0:
                    ordered, places = torch.sort(logits, descending=True)
                    remove = torch.cumsum(torch.softmax(ordered, dim=-1), dim=-1) > top_p
                    remove[..., 1:] = remove[..., :-1].clone()
                    remove[..., 0] = False
                    logits[remove.scatter(1, places, remove)] = float("-inf")
                following = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)
            else:
                following = torch.argmax(logits, dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, following], dim=-1)
            if (following == self.config.eos_token_id).all():
                break
        return input_ids


def create_roclm_model(config_dict=None):
    return RocLMForCausalLM(RocLMConfig(**(config_dict or {})))
