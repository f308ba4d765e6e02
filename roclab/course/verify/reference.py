"""RocLM once more, from the formulas alone: numpy in float64, no torch, nothing of `roclab.lm.model`.

It is slow and says everything once. `roclab.course.verify` holds implementations against it, and `mistakes.py`
derives from it one class per typical mistake by overriding one formula. So each step is a method of its own, however
small.

Letters in shapes: B batch, T tokens, D hidden_size, H query heads, K key-value heads, C head_dim, F intermediate_size,
V vocab_size. Sources: Vaswani et al. 2017 (attention), Zhang & Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU), Su et
al. 2021 (RoPE), Ainslie et al. 2023 (grouped queries), Qwen3's report (QK-norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray


class Reference:
    """A model of `config` (the handout's field names) and `weights` (Qwen3's parameter names, any float dtype)."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array] | None = None):
        self.config = dict(config)
        self.weights = {name: np.asarray(w, dtype=np.float64) for name, w in (weights or {}).items()}
        self.H, self.K = config.get("num_attention_heads", 1), config.get("num_key_value_heads", 1)
        self.C = config.get("head_dim", 1)

    # ---- normalisation and the gated MLP

    def norm(self, x: Array, g: Array, eps: float) -> Array:
        """g · x / √(mean(x²) + ε) over the last dimension."""
        return g * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)

    def model_norm(self, x: Array, name: str) -> Array:
        """The norm of that name inside the model, with the config's ε."""
        return self.norm(x, self.weights[f"{name}.weight"], self.config["rms_norm_eps"])

    def activation(self, z: Array) -> Array:
        """silu(z) = z·σ(z)"""
        return z * sigmoid(z)

    def gated(self, gate: Array, up: Array) -> Array:
        return self.activation(gate) * up

    def mlp(self, x: Array, gate: Array, up: Array, down: Array) -> Array:
        """down( silu(gate·x) ⊙ up·x ): x (…, D), gate and up (F, D), down (D, F)."""
        return self.gated(x @ gate.T, x @ up.T) @ down.T

    # ---- rotary positions

    def exponents(self) -> Array:
        """2i/C for the pairs i < C/2."""
        return np.arange(0, self.C, 2) / self.C

    def base(self) -> float:
        return self.config["rope_theta"]

    def frequencies(self) -> Array:
        """θ_i = base^(−2i/C), (C/2,)"""
        return self.base() ** -self.exponents()

    def positions(self, T: int) -> Array:
        return np.arange(T)

    def angles(self, T: int) -> Array:
        """(T, C): the angle of pair i stands at i and at i + C/2."""
        half = self.positions(T)[:, None] * self.frequencies()
        return np.concatenate([half, half], axis=-1)

    def cos_sin(self, T: int) -> tuple[Array, Array]:
        return np.cos(self.angles(T)), np.sin(self.angles(T))

    def rotate_half(self, x: Array) -> Array:
        """(x₁, x₂) → (−x₂, x₁), the halves of the last dimension."""
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([-x2, x1], axis=-1)

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        """x (…, T, C) turned by the angles of its positions; cos and sin (T, C)."""
        return x * cos + self.rotate_half(x) * sin

    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        return self.turn(q, cos, sin), self.turn(k, cos, sin)

    # ---- attention

    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        """(B, K, T, C) → (B, K·n_rep, T, C): each key-value head serves n_rep query heads in a row."""
        return np.repeat(x, n_rep, axis=1)

    def repeat_keys(self, k: Array) -> Array:
        return self.repeat_kv(k, self.H // self.K)

    def repeat_values(self, v: Array) -> Array:
        return self.repeat_kv(v, self.H // self.K)

    def scale(self) -> float:
        return 1 / np.sqrt(self.C)

    def may_look(self, T: int) -> Array:
        """(T, T): may query t see key s? Itself and what came before."""
        return np.tril(np.ones((T, T), dtype=bool))

    def masked(self, scores: Array) -> Array:
        return np.where(self.may_look(scores.shape[-1]), scores, -np.inf)

    def softmax(self, scores: Array) -> Array:
        """Over the keys; scores (B, H, T, S)."""
        return softmax(scores, -1)

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        """softmax(q·kᵀ/√C)·v under the mask, all (B, H, T, C)."""
        return self.softmax(self.masked(q @ k.swapaxes(-1, -2) * self.scale())) @ v

    def split(self, x: Array, heads: int) -> Array:
        """(B, T, heads·C) → (B, heads, T, C)"""
        return x.reshape(*x.shape[:2], heads, self.C).swapaxes(1, 2)

    def merge(self, x: Array) -> Array:
        """(B, H, T, C) → (B, T, H·C), heads side by side"""
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def project(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        """RMSNorm over each head's q and k."""
        return self.model_norm(q, f"{at}.q_norm"), self.model_norm(k, f"{at}.k_norm")

    def queries_and_keys(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        """QK-norm, then RoPE: q (B, H, T, C), k (B, K, T, C)."""
        q, k = self.qk_norm(q, k, at)
        return self.rotary(q, k, *self.cos_sin(q.shape[2]))

    def values(self, v: Array, at: str) -> Array:
        """v (B, K, T, C) stays as it is: neither normalised nor turned."""
        return v

    def attention(self, x: Array, at: str) -> Array:
        """x (B, T, D) → (B, T, D), with the weights named model.layers.N.self_attn.*"""
        q = self.split(self.project(x, f"{at}.q_proj"), self.H)
        k = self.split(self.project(x, f"{at}.k_proj"), self.K)
        v = self.split(self.project(x, f"{at}.v_proj"), self.K)
        q, k = self.queries_and_keys(q, k, at)
        out = self.attend(q, self.repeat_keys(k), self.repeat_values(self.values(v, at)))
        return self.project(self.merge(out), f"{at}.o_proj")

    # ---- the stack

    def layer_mlp(self, x: Array, at: str) -> Array:
        return self.mlp(x, *(self.weights[f"{at}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")))

    def layer(self, x: Array, at: str) -> Array:
        """x + Attention(norm(x)), then x + MLP(norm(x))"""
        x = x + self.attention(self.model_norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
        return x + self.layer_mlp(self.model_norm(x, f"{at}.post_attention_layernorm"), at)

    def layers(self) -> list[int]:
        """The layers in the order of their use."""
        return list(range(self.config["num_hidden_layers"]))

    def embed(self, ids: Array) -> Array:
        return self.weights["model.embed_tokens.weight"][ids]

    def final(self, x: Array) -> Array:
        return self.model_norm(x, "model.norm")

    def head_matrix(self) -> Array:
        """(V, D): the embedding where they are tied."""
        name = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        return self.weights[f"{name}.weight"]

    def head(self, x: Array) -> Array:
        return x @ self.head_matrix().T

    def logits(self, ids: Array) -> Array:
        """ids (B, T) → logits (B, T, V)"""
        with np.errstate(all="ignore"):  # a mistake may overflow, or take a softmax over nothing
            x = self.embed(ids)
            for n in self.layers():
                x = self.layer(x, f"model.layers.{n}")
            return self.head(self.final(x))

    # ---- generation

    def probabilities(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        """Of the next token, logits (V,): temperature, then the k best, then the fewest that reach top_p."""
        logits = self.heated(logits, temperature)
        logits = np.where(self.in_top_k(logits, top_k), logits, -np.inf)
        kept = np.where(self.in_top_p(softmax(logits, -1), top_p), logits, -np.inf)
        return softmax(kept, -1)

    def heated(self, logits: Array, temperature: float) -> Array:
        return logits / temperature

    def in_top_k(self, logits: Array, k: int) -> Array:
        return logits >= np.sort(logits)[-min(k, len(logits))]

    def in_top_p(self, p: Array, top_p: float) -> Array:
        """The likeliest tokens up to and with the one whose probability brings the sum to top_p."""
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        kept = np.zeros(len(p), dtype=bool)
        kept[order[before < top_p]] = True
        return kept | (p == p.max()) if top_p < 1 else np.ones(len(p), dtype=bool)

    def draw(self, logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
        """The distribution that do_sample=True draws from."""
        return self.probabilities(logits, temperature, top_k, top_p)

    def next_logits(self, ids: Array, prompt: int) -> Array:
        """(B, V): what follows `ids`, of which the first `prompt` tokens were given at once."""
        return self.logits(ids)[:, -1]

    def ends(self, token: int) -> bool:
        return token == self.config["eos_token_id"]

    def total_length(self, prompt: int, max_length: int) -> int:
        """`max_length` counts the prompt."""
        return max_length

    def greedy(self, ids: Array, max_length: int) -> Array:
        """Greedy continuation, the prompt included, of rows that meet no end token but a single one does."""
        prompt = ids.shape[1]
        while ids.shape[1] < self.total_length(prompt, max_length):
            ids = np.concatenate([ids, self.next_logits(ids, prompt).argmax(-1)[:, None]], axis=1)
            if len(ids) == 1 and self.ends(ids[0, -1]):
                break
        return self.returned(ids, prompt)

    def returned(self, ids: Array, prompt: int) -> Array:
        return ids


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(x: Array, axis: int) -> Array:
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)
