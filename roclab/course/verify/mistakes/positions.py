"""Mistakes of rotary positions and of the causal mask."""

from __future__ import annotations

import numpy as np

from roclab.course.verify.mistakes import Mistake, Unpredictable
from roclab.course.verify.reference import Array, softmax


class RopeMistake(Mistake):
    component = "RoPE"


class NeighboursRotated(RopeMistake):
    """rotate_half turns neighbours (2i, 2i + 1), as GPT-J does: RocLM turns the halves, (i, i + C/2)."""

    def rotate_half(self, x: Array) -> Array:
        return np.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)


class PairsInterleaved(RopeMistake):
    """Neighbouring dimensions (2i, 2i + 1) are turned as pairs, as in GPT-J: RocLM pairs i with i + C/2."""

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        half = x.shape[-1] // 2
        cos, sin, x1, x2 = cos[..., :half], sin[..., :half], x[..., 0::2], x[..., 1::2]
        return np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).reshape(x.shape)


class AnglesInterleaved(RopeMistake):
    """The angles are repeated as neighbours (θ0, θ0, θ1, θ1, …) while halves are turned: repeat them as halves,
    cat([angles, angles])."""

    def angles(self, T: int) -> Array:
        return np.repeat(self.positions(T)[:, None] * self.frequencies(), 2, axis=-1)


class RotateHalfSign(RopeMistake):
    """rotate_half has its minus in the wrong half: it is (x₁, x₂) → (−x₂, x₁), not (x₂, −x₁)."""

    def rotate_half(self, x: Array) -> Array:
        return -super().rotate_half(x)


class RotateHalfNoMinus(RopeMistake):
    """rotate_half lacks its minus: it is (x₁, x₂) → (−x₂, x₁)."""

    def rotate_half(self, x: Array) -> Array:
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([x2, x1], axis=-1)


class RotateHalfNotSwapped(RopeMistake):
    """rotate_half does not exchange the halves: it is (x₁, x₂) → (−x₂, x₁)."""

    def rotate_half(self, x: Array) -> Array:
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([-x1, x2], axis=-1)


class SinSubtracted(RopeMistake):
    """The sine's part is subtracted: the rotation is x·cos + rotate_half(x)·sin."""

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        return x * cos - self.rotate_half(x) * sin


class CosSinSwapped(RopeMistake):
    """cos and sin are swapped: the rotation is x·cos + rotate_half(x)·sin."""

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        return super().turn(x, sin, cos)


class NotRotated(RopeMistake):
    """q and k are not rotated: RoPE is missing, or every position is 0."""

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        return x


class OnlyQueriesRotated(RopeMistake):
    """Only q is rotated: RoPE turns q and k."""

    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        return self.turn(q, cos, sin), k


class OnlyKeysRotated(RopeMistake):
    """Only k is rotated: RoPE turns q and k."""

    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        return q, self.turn(k, cos, sin)


class RotatedTwice(RopeMistake):
    """q and k are turned by twice the angle: rotated twice, or with every position doubled."""

    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        q, k = super().rotary(q, k, cos, sin)
        return super().rotary(q, k, cos, sin)


class ValuesRotated(RopeMistake):
    """The values are rotated too: RoPE turns q and k only."""

    def values(self, v: Array, at: str) -> Array:
        return self.turn(v, *self.cos_sin(v.shape[2]))


class Base10000(RopeMistake):
    """The base is fixed at 10000: it is the config's rope_theta."""

    def base(self) -> float:
        return 10000.0


class BaseMillion(RopeMistake):
    """The base is fixed at 1000000: it is the config's rope_theta."""

    def base(self) -> float:
        return 1e6


class ExponentHalved(RopeMistake):
    """The exponent is i/C: it is 2i/C, arange(0, head_dim, 2) / head_dim."""

    def exponents(self) -> Array:
        return super().exponents() / 2


class ExponentDoubled(RopeMistake):
    """The exponent is divided by head_dim / 2: it is 2i/C, arange(0, head_dim, 2) / head_dim."""

    def exponents(self) -> Array:
        return super().exponents() * 2


class ExponentOverHidden(RopeMistake):
    """The exponent is divided by hidden_size: it is divided by head_dim."""

    def exponents(self) -> Array:
        return np.arange(0, self.C, 2) / self.config["hidden_size"]


class FrequenciesInverted(RopeMistake):
    """The frequencies are base^(+2i/C): they are 1 / base^(2i/C)."""

    def exponents(self) -> Array:
        return -super().exponents()

    def angles(self, T: int) -> Array:
        angles = super().angles(T)
        if np.abs(angles).max() > 1e5:
            raise Unpredictable  # float32 no longer knows where such an angle points
        return angles


class FrequenciesReversed(RopeMistake):
    """The frequencies run from slow to fast: pair 0 is the fastest, base^0 = 1."""

    def frequencies(self) -> Array:
        return super().frequencies()[::-1]


class PositionsReversed(RopeMistake):
    """The angles run backwards: positions are counted from the end, or cos and sin are swapped where they are made."""

    def positions(self, T: int) -> Array:
        return np.arange(T)[::-1]


class PositionsByHead(RopeMistake):
    """Heads are numbered instead of tokens: the tensors reach RoPE as (B, T, heads, C) where (B, heads, T, C) is
    expected, or the other way round."""

    def rotary(self, q: Array, k: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
        def by_head(x: Array) -> Array:
            cos, sin = self.cos_sin(x.shape[1])
            return self.turn(x, cos[:, None], sin[:, None])

        return by_head(q), by_head(k)


class MaskMistake(Mistake):
    component = "mask"


class NoMask(MaskMistake):
    """There is no causal mask: a token sees what comes after it."""

    def may_look(self, T: int) -> Array:
        return np.ones((T, T), dtype=bool)


class OneAhead(MaskMistake):
    """The mask lets a token see the next one: the diagonal is one too far (triu's diagonal must be 1)."""

    def may_look(self, T: int) -> Array:
        return np.tril(np.ones((T, T), dtype=bool), 1)


class NotItself(MaskMistake):
    """The mask hides a token from itself: the diagonal must stay visible (triu's diagonal must be 1, not 0)."""

    def may_look(self, T: int) -> Array:
        return np.tril(np.ones((T, T), dtype=bool), -1)


class NotItselfFinite(MaskMistake):
    """The mask hides a token from itself: the diagonal must stay visible (triu's diagonal must be 1, not 0)."""

    def masked(self, scores: Array) -> Array:
        T = scores.shape[-1]
        return np.where(np.tril(np.ones((T, T), dtype=bool), -1), scores, -1e30)


class Anticausal(MaskMistake):
    """The mask is upside down: a token sees what comes after it and not what came before."""

    def may_look(self, T: int) -> Array:
        return super().may_look(T).T


class MaskInverted(MaskMistake):
    """The mask is inverted: True must mark what may be seen where it marks what is hidden, or the other way round (in
    scaled_dot_product_attention True is visible, in masked_fill it is hidden)."""

    def may_look(self, T: int) -> Array:
        return ~super().may_look(T)


class MaskInvertedFinite(MaskInverted):
    __doc__ = MaskInverted.__doc__

    def masked(self, scores: Array) -> Array:
        return np.where(self.may_look(scores.shape[-1]), scores, -1e30)


class MaskInvertedCleaned(MaskInverted):
    __doc__ = MaskInverted.__doc__

    def softmax(self, scores: Array) -> Array:
        return np.nan_to_num(super().softmax(scores))


class MaskedToZero(MaskMistake):
    """Masked scores are set to 0 (or multiplied by 0): they must be −∞, since exp(0) = 1."""

    def masked(self, scores: Array) -> Array:
        return np.where(self.may_look(scores.shape[-1]), scores, 0.0)


class MaskOneAdded(MaskMistake):
    """The mask is added as −1 or +1, the 0/1 mask itself: masked scores must become −∞."""

    def masked(self, scores: Array) -> Array:
        return scores - ~self.may_look(scores.shape[-1])


class MaskTrueAdded(MaskMistake):
    """The 0/1 mask of what may be seen is added to the scores: masked scores must become −∞."""

    def masked(self, scores: Array) -> Array:
        return scores + self.may_look(scores.shape[-1])


class MaskAfterSoftmax(MaskMistake):
    """The mask is applied after the softmax, so the weights no longer sum to 1: mask the scores before it."""

    def masked(self, scores: Array) -> Array:
        return scores

    def softmax(self, scores: Array) -> Array:
        return np.where(self.may_look(scores.shape[-1]), softmax(scores, -1), 0)
