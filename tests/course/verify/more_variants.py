"""Wrong implementations that the checker has no name for, and right ones that are written differently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.course.verify import variants as v
from tests.course.verify.variants import Edit, Edits, before, changed

COMPACT = (Path(__file__).parent / "compact.py").read_text(encoding="utf-8")  # another style throughout

# The part must be named all the same, and no known mistake be blamed.
UNLISTED: Mapping[str, Mapping[str, Edits]] = {
    "RMSNorm": {
        "divided by the largest": (v.NORM, "x32 = x32 / (x32.abs().amax(-1, keepdim=True) + self.eps)"),
        "mean over every other number": changed(v.NORM, "x32.pow(2)", "x32[..., ::2].pow(2)"),
        "clamped": (v.NORM, f"{v.NORM}\n        x32 = x32.clamp(-1, 1)"),
    },
    "SwiGLU": {
        "softplus": changed(v.GATED, "F.silu", "F.softplus"),
        "leaky relu": changed(v.GATED, "F.silu", "F.leaky_relu"),
        "sharper silu": changed(v.GATED, "F.silu(", "F.silu(1.702 * "),
    },
    "attention": {
        "fourth root of head dim": changed(v.SCORES, "math.sqrt(C)", "C**0.25"),
        "cosine for qk norm": (v.QK, "q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)"),
        "relu on the values": changed(v.MIXED, "repeat_kv(v, n_rep)", "repeat_kv(v, n_rep).relu()"),
        "one added to the softmax": (v.SOFTMAX, "weights = scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))"),
        "heads merged in reverse": changed(v.MERGED, "out.", "out.flip(1)."),
    },
    "GQA": {
        "mean of the key value heads": before(
            v.S, "k, v = (x.mean(1, keepdim=True).expand_as(x) for x in (k, v))"
        ),
    },
    "RoPE": {
        "half of the pairs rotated": (
            v.APPLIED,
            """some = torch.arange(q.shape[-1]) % (q.shape[-1] // 2) < q.shape[-1] // 4
    return tuple(torch.where(some, x * cos + rotate_half(x) * sin, x) for x in (q, k))""",
        ),
        "positions doubled": (v.POSITIONS, f"{v.POSITIONS} * 2"),
        "every pair at the same speed": (v.FREQUENCIES, "frequencies = torch.ones_like(exponents)"),
        "frequencies without a base": (v.FREQUENCIES, "frequencies = torch.exp(-exponents)"),
        "in degrees": changed(v.FREQUENCIES, "1.0 /", "180 / math.pi /"),
        "exponents begin at two": changed(v.EXPONENTS, "(0, config.head_dim, 2)", "(2, config.head_dim + 2, 2)"),
        "positions begin anew after 32": (v.POSITIONS, f"{v.POSITIONS} % 32"),
        "k rotated the other way": changed(v.APPLIED, "k * cos + ", "k * cos - "),
    },
    "mask": {
        "first token hidden": changed(
            v.VISIBLE, ".tril(S - T)", ".tril(S - T) & (torch.arange(S) + (torch.arange(S - T, S) == 0)[:, None] > 0)"
        ),
        "itself alone": changed(v.VISIBLE, ".tril(S - T)", ".tril(S - T).triu(S - T)"),
        "every other token": changed(
            v.VISIBLE, ".tril(S - T)", ".tril(S - T) & ((torch.arange(S - T, S)[:, None] - torch.arange(S)) % 2 == 0)"
        ),
        "first two tokens always seen": changed(v.VISIBLE, ".tril(S - T)", ".tril(S - T) | (torch.arange(S) < 2)"),
        "two tokens ahead": changed(v.VISIBLE, "S - T)", "S - T + 2)"),
        "minus two for minus infinity": changed(v.MASKED, "-math.inf", "-2.0"),
    },
    "decoder": {
        "residual halved": changed(v.LAYER_2, "return x", "return 0.5 * x"),
        "residual doubled": changed(v.LAYER_1, "x = x", "x = 2 * x"),
        "a norm behind the mlp too": (
            v.LAYER_2, "return x + self.input_layernorm(self.mlp(self.post_attention_layernorm(x)))"
        ),
        "first layer once more": (v.LOOP, f"{v.LOOP}\n        x = self.layers[0](x, cos, sin, cache)"),
    },
    "head": {
        "logits capped": (v.HEAD, "return 30 * torch.tanh(self.lm_head(x) / 5)"),
        "logits doubled": (v.HEAD, f"{v.HEAD} * 2"),
    },
    "generation": {
        "temperature squared": changed(v.DRAWN, "temperature", "temperature**2"),
        "top k halved": (v.DRAWN, "logits = filter_top_k(logits / temperature, max(top_k, 2) // 2)"),
        "second best token": (v.ARGMAX, "new = logits.topk(2).indices[:, 1:]"),
    },
}  # fmt: skip

SDPA = (
    (v.SCORES, ""), (v.MASKED, ""), (v.SOFTMAX, "p = self.config.attention_dropout if self.training else 0.0"),
    ("weights = F.dropout(weights, self.config.attention_dropout, training=self.training)", ""),
    (v.MIXED, "out = F.scaled_dot_product_attention(q, k, v, visible, p, enable_gqa=True)"),
)  # fmt: skip
EINSUM: Edit = (
    v.MIXED,
    """K = k.shape[1]
        scores = torch.einsum("bkgtc,bksc->bkgts", q.view(B, K, n_rep, T, C), k) / math.sqrt(C)
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        out = torch.einsum("bkgts,bksc->bkgtc", weights, v).flatten(1, 2)""",
)
COMPLEX = """def turned(x):
        half = x.shape[-1] // 2
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[..., :half], sin[..., :half])
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    return turned(q), turned(k)"""

RIGHT: Mapping[str, tuple[Edit, ...]] = {
    "unchanged": (),
    "scaled_dot_product_attention": SDPA,
    "mask as added minus infinity, softmax in float32": (
        (v.MASKED, "scores = scores + torch.full_like(scores, -math.inf).triu(1 + S - T)"),
        (v.SOFTMAX, "weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)"),
    ),
    "mask with a large finite number": (changed(v.MASKED, "-math.inf", "torch.finfo(scores.dtype).min"),),
    "repeat_kv by expand": (
        (v.REPEAT, "B, K, S, C = x.shape\n    return x[:, :, None].expand(B, K, n_rep, S, C).reshape(B, -1, S, C)"),
    ),
    "grouped by reshaping the queries": (EINSUM,),
    "projections fused in the forward pass": (
        (v.GATED, "gate, up = (x @ torch.cat([self.gate_proj.weight, self.up_proj.weight]).T).chunk(2, -1)\n"
                  "        return self.down_proj(F.silu(gate) * up)"),
    ),
    "query scaled beforehand": (before(v.S, "q = q * C**-0.5"), changed(v.SCORES, " / math.sqrt(C)", "")),
    "RMSNorm by torch": ((v.NORM, "x32 = F.rms_norm(x32, x32.shape[-1:], eps=self.eps)"),),
    "RMSNorm scaled in float32": ((v.NORMED, "return (self.weight.float() * x32).to(x.dtype)"),),
    "SiLU spelled out": (
        (v.GATED, "return self.down_proj((g := self.gate_proj(x)) * torch.sigmoid(g) * self.up_proj(x))"),
    ),
    "rotation by complex numbers": ((v.APPLIED, COMPLEX),),
    "cosines and sines computed once": (
        (v.BUFFER, """angles = torch.outer(torch.arange(config.max_position_embeddings), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)"""),
        ("angles = positions[:, None].float() * self.inv_freq", ""), (v.ANGLES, ""),
        (v.COS_SIN, "return self.cos[positions][None], self.sin[positions][None]"),
    ),
    "the last end token left out": (
        ("            ids = torch.cat([ids, new], dim=1)",
         "            if ended.all():\n                break\n            ids = torch.cat([ids, new], dim=1)"),
    ),
    "generation without a cache": ((v.STEP, "logits = self(ids)[:, -1]"),),
}  # fmt: skip
