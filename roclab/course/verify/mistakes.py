"""The typical mistakes, one table a part: the sentence that the user reads, and the formulas of `Reference` that are
replaced. An implementation that fails a check is compared with each of them.

A replacement takes the model and the arguments of the method that it replaces. `right` is that method as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from roclab.course.verify.reference import Array, Formulas, Reference, mean_square, sigmoid, softmax


class Unpredictable(Exception):
    """The mistake's answer depends on rounding here: it can be anything but right."""


@dataclass(frozen=True, eq=False)
class Mistake:
    component: str
    hint: str
    replaced: Formulas


Row = tuple[str, Formulas]
right = Reference


def wrong(hint: str, **replaced: Callable[..., Any]) -> Row:
    return hint, replaced


# ---- what several replacements need, or one that is longer than a line


def eps_left_out(*norms: str) -> Row:
    do, use = ("do", "they use") if len(norms) > 1 else ("does", "it uses")
    return wrong(
        f"{' and '.join(norms)} {do} not get the config's rms_norm_eps: {use} a default.",
        eps=lambda m, name: 1e-6 if name.split(".")[-1] in norms else right.eps(m, name),
    )


def norm_over_heads(m: Reference, q: Array, k: Array, at: str) -> tuple[Array, Array]:
    def normed(x: Array, name: str) -> Array:
        mean = (x**2).mean((1, 3), keepdims=True)
        return m.weights[f"{at}.{name}.weight"] * x / np.sqrt(mean + m.config["rms_norm_eps"])

    return normed(q, "q_norm"), normed(k, "k_norm")


def tiled(m: Reference, x: Array) -> Array:
    return np.tile(x, (1, m.H // m.K, 1, 1))


def first_head(m: Reference, x: Array) -> Array:
    return np.repeat(x[:, :1], m.H, axis=1)


def finite_mask(m: Reference, scores: Array) -> Array:
    return np.maximum(right.masked(m, scores), -1e30)


def halves(x: Array) -> list[Array]:
    return np.split(x, 2, axis=-1)


def turned_pairs(m: Reference, x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    cos, sin, x1, x2 = cos[..., :half], sin[..., :half], x[..., 0::2], x[..., 1::2]
    return np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).reshape(x.shape)


def inverted_angles(m: Reference, T: int) -> Array:
    angles = right.angles(m, T)
    if np.abs(angles).max() > 1e5:
        raise Unpredictable  # float32 no longer knows where such an angle points
    return angles


def turned_by_head(m: Reference, q: Array, k: Array, *_: Array) -> tuple[Array, Array]:
    def turned(x: Array) -> Array:
        cos, sin = m.cos_sin(x.shape[1])
        return m.turn(x, cos[:, None], sin[:, None])

    return turned(q), turned(k)


def cached_positions(later: Callable[[Array], Array]) -> Callable[..., Array]:
    """The positions of the tokens behind the prompt, which come with a cache, are wrong."""
    return lambda m, T: np.where(np.arange(T) < m.prompt, np.arange(T), later(np.arange(T)))


def one_more_in_top_p(m: Reference, p: Array, top_p: float) -> Array:
    kept = right.in_top_p(m, p, top_p)
    kept[m.order(p)[min(kept.sum(), len(p) - 1)]] = True
    return kept


# fmt: off
# ---- RMSNorm

RMSNORM = [
    wrong("eps is added outside the root: it belongs under it, x / √(mean(x²) + ε).",
          divisor=lambda m, x, eps: np.sqrt(mean_square(x)) + eps),
    wrong("eps is left out: it belongs under the root, x / √(mean(x²) + ε).",
          divisor=lambda m, x, eps: np.sqrt(mean_square(x))),
    wrong("eps is squared under the root: it is added as it is, x / √(mean(x²) + ε).",
          divisor=lambda m, x, eps: np.sqrt(mean_square(x) + eps**2)),
    *(wrong(f"The argument eps is ignored and {name} used.",
            divisor=lambda m, x, _, eps=float(name): right.divisor(m, x, eps)) for name in ("1e-5", "1e-6", "1e-8")),
    *(wrong(f"The model does not pass the config's rms_norm_eps to its norms: they use a default, {name}.",
            eps=lambda m, _, eps=float(name): eps) for name in ("1e-6", "1e-5")),
    eps_left_out("q_norm", "k_norm"),
    eps_left_out("q_norm"),
    eps_left_out("k_norm"),
    eps_left_out("input_layernorm", "post_attention_layernorm"),
    eps_left_out("input_layernorm"),
    eps_left_out("post_attention_layernorm"),
    wrong("The mean is subtracted, as LayerNorm does: RMSNorm does not centre.",
          norm=lambda m, x, g, eps: right.norm(m, x - x.mean(-1, keepdims=True), g, eps)),
    wrong("x is divided by its standard deviation: RMSNorm divides by √mean(x²), without subtracting the mean.",
          divisor=lambda m, x, eps: np.sqrt(x.var(-1, keepdims=True) + eps)),
    wrong("x is divided by torch's var (mean subtracted, n − 1): RMSNorm divides by √mean(x²).",
          divisor=lambda m, x, eps: np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps)),
    wrong("The root is missing: x is divided by mean(x²) + ε, not by its square root.",
          divisor=lambda m, x, eps: mean_square(x) + eps),
    wrong("x is multiplied by √(mean(x²) + ε): it is divided by it (rsqrt, not sqrt).",
          divisor=lambda m, x, eps: 1 / right.divisor(m, x, eps)),
    wrong("The squares are summed: RMSNorm takes their mean.",
          divisor=lambda m, x, eps: np.sqrt((x**2).sum(-1, keepdims=True) + eps)),
    wrong("x is divided by mean(|x|): RMSNorm divides by √mean(x²).",
          divisor=lambda m, x, eps: np.abs(x).mean(-1, keepdims=True) + eps),
    wrong("The mean runs over the whole tensor: it is taken over the last dimension of each token alone.",
          divisor=lambda m, x, eps: np.sqrt((x**2).mean() + eps)),
    wrong("The mean runs over dimension 1 (the tokens): it is taken over the last dimension.",
          divisor=lambda m, x, eps: np.sqrt((x**2).mean(1 if x.ndim > 2 else 0, keepdims=True) + eps)),
    wrong("The learnable scale (weight) is not used: the normalised x is multiplied by it.", scaled=lambda m, x, g: x),
    wrong("x is multiplied by 1 + weight, as Gemma does: RocLM multiplies by weight.",
          scaled=lambda m, x, g: (1 + g) * x),
    wrong("The weight is added like a bias: the normalised x is multiplied by it.", scaled=lambda m, x, g: g + x),
    wrong("x is only scaled by the weight: it is not divided by √(mean(x²) + ε).", divisor=lambda m, x, eps: 1.0),
]

SWIGLU = [
    wrong("gate and up are swapped: SiLU belongs on gate_proj's output, up_proj's is only multiplied.",
          gated=lambda m, gate, up: right.gated(m, up, gate)),
    wrong("The activation is GELU: SwiGLU takes SiLU, z·σ(z).",
          activation=lambda m, z: z * 0.5 * (1 + np.vectorize(math.erf)(z / np.sqrt(2)))),
    wrong("The activation is GELU (tanh form): SwiGLU takes SiLU, z·σ(z).",
          activation=lambda m, z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))),
    wrong("The activation is ReLU: SwiGLU takes SiLU, z·σ(z).", activation=lambda m, z: np.maximum(z, 0)),
    wrong("The gate passes through σ(z) alone: SiLU is z·σ(z).", activation=lambda m, z: sigmoid(z)),
    wrong("The activation is tanh: SwiGLU takes SiLU, z·σ(z).", activation=lambda m, z: np.tanh(z)),
    wrong("The activation is missing: SiLU belongs on gate_proj's output.", activation=lambda m, z: z),
    wrong("gate and up are added: SwiGLU multiplies them.", gated=lambda m, gate, up: m.activation(gate) + up),
    wrong("SiLU is taken of the product gate·up: it belongs on gate alone, before the product.",
          gated=lambda m, gate, up: m.activation(gate * up)),
    wrong("SiLU is taken of gate and of up: it belongs on gate alone.",
          gated=lambda m, gate, up: m.activation(gate) * m.activation(up)),
    wrong("up_proj is not used: the output is down( silu(gate) ⊙ up ).", gated=lambda m, gate, up: m.activation(gate)),
    wrong("gate_proj is not used: the output is down( silu(gate) ⊙ up ).", gated=lambda m, gate, up: m.activation(up)),
]
# ---- attention

OVER_HEADS = "The softmax runs over the heads (dim=1): it runs over the keys, the last dimension."

ATTENTION = [
    wrong("The scores are not scaled: q·kᵀ is divided by √head_dim.", scale=lambda m: 1.0),
    wrong("The scores are divided by head_dim, or twice by its root: it is √head_dim, once (SDPA scales by itself).",
          scale=lambda m: 1 / m.C),
    wrong("The scores are divided by √hidden_size: it is √head_dim.", scale=lambda m: m.config["hidden_size"] ** -0.5),
    wrong("The scores are divided by √(hidden_size / heads): head_dim is a setting of its own, and √head_dim the "
          "scale.", scale=lambda m: (m.config["hidden_size"] / m.H) ** -0.5),
    wrong("The scores are multiplied by √head_dim: they are divided by it.", scale=lambda m: np.sqrt(m.C)),
    wrong("The softmax runs over the queries (dim=-2): it runs over the keys, the last dimension.",
          softmax=lambda m, scores: softmax(scores, -2)),
    wrong(OVER_HEADS, softmax=lambda m, scores: softmax(scores, 1)),
    wrong(OVER_HEADS, softmax=lambda m, scores: softmax(np.maximum(scores, -1e30), 1)),
    wrong(OVER_HEADS, softmax=lambda m, scores: np.nan_to_num(softmax(scores, 1))),
    wrong("The softmax is taken twice: once, over the keys.",
          softmax=lambda m, scores: softmax(softmax(scores, -1), -1)),
    wrong("There is no softmax over the keys.", softmax=lambda m, scores: np.where(np.isinf(scores), 0, scores)),
    wrong("The scores pass through a sigmoid: attention takes a softmax over the keys.",
          softmax=lambda m, scores: sigmoid(scores)),
    wrong("QK-norm is applied after RoPE: q_norm and k_norm come before the rotation.",
          queries_and_keys=lambda m, q, k, at: m.qk_norm(*m.rotary(q, k, *m.cos_sin(q.shape[2])), at)),
    wrong("QK-norm is missing: each head's q and k pass through q_norm and k_norm before RoPE.",
          qk_norm=lambda m, q, k, at: (q, k)),
    wrong("k_norm is not applied: keys are normalised as queries are.",
          qk_norm=lambda m, q, k, at: (m.model_norm(q, f"{at}.q_norm"), k)),
    wrong("q_norm is not applied: queries are normalised as keys are.",
          qk_norm=lambda m, q, k, at: (q, m.model_norm(k, f"{at}.k_norm"))),
    wrong("q_norm is applied to the keys too: they have k_norm.",
          qk_norm=lambda m, q, k, at: (m.model_norm(q, f"{at}.q_norm"), m.model_norm(k, f"{at}.q_norm"))),
    wrong("q_norm and k_norm are swapped.",
          qk_norm=lambda m, q, k, at: (m.model_norm(q, f"{at}.k_norm"), m.model_norm(k, f"{at}.q_norm"))),
    wrong("QK-norm takes one mean over all heads: each head is normalised by itself, over head_dim.",
          qk_norm=norm_over_heads),
    wrong("The values are normalised too: QK-norm is for q and k alone.",
          values=lambda m, v, at: m.model_norm(v, f"{at}.k_norm")),
    wrong("The heads' outputs (B, H, T, C) are reshaped without the transpose back to (B, T, H, C) first.",
          merge=lambda m, x: x.reshape(x.shape[0], x.shape[2], -1)),
    wrong("q, k and v are viewed as (B, heads, T, C) at once: view them as (B, T, heads, C), then transpose.",
          split=lambda m, x, heads: x.reshape(x.shape[0], heads, x.shape[1], m.C)),
    wrong("q is viewed as (B, heads, T, C) at once: view it as (B, T, heads, C), then transpose.",
          queries_and_keys=lambda m, q, k, at: right.queries_and_keys(m, q.swapaxes(1, 2).reshape(q.shape), k, at)),
    wrong("The projections are viewed as (…, head_dim, heads): heads lie side by side, (…, heads, head_dim).",
          split=lambda m, x, heads: np.moveaxis(x.reshape(*x.shape[:2], m.C, heads), -1, 1)),
    wrong("The scores are k·qᵀ: they are q·kᵀ, queries in rows and keys in columns.",
          attend=lambda m, q, k, v: right.attend(m, k, q, v)),
    wrong("The keys are mixed: the weights of the softmax mix the values.",
          attend=lambda m, q, k, v: right.attend(m, q, k, k)),
]

GROUPS = [
    wrong("Key-value heads are tiled (0, 1, 0, 1, …), as repeat() or expand in the wrong place does: each serves a run "
          "of query heads (0, 0, 1, 1, …), as repeat_interleave does.",
          repeat_kv=lambda m, x, n_rep: np.tile(x, (1, n_rep, 1, 1))),
    wrong("The key heads are tiled (0, 1, 0, 1, …): each serves a run of query heads, as repeat_interleave does.",
          repeat_keys=tiled),
    wrong("The value heads are tiled (0, 1, 0, 1, …): each serves a run of query heads, as repeat_interleave does.",
          repeat_values=tiled),
    wrong("The model tiles its key-value heads (0, 1, 0, 1, …): each serves a run of query heads (0, 0, 1, 1, …).",
          repeat_keys=tiled, repeat_values=tiled),
    wrong("Every query head reads the first key-value head: query head h reads key-value head h // n_rep.",
          repeat_kv=lambda m, x, n_rep: np.repeat(x[:, :1], n_rep * x.shape[1], axis=1)),
    wrong("The model lets every query head read the first key-value head: query head h reads head h // n_rep.",
          repeat_keys=first_head, repeat_values=first_head),
    wrong("Every query head reads the mean of the key-value heads: query head h reads key-value head h // n_rep.",
          repeat_kv=lambda m, x, n_rep: np.repeat(x.mean(1, keepdims=True), n_rep * x.shape[1], axis=1)),
    wrong("Query heads read the key-value heads in reverse order: query head h reads key-value head h // n_rep.",
          repeat_kv=lambda m, x, n_rep: np.repeat(x[:, ::-1], n_rep, axis=1)),
]
# ---- positions and mask

ROPE = [
    wrong("rotate_half turns neighbours (2i, 2i + 1), as GPT-J does: RocLM turns the halves, (i, i + C/2).",
          rotate_half=lambda m, x: np.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)),
    wrong("Neighbouring dimensions (2i, 2i + 1) are turned as pairs, as in GPT-J: RocLM pairs i with i + C/2.",
          turn=turned_pairs),
    wrong("The angles are repeated as neighbours (θ0, θ0, θ1, θ1, …) while halves are turned: repeat them as halves, "
          "cat([angles, angles]).",
          angles=lambda m, T: np.repeat(m.positions(T)[:, None] * m.frequencies(), 2, axis=-1)),
    wrong("rotate_half has its minus in the wrong half: it is (x₁, x₂) → (−x₂, x₁), not (x₂, −x₁).",
          rotate_half=lambda m, x: -right.rotate_half(m, x)),
    wrong("rotate_half lacks its minus: it is (x₁, x₂) → (−x₂, x₁).",
          rotate_half=lambda m, x: np.concatenate(halves(x)[::-1], axis=-1)),
    wrong("rotate_half does not exchange the halves: it is (x₁, x₂) → (−x₂, x₁).",
          rotate_half=lambda m, x: np.concatenate([-halves(x)[0], halves(x)[1]], axis=-1)),
    wrong("The sine's part is subtracted: the rotation is x·cos + rotate_half(x)·sin.",
          turn=lambda m, x, cos, sin: x * cos - m.rotate_half(x) * sin),
    wrong("cos and sin are swapped: the rotation is x·cos + rotate_half(x)·sin.",
          turn=lambda m, x, cos, sin: right.turn(m, x, sin, cos)),
    wrong("q and k are not rotated: RoPE is missing, or every position is 0.", turn=lambda m, x, cos, sin: x),
    wrong("Only q is rotated: RoPE turns q and k.", rotary=lambda m, q, k, cos, sin: (m.turn(q, cos, sin), k)),
    wrong("Only k is rotated: RoPE turns q and k.", rotary=lambda m, q, k, cos, sin: (q, m.turn(k, cos, sin))),
    wrong("q and k are turned by twice the angle: rotated twice, or with every position doubled.",
          rotary=lambda m, q, k, *angles: right.rotary(m, *right.rotary(m, q, k, *angles), *angles)),
    wrong("The values are rotated too: RoPE turns q and k only.",
          values=lambda m, v, at: m.turn(v, *m.cos_sin(v.shape[2]))),
    wrong("The base is fixed at 10000: it is the config's rope_theta.", base=lambda m: 1e4),
    wrong("The base is fixed at 1000000: it is the config's rope_theta.", base=lambda m: 1e6),
    wrong("The exponent is i/C: it is 2i/C, arange(0, head_dim, 2) / head_dim.",
          exponents=lambda m: right.exponents(m) / 2),
    wrong("The exponent is divided by head_dim / 2: it is 2i/C, arange(0, head_dim, 2) / head_dim.",
          exponents=lambda m: right.exponents(m) * 2),
    wrong("The exponent is divided by hidden_size: it is divided by head_dim.",
          exponents=lambda m: np.arange(0, m.C, 2) / m.config["hidden_size"]),
    wrong("The frequencies are base^(+2i/C): they are 1 / base^(2i/C).",
          exponents=lambda m: -right.exponents(m), angles=inverted_angles),
    wrong("The frequencies run from slow to fast: pair 0 is the fastest, base^0 = 1.",
          frequencies=lambda m: right.frequencies(m)[::-1]),
    wrong("The angles run backwards: positions are counted from the end, or cos and sin are swapped where they are "
          "made.", positions=lambda m, T: np.arange(T)[::-1]),
    wrong("Heads are numbered instead of tokens: the tensors reach RoPE as (B, T, heads, C) where (B, heads, T, C) is "
          "expected, or the other way round.", rotary=turned_by_head),
]

HIDES_ITSELF = "The mask hides a token from itself: the diagonal must stay visible (triu's diagonal must be 1, not 0)."
INVERTED = ("The mask is inverted: True must mark what may be seen where it marks what is hidden, or the other way "
            "round (in scaled_dot_product_attention True is visible, in masked_fill it is hidden).")

MASK = [
    wrong("There is no causal mask: a token sees what comes after it.",
          visible=lambda m, T: np.ones((T, T), dtype=bool)),
    wrong("The mask lets a token see the next one: the diagonal is one too far (triu's diagonal must be 1).",
          visible=lambda m, T: np.tri(T, k=1, dtype=bool)),
    wrong(HIDES_ITSELF, visible=lambda m, T: np.tri(T, k=-1, dtype=bool)),
    wrong(HIDES_ITSELF, visible=lambda m, T: np.tri(T, k=-1, dtype=bool), masked=finite_mask),
    wrong("The mask is upside down: a token sees what comes after it and not what came before.",
          visible=lambda m, T: np.tri(T, dtype=bool).T),
    wrong(INVERTED, visible=lambda m, T: ~np.tri(T, dtype=bool)),
    wrong(INVERTED, visible=lambda m, T: ~np.tri(T, dtype=bool), masked=finite_mask),
    wrong(INVERTED, visible=lambda m, T: ~np.tri(T, dtype=bool),
          softmax=lambda m, scores: np.nan_to_num(softmax(scores, -1))),
    wrong("Masked scores are set to 0 (or multiplied by 0): they must be −∞, since exp(0) = 1.",
          masked=lambda m, scores: np.where(m.visible(scores.shape[-1]), scores, 0.0)),
    wrong("The mask is added as −1 or +1, the 0/1 mask itself: masked scores must become −∞.",
          masked=lambda m, scores: scores - ~m.visible(scores.shape[-1])),
    wrong("The 0/1 mask of what may be seen is added to the scores: masked scores must become −∞.",
          masked=lambda m, scores: scores + m.visible(scores.shape[-1])),
    wrong("The mask is applied after the softmax, so the weights no longer sum to 1: mask the scores before it.",
          masked=lambda m, scores: scores,
          softmax=lambda m, scores: np.where(m.visible(scores.shape[-1]), softmax(scores, -1), 0)),
]

# ---- the stack

DECODER = [
    wrong("The residual around attention is missing: x + Attention(RMSNorm(x)).",
          after_attention=lambda m, x, at: m.normed_attention(x, at)),
    wrong("The residual around the MLP is missing: x + SwiGLU(RMSNorm(x)).",
          after_mlp=lambda m, x, at: m.normed_mlp(x, at)),
    wrong("Both residuals are missing: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)).",
          after_attention=lambda m, x, at: m.normed_attention(x, at), after_mlp=lambda m, x, at: m.normed_mlp(x, at)),
    wrong("The residual around attention is taken after the norm: it is the x before input_layernorm.",
          after_attention=lambda m, x, at: m.model_norm(x, f"{at}.input_layernorm") + m.normed_attention(x, at)),
    wrong("The residual around the MLP is taken after the norm: it is the x before post_attention_layernorm.",
          after_mlp=lambda m, x, at: m.model_norm(x, f"{at}.post_attention_layernorm") + m.normed_mlp(x, at)),
    wrong("The residual around the MLP adds the layer's input: it adds the x after attention.",
          layer=lambda m, x, at: x + m.normed_mlp(m.after_attention(x, at), at)),
    wrong("The norms come after the residual sums (post-norm): they come before attention and before the MLP "
          "(pre-norm).",
          after_attention=lambda m, x, at: m.model_norm(x + m.attention(x, f"{at}.self_attn"), f"{at}.input_layernorm"),
          after_mlp=lambda m, x, at: m.model_norm(x + m.layer_mlp(x, at), f"{at}.post_attention_layernorm")),
    wrong("The norms are applied to what attention and the MLP return: they are applied to what they read.",
          normed_attention=lambda m, x, at: m.model_norm(m.attention(x, f"{at}.self_attn"), f"{at}.input_layernorm"),
          normed_mlp=lambda m, x, at: m.model_norm(m.layer_mlp(x, at), f"{at}.post_attention_layernorm")),
    wrong("Attention reads x without input_layernorm.",
          normed_attention=lambda m, x, at: m.attention(x, f"{at}.self_attn")),
    wrong("The MLP reads x without post_attention_layernorm.", normed_mlp=lambda m, x, at: m.layer_mlp(x, at)),
    wrong("The two norms of a layer are swapped: input_layernorm stands before attention, post_attention_layernorm "
          "before the MLP.",
          normed_attention=lambda m, x, at: right.normed_attention(m, x, at, "post_attention_layernorm"),
          normed_mlp=lambda m, x, at: right.normed_mlp(m, x, at, "input_layernorm")),
    wrong("The MLP reads input_layernorm's output: it has post_attention_layernorm.",
          normed_mlp=lambda m, x, at: right.normed_mlp(m, x, at, "input_layernorm")),
    wrong("Attention and MLP read the same x (parallel, as in GPT-J): the MLP reads x after attention was added.",
          layer=lambda m, x, at: m.after_attention(x, at) + m.normed_mlp(x, at)),
    wrong("The MLP comes before attention: attention comes first.",
          layer=lambda m, x, at: m.after_attention(m.after_mlp(x, at), at)),
    wrong("The MLP's output is not added to the stream.", after_mlp=lambda m, x, at: x),
    wrong("Attention's output is not added to the stream.", after_attention=lambda m, x, at: x),
    wrong("The last layer is not run.", layers=lambda m: right.layers(m)[:-1]),
    wrong("The first layer is not run.", layers=lambda m: right.layers(m)[1:]),
    wrong("The first layer is run every time: the layers are run one after the other.",
          layers=lambda m: [0] * len(right.layers(m))),
    wrong("All layers are one and the same, as ModuleList([layer] * N) makes them: each needs weights of its own.",
          layers=lambda m: right.layers(m)[-1:] * len(right.layers(m))),
    wrong("Every layer reads the embeddings, so only the last one counts: each reads what the one before it returned.",
          layers=lambda m: right.layers(m)[-1:]),
    wrong("The layers are run from last to first.", layers=lambda m: right.layers(m)[::-1]),
    wrong("The embeddings are multiplied by √hidden_size, as in the first transformer and Gemma: RocLM takes them as "
          "they are.", embed=lambda m, ids: right.embed(m, ids) * np.sqrt(m.config["hidden_size"])),
    wrong("The embeddings are divided by √hidden_size: RocLM takes them as they are.",
          embed=lambda m, ids: right.embed(m, ids) / np.sqrt(m.config["hidden_size"])),
    wrong("The embeddings pass through model.norm: it stands once, behind the last layer.",
          embed=lambda m, ids: m.final(right.embed(m, ids))),
    wrong("model.norm is applied after every layer: it stands once, behind the last.",
          layer=lambda m, x, at: m.final(right.layer(m, x, at))),
]

HEAD = [
    wrong("The final norm (model.norm) before the head is missing.", final=lambda m, x: x),
    wrong("The final norm (model.norm) is applied twice.", final=lambda m, x: right.final(m, right.final(m, x))),
    wrong("tie_word_embeddings is ignored: head and embedding are separate where they must share one matrix.",
          head_matrix=lambda m: m.weights["lm_head.weight"]),
    wrong("The head always shares the embedding's matrix: with tie_word_embeddings False it has its own.",
          head_matrix=lambda m: m.weights["model.embed_tokens.weight"]),
    wrong("The model returns probabilities: it returns logits, before any softmax.",
          head=lambda m, x: softmax(right.head(m, x), -1)),
    wrong("The model returns log-probabilities: it returns logits, before any log_softmax.",
          head=lambda m, x: np.log(softmax(right.head(m, x), -1))),
    wrong("The logits are divided by √hidden_size: they are the head's product as it is.",
          head=lambda m, x: right.head(m, x) / np.sqrt(m.config["hidden_size"])),
    wrong("The model returns the last position's logits alone: model(input_ids) returns (B, T, vocab_size).",
          head=lambda m, x: right.head(m, x)[:, -1:]),
]
# ---- generation

GENERATION = [
    wrong("max_length is taken as the number of new tokens: it counts the prompt too.",
          total_length=lambda m, max_length: m.prompt + max_length),
    wrong("One token too many is generated: the result has max_length tokens, the prompt included.",
          total_length=lambda m, max_length: max_length + 1),
    wrong("One token too few is generated: the result has max_length tokens, the prompt included.",
          total_length=lambda m, max_length: max_length - 1),
    wrong("Only the new tokens are returned: the result begins with the prompt.",
          returned=lambda m, ids: ids[:, m.prompt:]),
    wrong("The least likely token is taken: greedy decoding takes the largest logit.",
          next_logits=lambda m, ids: -right.next_logits(m, ids)),
    wrong("The next token is read from the first position's logits: it is the last one's, logits[:, -1].",
          next_logits=lambda m, ids: m.logits(ids)[:, 0]),
    wrong("The next token is read from the second last position's logits: it is the last one's, logits[:, -1].",
          next_logits=lambda m, ids: m.logits(ids)[:, -2]),
    wrong("Each step sees the last token alone: without a cache the whole text goes in at every step.",
          next_logits=lambda m, ids: m.logits(ids[:, -1:])[:, -1]),
    wrong("After the prompt each step sees the last token alone: the cache is lost, or not used.",
          next_logits=lambda m, ids: m.logits(ids if ids.shape[1] == m.prompt else ids[:, -1:])[:, -1]),
    wrong("Each step reads the prompt alone: generated tokens must be appended to what the model reads.",
          next_logits=lambda m, ids: m.logits(ids[:, :m.prompt])[:, -1]),
    wrong("With the cache, new tokens stand at position 0: they go on counting where the cached ones end.",
          positions=cached_positions(np.zeros_like)),
    wrong("With the cache, new tokens stand one position too far: the first new one stands at the cached length.",
          positions=cached_positions(lambda t: t + 1)),
    wrong("With the cache, new tokens stand one position too early: the first new one stands at the cached length.",
          positions=cached_positions(lambda t: t - 1)),
    wrong("eos_token_id is ignored: generation ends there.", ends=lambda m, token: False),
    wrong("The logits are multiplied by the temperature: they are divided by it.",
          heated=lambda m, logits, temperature: logits * temperature),
    wrong("The temperature is ignored: the logits are divided by it.", heated=lambda m, logits, temperature: logits),
    wrong("top_k is ignored: only the k most likely tokens may be drawn.",
          in_top_k=lambda m, logits, k: np.full(len(logits), True)),
    wrong("top_k keeps one token too many.", in_top_k=lambda m, logits, k: right.in_top_k(m, logits, k + 1)),
    wrong("top_k keeps one token too few: the k-th stays (compare with <, not with <=).",
          in_top_k=lambda m, logits, k: right.in_top_k(m, logits, k - 1 if k < len(logits) else k)),
    wrong("top_k keeps the least likely tokens: it keeps the most likely.",
          in_top_k=lambda m, logits, k: logits <= np.sort(logits)[min(k, len(logits)) - 1]),
    wrong("top_p is ignored: only the most likely tokens that make up this probability may be drawn.",
          in_top_p=lambda m, p, top_p: np.full(len(p), True)),
    wrong("top_p drops the token that crosses the threshold: it stays (shift the comparison by one).",
          reaching=lambda m, ordered, top_p: (np.cumsum(ordered) <= top_p) | (ordered == ordered.max())),
    wrong("top_p keeps one token too many: it stops at the token that reaches the threshold.",
          in_top_p=one_more_in_top_p),
    wrong("top_p sums from the least likely token up: sort in descending order first.",
          order=lambda m, p: np.argsort(p, kind="stable")),
    wrong("top_p's mask is in sorted order but applied to the unsorted logits: scatter it back first.",
          in_top_p=lambda m, p, top_p: m.reaching(p[m.order(p)], top_p)),
    wrong("do_sample=True takes the most likely token: it draws.",
          draw=lambda m, logits, *_: (np.arange(len(logits)) == logits.argmax()).astype(float)),
    wrong("Tokens that pass the filters are drawn with equal chances: they are drawn by their probabilities.",
          probabilities=lambda m, *rest: (kept := right.probabilities(m, *rest) > 0) / kept.sum()),
]
# fmt: on

PARTS: dict[str, list[Row]] = {
    "RMSNorm": RMSNORM, "SwiGLU": SWIGLU, "attention": ATTENTION, "GQA": GROUPS, "RoPE": ROPE, "mask": MASK,
    "decoder": DECODER, "head": HEAD, "generation": GENERATION,
}  # fmt: skip
MISTAKES = tuple(Mistake(part, hint, replaced) for part, rows in PARTS.items() for hint, replaced in rows)
