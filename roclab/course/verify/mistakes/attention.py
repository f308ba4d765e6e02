"""Mistakes of attention and of its grouped heads."""

from __future__ import annotations

import numpy as np

from roclab.course.verify.mistakes import Mistake
from roclab.course.verify.reference import Array, sigmoid, softmax

# ---- attention


class AttentionMistake(Mistake):
    component = "attention"


class NotScaled(AttentionMistake):
    """The scores are not scaled: q·kᵀ is divided by √head_dim."""

    def scale(self) -> float:
        return 1.0


class ScaledByHeadDim(AttentionMistake):
    """The scores are divided by head_dim, or twice by its root: it is √head_dim, once (SDPA scales by itself)."""

    def scale(self) -> float:
        return 1 / self.C


class ScaledByHiddenSize(AttentionMistake):
    """The scores are divided by √hidden_size: it is √head_dim."""

    def scale(self) -> float:
        return self.config["hidden_size"] ** -0.5


class ScaledByHiddenPerHead(AttentionMistake):
    """The scores are divided by √(hidden_size / heads): head_dim is a setting of its own, and √head_dim the scale."""

    def scale(self) -> float:
        return (self.config["hidden_size"] / self.H) ** -0.5


class ScaledUp(AttentionMistake):
    """The scores are multiplied by √head_dim: they are divided by it."""

    def scale(self) -> float:
        return float(np.sqrt(self.C))


class SoftmaxOverQueries(AttentionMistake):
    """The softmax runs over the queries (dim=-2): it runs over the keys, the last dimension."""

    def softmax(self, scores: Array) -> Array:
        return softmax(scores, -2)


class SoftmaxOverHeads(AttentionMistake):
    """The softmax runs over the heads (dim=1): it runs over the keys, the last dimension."""

    def softmax(self, scores: Array) -> Array:
        return softmax(scores, 1)


class SoftmaxOverHeadsFinite(AttentionMistake):
    """The softmax runs over the heads (dim=1): it runs over the keys, the last dimension."""

    def masked(self, scores: Array) -> Array:
        return np.where(np.isinf(visible := super().masked(scores)), -1e30, visible)

    def softmax(self, scores: Array) -> Array:
        return softmax(scores, 1)


class SoftmaxOverHeadsCleaned(AttentionMistake):
    """The softmax runs over the heads (dim=1): it runs over the keys, the last dimension."""

    def softmax(self, scores: Array) -> Array:
        return np.nan_to_num(softmax(scores, 1))


class SoftmaxTwice(AttentionMistake):
    """The softmax is taken twice: once, over the keys."""

    def softmax(self, scores: Array) -> Array:
        return softmax(super().softmax(scores), -1)


class NoSoftmax(AttentionMistake):
    """There is no softmax over the keys."""

    def softmax(self, scores: Array) -> Array:
        return np.where(np.isinf(scores), 0, scores)


class SigmoidScores(AttentionMistake):
    """The scores pass through a sigmoid: attention takes a softmax over the keys."""

    def softmax(self, scores: Array) -> Array:
        return sigmoid(scores)


class QkNormAfterRope(AttentionMistake):
    """QK-norm is applied after RoPE: q_norm and k_norm come before the rotation."""

    def queries_and_keys(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        q, k = self.rotary(q, k, *self.cos_sin(q.shape[2]))
        return self.qk_norm(q, k, at)


class NoQkNorm(AttentionMistake):
    """QK-norm is missing: each head's q and k pass through q_norm and k_norm before RoPE."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return q, k


class OnlyQNorm(AttentionMistake):
    """k_norm is not applied: keys are normalised as queries are."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return super().qk_norm(q, k, at)[0], k


class OnlyKNorm(AttentionMistake):
    """q_norm is not applied: queries are normalised as keys are."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return q, super().qk_norm(q, k, at)[1]


class QNormTwice(AttentionMistake):
    """q_norm is applied to the keys too: they have k_norm."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return self.model_norm(q, f"{at}.q_norm"), self.model_norm(k, f"{at}.q_norm")


class QkNormsSwapped(AttentionMistake):
    """q_norm and k_norm are swapped."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return self.model_norm(q, f"{at}.k_norm"), self.model_norm(k, f"{at}.q_norm")


class QkNormOverHeads(AttentionMistake):
    """QK-norm takes one mean over all heads: each head is normalised by itself, over head_dim."""

    def qk_norm(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        def over_all(x: Array, name: str) -> Array:
            eps = self.config["rms_norm_eps"]
            return self.weights[f"{at}.{name}.weight"] * x / np.sqrt((x**2).mean((1, 3), keepdims=True) + eps)

        return over_all(q, "q_norm"), over_all(k, "k_norm")


class ValuesNormed(AttentionMistake):
    """The values are normalised too: QK-norm is for q and k alone."""

    def values(self, v: Array, at: str) -> Array:
        return self.model_norm(v, f"{at}.k_norm")


class HeadsNotMerged(AttentionMistake):
    """The heads' outputs (B, H, T, C) are reshaped without the transpose back to (B, T, H, C) first."""

    def merge(self, x: Array) -> Array:
        return x.reshape(x.shape[0], x.shape[2], -1)


class HeadsNotSplit(AttentionMistake):
    """q, k and v are viewed as (B, heads, T, C) at once: view them as (B, T, heads, C), then transpose."""

    def split(self, x: Array, heads: int) -> Array:
        return x.reshape(x.shape[0], heads, x.shape[1], self.C)


class QueriesNotSplit(AttentionMistake):
    """q is viewed as (B, heads, T, C) at once: view it as (B, T, heads, C), then transpose."""

    def queries_and_keys(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        B, H, T, C = q.shape
        return super().queries_and_keys(q.swapaxes(1, 2).reshape(B, H, T, C), k, at)


class HeadsInterleaved(AttentionMistake):
    """The projections are viewed as (…, head_dim, heads): heads lie side by side, (…, heads, head_dim)."""

    def split(self, x: Array, heads: int) -> Array:
        return np.moveaxis(x.reshape(*x.shape[:2], self.C, heads), -1, 1)


class ScoresTransposed(AttentionMistake):
    """The scores are k·qᵀ: they are q·kᵀ, queries in rows and keys in columns."""

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        return super().attend(k, q, v)


class KeysAsValues(AttentionMistake):
    """The keys are mixed: the weights of the softmax mix the values."""

    def attend(self, q: Array, k: Array, v: Array) -> Array:
        return super().attend(q, k, k)


# ---- grouped queries


class GroupMistake(Mistake):
    component = "GQA"


class Tiled(GroupMistake):
    """Key-value heads are tiled (0, 1, 0, 1, …), as repeat() or expand in the wrong place does: each serves a run of
    query heads (0, 0, 1, 1, …), as repeat_interleave does."""

    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        return np.tile(x, (1, n_rep, 1, 1))


class KeysTiled(GroupMistake):
    """The key heads are tiled (0, 1, 0, 1, …): each serves a run of query heads, as repeat_interleave does."""

    def repeat_keys(self, k: Array) -> Array:
        return np.tile(k, (1, self.H // self.K, 1, 1))


class ValuesTiled(GroupMistake):
    """The value heads are tiled (0, 1, 0, 1, …): each serves a run of query heads, as repeat_interleave does."""

    def repeat_values(self, v: Array) -> Array:
        return np.tile(v, (1, self.H // self.K, 1, 1))


class ModelTiles(KeysTiled, ValuesTiled, GroupMistake):
    """The model tiles its key-value heads (0, 1, 0, 1, …): each serves a run of query heads (0, 0, 1, 1, …)."""


class FirstHeadOnly(GroupMistake):
    """Every query head reads the first key-value head: query head h reads key-value head h // n_rep."""

    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        return np.repeat(x[:, :1], n_rep * x.shape[1], axis=1)


class ModelFirstHeadOnly(GroupMistake):
    """The model lets every query head read the first key-value head: query head h reads head h // n_rep."""

    def repeat_keys(self, k: Array) -> Array:
        return np.repeat(k[:, :1], self.H, axis=1)

    def repeat_values(self, v: Array) -> Array:
        return np.repeat(v[:, :1], self.H, axis=1)


class HeadsAveraged(GroupMistake):
    """Every query head reads the mean of the key-value heads: query head h reads key-value head h // n_rep."""

    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        return np.repeat(x.mean(1, keepdims=True), n_rep * x.shape[1], axis=1)


class HeadsReversed(GroupMistake):
    """Query heads read the key-value heads in reverse order: query head h reads key-value head h // n_rep."""

    def repeat_kv(self, x: Array, n_rep: int) -> Array:
        return np.repeat(x[:, ::-1], n_rep, axis=1)
