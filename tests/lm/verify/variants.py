"""Wrong implementations, each our model file with one typical mistake edited in, and right ones written differently.

An edit is (old text, new text), and the old text must stand in the file exactly once: when the model file changes, the
edits that no longer fit say so. `python -m tests.lm.verify.variants` prints the table of docs/verify.md.
"""

# ruff: noqa: E501  (an edit is a line of the model file, as long as it is)

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from roclab.course.verify import OURS

SOURCE = OURS.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Variant:
    name: str
    component: str  # which the hint must name; empty: a right one
    edits: tuple[tuple[str, str], ...]

    def source(self) -> str:
        text = SOURCE
        for old, new in self.edits:
            assert text.count(old) == 1, f"{self.name}: {text.count(old)} places hold {old!r}"
            text = text.replace(old, new)
        compile(text, self.name, "exec")
        return text


# ---- the places that are edited

NORM = "x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)"
NORMED = "return self.weight * x32.to(x.dtype)"
GATED = "self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))"
QK = "q, k = self.q_norm(q), self.k_norm(k)"
ROTATED = "q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)"
SDPA = "out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=True)"
REPEAT = "return x.repeat_interleave(n_rep, dim=1)"
HALF = "return torch.cat([-x2, x1], dim=-1)"
APPLIED = "return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin"
EXPONENTS = 'torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim'
ANGLES = "angles = 1.0 / (config.rope_theta**exponents)"
POSITIONS = "position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, past:]  # (B, T)"
MERGED = "out.transpose(1, 2).reshape(B, T, -1)"
DROPOUT = "dropout = self.config.attention_dropout if self.training else 0.0"
LAYER_1 = "x = x + self.self_attn(self.input_layernorm(x), position_embeddings, mask, cache)"
LAYER_2 = "return x + self.mlp(self.post_attention_layernorm(x))"
LAYERS = "for layer in self.layers:\n            x = layer(x, position_embeddings, mask, cache)"
EMBEDDED = "x = self.embed_tokens(input_ids)"
FINAL = "return self.norm(x)"
TIE = "if config.tie_word_embeddings:"
HEAD = "return self.lm_head(x[:, -logits_to_keep:])"
DRAWN = "logits = filter_top_p(filter_top_k(logits / temperature, top_k), top_p)"
LOOP = "while ids.shape[1] < max_length and not ended.all():"
STEP = "logits = self(new, cache=cache, logits_to_keep=1)[:, -1]  # (B, V)"
ARGMAX = "new = logits.argmax(-1, keepdim=True)"
ENDED = "ended |= torch.isin(new[:, 0], eos)"
UNKNOWN = "if unknown := sorted(set(values) - set(known)):"
FREQUENCY_BUFFER = 'self.register_buffer("inv_freq", rope_frequencies(config), persistent=False)'
V_PROJECTED = "v = self.v_proj(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)  # (B, K, T, C)"
Q_PROJECTED = "q = self.q_proj(x).view(B, T, -1, self.config.head_dim)  # (B, T, H, C)"

# Attention written out in place of SDPA, with the pieces that mistakes change.
EAGER = """n_rep = self.config.num_attention_heads // self.config.num_key_value_heads
            visible = torch.ones(T, k.shape[2], dtype=torch.bool).tril(k.shape[2] - T)
            scores = q @ repeat_kv(k, n_rep).transpose(-2, -1) / math.sqrt(self.config.head_dim)
            scores = scores.masked_fill(~visible, -math.inf)
            out = scores.softmax(-1) @ repeat_kv(v, n_rep)"""


def eager(old: str, new: str) -> tuple[tuple[str, str], ...]:
    assert EAGER.count(old) == 1, old
    return ((SDPA, EAGER.replace(old, new)),)


def wrong(component: str, **edits: tuple[str, str] | tuple[tuple[str, str], ...]) -> list[Variant]:
    """name=(old, new) or name=((old, new), …)"""
    found = []
    for name, edit in edits.items():
        pairs = (edit,) if isinstance(edit[0], str) else edit
        found.append(Variant(name.replace("_", " "), component, pairs))  # type: ignore[arg-type]
    return found


WRONG = [
    *wrong(
        "RMSNorm",
        eps_outside_the_root=(NORM, "x32 = x32 / (x32.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)"),
        no_eps=(NORM, "x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True))"),
        eps_argument_ignored=("self.eps = eps", "self.eps = 1e-6"),
        config_eps_not_passed=(
            "self.norm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)",
            "self.norm = RocLMRMSNorm(config.hidden_size)",
        ),
        mean_subtracted=(NORM, f"x32 = x32 - x32.mean(-1, keepdim=True)\n        {NORM}"),
        divided_by_the_standard_deviation=(NORM, "x32 = x32 * torch.rsqrt(x32.var(-1, keepdim=True) + self.eps)"),
        sum_for_mean=(NORM, NORM.replace(".mean(", ".sum(")),
        no_root=(NORM, NORM.replace("x32 * torch.rsqrt(", "x32 / (")),
        sqrt_for_rsqrt=(NORM, NORM.replace("rsqrt", "sqrt")),
        mean_over_the_tokens=(NORM, NORM.replace("mean(-1", "mean(-2")),
        mean_over_everything=(NORM, NORM.replace("mean(-1, keepdim=True)", "mean()")),
        no_scale=(NORMED, "return x32.to(x.dtype)"),
        one_plus_scale=(NORMED, "return (1 + self.weight) * x32.to(x.dtype)"),
        scale_is_a_buffer=(
            "self.weight = nn.Parameter(torch.ones(hidden_size))\n        self.eps",
            'self.register_buffer("weight", torch.ones(hidden_size))\n        self.eps',
        ),
        scale_begins_as_zeros=("nn.Parameter(torch.ones(hidden_size))", "nn.Parameter(torch.zeros(hidden_size))"),
        no_float32_inside=("x32 = x.float()", "x32 = x"),
        float32_returned=(NORMED, "return self.weight.float() * x32"),
        config_eps_not_passed_to_q_and_k=(
            (
                "self.q_norm = RocLMRMSNorm(C, config.rms_norm_eps)\n            self.k_norm = RocLMRMSNorm(C, config.rms_norm_eps)",
                "self.q_norm = RocLMRMSNorm(C)\n            self.k_norm = RocLMRMSNorm(C)",
            ),
        ),
        config_eps_not_passed_in_the_layer=(
            "self.input_layernorm = RocLMRMSNorm(config.hidden_size, config.rms_norm_eps)",
            "self.input_layernorm = RocLMRMSNorm(config.hidden_size)",
        ),
        root_detached=(NORM, "x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps).detach()"),
    ),
    *wrong(
        "SwiGLU",
        gate_and_up_swapped=(GATED, "self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))"),
        gelu=(GATED, GATED.replace("F.silu", "F.gelu")),
        relu=(GATED, GATED.replace("F.silu", "F.relu")),
        sigmoid_alone=(GATED, GATED.replace("F.silu", "torch.sigmoid")),
        no_activation=(GATED, GATED.replace("F.silu", "")),
        sum_for_product=(GATED, GATED.replace(" * ", " + ")),
        silu_of_the_product=(GATED, "self.down_proj(F.silu(self.gate_proj(x) * self.up_proj(x)))"),
        silu_on_both=(GATED, "self.down_proj(F.silu(self.gate_proj(x)) * F.silu(self.up_proj(x)))"),
        up_left_out=(GATED, "self.down_proj(F.silu(self.gate_proj(x)))"),
        with_biases=(
            "self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)",
            "self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=True)",
        ),
    ),
    *wrong(
        "attention",
        softmax_twice=eager("scores.softmax(-1)", "scores.softmax(-1).softmax(-1)"),
        heads_and_tokens_exchanged_in_the_keys=eager("transpose(-2, -1)", "transpose(1, 2)"),
        no_scale=(SDPA, SDPA.replace("enable_gqa", "scale=1.0, enable_gqa")),
        divided_by_head_dim=eager("math.sqrt(self.config.head_dim)", "self.config.head_dim"),
        root_of_hidden_size=eager("math.sqrt(self.config.head_dim)", "math.sqrt(self.config.hidden_size)"),
        root_of_hidden_size_per_head=eager(
            "math.sqrt(self.config.head_dim)", "math.sqrt(self.config.hidden_size / self.config.num_attention_heads)"
        ),
        scaled_twice=(SDPA, f"q = q / math.sqrt(self.config.head_dim)\n            {SDPA}"),
        softmax_over_the_queries=eager("softmax(-1)", "softmax(-2)"),
        softmax_over_the_heads=eager("softmax(-1)", "softmax(1)"),
        softmax_over_the_heads_without_NaN=eager("softmax(-1)", "softmax(1).nan_to_num()"),
        qk_norm_after_rope=(
            (f"if self.config.qk_norm:\n            {QK}\n        {ROTATED}", f"{ROTATED}\n        q, k = self.q_norm(q), self.k_norm(k)"),
        ),
        no_qk_norm=(QK, "pass"),
        k_not_normalised=(QK, "q = self.q_norm(q)"),
        q_norm_on_k=(QK, "q, k = self.q_norm(q), self.q_norm(k)"),
        q_norm_and_k_norm_swapped=(QK, "q, k = self.k_norm(q), self.q_norm(k)"),
        qk_norm_over_all_heads=(
            (QK, "q, k = self.q_norm(q.flatten(2)).view_as(q), self.k_norm(k.flatten(2)).view_as(k)"),
            ("self.q_norm = RocLMRMSNorm(C,", "self.q_norm = RocLMRMSNorm(config.num_attention_heads * C,"),
            ("self.k_norm = RocLMRMSNorm(C,", "self.k_norm = RocLMRMSNorm(config.num_key_value_heads * C,"),
        ),
        q_norm_modules_left_out=(
            ("if config.qk_norm:", "if False:"), ("if self.config.qk_norm:", "if False:"),
        ),
        values_normalised=(QK, f"{QK}\n            v = self.k_norm(v)"),
        dropout_in_eval=(DROPOUT, "dropout = self.config.attention_dropout"),
        heads_not_transposed_back=(MERGED, "out.reshape(B, T, -1)"),
        heads_not_split_before_the_transpose=(
            (Q_PROJECTED, "q = self.q_proj(x).view(B, -1, T, self.config.head_dim).transpose(1, 2)"),
        ),
        keys_mixed_for_values=(SDPA, SDPA.replace("q, k, v,", "q, k, k,")),
        with_biases=("attention_bias: bool = False", "attention_bias: bool = True"),
        weights_detached=eager("scores.softmax(-1)", "scores.softmax(-1).detach()"),
    ),
    *wrong(
        "GQA",
        tiled=((REPEAT, "return x.repeat(1, n_rep, 1, 1)"), *eager("visible =", "visible =")),
        function_right_model_tiles=(
            SDPA,
            EAGER.replace("repeat_kv(k, n_rep)", "k.repeat(1, n_rep, 1, 1)")
            .replace("repeat_kv(v, n_rep)", "v.repeat(1, n_rep, 1, 1)"),
        ),
        expand_in_the_wrong_place=(
            (REPEAT, "B, K, S, C = x.shape\n    return x[:, None].expand(B, n_rep, K, S, C).reshape(B, K * n_rep, S, C)"),
            *eager("visible =", "visible ="),
        ),
        values_tiled=eager("repeat_kv(v, n_rep)", "v.repeat(1, n_rep, 1, 1)"),
        keys_tiled=eager("repeat_kv(k, n_rep)", "k.repeat(1, n_rep, 1, 1)"),
        first_key_value_head_for_all=(SDPA, f"k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)\n            {SDPA}"),
        repeated_along_the_tokens=((REPEAT, "return x.repeat_interleave(n_rep, dim=2)"), *eager("visible =", "visible =")),
        key_value_heads_in_reverse=(SDPA, f"k, v = k.flip(1), v.flip(1)\n            {SDPA}"),
    ),
    *wrong(
        "RoPE",
        neighbours_paired=(
            "x1, x2 = x.chunk(2, dim=-1)\n    return torch.cat([-x2, x1], dim=-1)",
            "return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)",
        ),
        neighbours_paired_everywhere=(
            ("x1, x2 = x.chunk(2, dim=-1)\n    return torch.cat([-x2, x1], dim=-1)",
             "return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)"),
            ("angles = torch.cat([angles, angles], dim=-1)", "angles = angles.repeat_interleave(2, dim=-1)"),
        ),
        angles_repeated_as_neighbours=(
            "angles = torch.cat([angles, angles], dim=-1)", "angles = angles.repeat_interleave(2, dim=-1)"
        ),
        minus_in_the_wrong_half=(HALF, "return torch.cat([x2, -x1], dim=-1)"),
        no_minus=(HALF, "return torch.cat([x2, x1], dim=-1)"),
        halves_not_exchanged=(HALF, "return torch.cat([-x1, x2], dim=-1)"),
        sine_subtracted=(APPLIED, APPLIED.replace(" + rotate", " - rotate")),
        cos_and_sin_swapped=("return angles.cos().to(x.dtype), angles.sin().to(x.dtype)",
                             "return angles.sin().to(x.dtype), angles.cos().to(x.dtype)"),
        values_rotated_too=(ROTATED, f"{ROTATED}\n        v, _ = apply_rotary_pos_emb(v, v, *position_embeddings)"),
        only_q_rotated=(APPLIED, "return q * cos + rotate_half(q) * sin, k"),
        only_k_rotated=(ROTATED, f"unturned = q.transpose(1, 2)\n        {ROTATED}\n        q = unturned"),
        not_rotated=(ROTATED, "q, k = q.transpose(1, 2), k.transpose(1, 2)"),
        base_fixed_at_10000=(ANGLES, "angles = 1.0 / (10000.0**exponents)"),
        exponent_i_over_C=(EXPONENTS, 'torch.arange(0, config.head_dim // 2, dtype=torch.float32) / config.head_dim'),
        exponent_over_hidden_size=(EXPONENTS, EXPONENTS.replace("/ config.head_dim", "/ config.hidden_size")),
        frequencies_inverted=(ANGLES, "angles = config.rope_theta**exponents"),
        positions_backwards=(POSITIONS, POSITIONS.replace("[:, past:]", "[:, past:].flip(-1)")),
        heads_numbered_for_tokens=(
            (ROTATED, """rope = [torch.cat([f(t) for _ in range(2)], -1) for f in (torch.cos, torch.sin)
                for t in [torch.arange(q.shape[2])[:, None] * rope_frequencies(self.config)]]
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        n = k.shape[1]
        q = q * rope[0][:, None] + rotate_half(q) * rope[1][:, None]
        k = k * rope[0][:n, None] + rotate_half(k) * rope[1][:n, None]"""),
        ),
    ),
    *wrong(
        "mask",
        none=(SDPA, SDPA.replace("is_causal=causal", "is_causal=False")),
        one_token_ahead=eager(".tril(k.shape[2] - T)", ".tril(k.shape[2] - T + 1)"),
        hides_the_token_itself=eager(".tril(k.shape[2] - T)", ".tril(k.shape[2] - T - 1)"),
        inverted=eager("~visible", "visible"),
        inverted_with_a_large_finite_number=(
            (SDPA, EAGER.replace("~visible, -math.inf", "visible, torch.finfo(scores.dtype).min")),
        ),
        inverted_for_sdpa=(
            SDPA,
            "out = F.scaled_dot_product_attention(q, k, v, torch.ones(T, k.shape[2], dtype=torch.bool).triu(1 + k.shape[2] - T), dropout, enable_gqa=True)",
        ),
        in_the_first_layer_only=eager("visible = ", "visible = torch.ones(T, k.shape[2], dtype=torch.bool) if self.layer_idx else "),
        upside_down=eager(".tril(k.shape[2] - T)", ".triu(k.shape[2] - T)"),
        zero_for_minus_infinity=eager("-math.inf", "0.0"),
        one_subtracted=eager("scores = scores.masked_fill(~visible, -math.inf)", "scores = scores - (~visible).float()"),
        after_the_softmax=(SDPA, EAGER.replace("scores = scores.masked_fill(~visible, -math.inf)", "")
                           .replace("scores.softmax(-1)", "(scores.softmax(-1) * visible)")),
        only_four_tokens_back=eager(".tril(k.shape[2] - T)", ".tril(k.shape[2] - T).triu(k.shape[2] - T - 3)"),
    ),
    *wrong(
        "decoder",
        norms_after_the_sums=(
            (LAYER_1, "x = self.input_layernorm(x + self.self_attn(x, position_embeddings, mask, cache))"),
            (LAYER_2, "return self.post_attention_layernorm(x + self.mlp(x))"),
        ),
        no_residual_around_attention=(LAYER_1, LAYER_1.replace("x = x + ", "x = ")),
        no_residual_around_the_mlp=(LAYER_2, LAYER_2.replace("x + ", "")),
        residual_after_the_norm=(LAYER_1, f"x = self.input_layernorm(x)\n        {LAYER_1.replace('self.input_layernorm(x)', 'x')}"),
        mlp_without_its_norm=(LAYER_2, "return x + self.mlp(x)"),
        attention_without_its_norm=(LAYER_1, LAYER_1.replace("self.input_layernorm(x)", "x")),
        norms_swapped=(
            (LAYER_1, LAYER_1.replace("input_layernorm", "post_attention_layernorm")),
            (LAYER_2, LAYER_2.replace("post_attention_layernorm", "input_layernorm")),
        ),
        parallel=((LAYER_1, f"before = x\n        {LAYER_1}"), (LAYER_2, "return x + self.mlp(self.post_attention_layernorm(before))")),
        mlp_first=(
            (LAYER_1, "x = x + self.mlp(self.post_attention_layernorm(x))"),
            (LAYER_2, f"return {LAYER_1.removeprefix('x = ')}"),
        ),
        one_layer_shared=(
            "[RocLMDecoderLayer(config, i) for i in range(config.num_hidden_layers)]",
            "[RocLMDecoderLayer(config, 0)] * config.num_hidden_layers",
        ),
        final_norm_after_every_layer=(
            LAYERS,
            LAYERS.replace("x = layer(x, position_embeddings, mask, cache)", "x = self.norm(layer(x, position_embeddings, mask, cache))"),
        ),
        final_norm_on_the_embedding=(EMBEDDED, "x = self.norm(self.embed_tokens(input_ids))"),
        embedding_by_root_of_D=(EMBEDDED, "x = self.embed_tokens(input_ids) / math.sqrt(self.config.hidden_size)"),
        attention_forgotten_in_the_stream=(
            (LAYER_1, LAYER_1.replace("x = x + ", "h = x + ")),
            (LAYER_2, LAYER_2.replace("layernorm(x)", "layernorm(h)")),
        ),
        last_layer_left_out=(LAYERS, LAYERS.replace("self.layers:", "self.layers[:-1]:")),
        first_layer_every_time=(LAYERS, LAYERS.replace("x = layer(", "x = self.layers[0](")),
        layers_from_last_to_first=(LAYERS, LAYERS.replace("self.layers:", "reversed(self.layers):")),
        embedding_times_root_of_D=(EMBEDDED, f"{EMBEDDED} * self.config.hidden_size**0.5"),
        no_grad_in_forward=(EMBEDDED, f"torch.set_grad_enabled(False)\n        {EMBEDDED}"),
    ),
    *wrong(
        "head",
        no_final_norm=(FINAL, "return x"),
        never_tied=(TIE, "if False:"),
        tied_by_a_copy=(
            "self.lm_head.weight = self.model.embed_tokens.weight", "self.lm_head.weight.data = self.model.embed_tokens.weight.data.clone()"
        ),
        always_tied=(TIE, "if True:"),
        probabilities_returned=(HEAD, "return self.lm_head(x[:, -logits_to_keep:]).softmax(-1)"),
        log_probabilities_returned=(HEAD, "return self.lm_head(x[:, -logits_to_keep:]).log_softmax(-1)"),
        with_bias=("self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)",
                   "self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)"),
        last_position_only=("logits_to_keep: int = 0,", "logits_to_keep: int = 1,"),
    ),
    *wrong(
        "generation",
        max_length_counts_new_tokens=(
            (LOOP, LOOP.replace("< max_length", "< max_length + input_ids.shape[1]")),
            ("max(max_length, 1)", "max_length + input_ids.shape[1]"),
        ),
        one_token_too_many=(
            (LOOP, LOOP.replace("< max_length", "<= max_length")), ("max(max_length, 1)", "max_length + 1"),
        ),
        one_token_too_few=(LOOP, LOOP.replace("< max_length", "< max_length - 1")),
        prompt_left_out=("ids = torch.cat([ids, new], dim=1)\n        return ids",
                         "ids = torch.cat([ids, new], dim=1)\n        return ids[:, input_ids.shape[1] :]"),
        least_likely_token=(ARGMAX, ARGMAX.replace("argmax", "argmin")),
        first_position_s_logits=(STEP, "logits = self(ids)[:, 0]"),
        draws_when_it_must_not=("if do_sample and temperature > 0:", "if temperature > 0:"),
        never_draws=("if do_sample and temperature > 0:", "if False:"),
        first_row_s_end_for_all=(LOOP, "while ids.shape[1] < max_length and not ended[0]:"),
        seeds_itself=("ids = new = input_ids", "torch.manual_seed(0)\n        ids = new = input_ids"),
        do_sample_default=("do_sample: bool = True,\n    ) -> Tensor", "do_sample: bool = False,\n    ) -> Tensor"),
        temperature_default=("temperature: float = 1.0,", "temperature: float = 0.7,"),
        top_k_default=("top_k: int = 50,", "top_k: int = 0,"),
        top_p_default=("top_p: float = 0.9,", "top_p: float = 1.0,"),
        ignores_the_end_token=(ENDED, "ended |= False"),
        cache_lost_after_the_prompt=(STEP, "logits = self(new)[:, -1]"),
        cached_positions_begin_anew=(POSITIONS, "position_ids = torch.arange(T, device=input_ids.device).expand(len(input_ids), T)"),
        cached_positions_one_ahead=(POSITIONS, POSITIONS.replace("clamp(min=0)[:, past:]", "clamp(min=0)[:, past:] + (past > 0)")),
        temperature_multiplied=(DRAWN, DRAWN.replace("logits / temperature", "logits * temperature")),
        temperature_ignored=(DRAWN, DRAWN.replace("logits / temperature", "logits")),
        top_k_ignored=(DRAWN, "logits = filter_top_p(logits / temperature, top_p)"),
        top_p_ignored=(DRAWN, "logits = filter_top_k(logits / temperature, top_k)"),
        top_k_drops_the_kth=("logits.masked_fill(logits < kth, -math.inf)", "logits.masked_fill(logits <= kth, -math.inf)"),
        top_p_drops_the_crossing_token=("drop = (before >= top_p) & (before > 0)", "drop = (before + probabilities >= top_p) & (before > 0)"),
        top_p_not_scattered_back=("torch.zeros_like(drop).scatter(-1, order, drop)", "drop"),
        top_p_from_the_least_likely=("ordered, order = logits.sort(dim=-1, descending=True)", "ordered, order = logits.sort(dim=-1)"),
        drawn_with_equal_chances=("torch.multinomial(logits.float().softmax(-1), 1)",
                                  "torch.multinomial((logits > -math.inf).float(), 1)"),
        max_length_default=("max_length: int = 50", "max_length: int = 20"),
    ),
    *wrong(
        "checkpoint",
        frequencies_in_the_state_dict=(FREQUENCY_BUFFER, FREQUENCY_BUFFER.replace(", persistent=False", "")),
        other_names_for_the_norms=(
            ("self.input_layernorm = ", "self.attention_norm = "), (LAYER_1, LAYER_1.replace("input_layernorm", "attention_norm")),
        ),
        other_prefix=(
            ("self.model = RocLMModel(config)", "self.transformer = RocLMModel(config)"),
            ("self.lm_head.weight = self.model.", "self.lm_head.weight = self.transformer."),
            ("x = self.model(input_ids, attention_mask, cache)", "x = self.transformer(input_ids, attention_mask, cache)"),
            ("weight = self.model.embed_tokens.weight\n", "weight = self.transformer.embed_tokens.weight\n"),
        ),
        another_default=("rms_norm_eps: float = 1e-6", "rms_norm_eps: float = 1e-5"),
        unknown_keys_dropped=(UNKNOWN, f"values = {{k: v for k, v in values.items() if k in known}}\n        {UNKNOWN}"),
    ),
]  # fmt: skip


# Mistakes that the checker has no name for: the part must be told all the same, and no known mistake be blamed.
UNLISTED = [
    *wrong(
        "RMSNorm",
        divided_by_the_largest=(NORM, "x32 = x32 / (x32.abs().amax(-1, keepdim=True) + self.eps)"),
        mean_over_every_other_number=(
            NORM,
            "x32 = x32 * torch.rsqrt(x32[..., ::2].pow(2).mean(-1, keepdim=True) + self.eps)",
        ),
        clamped=(NORM, "x32 = (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).clamp(-1, 1)"),
    ),
    *wrong(
        "SwiGLU",
        softplus=(GATED, GATED.replace("F.silu", "F.softplus")),
        leaky_relu=(GATED, GATED.replace("F.silu", "F.leaky_relu")),
        sharper_silu=(GATED, GATED.replace("F.silu(", "F.silu(1.702 * ")),
    ),
    *wrong(
        "attention",
        fourth_root_of_head_dim=eager("math.sqrt(self.config.head_dim)", "self.config.head_dim**0.25"),
        cosine_for_qk_norm=(QK, "q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)"),
        relu_on_the_values=(SDPA, SDPA.replace("q, k, v,", "q, k, v.relu(),")),
        one_added_to_the_softmax=eager(
            "scores.softmax(-1)", "(scores.exp() / (1 + scores.exp().sum(-1, keepdim=True)))"
        ),
        heads_merged_in_reverse=(MERGED, "out.flip(1).transpose(1, 2).reshape(B, T, -1)"),
    ),
    *wrong(
        "GQA",
        mean_of_the_key_value_heads=(
            SDPA,
            f"k, v = k.mean(1, keepdim=True).expand_as(k), v.mean(1, keepdim=True).expand_as(v)\n            {SDPA}",
        ),
    ),
    *wrong(
        "RoPE",
        half_of_the_pairs_rotated=(
            APPLIED,
            "h = q.shape[-1] // 4\n    m = torch.ones(2 * h, dtype=torch.bool)\n    m[h:] = False\n    m = torch.cat([m, m])\n    return torch.where(m, q * cos + rotate_half(q) * sin, q), torch.where(m, k * cos + rotate_half(k) * sin, k)",
        ),
        positions_doubled=(POSITIONS, POSITIONS.replace("clamp(min=0)[:, past:]", "clamp(min=0)[:, past:] * 2")),
        every_pair_at_the_same_speed=(ANGLES, "angles = torch.ones_like(exponents)"),
        frequencies_without_a_base=(ANGLES, "angles = torch.exp(-exponents)"),
        in_degrees=(ANGLES, "angles = 180 / math.pi / (config.rope_theta**exponents)"),
        exponents_begin_at_two=(
            EXPONENTS,
            "torch.arange(2, config.head_dim + 2, 2, dtype=torch.float32) / config.head_dim",
        ),
        positions_begin_anew_after_32=(
            POSITIONS,
            POSITIONS.replace("clamp(min=0)[:, past:]", "clamp(min=0)[:, past:] % 32"),
        ),
        k_rotated_the_other_way=(APPLIED, "return q * cos + rotate_half(q) * sin, k * cos - rotate_half(k) * sin"),
    ),
    *wrong(
        "mask",
        first_token_hidden=eager(
            ".tril(k.shape[2] - T)",
            ".tril(k.shape[2] - T) & ((torch.arange(k.shape[2]) > 0) | (torch.arange(k.shape[2] - T, k.shape[2])[:, None] == 0))",
        ),
        itself_alone=eager(".tril(k.shape[2] - T)", ".tril(k.shape[2] - T).triu(k.shape[2] - T)"),
        every_other_token=eager(
            ".tril(k.shape[2] - T)",
            ".tril(k.shape[2] - T) & ((torch.arange(k.shape[2] - T, k.shape[2])[:, None] - torch.arange(k.shape[2])) % 2 == 0)",
        ),
        first_two_tokens_always_seen=eager(
            ".tril(k.shape[2] - T)", ".tril(k.shape[2] - T) | (torch.arange(k.shape[2]) < 2)"
        ),
        two_tokens_ahead=eager(".tril(k.shape[2] - T)", ".tril(k.shape[2] - T + 2)"),
        minus_two_for_minus_infinity=eager("-math.inf", "-2.0"),
    ),
    *wrong(
        "decoder",
        residual_halved=(LAYER_2, "return 0.5 * x + self.mlp(self.post_attention_layernorm(x))"),
        residual_doubled=(LAYER_1, LAYER_1.replace("x = x + ", "x = 2 * x + ")),
        a_norm_behind_the_mlp_too=(
            LAYER_2,
            "return x + self.input_layernorm(self.mlp(self.post_attention_layernorm(x)))",
        ),
        first_layer_once_more=(LAYERS, LAYERS + "\n        x = self.layers[0](x, position_embeddings, mask, cache)"),
    ),
    *wrong(
        "head",
        logits_capped=(HEAD, "return 30 * torch.tanh(self.lm_head(x[:, -logits_to_keep:]) / 5)"),
        logits_doubled=(HEAD, "return self.lm_head(x[:, -logits_to_keep:]) * 2"),
    ),
    *wrong(
        "generation",
        temperature_squared=(DRAWN, "logits = filter_top_p(filter_top_k(logits / temperature**2, top_k), top_p)"),
        top_k_halved=(DRAWN, "logits = filter_top_k(logits / temperature, max(top_k, 2) // 2)"),
        second_best_token=(ARGMAX, "new = logits.topk(2).indices[:, 1:]"),
    ),
]


def edited(name: str, *edits: tuple[str, str]) -> Variant:
    return Variant(name, "", edits)


# Right, but written differently. Two more stand in files of their own: `compact.py`, another style throughout.
RIGHT = [
    edited("unchanged"),
    edited("attention written out", (SDPA, EAGER)),
    edited(
        "mask as added minus infinity, softmax in float32",
        (SDPA, EAGER.replace("scores = scores.masked_fill(~visible, -math.inf)",
                             "scores = scores + torch.full_like(scores, -math.inf).triu(1 + k.shape[2] - T)")
               .replace("scores.softmax(-1)", "scores.softmax(-1, dtype=torch.float32).to(q.dtype)")),
    ),
    edited("mask with a large finite number", (SDPA, EAGER.replace("-math.inf", "torch.finfo(scores.dtype).min"))),
    edited(
        "repeat_kv by expand",
        (REPEAT, "B, K, S, C = x.shape\n    return x[:, :, None].expand(B, K, n_rep, S, C).reshape(B, K * n_rep, S, C)"),
        (SDPA, EAGER),
    ),
    edited(
        "grouped by reshaping the queries",
        (SDPA, """K, n_rep = k.shape[1], q.shape[1] // k.shape[1]
            scores = torch.einsum("bkgtc,bksc->bkgts", q.view(B, K, n_rep, T, -1), k) / math.sqrt(q.shape[-1])
            hidden = torch.ones(T, k.shape[2], dtype=torch.bool).triu(1 + k.shape[2] - T)
            out = torch.einsum("bkgts,bksc->bkgtc", scores.masked_fill(hidden, -math.inf).softmax(-1), v).flatten(1, 2)"""),
    ),
    edited(
        "projections fused in the forward pass",
        (GATED, "self.down_proj(F.silu((h := F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight])))"
                ".chunk(2, -1)[0]) * h.chunk(2, -1)[1])"),
    ),
    edited(
        "query scaled beforehand",
        (SDPA, "q = q * self.config.head_dim**-0.5\n            " + SDPA.replace("enable_gqa", "scale=1.0, enable_gqa")),
    ),
    edited("RMSNorm by torch", (NORM, "x32 = F.rms_norm(x32, x32.shape[-1:], eps=self.eps)")),
    edited("RMSNorm scaled in float32", (NORMED, "return (self.weight.float() * x32).to(x.dtype)")),
    edited("SiLU spelled out", (GATED, "self.down_proj((g := self.gate_proj(x)) * torch.sigmoid(g) * self.up_proj(x))")),
    edited(
        "rotation by complex numbers",
        (APPLIED, """def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos[..., :half], sin[..., :half])
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    return turned(q), turned(k)"""),
    ),
    edited(
        "cosines and sines computed once",
        (FREQUENCY_BUFFER, """t = torch.arange(config.max_position_embeddings)[:, None] * rope_frequencies(config)
        self.register_buffer("cos", torch.cat([t, t], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([t, t], -1).sin(), persistent=False)"""),
        ("""angles = position_ids[:, :, None].float() * self.inv_freq.float()  # (B, T, C/2)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)""",
         "return self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)"),
    ),
    edited("the last end token left out", (ENDED, f"{ENDED}\n            if ended.all():\n                break")),
    edited("generation without a cache", (STEP, "logits = self(ids)[:, -1]")),
]  # fmt: skip

COMPACT = Path(__file__).parent / "compact.py"


def table(progress: bool = True) -> str:
    """Runs every variant and returns the Markdown table of docs/verify.md. Raises AssertionError if one is misjudged."""
    import tempfile

    from roclab.course.verify import verify
    from roclab.course.verify.sandbox import Sandbox

    rows = ["| part | mistake | checks failed | what the checker says |", "|---|---|---|---|"]
    right = []
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "roclm_model.py"
        for variant in [*WRONG, *UNLISTED, *RIGHT]:
            file.write_text(variant.source(), encoding="utf-8")
            report = verify(file, sandbox=sandbox)
            failed = report["checks_total"] - report["checks_passed"]
            if variant.component:
                told = report["diagnosis"]
                assert told, variant.name
                assert told["component"] == variant.component, (variant.name, told)
                hint = told["hint"].removeprefix(f"{variant.component}: ").replace("|", "\\|")
                rows.append(f"| {variant.component} | {variant.name} | {failed} | {hint} |")
            else:
                assert report["passed"], (variant.name, report["diagnosis"])
                right.append(variant.name)
            if progress:
                print(f"{variant.component or 'right'}: {variant.name}", file=sys.stderr)
        assert verify(COMPACT, sandbox=sandbox)["passed"], COMPACT
        right.append("another style throughout (`tests/lm/verify/compact.py`)")
    checks = report["checks_total"]
    head = (
        f"{len(WRONG)} wrong variants, and {len(UNLISTED)} more that the checker has no name for (from *divided by the "
    )
    head += f"largest* on), each caught and its part named ({checks} checks each):\n\n"
    return head + "\n".join(rows) + f"\n\n{len(right)} right ones, each passed: {'; '.join(right)}.\n"


if __name__ == "__main__":
    print(table(), end="")
