"""A right implementation in plain steps, one formula a line: `variants.py` puts the mistakes into this text.

It shares no code with `roclab.lm.model`, so that file may change as it likes.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
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
    rope_scaling: dict | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    tie_word_embeddings: bool = True
    layer_types: list | None = None


class RocLMRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class RocLMMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RocLMRotaryEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        frequencies = 1.0 / config.rope_theta**exponents
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, positions):
        angles = positions[:, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos()[None], angles.sin()[None]


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def repeat_kv(x, n_rep):
    return x.repeat_interleave(n_rep, dim=1)


class RocLMAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        D, C, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=bias)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=bias)
        self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)
        self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)

    def forward(self, x, cos, sin, cache):
        B, T, _ = x.shape
        C, n_rep = self.config.head_dim, self.config.num_attention_heads // self.config.num_key_value_heads
        q = self.q_proj(x).view(B, T, -1, C)
        k = self.k_proj(x).view(B, T, -1, C)
        v = self.v_proj(x).view(B, T, -1, C).transpose(1, 2)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer_idx, k, v)
        S = k.shape[2]
        visible = torch.ones(T, S, dtype=torch.bool).tril(S - T)
        scores = q @ repeat_kv(k, n_rep).transpose(-2, -1) / math.sqrt(C)
        scores = scores.masked_fill(~visible, -math.inf)
        weights = scores.softmax(-1)
        weights = F.dropout(weights, self.config.attention_dropout, training=self.training)
        out = weights @ repeat_kv(v, n_rep)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class RocLMDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = RocLMAttention(config, layer_idx)
        self.mlp = RocLMMLP(config)
        self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, cos, sin, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Cache:
    """Keys and values of the tokens so far, a pair (B, K, S, C) a layer."""

    def __init__(self, config):
        self.pairs = [None] * config.num_hidden_layers

    def length(self):
        return 0 if self.pairs[0] is None else self.pairs[0][0].shape[2]

    def append(self, layer_idx, k, v):
        if self.pairs[layer_idx] is not None:
            old_k, old_v = self.pairs[layer_idx]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self.pairs[layer_idx] = (k, v)
        return k, v


class RocLMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([RocLMDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RocLMRotaryEmbedding(config)

    def forward(self, input_ids, cache=None):
        past, T = cache.length() if cache is not None else 0, input_ids.shape[1]
        positions = torch.arange(past, past + T)
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(positions)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        return self.norm(x)


class RocLMForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = RocLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids, cache=None):
        x = self.model(input_ids, cache)
        return self.lm_head(x)

    @torch.no_grad()
    def generate(self, input_ids, max_length=50, temperature=1.0, top_k=50, top_p=0.9, do_sample=True):
        cache = Cache(self.config)
        ended = torch.zeros(len(input_ids), dtype=torch.bool)
        ids = new = input_ids
        while ids.shape[1] < max_length and not ended.all():
            logits = self(new, cache)[:, -1]
            if do_sample:
                logits = filter_top_p(filter_top_k(logits / temperature, top_k), top_p)
                new = torch.multinomial(logits.softmax(-1), 1)
            else:
                new = logits.argmax(-1, keepdim=True)
            new[ended] = self.config.eos_token_id
            ended = ended | (new[:, 0] == self.config.eos_token_id)
            ids = torch.cat([ids, new], dim=1)
        return ids


def filter_top_k(logits, top_k):
    if not 0 < top_k < logits.shape[-1]:
        return logits
    kth = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def filter_top_p(logits, top_p):
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    drop = (before >= top_p) & (before > 0)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf)


def create_roclm_model(config_dict=None):
    values = config_dict or {}
    unknown = set(values) - {field.name for field in fields(RocLMConfig)}
    if unknown:
        raise ValueError(f"unknown config keys: {sorted(unknown)}")
    return RocLMForCausalLM(RocLMConfig(**values))
