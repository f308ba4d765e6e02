"""Wrong implementations: each is `plain.py` with one typical mistake put in, by replacing pieces of its text.

`WRONG`: part → name of the mistake → (old text, new text), or several pairs. `python -m tests.course.verify.table` runs
them all and prints the table of docs/verify.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PLAIN = (Path(__file__).parent / "plain.py").read_text(encoding="utf-8")

Edit = tuple[str, str]
Edits = Edit | tuple[Edit, ...]


def edited(edits: Edits, text: str = PLAIN) -> str:
    """plain.py, or another text, with the edits. Each old text must stand in it exactly once."""
    for old, new in [edits] if edits and isinstance(edits[0], str) else edits:
        assert text.count(old) == 1, f"{text.count(old)} places hold {old!r}"
        text = text.replace(old, new)
    return text


def changed(line: str, old: str, new: str) -> Edit:
    """An edit of one piece of a line."""
    assert old in line, (old, line)
    return line, line.replace(old, new)


def before(line: str, new: str) -> Edit:
    """An edit that puts a line before another of the same depth (8 spaces)."""
    return line, f"{new}\n        {line}"


# ---- the lines that are edited

NORM = "x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)"
NORMED = "return self.weight * x32.to(x.dtype)"
GATED = "return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))"
EXPONENTS = "exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim"
FREQUENCIES = "frequencies = 1.0 / config.rope_theta**exponents"
BUFFER = 'self.register_buffer("inv_freq", frequencies, persistent=False)'
ANGLES = "angles = torch.cat([angles, angles], dim=-1)"
COS_SIN = "return angles.cos()[None], angles.sin()[None]"
HALVES = "x1, x2 = x.chunk(2, dim=-1)\n    return torch.cat([-x2, x1], dim=-1)"
HALF = "return torch.cat([-x2, x1], dim=-1)"
APPLIED = "return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin"
REPEAT = "return x.repeat_interleave(n_rep, dim=1)"
Q = "q = self.q_proj(x).view(B, T, -1, C)"
QK = "q, k = self.q_norm(q), self.k_norm(k)"
ROTATED = "q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)"
VISIBLE = "visible = torch.ones(T, S, dtype=torch.bool).tril(S - T)"
SCORES = "scores = q @ repeat_kv(k, n_rep).transpose(-2, -1) / math.sqrt(C)"
MASKED = "scores = scores.masked_fill(~visible, -math.inf)"
SOFTMAX = "weights = scores.softmax(-1)"
MIXED = "out = weights @ repeat_kv(v, n_rep)"
MERGED = "out.transpose(1, 2).reshape(B, T, -1)"
S = "S = k.shape[2]"
LAYER_1 = "x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)"
LAYER_2 = "return x + self.mlp(self.post_attention_layernorm(x))"
POSITIONS = "positions = torch.arange(past, past + T)"
EMBEDDED = "x = self.embed_tokens(input_ids)"
LOOP = "for layer in self.layers:\n            x = layer(x, cos, sin, cache)"
FINAL = "return self.norm(x)"
TIE = "if config.tie_word_embeddings:"
HEAD = "return self.lm_head(x)"
WHILE = "while ids.shape[1] < max_length and not ended.all():"
STEP = "logits = self(new, cache)[:, -1]"
SAMPLE = "if do_sample:"
DRAWN = "logits = filter_top_p(filter_top_k(logits / temperature, top_k), top_p)"
ARGMAX = "new = logits.argmax(-1, keepdim=True)"
SIGNATURE = "max_length=50, temperature=1.0, top_k=50, top_p=0.9, do_sample=True"
NEIGHBOURS = "return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)"

WRONG: Mapping[str, Mapping[str, Edits]] = {
    "RMSNorm": {
        "eps outside the root": (NORM, "x32 = x32 / (x32.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)"),
        "no eps": changed(NORM, " + self.eps", ""),
        "eps argument ignored": ("self.eps = eps", "self.eps = 1e-6"),
        "config eps not passed": changed(
            "self.norm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)", ", config.rms_norm_eps", ""
        ),
        "mean subtracted": before(NORM, "x32 = x32 - x32.mean(-1, keepdim=True)"),
        "divided by the standard deviation": changed(NORM, "pow(2).mean", "var"),
        "sum for mean": changed(NORM, ".mean(", ".sum("),
        "no root": changed(NORM, "x32 * torch.rsqrt(", "x32 / ("),
        "sqrt for rsqrt": changed(NORM, "rsqrt", "sqrt"),
        "mean over the tokens": changed(NORM, "mean(-1", "mean(-2"),
        "mean over everything": changed(NORM, "mean(-1, keepdim=True)", "mean()"),
        "no scale": changed(NORMED, "self.weight * ", ""),
        "one plus scale": changed(NORMED, "self.weight", "(1 + self.weight)"),
        "scale is a buffer": (
            "self.weight = nn.Parameter(torch.ones(hidden_size))",
            'self.register_buffer("weight", torch.ones(hidden_size))',
        ),
        "scale begins as zeros": changed("nn.Parameter(torch.ones(hidden_size))", "ones", "zeros"),
        "no float32 inside": changed("x32 = x.float()", ".float()", ""),
        "float32 returned": (NORMED, "return self.weight.float() * x32"),
        "config eps not passed to q and k": (
            ("self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)", "self.q_norm = RocLMRMSNorm(C)"),
            ("self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)", "self.k_norm = RocLMRMSNorm(C)"),
        ),
        "config eps not passed in the layer": changed(
            "self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)", ", config.rms_norm_eps", ""
        ),
        "root detached": changed(NORM, "+ self.eps)", "+ self.eps).detach()"),
    },
    "SwiGLU": {
        "gate and up swapped": (GATED, "return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))"),
        "gelu": changed(GATED, "F.silu", "F.gelu"),
        "relu": changed(GATED, "F.silu", "F.relu"),
        "sigmoid alone": changed(GATED, "F.silu", "torch.sigmoid"),
        "no activation": changed(GATED, "F.silu", ""),
        "sum for product": changed(GATED, " * ", " + "),
        "silu of the product": (GATED, "return self.down_proj(F.silu(self.gate_proj(x) * self.up_proj(x)))"),
        "silu on both": changed(GATED, "self.up_proj(x)", "F.silu(self.up_proj(x))"),
        "up left out": changed(GATED, " * self.up_proj(x)", ""),
        "with biases": changed(
            "self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)", ", bias=False", ""
        ),
    },
    "attention": {
        "softmax twice": changed(SOFTMAX, "softmax(-1)", "softmax(-1).softmax(-1)"),
        "heads and tokens exchanged in the keys": changed(SCORES, "transpose(-2, -1)", "transpose(1, 2)"),
        "no scale": changed(SCORES, " / math.sqrt(C)", ""),
        "divided by head dim": changed(SCORES, "math.sqrt(C)", "C"),
        "root of hidden size": changed(SCORES, "sqrt(C)", "sqrt(self.config.hidden_size)"),
        "root of hidden size per head": changed(
            SCORES, "sqrt(C)", "sqrt(self.config.hidden_size / self.config.num_attention_heads)"
        ),
        "scaled twice": before(S, "q = q / math.sqrt(C)"),
        "softmax over the queries": changed(SOFTMAX, "-1", "-2"),
        "softmax over the heads": changed(SOFTMAX, "-1", "1"),
        "softmax over the heads without NaN": changed(SOFTMAX, "(-1)", "(1).nan_to_num()"),
        "qk norm after rope": ((QK, ""), (ROTATED, f"{ROTATED}\n        {QK}")),
        "no qk norm": (QK, ""),
        "k not normalised": (QK, "q = self.q_norm(q)"),
        "q norm on k": changed(QK, "self.k_norm(k)", "self.q_norm(k)"),
        "q norm and k norm swapped": (QK, "q, k = self.k_norm(q), self.q_norm(k)"),
        "qk norm over all heads": (
            (QK, "q, k = self.q_norm(q.flatten(2)).view_as(q), self.k_norm(k.flatten(2)).view_as(k)"),
            ("self.q_norm = RocLMRMSNorm(C,", "self.q_norm = RocLMRMSNorm(config.num_attention_heads * C,"),
            ("self.k_norm = RocLMRMSNorm(C,", "self.k_norm = RocLMRMSNorm(config.num_key_value_heads * C,"),
        ),
        "q norm modules left out": (
            ("self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)", ""),
            ("self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)", ""),
            (QK, ""),
        ),
        "values normalised": before(S, "v = self.k_norm(v)"),
        "dropout in eval": changed("training=self.training", "self.training", "True"),
        "heads not transposed back": changed(MERGED, ".transpose(1, 2)", ""),
        "heads not split before the transpose": (Q, "q = self.q_proj(x).view(B, -1, T, C).transpose(1, 2)"),
        "keys mixed for values": changed(MIXED, "repeat_kv(v", "repeat_kv(k"),
        "with biases": changed("attention_bias: bool = False", "False", "True"),
        "weights detached": changed(SOFTMAX, "softmax(-1)", "softmax(-1).detach()"),
    },
    "GQA": {
        "tiled": (REPEAT, "return x.repeat(1, n_rep, 1, 1)"),
        "function right model tiles": (
            changed(SCORES, "repeat_kv(k, n_rep)", "k.repeat(1, n_rep, 1, 1)"),
            changed(MIXED, "repeat_kv(v, n_rep)", "v.repeat(1, n_rep, 1, 1)"),
        ),
        "expand in the wrong place": (
            REPEAT,
            "B, K, S, C = x.shape\n    return x[:, None].expand(B, n_rep, K, S, C).reshape(B, K * n_rep, S, C)",
        ),
        "values tiled": changed(MIXED, "repeat_kv(v, n_rep)", "v.repeat(1, n_rep, 1, 1)"),
        "keys tiled": changed(SCORES, "repeat_kv(k, n_rep)", "k.repeat(1, n_rep, 1, 1)"),
        "first key value head for all": before(S, "k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)"),
        "repeated along the tokens": changed(REPEAT, "dim=1", "dim=2"),
        "key value heads in reverse": before(S, "k, v = k.flip(1), v.flip(1)"),
    },
    "RoPE": {
        "neighbours paired": (HALVES, NEIGHBOURS),
        "neighbours paired everywhere": (
            (HALVES, NEIGHBOURS),
            (ANGLES, "angles = angles.repeat_interleave(2, dim=-1)"),
        ),
        "angles repeated as neighbours": (ANGLES, "angles = angles.repeat_interleave(2, dim=-1)"),
        "minus in the wrong half": changed(HALF, "[-x2, x1]", "[x2, -x1]"),
        "no minus": changed(HALF, "-x2", "x2"),
        "halves not exchanged": changed(HALF, "[-x2, x1]", "[-x1, x2]"),
        "sine subtracted": changed(APPLIED, " + rotate", " - rotate"),
        "cos and sin swapped": (COS_SIN, "return angles.sin()[None], angles.cos()[None]"),
        "values rotated too": before(S, "v, _ = apply_rotary_pos_emb(v, v, cos, sin)"),
        "only q rotated": (APPLIED, "return q * cos + rotate_half(q) * sin, k"),
        "only k rotated": changed(ROTATED, "q, k = ", "q, (_, k) = q.transpose(1, 2), "),
        "not rotated": (ROTATED, "q, k = q.transpose(1, 2), k.transpose(1, 2)"),
        "base fixed at 10000": changed(FREQUENCIES, "config.rope_theta", "10000.0"),
        "exponent i over C": (EXPONENTS, "exponents = torch.arange(0, config.head_dim // 2) / config.head_dim"),
        "exponent over hidden size": changed(EXPONENTS, "/ config.head_dim", "/ config.hidden_size"),
        "frequencies inverted": changed(FREQUENCIES, "1.0 / ", ""),
        "positions backwards": changed(POSITIONS, "past + T)", "past + T).flip(0)"),
        "heads numbered for tokens": (
            ROTATED,
            """q, k, n = q.transpose(1, 2), k.transpose(1, 2), k.shape[2]
        angles = torch.arange(q.shape[1])[:, None] / self.config.rope_theta ** (torch.arange(0, C, 2) / C)
        angles = torch.cat([angles, angles], -1)[:, None]
        q = q * angles.cos() + rotate_half(q) * angles.sin()
        k = k * angles[:n].cos() + rotate_half(k) * angles[:n].sin()""",
        ),
    },
    "mask": {
        "none": (MASKED, ""),
        "one token ahead": changed(VISIBLE, "S - T", "S - T + 1"),
        "hides the token itself": changed(VISIBLE, "S - T", "S - T - 1"),
        "inverted": changed(MASKED, "~visible", "visible"),
        "inverted with a large finite number": (MASKED, "scores = scores.masked_fill(visible, -3.4e38)"),
        "inverted for sdpa": (
            (SOFTMAX, ""),
            ("weights = F.dropout(weights, self.config.attention_dropout, training=self.training)", ""),
            (
                MIXED,
                "k, v = repeat_kv(k, n_rep), repeat_kv(v, n_rep)\n"
                "        out = F.scaled_dot_product_attention(q, k, v, ~visible)",
            ),
        ),
        "in the first layer only": changed(VISIBLE, ".tril(S - T)", ".tril(S - T) | (self.layer_idx > 0)"),
        "upside down": changed(VISIBLE, ".tril", ".triu"),
        "zero for minus infinity": changed(MASKED, "-math.inf", "0.0"),
        "one subtracted": (MASKED, "scores = scores - (~visible).float()"),
        "after the softmax": ((MASKED, ""), (SOFTMAX, "weights = scores.softmax(-1) * visible")),
        "only four tokens back": changed(VISIBLE, ".tril(S - T)", ".tril(S - T).triu(S - T - 3)"),
    },
    "decoder": {
        "norms after the sums": (
            (LAYER_1, "x = self.input_layernorm(x + self.self_attn(x, cos, sin, cache))"),
            (LAYER_2, "return self.post_attention_layernorm(x + self.mlp(x))"),
        ),
        "no residual around attention": changed(LAYER_1, "x = x + ", "x = "),
        "no residual around the mlp": changed(LAYER_2, "x + ", ""),
        "residual after the norm": (LAYER_1, "x = (n := self.input_layernorm(x)) + self.self_attn(n, cos, sin, cache)"),
        "mlp without its norm": (LAYER_2, "return x + self.mlp(x)"),
        "attention without its norm": changed(LAYER_1, "self.input_layernorm(x)", "x"),
        "norms swapped": (
            changed(LAYER_1, "input_layernorm", "post_attention_layernorm"),
            changed(LAYER_2, "post_attention_layernorm", "input_layernorm"),
        ),
        "parallel": (
            changed(LAYER_1, "x = x + ", "old, x = x, x + "),
            changed(LAYER_2, "layernorm(x)", "layernorm(old)"),
        ),
        "mlp first": (
            (LAYER_1, "x = x + self.mlp(self.post_attention_layernorm(x))"),
            (LAYER_2, "return x + self.self_attn(self.input_layernorm(x), cos, sin, cache)"),
        ),
        "one layer shared": (
            "[RocLMDecoderLayer(config, i) for i in range(config.num_hidden_layers)]",
            "[RocLMDecoderLayer(config, 0)] * config.num_hidden_layers",
        ),
        "final norm after every layer": changed(
            LOOP, "layer(x, cos, sin, cache)", "self.norm(layer(x, cos, sin, cache))"
        ),
        "final norm on the embedding": (EMBEDDED, "x = self.norm(self.embed_tokens(input_ids))"),
        "embedding by root of D": (EMBEDDED, f"{EMBEDDED} / math.sqrt(self.config.hidden_size)"),
        "attention forgotten in the stream": (
            changed(LAYER_1, "x = x + ", "h = x + "),
            changed(LAYER_2, "layernorm(x)", "layernorm(h)"),
        ),
        "last layer left out": changed(LOOP, "self.layers", "self.layers[:-1]"),
        "first layer every time": changed(LOOP, "layer(x", "self.layers[0](x"),
        "layers from last to first": changed(LOOP, "self.layers", "reversed(self.layers)"),
        "embedding times root of D": (EMBEDDED, f"{EMBEDDED} * self.config.hidden_size**0.5"),
        "no grad in forward": before(EMBEDDED, "torch.set_grad_enabled(False)"),
    },
    "head": {
        "no final norm": (FINAL, "return x"),
        "never tied": (TIE, "if False:"),
        "tied by a copy": (
            "self.lm_head.weight = self.model.embed_tokens.weight",
            "self.lm_head.weight.data = self.model.embed_tokens.weight.data.clone()",
        ),
        "always tied": (TIE, "if True:"),
        "probabilities returned": (HEAD, f"{HEAD}.softmax(-1)"),
        "log probabilities returned": (HEAD, f"{HEAD}.log_softmax(-1)"),
        "with bias": changed("config.vocab_size, bias=False)", ", bias=False", ""),
        "last position only": (HEAD, "return self.lm_head(x[:, -1:])"),
    },
    "generation": {
        "max length counts new tokens": changed(WHILE, "< max_length", "< max_length + input_ids.shape[1]"),
        "one token too many": changed(WHILE, "< max_length", "<= max_length"),
        "one token too few": changed(WHILE, "< max_length", "< max_length - 1"),
        "prompt left out": ("        return ids\n", "        return ids[:, input_ids.shape[1] :]\n"),
        "least likely token": changed(ARGMAX, "argmax", "argmin"),
        "first position's logits": (STEP, "logits = self(ids)[:, 0]"),
        "draws when it must not": (SAMPLE, "if True:"),
        "never draws": (SAMPLE, "if False:"),
        "first row's end for all": changed(WHILE, "ended.all()", "ended[0]"),
        "seeds itself": before("ids = new = input_ids", "torch.manual_seed(0)"),
        "do sample default": changed(SIGNATURE, "do_sample=True", "do_sample=False"),
        "temperature default": changed(SIGNATURE, "temperature=1.0", "temperature=0.7"),
        "top k default": changed(SIGNATURE, "top_k=50", "top_k=0"),
        "top p default": changed(SIGNATURE, "top_p=0.9", "top_p=1.0"),
        "ignores the end token": ("ended = ended | (new[:, 0] == self.config.eos_token_id)", ""),
        "cache lost after the prompt": (STEP, "logits = self(new)[:, -1]"),
        "cached positions begin anew": (POSITIONS, "positions = torch.arange(T)"),
        "cached positions one ahead": (POSITIONS, f"{POSITIONS} + (past > 0)"),
        "temperature multiplied": changed(DRAWN, "logits / temperature", "logits * temperature"),
        "temperature ignored": changed(DRAWN, "logits / temperature", "logits"),
        "top k ignored": (DRAWN, "logits = filter_top_p(logits / temperature, top_p)"),
        "top p ignored": (DRAWN, "logits = filter_top_k(logits / temperature, top_k)"),
        "top k drops the kth": changed("logits.masked_fill(logits < kth, -math.inf)", "<", "<="),
        "top p drops the crossing token": changed("drop = (before >= top_p)", "before", "before + probabilities"),
        "top p not scattered back": changed(
            "torch.zeros_like(drop).scatter(-1, order, drop)", "torch.zeros_like(drop).scatter(-1, order, drop)", "drop"
        ),
        "top p from the least likely": changed("logits.sort(dim=-1, descending=True)", ", descending=True", ""),
        "drawn with equal chances": ("logits.softmax(-1), 1)", "(logits > -math.inf).float(), 1)"),
        "max length default": changed(SIGNATURE, "max_length=50", "max_length=20"),
    },
    "checkpoint": {
        "frequencies in the state dict": changed(BUFFER, ", persistent=False", ""),
        "other names for the norms": (
            ("self.input_layernorm = ", "self.attention_norm = "),
            changed(LAYER_1, "input_layernorm", "attention_norm"),
        ),
        "other prefix": (
            ("self.model = RocLMModel(config)", "self.transformer = RocLMModel(config)"),
            ("self.lm_head.weight = self.model.", "self.lm_head.weight = self.transformer."),
            ("x = self.model(input_ids, cache)", "x = self.transformer(input_ids, cache)"),
        ),
        "another default": changed("rms_norm_eps: float = 1e-6", "1e-6", "1e-5"),
        "unknown keys dropped": (
            "if unknown:", "values = {k: v for k, v in values.items() if k not in unknown}\n    if False:"
        ),
    },
}  # fmt: skip
