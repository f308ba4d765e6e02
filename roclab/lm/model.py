"""RocLM: a decoder-only transformer in one file, to be read in one sitting. It needs torch and nothing else.

    input_ids (B, T)
      → token embeddings (B, T, D)
      → N × [ x + Attention(RMSNorm(x)) ; x + SwiGLU(RMSNorm(x)) ]
      → RMSNorm → LM head → logits (B, T, V)

Parameters have Qwen3's names: `load_state_dict(strict=True)` takes its weights. `roclab lm verify` checks this file.

Letters in shapes: B batch, T new tokens, S all tokens seen so far (cached + new), D hidden_size,
H query heads, K key-value heads, C head_dim, F intermediate_size, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_SCALING = {  # the constants of each kind of `rope_scaling`
    "default": (), "linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip


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
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": "linear" | "llama3" | "yarn", "factor": …, …}
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None  # "full_attention", "sliding_attention"; None: all alike
    sliding_window: int | None = None  # how many tokens a sliding layer sees, its own included
    # Ours, beyond the handout:
    qk_norm: bool = True  # RMSNorm over each head's q and k, before RoPE (Qwen3); Llama and Qwen2 have none
    o_proj_bias: bool | None = None  # None: as attention_bias; Qwen2 has biases on q, k, v but not on o
    attn_implementation: str = "sdpa"  # "eager" writes the formula out and keeps the attention maps

    def __post_init__(self) -> None:
        def need(holds: bool, name: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {what}: got {getattr(self, name)!r}")

        def is_positive(value: Any, kinds: Any = (int, float)) -> bool:
            return isinstance(value, kinds) and 0 < value < math.inf

        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self) if f.type == "int"):
            need(isinstance(value, int) and value > 0, name, "a positive whole number")
        for name in ("rope_theta", "rms_norm_eps"):
            need(is_positive(getattr(self, name)), name, "a positive number")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        need(heads % kv_heads == 0, "num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})")
        need(self.head_dim % 2 == 0, "head_dim", "even, because RoPE turns pairs")
        need(self.hidden_act == "silu", "hidden_act", "'silu' (SwiGLU)")
        need(self.attn_implementation in ("sdpa", "eager"), "attn_implementation", "'sdpa' or 'eager'")
        need(all(isinstance(i, int) for i in self.eos_token_ids), "eos_token_id", "a whole number, a list or None")
        need(self.sliding_window is None or is_positive(self.sliding_window, int), "sliding_window", "positive or None")
        known, kinds = ("full_attention", "sliding_attention")[: 1 + bool(self.sliding_window)], self.layer_types or []
        fits = len(kinds) in (0, self.num_hidden_layers) and all(kind in known for kind in kinds)
        need(fits, "layer_types", f"{' or '.join(known)} for each of {self.num_hidden_layers} layers")
        need(isinstance(self.rope_scaling or {}, Mapping), "rope_scaling", "a dict")
        need(self.rope_type in ROPE_SCALING, "rope_scaling", f"of a supported kind ({', '.join(ROPE_SCALING)})")
        for name in ROPE_SCALING[self.rope_type]:
            need(is_positive((self.rope_scaling or {}).get(name)), "rope_scaling", f"a dict with a positive {name}")

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
        return list(eos) if isinstance(eos := self.eos_token_id, (list, tuple)) else [] if eos is None else [eos]

    @property
    def rope_type(self) -> str:
        """The kind of `rope_scaling`; it stands under the key "type" in older files."""
        return (self.rope_scaling or {}).get("rope_type", (self.rope_scaling or {}).get("type", "default"))


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


def rope_frequencies(config: RocLMConfig) -> tuple[Tensor, float]:
    """The angle per position of each pair of dimensions: θ_i = base^(−2i/C), i < C/2 (Su et al. 2021), shape (C/2,);
    and what cosines and sines are multiplied with. `rope_scaling` adapts a model to longer texts: "linear" divides
    every angle by the factor (Chen et al. 2023); "llama3" (Llama 3.1) and "yarn" (Peng et al. 2023) those of long
    wavelengths only, and blend in between; "yarn" also makes attention sharper."""
    # device="cpu": a model built on the meta device needs its frequencies too.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    angles = 1.0 / (config.rope_theta**exponents)
    constants = [(config.rope_scaling or {})[name] for name in ROPE_SCALING[config.rope_type]]
    if len(constants) < 2:
        return angles / constants[0] if constants else angles, 1.0
    factor, context, *bounds = constants
    if config.rope_type == "llama3":  # blends between two numbers of turns over the original context
        turns, (low, high) = context * angles / (2 * math.pi), bounds
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: short wavelength, 0: long wavelength
    else:  # between the pairs that make 32 turns and one
        fast, slow = (math.log(context / (n * 2 * math.pi), config.rope_theta) * config.head_dim / 2 for n in (32, 1))
        low, high = max(math.floor(fast), 0), min(math.ceil(slow), config.head_dim - 1)
        keep = 1 - ((torch.arange(len(angles), device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    magnitude = 0.1 * math.log(factor) + 1 if config.rope_type == "yarn" else 1.0
    return keep * angles + (1 - keep) * angles / factor, magnitude


class RocLMRotaryEmbedding(nn.Module):
    """Cosines and sines for given positions; each angle serves dimension i and i + C/2 (see `rotate_half`)."""

    def __init__(self, config: RocLMConfig):
        super().__init__()
        self.inv_freq: Tensor  # (C/2,)
        inv_freq, self.magnitude = rope_frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x gives the dtype; position_ids (B, T) → cos, sin, each (B, T, C)."""
        # Float32 always: at position 30,000 bfloat16 would know the angle only to ±64 radians.
        angles = position_ids[:, :, None].float() * self.inv_freq.float()  # (B, T, C/2)
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.magnitude).to(x.dtype), (angles.sin() * self.magnitude).to(x.dtype)


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


class KVCache:
    """Keys and values of the tokens seen so far, all rows of one length: a new token costs a step, not a whole pass."""

    def __init__(self, config: RocLMConfig, batch_size: int, capacity: int, device: Any = None, dtype: Any = None):
        # The full capacity at once: tensors that grow would copy everything at every token.
        shape = (config.num_hidden_layers, 2, batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.kv, self.capacity = torch.empty(shape, device=device, dtype=dtype), capacity
        self.length = 0  # tokens held; the model adds the new ones after every layer has appended

    def attend(self, attention: RocLMAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Append a layer's k, v (B, K, T, C) and attend with q (B, H, T, C) to all S tokens so far → (B, H, T, C)."""
        keys, values = self.kv[attention.layer_idx, 0], self.kv[attention.layer_idx, 1]
        if (end := self.length + k.shape[2]) > self.capacity:
            raise ValueError(f"{end} tokens do not fit: the cache holds {self.capacity}")
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return attention.attend(q, keys[:, :, :end], values[:, :, :end], mask)


class RocLMAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): H query heads share K ≤ H key-value heads."""

    def __init__(self, config: RocLMConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        slides = config.layer_types is None or config.layer_types[layer_idx] == "sliding_attention"
        self.window = config.sliding_window if slides else None  # None: sees everything before
        D, C, bias = config.hidden_size, config.head_dim, config.attention_bias
        o_bias = bias if config.o_proj_bias is None else config.o_proj_bias
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=bias)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=o_bias)
        if config.qk_norm:
            self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)
            self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)
        self.attention_map: Tensor | None = None  # (B, H, T, S) of the last call, with attn_implementation "eager"

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        B, T, _ = x.shape  # (B, T, D) → (B, T, D)
        q = self.q_proj(x).view(B, T, -1, self.config.head_dim)  # (B, T, H, C)
        k = self.k_proj(x).view(B, T, -1, self.config.head_dim)  # (B, T, K, C)
        v = self.v_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, K, T, C)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *cos_sin)
        out = self.attend(q, k, v, mask) if cache is None else cache.attend(self, q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # heads side by side: (B, T, H·C) → (B, T, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q·kᵀ / √C)·v (Vaswani et al. 2017): q (B, H, T, C), k and v (B, K, S, C) → (B, H, T, C). `mask`
        (B, 1, T, S), True: may look; None is causal, the T queries being the last of the S tokens."""
        T, S = q.shape[2], k.shape[2]
        dropout = self.config.attention_dropout if self.training else 0.0
        eager = self.config.attn_implementation == "eager"
        window = S if self.window is None else self.window
        if mask is None and (eager or 1 < T < S or window < S):  # else SDPA's is_causal, or one query that sees all
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        if mask is not None and window < S:
            mask = mask.triu(S - T - window + 1)
        if mask is None or not eager:
            causal = mask is None and T > 1
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=True)
        k, v = repeat_kv(k, q.shape[1] // k.shape[1]), repeat_kv(v, q.shape[1] // v.shape[1])
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
        self.attention_map = scores.float().softmax(dim=-1).to(q.dtype)
        return F.dropout(self.attention_map, dropout) @ v


class RocLMDecoderLayer(nn.Module):
    """x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)): pre-norm, so the residual stream is never scaled."""

    def __init__(self, config: RocLMConfig, layer_idx: int):
        super().__init__()
        self.self_attn = RocLMAttention(config, layer_idx)
        self.mlp = RocLMMLP(config)
        self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, mask, cache)
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

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:  # fmt: skip
        """`position_ids` (B, T); None counts on from the cache. `mask` (B, 1, T, S), True: may look; None is causal. Of
        packed documents, `pack_documents` gives both. Raises ValueError if the tokens do not fit context or cache."""
        past, T = cache.length if cache is not None else 0, input_ids.shape[1]
        if position_ids is None:
            if past + T > self.config.max_position_embeddings:
                raise ValueError(f"{past + T} tokens do not fit: the context is {self.config.max_position_embeddings}")
            position_ids = torch.arange(past, past + T, device=input_ids.device)[None]
        x = self.embed_tokens(input_ids)
        cos_sin = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, cos_sin, mask, cache)
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
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None,
        cache: KVCache | None = None, logits_to_keep: int = 0,
    ) -> Tensor:  # fmt: skip
        """Logits (B, T, V), or of the last `logits_to_keep` positions only. The rest is as in `RocLMModel.forward`."""
        x = self.model(input_ids, position_ids, mask, cache)
        return self.lm_head(x[:, -logits_to_keep:])

    @torch.inference_mode()
    def generate(
        self, input_ids: Tensor, max_length: int = 50, temperature: float = 1.0, top_k: int = 50, top_p: float = 0.9,
        do_sample: bool = True,
    ) -> Tensor:  # fmt: skip
        """Continue `input_ids` (B, T) to at most `max_length` tokens, the prompt included → ids (B, ≤ max_length). A
        row that has ended is filled with the padding id."""
        eos = torch.tensor(self.config.eos_token_ids, device=input_ids.device, dtype=input_ids.dtype)
        pad = (eos[0] if len(eos) else 0) if self.config.pad_token_id is None else self.config.pad_token_id
        cache = KVCache(self.config, len(input_ids), max_length, input_ids.device, self.lm_head.weight.dtype)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ids = new = input_ids
        while ids.shape[1] < max_length and not ended.all():
            logits = self(new, cache=cache, logits_to_keep=1)[:, -1]  # (B, V)
            new = logits.argmax(-1, keepdim=True)
            if do_sample and temperature > 0:
                logits = filter_top_p(filter_top_k(logits / temperature, top_k), top_p)
                new = torch.multinomial(logits.float().softmax(-1), 1)
            new = torch.where(ended[:, None], pad, new)
            ended |= torch.isin(new[:, 0], eos)
            ids = torch.cat([ids, new], dim=1)
        return ids


def init_weights(model: RocLMForCausalLM, std: float = 0.02) -> RocLMForCausalLM:
    """Draw initial values: normal(0, std) for matrices and embeddings, 0 for biases; norms keep their ones."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def pack_documents(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids (B, T) and mask (B, 1, T, T) for rows of several documents; `document_ids` (B, T) says which one
    each token is of. Every document begins at position 0 and sees itself alone. (Left padding is one more document.)"""
    seen = (document_ids[:, :, None] == document_ids[:, None, :]).tril()  # (B, T, T)
    return seen.sum(-1) - 1, seen[:, None]


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
    return init_weights(RocLMForCausalLM(RocLMConfig.from_dict(config_dict or {})))


if __name__ == "__main__":  # a small model, and that its cache gives the logits of one pass
    torch.manual_seed(0)
    tiny = create_roclm_model({"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3}).requires_grad_(False)
    ids, cache = torch.randint(0, 97, (2, 12)), KVCache(tiny.config, 2, 12)
    steps = torch.cat([tiny(part, cache=cache) for part in ids.split([5, 3, 1, 1, 1, 1], dim=1)], dim=1)
    difference = (tiny(ids) - steps).abs().max().item()
    print(f"RocLM: logits {tuple(steps.shape)}; token by token with the cache they differ by {difference:.1e}")
    raise SystemExit(difference > 1e-5)
