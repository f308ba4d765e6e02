"""RocLM computed from the formulas alone: numpy in float64, no torch, nothing of `roclab.lm.model`.

`roclab.course.verify` compares implementations with it. Each formula is a method of its own, however small, so that a
mistake (`mistakes.py`) can replace one of them and leave the others as they are.

Letters in shapes: B batch, T tokens, D hidden_size, H query heads, K key-value heads, C head_dim, F intermediate_size,
V vocab_size. Sources: Vaswani et al. 2017 (attention), Zhang & Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU), Su et
al. 2021 (RoPE), Ainslie et al. 2023 (grouped queries), Qwen3's report (QK-norm), Loshchilov & Hutter 2017 and 2019
(cosine schedule, AdamW), Pascanu et al. 2013 (clipping).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import numpy as np

Array = np.ndarray
Formulas = Mapping[str, Callable[..., Any]]  # name of a method of Reference → a function (model, *arguments)


class Reference:
    """A model of `config` (the handout's field names) and `weights` (Qwen3's parameter names, any float dtype).

    `replaced` are the formulas to use in place of the methods of the same name."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array], replaced: Formulas | None = None):
        self.config = dict(config)
        self.weights = {name: np.asarray(w, dtype=np.float64) for name, w in weights.items()}
        self.H, self.K = config.get("num_attention_heads", 1), config.get("num_key_value_heads", 1)
        self.C = config.get("head_dim", 1)
        self.prompt = math.inf  # how many tokens `greedy` began with
        for name, formula in (replaced or {}).items():
            setattr(self, name, MethodType(formula, self))

    # fmt: off
    # ---- RMSNorm: g · x / √(mean(x²) + ε) over the last dimension; inside the model with the config's ε

    def divisor(self, x: Array, eps: float) -> Array: return np.sqrt(mean_square(x) + eps)
    def scaled(self, x: Array, g: Array) -> Array: return g * x
    def norm(self, x: Array, g: Array, eps: float) -> Array: return self.scaled(x / self.divisor(x, eps), g)
    def eps(self, name: str) -> float: return self.config["rms_norm_eps"]
    def model_norm(self, x: Array, name: str) -> Array:
        return self.norm(x, self.weights[f"{name}.weight"], self.eps(name))

    # ---- SwiGLU: down( silu(gate·x) ⊙ up·x ), silu(z) = z·σ(z); x (…, D), gate and up (F, D), down (D, F)

    def activation(self, z: Array) -> Array: return z * sigmoid(z)
    def gated(self, gate: Array, up: Array) -> Array: return self.activation(gate) * up
    def layer_mlp(self, x: Array, at: str) -> Array:
        gate, up, down = (self.weights[f"{at}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return self.gated(x @ gate.T, x @ up.T) @ down.T

    # ---- RoPE: pair i (dimensions i and i + C/2) of position t turns by t · base^(−2i/C); angles (T, C)

    def exponents(self) -> Array: return np.arange(0, self.C, 2) / self.C
    def base(self) -> float: return self.config["rope_theta"]
    def frequencies(self) -> Array: return self.base() ** -self.exponents()
    def positions(self, T: int) -> Array: return np.arange(T)
    def angles(self, T: int) -> Array: return np.tile(self.positions(T)[:, None] * self.frequencies(), 2)
    def cos_sin(self, T: int) -> tuple[Array, Array]: return np.cos(self.angles(T)), np.sin(self.angles(T))
    def rotate_half(self, x: Array) -> Array:
        """(x₁, x₂) → (−x₂, x₁), the halves of the last dimension."""
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([-x2, x1], axis=-1)
    def turn(self, x: Array, cos: Array, sin: Array) -> Array: return x * cos + self.rotate_half(x) * sin
    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        """q and k (B, heads, T, C), turned by the angles of their positions; cos and sin (T, C)."""
        return self.turn(q, cos, sin), self.turn(k, cos, sin)

    # ---- attention: softmax(q·kᵀ/√C)·v under the mask; q (B, H, T, C), k and v (B, K, T, C), scores (B, H, T, T)

    def split(self, x: Array, heads: int) -> Array:
        """(B, T, heads·C) → (B, heads, T, C)"""
        return x.reshape(*x.shape[:2], heads, self.C).swapaxes(1, 2)
    def merge(self, x: Array) -> Array:
        """(B, H, T, C) → (B, T, H·C), heads side by side"""
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        """(B, K, T, C) → (B, K·n_rep, T, C): each key-value head serves n_rep query heads in a row."""
        return np.repeat(x, n_rep, axis=1)
    def repeat_keys(self, k: Array) -> Array: return self.repeat_kv(k, self.H // self.K)
    def repeat_values(self, v: Array) -> Array: return self.repeat_kv(v, self.H // self.K)
    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        """RMSNorm over each head's q and k."""
        return self.model_norm(q, f"{at}.q_norm"), self.model_norm(k, f"{at}.k_norm")
    def queries_and_keys(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        """QK-norm, then RoPE."""
        return self.rotary(*self.qk_norm(q, k, at), *self.cos_sin(q.shape[2]))
    def values(self, v: Array, at: str) -> Array: return v  # neither normalised nor turned
    def scale(self) -> float: return 1 / np.sqrt(self.C)
    def visible(self, T: int) -> Array: return np.tri(T, dtype=bool)  # query t sees key t and those before it
    def masked(self, scores: Array) -> Array: return np.where(self.visible(scores.shape[-1]), scores, -np.inf)
    def softmax(self, scores: Array) -> Array: return softmax(scores, -1)
    def attend(self, q: Array, k: Array, v: Array) -> Array:
        return self.softmax(self.masked(q @ k.swapaxes(-1, -2) * self.scale())) @ v
    def attention(self, x: Array, at: str) -> Array:
        """x (B, T, D) → (B, T, D), with the weights named model.layers.N.self_attn.*"""
        q, k, v = (x @ self.weights[f"{at}.{part}_proj.weight"].T for part in "qkv")
        q, k = self.queries_and_keys(self.split(q, self.H), self.split(k, self.K), at)
        v = self.values(self.split(v, self.K), at)
        out = self.attend(q, self.repeat_keys(k), self.repeat_values(v))
        return self.merge(out) @ self.weights[f"{at}.o_proj.weight"].T

    # ---- the stack: x + Attention(norm(x)), then x + MLP(norm(x)), layer after layer; x (B, T, D)

    def normed_attention(self, x: Array, at: str, norm: str = "input_layernorm") -> Array:
        return self.attention(self.model_norm(x, f"{at}.{norm}"), f"{at}.self_attn")
    def normed_mlp(self, x: Array, at: str, norm: str = "post_attention_layernorm") -> Array:
        return self.layer_mlp(self.model_norm(x, f"{at}.{norm}"), at)
    def after_attention(self, x: Array, at: str) -> Array: return x + self.normed_attention(x, at)
    def after_mlp(self, x: Array, at: str) -> Array: return x + self.normed_mlp(x, at)
    def layer(self, x: Array, at: str) -> Array: return self.after_mlp(self.after_attention(x, at), at)
    def layers(self) -> list[int]: return list(range(self.config["num_hidden_layers"]))  # in the order of their use
    def embed(self, ids: Array) -> Array: return self.weights["model.embed_tokens.weight"][ids]
    def final(self, x: Array) -> Array: return self.model_norm(x, "model.norm")
    def head_matrix(self) -> Array:
        """(V, D): the embedding where they are tied."""
        return self.weights[f"{'model.embed_tokens' if self.config['tie_word_embeddings'] else 'lm_head'}.weight"]
    def head(self, x: Array) -> Array: return x @ self.head_matrix().T
    def logits(self, ids: Array) -> Array:
        """ids (B, T) → logits (B, T, V)"""
        with np.errstate(all="ignore"):  # a mistake may overflow, or take a softmax over nothing
            x = self.embed(ids)
            for n in self.layers():
                x = self.layer(x, f"model.layers.{n}")
            return self.head(self.final(x))

    # ---- sampling: temperature, then the k most likely tokens, then the fewest whose sum reaches top_p; logits (V,)

    def heated(self, logits: Array, temperature: float) -> Array: return logits / temperature
    def in_top_k(self, logits: Array, k: int) -> Array: return logits >= np.sort(logits)[-min(k, len(logits))]
    def order(self, p: Array) -> Array: return np.argsort(-p)
    def reaching(self, ordered: Array, top_p: float) -> Array: return np.cumsum(ordered) - ordered < top_p
    def in_top_p(self, p: Array, top_p: float) -> Array:
        """Which tokens stay, (V,): those before which the sum is below top_p, and all that are as likely as one."""
        ordered = p[self.order(p)]
        return np.isin(p, ordered[self.reaching(ordered, top_p)])
    def probabilities(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        logits = self.heated(logits, temperature)
        logits = np.where(self.in_top_k(logits, top_k), logits, -np.inf)
        if top_p < 1:
            logits = np.where(self.in_top_p(softmax(logits, -1), top_p), logits, -np.inf)
        return softmax(logits, -1)
    def draw(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        """The distribution that do_sample=True draws from."""
        return self.probabilities(logits, temperature, top_k, top_p)

    # ---- greedy decoding: the likeliest token each time, until max_length tokens, the prompt included, or the end

    def next_logits(self, ids: Array) -> Array: return self.logits(ids)[:, -1]
    def ends(self, token: int) -> bool: return token == self.config["eos_token_id"]
    def total_length(self, max_length: int) -> int: return max_length
    def returned(self, ids: Array) -> Array: return ids
    def greedy(self, ids: Array, max_length: int) -> Array:
        """ids (B, T) → (B, ≤ max_length). Of several rows none may meet the end token."""
        self.prompt = ids.shape[1]
        while ids.shape[1] < self.total_length(max_length):
            ids = np.concatenate([ids, self.next_logits(ids).argmax(-1)[:, None]], axis=1)
            if len(ids) == 1 and self.ends(ids[0, -1]):
                break
        return self.returned(ids)

    # ---- cross-entropy: the mean of −log softmax(logits)[target]; logits (…, V), targets (…)

    def log_sum(self, logits: Array) -> Array:
        """log Σ exp(logits), computed behind the maximum: nothing overflows."""
        most = logits.max(-1, keepdims=True)
        return most + np.log(np.exp(logits - most).sum(-1, keepdims=True))
    def log_probabilities(self, logits: Array) -> Array: return logits - self.log_sum(logits)
    def losses(self, logits: Array, targets: Array) -> Array:
        return -np.take_along_axis(self.log_probabilities(logits), targets[..., None], axis=-1)[..., 0]
    def cross_entropy(self, logits: Array, targets: Array) -> float: return self.losses(logits, targets).mean()

    # ---- AdamW: m and v run after g and g²; w ← w − lr·λ·w − lr·m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ likewise

    def rate(self, lr: list[float], t: int) -> float: return lr[t - 1]
    def gradient(self, g: Array, w: Array, decay: float) -> Array: return g  # the decay is not in it
    def decayed(self, w: Array, lr: float, decay: float) -> Array: return w - lr * decay * w
    def corrected(self, mean: Array, square: Array, b1: float, b2: float, t: int) -> tuple[Array, Array]:
        return mean / (1 - b1**t), square / (1 - b2**t)
    def update(self, mean: Array, square: Array, eps: float) -> Array: return mean / (np.sqrt(square) + eps)
    def steps_so_far(self, t: int, reload: int) -> int: return t  # `reload`: after how many it was loaded, or 0
    def moments_loaded(self, mean: Array, square: Array) -> tuple[Array, Array]: return mean, square
    def adamw(
        self, w: Array, gradients: Array, lr: list[float], betas: list[float], eps: float, decay: float, reload: int
    ) -> Array:
        """w (n,), gradients (steps, n) → w after each step"""
        (b1, b2), m, v, found = betas, np.zeros_like(w), np.zeros_like(w), []
        for t, g in enumerate(gradients, 1):
            if reload and t == reload + 1:
                m, v = self.moments_loaded(m, v)
            g, rate = self.gradient(g, w, decay), self.rate(lr, t)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = self.update(*self.corrected(m, v, b1, b2, self.steps_so_far(t, reload)), eps)
            w = self.decayed(w, rate, decay) - rate * update
            found.append(w)
        return np.stack(found)

    # ---- the learning rate: linear from 0 to the largest, half a cosine down to the smallest, which stays

    def warmup(self, it: int, most: float, least: float, warm: int) -> float: return most * it / warm
    def progress(self, it: int, warm: int, end: int) -> float: return (it - warm) / (end - warm)
    def cosine(self, x: float, most: float, least: float) -> float:
        return least + (1 + np.cos(np.pi * x)) / 2 * (most - least)
    def after(self, it: int, most: float, least: float, warm: int, end: int) -> float: return least
    def learning_rate(self, it: int, most: float, least: float, warm: int, end: int) -> float:
        if it < warm:
            return self.warmup(it, most, least, warm)
        if it > end:
            return self.after(it, most, least, warm, end)
        return self.cosine(self.progress(it, warm, end), most, least)

    # ---- clipping: gradients of all parameters times max_norm / norm, where their common norm is above it

    def global_norm(self, gradients: list[Array]) -> float: return np.sqrt(sum((g**2).sum() for g in gradients))
    def factor(self, norm: float, most: float) -> float: return min(1.0, most / norm)
    def clipped(self, gradients: list[Array], most: float) -> list[Array]:
        return [g * self.factor(self.global_norm(gradients), most) for g in gradients]

    # ---- batches: T tokens from any start s of n tokens, and as targets those at s + 1 … s + T

    def shift(self) -> int: return 1
    def starts(self, n: int, T: int) -> Array:
        """(n,): how often a window begins at each token. The last one begins at n − T − 1."""
        return (np.arange(n) < n - T) / (n - T)
    # fmt: on


def mean_square(x: Array) -> Array:
    return (x**2).mean(-1, keepdims=True)


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(x: Array, axis: int) -> Array:
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)
