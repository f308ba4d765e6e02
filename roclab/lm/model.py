"""RocLM: a decoder-only transformer in one file, to be read in one sitting. It needs torch and nothing else.

    input_ids (B, T)
      → token embeddings (B, T, D)
      → N × [ x + Attention(RMSNorm(x)) ; x + SwiGLU(RMSNorm(x)) ]
      → RMSNorm → LM head → logits (B, T, V)

Notable choices: RMSNorm instead of LayerNorm, rotary positions on queries and keys instead of learned positions,
grouped-query attention, a gated MLP, no biases unless a checkpoint has them, optional per-head QK-norm as in Qwen3.
Parameters are named as in the Hugging Face layout of Qwen3, so `load_state_dict(strict=True)` takes its checkpoints.

Letters in shapes: B batch, T new tokens, S all tokens seen so far (cached + new), D hidden_size,
H query heads, K key-value heads, C head_dim, F intermediate_size, V vocab_size.

    python -m roclab.lm.model        # self-check; the file also runs alone
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class RocLMConfig:
    """The shape of a model. The defaults are Qwen3-0.6B's."""

    vocab_size: int = 151936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 32768
    rope_theta: float = 1000000.0
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": "linear" | "llama3", "factor": …, …}
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None  # None: "full_attention" in every layer, the only kind there is
    # Ours, beyond the handout:
    qk_norm: bool = True  # RMSNorm over each head's q and k, before RoPE (Qwen3); Llama and Qwen2 have none
    o_proj_bias: bool | None = None  # None: as attention_bias; Qwen2 has biases on q, k, v but not on o
    attn_implementation: str = "sdpa"  # "eager" writes the formula out and keeps the attention maps

    def __post_init__(self) -> None:
        def need(holds: bool, name: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {what}: got {getattr(self, name)!r}")

        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            need(isinstance(value, int) and value > 0, name, "a positive whole number")
        for name in ("rope_theta", "rms_norm_eps"):
            need(_is_positive(getattr(self, name)), name, "a positive number")
        heads, kv_heads, layers = self.num_attention_heads, self.num_key_value_heads, self.num_hidden_layers
        need(heads % kv_heads == 0, "num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})")
        need(self.head_dim % 2 == 0, "head_dim", "even, because RoPE turns pairs")
        need(self.hidden_act == "silu", "hidden_act", "'silu' (SwiGLU)")
        need(self.attn_implementation in ("sdpa", "eager"), "attn_implementation", "'sdpa' or 'eager'")
        ids_only = all(isinstance(token_id, int) for token_id in self.eos_token_ids)
        need(ids_only, "eos_token_id", "a whole number, a list of them or None")
        kinds = self.layer_types
        full = kinds is None or (len(kinds) == layers and set(kinds) == {"full_attention"})
        need(full, "layer_types", f"'full_attention' for each of {layers} layers, or None")
        rope_scaling_constants(self.rope_scaling)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RocLMConfig:
        """A config from a dict. Raises ValueError that names unknown keys and lists the known ones."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown config keys: {', '.join(unknown)} (known: {', '.join(known)})")
        return cls(**values)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text: none, one or several (Llama 3 has three)."""
        eos = self.eos_token_id
        return [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]


class RocLMRMSNorm(nn.Module):
    """y = g · x / √(mean(x²) + ε), over the last dimension (Zhang & Sennrich 2019). Float32 inside."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()  # the square overflows in float16 and loses digits in bfloat16
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class RocLMMLP(nn.Module):
    """SwiGLU: down( silu(gate(x)) ⊙ up(x) ), with silu(z) = z·σ(z) (Shazeer 2020)."""

    def __init__(self, config: RocLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) → (B, T, F) → (B, T, D)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


ROPE_CONSTANTS = {  # of each kind of `rope_scaling`
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rope_scaling_constants(scaling: Mapping[str, Any] | None) -> tuple[str, list[float]]:
    """The kind of a `rope_scaling` and its constants as ROPE_CONSTANTS orders them. Raises ValueError for a kind that
    is not supported, or a constant that is missing or not positive."""
    if not isinstance(scaling, (Mapping, type(None))):
        raise ValueError(f"rope_scaling must be a dict: got {scaling!r}")
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_CONSTANTS:
        raise ValueError(f"rope_scaling of kind {kind!r} is not supported (supported: {', '.join(ROPE_CONSTANTS)})")
    for name in ROPE_CONSTANTS[kind]:
        if not _is_positive(value := scaling.get(name)):
            raise ValueError(f"rope_scaling needs a positive {name}: got {value!r}")
    return kind, [scaling[name] for name in ROPE_CONSTANTS[kind]]


def rope_frequencies(config: RocLMConfig) -> Tensor:
    """The angle by which each pair of dimensions turns per position: θ_i = base^(−2i/C), i < C/2. Shape (C/2,).

    `rope_scaling` stretches a model to longer texts. "linear" divides every angle by the factor (Chen et al. 2023);
    "llama3" leaves short wavelengths alone, divides long ones and blends between (Llama 3.1).
    Source of the angles: Su et al. 2021, RoFormer.
    """
    # device="cpu" so that a model built on the meta device still has its frequencies.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    angles = 1.0 / (config.rope_theta**exponents)
    kind, constants = rope_scaling_constants(config.rope_scaling)
    if kind == "linear":
        return angles / constants[0]
    if kind == "llama3":
        factor, low, high, original_context = constants
        turns = original_context * angles / (2 * math.pi)  # of each pair, over the original context
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: short wavelength, 0: long wavelength
        return keep * angles + (1 - keep) * angles / factor
    return angles


class RocLMRotaryEmbedding(nn.Module):
    """Cosines and sines for given positions; each angle serves dimension i and i + C/2 (see `rotate_half`)."""

    inv_freq: Tensor

    def __init__(self, config: RocLMConfig):
        super().__init__()
        self.register_buffer("inv_freq", rope_frequencies(config), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x gives the dtype; position_ids (B, T) → cos, sin, each (B, T, C)."""
        # Float32 always: at position 30,000 bfloat16 would know the angle only to ±64 radians.
        angles = position_ids[:, :, None].float() * self.inv_freq.float()  # (B, T, C/2)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(x₁, x₂) → (−x₂, x₁) for the two halves of the last dimension: a quarter turn of every pair (i, i + C/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], dim=-1)


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn q (B, H, T, C) and k (B, K, T, C) by their positions' angles; cos and sin are (B, T, C)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for every head
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """(B, K, S, C) → (B, K·n_rep, S, C): query heads i·n_rep … i·n_rep + n_rep − 1 share key-value head i."""
    return x.repeat_interleave(n_rep, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ / √C)·v, written out. q (B, H, T, C), k and v (B, H, S, C), mask (B, 1, T, S), True: may look.

    Returns the mixed values (B, H, T, C) and the attention map (B, H, T, S). Source: Vaswani et al. 2017.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.float().softmax(dim=-1).to(q.dtype)
    return F.dropout(weights, dropout) @ v, weights


class KVCache:
    """Keys and values of the tokens seen so far, so that each new token costs one step instead of a whole pass.

    Buffers of the full capacity are allocated once: growing tensors would copy everything at every token.
    `real` remembers which slots hold tokens and which are left padding.
    """

    def __init__(self, config: RocLMConfig, batch_size: int, capacity: int, device: Any = None, dtype: Any = None):
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.real = torch.zeros(batch_size, capacity, dtype=torch.bool, device=device)
        self.capacity = capacity
        self.length = 0  # slots in use; set by the model after every layer has appended
        self.padded = False  # whether any slot in use is padding: without it most masks are not needed

    def append(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, K, T, C) behind what is there; return all so far, (B, K, S, C) each."""
        end = self.length + k.shape[2]
        self.keys[layer_idx][:, :, self.length : end] = k
        self.values[layer_idx][:, :, self.length : end] = v
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]


class RocLMAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): H query heads read from K ≤ H key-value heads."""

    def __init__(self, config: RocLMConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        D, C, bias = config.hidden_size, config.head_dim, config.attention_bias
        o_bias = bias if config.o_proj_bias is None else config.o_proj_bias
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=bias)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=o_bias)
        if config.qk_norm:
            self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)
            self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)
        self.attention_map: Tensor | None = None  # (B, H, T, S) of the last call, in eager mode

    def forward(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """x (B, T, D) → (B, T, D). `mask` (B, 1, T, S); None means causal over T new tokens, or one that sees all."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.config.head_dim)  # (B, T, H, C)
        k = self.k_proj(x).view(B, T, -1, self.config.head_dim)  # (B, T, K, C)
        v = self.v_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, K, T, C)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        if cache is not None:
            k, v = cache.append(self.layer_idx, k, v)
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.config.attn_implementation == "eager":
            n_rep = self.config.num_attention_heads // self.config.num_key_value_heads
            if mask is None:  # query t sits at position S − T + t
                mask = torch.ones(T, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - T)
            out, self.attention_map = attend(q, repeat_kv(k, n_rep), repeat_kv(v, n_rep), mask, dropout)
        else:
            causal = mask is None and T > 1
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # heads side by side: (B, T, H·C) → (B, T, D)


class RocLMDecoderLayer(nn.Module):
    """x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)): pre-norm, so the residual stream is never scaled."""

    def __init__(self, config: RocLMConfig, layer_idx: int):
        super().__init__()
        self.self_attn = RocLMAttention(config, layer_idx)
        self.mlp = RocLMMLP(config)
        self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class RocLMModel(nn.Module):
    """Embeddings, the stack of layers and the final norm: token ids (B, T) → hidden states (B, T, D)."""

    def __init__(self, config: RocLMConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([RocLMDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RocLMRotaryEmbedding(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """`attention_mask` (B, T), true for tokens and false for left padding, covers the new tokens only; the cache
        remembers the earlier ones. Raises ValueError if the tokens do not fit the context or the cache."""
        T = input_ids.shape[1]
        past, room = 0, self.config.max_position_embeddings
        if cache is not None:
            past, room = cache.length, min(room, cache.capacity)
        if past + T > room:
            raise ValueError(f"{past + T} tokens do not fit: the context holds {room}")

        if attention_mask is None:
            real, padded = torch.ones_like(input_ids, dtype=torch.bool), False  # (B, T)
        else:
            real, padded = attention_mask.bool(), not bool(attention_mask.all())
        if cache is not None:
            cache.real[:, past : past + T] = real
            cache.padded = padded = padded or cache.padded
            real = cache.real[:, : past + T]  # (B, S)
        # A token's position counts the tokens before it, not the padding: a padded row is the same text as alone.
        position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, past:]  # (B, T)

        mask = None
        if padded or (past > 0 and T > 1):
            S = past + T
            causal = torch.ones(T, S, dtype=torch.bool, device=input_ids.device).tril(past)
            itself = torch.eye(T, S, dtype=torch.bool, device=input_ids.device).roll(past, dims=1)
            # Padding may look at itself, since a softmax over nothing is NaN; nobody looks at padding.
            mask = (causal & real[:, None, None, :]) | itself  # (B, 1, T, S)

        x = self.embed_tokens(input_ids)
        position_embeddings = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, position_embeddings, mask, cache)
        if cache is not None:
            cache.length = past + T
        return self.norm(x)


class RocLMForCausalLM(nn.Module):
    """The whole language model: token ids (B, T) → logits (B, T, V) of each position's next token."""

    def __init__(self, config: RocLMConfig):
        super().__init__()
        self.config = config
        self.model = RocLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(_init_weights)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits (B, T, V), or of the last `logits_to_keep` positions only: for a long prompt that saves most of the
        head's work. `attention_mask` and `cache` as in `RocLMModel.forward`."""
        x = self.model(input_ids, attention_mask, cache)
        return self.lm_head(x[:, -logits_to_keep:])

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int = 50,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.9,
        do_sample: bool = True,
    ) -> Tensor:
        """Continue `input_ids` (B, T) token by token to at most `max_length` tokens, the prompt included.

        A row that has ended is filled with the padding id. Returns ids (B, ≤ max_length).
        """
        eos = torch.tensor(self.config.eos_token_ids, device=input_ids.device, dtype=input_ids.dtype)
        pad = (eos[0] if len(eos) else 0) if self.config.pad_token_id is None else self.config.pad_token_id
        weight = self.model.embed_tokens.weight
        cache = KVCache(self.config, len(input_ids), max(max_length, 1), weight.device, weight.dtype)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ids = new = input_ids
        while ids.shape[1] < max_length and not ended.all():
            logits = self(new, cache=cache, logits_to_keep=1)[:, -1]  # (B, V)
            if do_sample and temperature > 0:
                logits = filter_top_p(filter_top_k(logits / temperature, top_k), top_p)
                new = torch.multinomial(logits.float().softmax(-1), 1)
            else:
                new = logits.argmax(-1, keepdim=True)
            new = torch.where(ended[:, None], pad, new)
            ended |= torch.isin(new[:, 0], eos)
            ids = torch.cat([ids, new], dim=1)
        return ids


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the k largest logits of (B, V) and any equal to the k-th; the others become −∞. 0 keeps all."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    kth = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def filter_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020): logits (B, V)."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.float().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the mass ahead of each token; 0 for the first, which stays
    drop = (before >= top_p) & (before > 0)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf)


def create_roclm_model(config_dict: Mapping[str, Any] | None = None) -> RocLMForCausalLM:
    """A model with random weights from a dict of config fields; those left out have Qwen3-0.6B's values."""
    return RocLMForCausalLM(RocLMConfig.from_dict(config_dict or {}))


def self_check() -> bool:
    """A small model and the properties that make it right, one line each. True if all hold."""
    torch.manual_seed(0)
    model = create_roclm_model(
        {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 10000.0, "eos_token_id": None}
    ).eval()
    ids = torch.randint(0, 97, (2, 12))
    with torch.no_grad():
        logits = model(ids)
        future_changed = model(torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 97], dim=1))
        cache = KVCache(model.config, 2, 12)
        cached = torch.cat([model(part, cache=cache) for part in ids.split([5, 3, 1, 1, 1, 1], dim=1)], dim=1)
        padded = model(F.pad(ids, (3, 0)), attention_mask=F.pad(torch.ones_like(ids), (3, 0)))[:, 3:]
        model.config.attn_implementation = "eager"
        written_out = model(ids)
        normed = RocLMRMSNorm(64)(torch.randn(5, 64) * 7)
    gradients = torch.autograd.grad(model(ids).logsumexp(-1).sum(), list(model.parameters()))

    def gap(a: Tensor, b: Tensor) -> float:
        return (a - b).abs().max().item()

    checks = {
        "logits have the shape (B, T, vocab_size)": logits.shape == (2, 12, 97),
        "RMSNorm gives a root mean square of 1": gap(normed.pow(2).mean(-1), torch.ones(5)) < 1e-4,
        "a later token changes nothing before it": gap(future_changed[:, :-1], logits[:, :-1]) < 1e-5,
        "the same logits with the cache": gap(cached, logits) < 1e-5,
        "the same logits with left padding": gap(padded, logits) < 1e-5,
        "written-out attention equals SDPA": gap(written_out, logits) < 1e-5,
        "gradients reach every parameter": all(g.abs().sum() > 0 for g in gradients),
        "generation keeps the prompt": torch.equal(model.generate(ids, max_length=16)[:, :12], ids),
    }
    for name, passed in checks.items():
        print("ok  " if passed else "FAIL", name)
    with torch.device("meta"):
        size = sum(p.numel() for p in create_roclm_model().parameters())
    print(
        f"RocLM self-check: {sum(checks.values())} of {len(checks)} passed. The default model has {size:,} parameters."
    )
    return all(checks.values())


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a model takes longer with more, much longer where the cores are busy
    raise SystemExit(not self_check())
