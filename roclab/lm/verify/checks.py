"""The checks, in the order in which their parts build on each other: an early one that fails is nearer to the fault."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from roclab.lm.verify.cases import CASES, CONFIG, Dice, Stored, shapes
from roclab.lm.verify.judge import Check, Verdict, numeric
from roclab.lm.verify.reference import Array, Reference

COMPONENTS = ("file", "RMSNorm", "SwiGLU", "attention", "GQA", "RoPE", "mask", "decoder", "head", "generation",
              "checkpoint")  # fmt: skip

NAMES = [
    "RocLMConfig", "RocLMRMSNorm", "RocLMMLP", "RocLMAttention", "RocLMRotaryEmbedding", "RocLMDecoderLayer",
    "RocLMModel", "RocLMForCausalLM", "rotate_half", "apply_rotary_pos_emb", "repeat_kv", "create_roclm_model",
]  # fmt: skip

DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
    "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": None, "bos_token_id": 151643,
    "eos_token_id": 151645, "tie_word_embeddings": True, "layer_types": None,
}  # fmt: skip


@lru_cache
def all_checks() -> tuple[Check, ...]:
    return (*file_checks(), *norm_checks(), *gated_checks(), *function_checks(), *state_checks(), *model_checks(),
            *generation_checks(), gradient_check())  # fmt: skip


def draw(seed: int, *shape: int) -> Array:
    """Normal numbers that are exact in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- the file


def file_checks() -> list[Check]:
    def judge_names(missing: list[str]) -> Verdict:
        said = ", ".join(map(str, missing))
        return Verdict(not missing, None, f"missing: {said}", f"the file does not define {said}", True)

    return [Check("file: the handout's names", "file", "names", {"wanted": NAMES}, ", ".join(NAMES), judge_names)]


# ---- RMSNorm


def norm_checks() -> list[Check]:
    g = np.random.default_rng(1).uniform(0.5, 2, 16).astype(np.float32)
    x = draw(2, 2, 3, 16) * 3
    ones = np.ones(16, np.float32)

    def check(name: str, x: Array, g: Array, eps: float, expects: str, hint: str) -> Check:
        arguments = {"x": x.tolist(), "weight": g.tolist(), "eps": eps}
        x64, g64 = x.astype(np.float64), g.astype(np.float64)
        return numeric(
            f"RMSNorm: {name}", "RMSNorm", "norm", arguments, lambda R: R({}).norm(x64, g64, eps), expects, hint,
            tolerance=2e-5, read=lambda value: [np.asarray(value["y"], dtype=np.float64)],
        )  # fmt: skip

    def judge_scale(value: dict[str, Any]) -> Verdict:
        if not value["learnable"]:
            return Verdict(False, None, "weight is not a Parameter that learns",
                           "RMSNorm's scale must be learnable: nn.Parameter(torch.ones(hidden_size))", True)  # fmt: skip
        initial = np.asarray(value["initial"], dtype=np.float64)
        hint = "RMSNorm's weight begins as ones, one a dimension"
        if initial.shape != (16,):
            return Verdict(False, None, f"weight of shape {initial.shape}", hint, True)
        off = float(np.abs(initial - 1).max())
        return Verdict(off == 0, off, f"it begins as {initial[0]:.4g}", hint, True)

    def judge_dtype(dtype: str, tolerance: float) -> Any:
        x64 = _large(dtype)

        def judge(value: dict[str, Any]) -> Verdict:
            y = np.asarray(value["y"], dtype=np.float64)
            right = Reference({}).norm(x64, np.ones(16), 1e-6)
            off = float(np.abs(y - right).max()) if y.shape == right.shape else float("inf")
            if value["dtype"] != dtype:
                return Verdict(False, off, f"{value['dtype']} comes back",
                               f"RMSNorm must return the dtype it is given, {dtype}", True)  # fmt: skip
            hint = f"RMSNorm must square in float32: {dtype} overflows or loses digits"
            return Verdict(off <= tolerance, off, f"off by {off:.3g}", hint, True)

        return judge

    return [
        check("the formula", x, g, 1e-6, "g·x / √(mean(x²) + ε)", "RMSNorm is not g·x / √(mean(x²) + ε)"),
        check("no centring", x + 4, g, 1e-6, "the same on inputs whose mean is not 0", "RMSNorm must not centre"),
        check("eps inside the root", x * 0.02, g, 0.01, "g·x / √(mean(x²) + 0.01) on small inputs",
              "RMSNorm's eps must be the one handed in, added under the root"),
        check("single token", x[0, :1], ones, 1e-6, "the same on (1, 16)", "RMSNorm must take any leading dimensions"),
        Check("RMSNorm: a learnable scale", "RMSNorm", "norm",
              {"x": x.tolist(), "weight": g.tolist(), "eps": 1e-6}, "a Parameter of ones", judge_scale),
        Check("RMSNorm: float16", "RMSNorm", "norm_dtype", {"x": _large("float16").tolist(), "dtype": "float16"},
              "float16 in, float16 out, squared in float32", judge_dtype("float16", 4e-3)),
        Check("RMSNorm: bfloat16", "RMSNorm", "norm_dtype", {"x": _large("bfloat16").tolist(), "dtype": "bfloat16"},
              "bfloat16 in, bfloat16 out", judge_dtype("bfloat16", 5e-2)),
        _norm_slope(),
    ]  # fmt: skip


def _large(dtype: str) -> Array:
    """(3, 16) numbers whose squares overflow float16, exact in float16 and bfloat16."""
    return np.random.default_rng(3).integers(75, 125, (3, 16)) * (4.0 if dtype == "float16" else 1.0)


def _norm_slope() -> Check:
    x, g, towards = draw(4, 2, 3, 8), draw(5, 8), draw(6, 2, 3, 8)

    def slopes(R: type[Reference]) -> Array:
        def value(x: Array, g: Array) -> float:
            return float((towards * R({}).norm(x, g, 1e-6)).sum())

        x64, g64 = x.astype(np.float64), g.astype(np.float64)
        by_x = [_slope(lambda h, d=d: value(x64 + h * d, g64)) for d in np.eye(x.size).reshape(-1, *x.shape)]
        return np.array(by_x + [_slope(lambda h, d=d: value(x64, g64 + h * d)) for d in np.eye(8)])

    arguments = {"x": x.tolist(), "weight": g.tolist(), "towards": towards.tolist()}
    return numeric("RMSNorm: the gradient", "RMSNorm", "norm_slope", arguments, slopes,
                   "the slopes of the formula by x and by the weight",
                   "RMSNorm's gradient is not its slope: nothing in it may be detached, nor run under no_grad",
                   tolerance=1e-3)  # fmt: skip


def _slope(f: Any, h: float = 1e-5) -> float:
    return float((f(h) - f(-h)) / (2 * h))


# ---- SwiGLU and the functions


def gated_checks() -> list[Check]:
    x, case = draw(7, 2, 3, CONFIG["hidden_size"]), CASES["order"]

    def expected(R: type[Reference]) -> Array:
        return R(case.config, case.weights).layer_mlp(x.astype(np.float64), "model.layers.0")

    return [numeric("SwiGLU: the formula", "SwiGLU", "mlp", {"case": "order", "x": x.tolist()}, expected,
                    "down( silu(gate(x)) ⊙ up(x) )", "SwiGLU is not down( silu(gate(x)) ⊙ up(x) )")]  # fmt: skip


def function_checks() -> list[Check]:
    x, heads = draw(8, 1, 2, 5, 8), draw(9, 2, 2, 3, 4)
    q, k, angles = draw(10, 1, 4, 5, 8), draw(11, 1, 2, 5, 8), np.tile(draw(12, 5, 4), 2)
    cos, sin = np.cos(angles), np.sin(angles)

    def turned(R: type[Reference]) -> Array:
        return np.concatenate(R({"head_dim": 8}).rotary(*(v.astype(np.float64) for v in (q, k, cos, sin))), axis=1)

    return [
        numeric("RoPE: rotate_half", "RoPE", "rotate_half", {"x": x.tolist()},
                lambda R: R({}).rotate_half(x.astype(np.float64)), "(x₁, x₂) → (−x₂, x₁)",
                "rotate_half must turn the halves of the last dimension: (x₁, x₂) → (−x₂, x₁)"),
        numeric("RoPE: apply_rotary_pos_emb", "RoPE", "apply_rotary",
                {"q": q.tolist(), "k": k.tolist(), "cos": cos.tolist(), "sin": sin.tolist()}, turned,
                "q·cos + rotate_half(q)·sin, and k likewise",
                "apply_rotary_pos_emb must give q·cos + rotate_half(q)·sin, and the same of k",
                read=lambda value: [np.asarray(v, dtype=np.float64) for v in value] or [np.zeros(0)]),
        numeric("GQA: repeat_kv", "GQA", "repeat_kv", {"x": heads.tolist(), "n_rep": 3},
                lambda R: R({}).repeat_kv(heads.astype(np.float64), 3), "heads 0, 0, 0, 1, 1, 1",
                "repeat_kv must repeat each key-value head n_rep times in a row, (B, K, S, C) → (B, K·n_rep, S, C)"),
        numeric("GQA: repeat_kv once", "GQA", "repeat_kv", {"x": heads.tolist(), "n_rep": 1},
                lambda R: R({}).repeat_kv(heads.astype(np.float64), 1), "n_rep = 1 changes nothing",
                "repeat_kv with n_rep = 1 must return what it is given"),
    ]  # fmt: skip


# ---- configuration and state dict


def state_checks() -> list[Check]:
    case = CASES["order"]
    wanted = {name: list(shape) for name, shape in shapes(case.config).items()}
    arguments = {"case": "order"}

    def judge_bias(part: str, belongs: Any) -> Any:
        def judge(value: dict[str, Any]) -> Verdict:
            extra = sorted(n for n in value["shapes"] if n.endswith(".bias") and belongs(n))
            said = ", ".join(extra)
            return Verdict(not extra, None, said, f"{part} has no bias: {said} must go (bias=False)", True)

        return judge

    def judge_qk(value: dict[str, Any]) -> Verdict:
        C = case.config["head_dim"]  # under whatever prefix: the names are the checkpoint's business
        found = {n: next((s for name, s in value["shapes"].items() if name.endswith(f"{n}.weight")), None)
                 for n in ("q_norm", "k_norm")}  # fmt: skip
        wrong = {n: s for n, s in found.items() if s != [C]}
        said = ", ".join(f"{n}.weight {'missing' if s is None else tuple(s)}" for n, s in wrong.items())
        hint = f"attention needs q_norm and k_norm, RMSNorm over head_dim ({C}): {said}"
        return Verdict(not wrong, None, said, hint, True)

    def judge_shapes(value: dict[str, Any]) -> Verdict:
        found = value["shapes"]
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        other = [f"{n} {tuple(found[n])} for {tuple(wanted[n])}" for n in wanted if n in found and found[n] != wanted[n]]
        lists = {"missing": missing, "not in the handout's layout": extra, "of another shape": other}
        said = "; ".join(f"{what}: {', '.join(some[:4])}{' …' * (len(some) > 4)}" for what, some in lists.items() if some)
        hint = f"the checkpoint's parameter names do not fit: {said}"
        if extra and not missing and all("rotary" in n or "inv_freq" in n or "mask" in n or "cos" in n for n in extra):
            hint = f"buffers stand in the state dict ({', '.join(extra)}): register them with persistent=False"
        return Verdict(not said, None, said, hint, True)

    def judge_load(value: dict[str, Any]) -> Verdict:
        said = value["error"]
        return Verdict(said is None, None, said or "", f"load_state_dict(strict=True) refuses the checkpoint: {said}")

    def judge_defaults(value: dict[str, Any]) -> Verdict:
        wrong = [f"{n} is {value['values'][n]!r}, not {d!r}" for n, d in DEFAULTS.items() if value["values"][n] != d]
        hint = f"RocLMConfig does not have the handout's defaults, so the checkpoint does not fit: {'; '.join(wrong)}"
        if not value["dataclass"]:
            wrong, hint = ["RocLMConfig is not a dataclass"], "RocLMConfig must be a dataclass"
        return Verdict(not wrong, None, "; ".join(wrong), hint, True)

    def judge_unknown(said: str | None) -> Verdict:
        hint = "an unknown key in the config dict must raise an error that names it, or a typing error goes unnoticed"
        return Verdict(said is not None and "hiden_size" in said, None, said or "no error", hint, True)

    return [
        Check("RMSNorm: no bias", "RMSNorm", "state", arguments, "norms with a weight alone",
              judge_bias("RMSNorm", lambda n: "norm" in n)),
        Check("SwiGLU: no bias", "SwiGLU", "state", arguments, "gate, up and down without bias",
              judge_bias("SwiGLU", lambda n: ".mlp." in n)),
        Check("attention: no bias", "attention", "state", arguments, "q, k, v, o without bias (attention_bias False)",
              judge_bias("attention (attention_bias False)", lambda n: ".self_attn." in n and "norm" not in n)),
        Check("attention: q_norm and k_norm", "attention", "state", arguments, "one weight over head_dim each", judge_qk),
        Check("head: no bias", "head", "state", arguments, "lm_head without bias",
              judge_bias("the head", lambda n: n.startswith("lm_head"))),
        Check("checkpoint: names and shapes", "checkpoint", "state", arguments, "those of Qwen3's layout", judge_shapes),
        Check("checkpoint: strict loading", "checkpoint", "state", arguments, "load_state_dict(…, strict=True)", judge_load),
        Check("checkpoint: the configuration's defaults", "checkpoint", "defaults", {"wanted": list(DEFAULTS)},
              "the handout's", judge_defaults),
        Check("checkpoint: unknown configuration keys", "checkpoint", "unknown_key", {"key": "hiden_size"},
              "an error that names the key", judge_unknown),
    ]  # fmt: skip


# ---- the model


def case_logits(name: str) -> Any:
    case = CASES[name]
    return lambda R: R(case.config, case.weights).logits(case.ids)


def model_checks() -> list[Check]:
    def check(name: str, component: str, case: str, expects: str, hint: str) -> Check:
        return numeric(f"{component}: {name}", component, "logits", {"case": case}, case_logits(case), expects, hint)

    def last(name: str, component: str, case: str, expects: str, hint: str) -> Check:
        """Of the last token alone, which no causal mask keeps from anything."""
        expected = case_logits(case)
        return numeric(f"{component}: {name}", component, "logits", {"case": case}, lambda R: expected(R)[:, -1],
                       expects, hint, read=lambda value: [np.asarray(value, dtype=np.float64)[:, -1]])  # fmt: skip

    return [
        check("logits of the embeddings", "head", "head", "lm_head(norm(embedding)) where all layers add nothing",
              "the head is not lm_head(model.norm(x)), or the layers lose the embedding where they add nothing"),
        numeric("head: tied", "head", "tied", {"case": "tied"}, case_logits("tied"),
                "tie_word_embeddings True: one matrix for embedding and head",
                "with tie_word_embeddings the head must be the embedding's own matrix"),
        check("the configuration's eps", "RMSNorm", "eps", "rms_norm_eps 0.5 in every norm",
              "RMSNorm must use the config's rms_norm_eps"),
        check("the MLP's half of a layer", "decoder", "mlp", "x + SwiGLU(RMSNorm(x)), attention adding nothing",
              "the decoder is not x + SwiGLU(RMSNorm(x)) where attention adds nothing"),
        check("one token", "attention", "one token", "x + o_proj(v): a single token can only look at itself",
              "attention's v_proj, o_proj, the heads' order, or the residual around attention is wrong"),
        check("one token, grouped", "GQA", "one token, grouped", "query head h reads value head h // 3",
              "GQA: value heads are not shared in runs of n_rep query heads"),
        last("scores", "attention", "scores", "softmax over the keys of q·kᵀ/√head_dim, two tokens, RoPE standing still",
             "attention is not softmax(q·kᵀ/√head_dim)·v over the keys"),
        last("grouped scores", "GQA", "grouped", "query head h reads key head h // 3",
             "GQA: key heads are not shared in runs of n_rep query heads"),
        _leak(),
        check("what each token sees", "mask", "mask", "itself and all before it, nine tokens",
              "the mask must show each token itself and all before it, and nothing else"),
        _stretched(),
        check("positions", "RoPE", "rope", "q and k turned by position · rope_theta^(−2i/C), halves paired",
              "RoPE: angles, pairing or positions are wrong (or QK-norm does not come before it)"),
        check("far positions", "RoPE", "far", "the same over 90 tokens with another rope_theta",
              "RoPE: positions or frequencies are wrong far from the beginning, or not those of rope_theta"),
        check("QK-norm before RoPE", "attention", "qk", "q_norm and k_norm over head_dim, then the rotation",
              "attention: q_norm and k_norm must normalise each head over head_dim, before RoPE"),
        _dropout(),
        check("order and residuals", "decoder", "order", "x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))",
              "the decoder's layer has another order, norm or residual"),
        check("three layers", "decoder", "stack", "each layer reads what the one before it returned",
              "the decoder does not run its layers one after the other"),
        _batch(),
        _stored(),
    ]  # fmt: skip


def _leak() -> Check:
    """Later tokens change nothing before them."""
    case = CASES["leak"]
    changed = case.ids.copy()
    changed[:, -3:] = (changed[:, -3:] + 7) % (case.config["vocab_size"] - 1)

    def expected(R: type[Reference]) -> Array:
        model = R(case.config, case.weights)
        first, second = model.logits(case.ids), model.logits(changed)
        return (first - second)[:, :-3] if first.shape[1] > 1 else first - second

    def read(value: Any) -> list[Array]:
        first, second = (np.asarray(v, dtype=np.float64) for v in value)
        return [(first - second)[:, :-3] if first.shape[1] > 1 else first - second]

    return numeric("mask: nothing from the future", "mask", "logits_of",
                   {"case": "leak", "texts": [case.ids.tolist(), changed.tolist()]}, expected,
                   "other last tokens leave the logits before them as they are",
                   "the mask lets tokens see what comes after them", read=read)  # fmt: skip


def _stretched() -> Check:
    """QK-norm takes the length out of q and k: ten times the projections change nothing."""
    case = CASES["qk"]

    def expected(R: type[Reference]) -> Array:
        weights = {n: w * (10 if "q_proj" in n or "k_proj" in n else 1) for n, w in case.weights.items()}
        return R(case.config, weights).logits(case.ids)

    return numeric("attention: QK-norm takes the length out", "attention", "logits_stretched",
                   {"case": "qk", "factor": 10}, expected, "q_proj and k_proj times ten change nothing",
                   "attention: q_norm and k_norm are missing or do not normalise each head", tolerance=2e-4)  # fmt: skip


def _dropout() -> Check:
    """attention_dropout 0.5 in eval mode: the same as without, twice."""
    case = CASES["dropout"]

    def expected(R: type[Reference]) -> Array:
        return np.stack([R(case.config, case.weights).logits(case.ids)] * 2)

    arguments = {"case": "dropout", "texts": [case.ids.tolist()] * 2}
    check = numeric("attention: dropout off in eval", "attention", "logits_of", arguments, expected,
                    "attention_dropout 0.5 changes nothing after model.eval()", "attention is wrong in eval mode")  # fmt: skip

    def judge(value: Any) -> Verdict:
        verdict = check.judge(value)
        if not verdict.passed and value[0] != value[1]:
            hint = "attention's dropout is active in eval: pass self.training to it (SDPA's dropout_p 0 in eval)"
            return Verdict(False, verdict.deviation, "two runs on the same ids differ", hint, True)
        return verdict

    return Check(check.name, check.component, check.probe, arguments, check.expects, judge, expected, check.tolerance)


def _batch() -> Check:
    """A row's logits are those it has alone."""
    case = CASES["stack"]
    rows = [case.ids[i : i + 1] for i in range(len(case.ids))]

    def difference(together: Array, alone: list[Array]) -> Array:
        return together - np.concatenate(alone)

    def expected(R: type[Reference]) -> Array:
        model = R(case.config, case.weights)
        return difference(model.logits(case.ids), [model.logits(row) for row in rows])

    def read(value: Any) -> list[Array]:
        together, *alone = (np.asarray(v, dtype=np.float64) for v in value)
        return [difference(together, alone)]

    texts = [case.ids.tolist(), *(row.tolist() for row in rows)]
    return numeric("decoder: rows of a batch", "decoder", "logits_of", {"case": "stack", "texts": texts}, expected,
                   "each row as if it were alone", "rows of a batch influence each other", read=read)  # fmt: skip


def _stored() -> Check:
    """Logits against the stored ones; mistakes are computed anew."""
    case = CASES["stored"]
    assert isinstance(case, Stored)

    def expected(R: type[Reference]) -> Array:
        return case.logits if R is Reference else R(case.config, case.weights).logits(case.ids)

    return numeric("decoder: stored logits", "decoder", "logits", {"case": "stored"}, expected,
                   "the logits of a whole model, as an independent reference computed them", "the whole model's logits are wrong, though its parts may pass")  # fmt: skip  # noqa: E501


# ---- generation


@lru_cache
def end_token() -> int:
    """The token that greedy decoding of the case `end` gives third."""
    case = CASES["end"]
    return int(Reference(case.config, case.weights).greedy(case.ids, 8)[0, -1])


def generation_checks() -> list[Check]:
    case, end = CASES["generation"], CASES["end"]
    greedy = {"max_length": 14, "do_sample": False}

    def ended(R: type[Reference]) -> Array:
        return R(end.config | {"eos_token_id": end_token()}, end.weights).greedy(end.ids, 14)

    def read_ended(value: Any) -> list[Array]:
        row, eos = list(value[0]), end_token()
        last = row.index(eos, end.ids.shape[1]) if eos in row[end.ids.shape[1] :] else len(row)
        if set(row[last + 1 :]) <= {0, eos}:  # padding behind the end is allowed
            row = row[: last + 1]
        return [np.asarray([row]), np.asarray([[*row, eos]])]  # with the end token or without

    def judge_defaults(value: Any) -> Verdict:
        row, prompt = value[0], CASES["dice"].ids[0].tolist()
        if len(row) != 50:
            return Verdict(False, None, f"{len(row)} tokens", "generation: max_length is 50 by default, the prompt counted", True)
        if row[: len(prompt)] != prompt:
            return Verdict(False, None, f"begins with {row[:3]}", "generation: the result must begin with the prompt", True)
        return Verdict(True)

    return [
        numeric("generation: greedy", "generation", "generate", {"case": "generation", "changes": {}, "options": greedy},
                lambda R: R(case.config, case.weights).greedy(case.ids, 14), "the likeliest token each time, 14 in all",
                "generation with do_sample=False does not take the likeliest next token", tolerance=0),
        numeric("generation: the end token", "generation", "generate",
                {"case": "end", "changes": {"eos_token_id": end_token()}, "options": greedy}, ended,
                "it stops at eos_token_id", "generation must stop at eos_token_id", tolerance=0, read=read_ended),
        Check("generation: default arguments", "generation", "generate", {"case": "dice", "changes": {}, "options": {}},
              "50 tokens, the prompt first", judge_defaults),
        _draws("do_sample", 1.0, 61, 1.0, "tokens drawn by their probabilities",
               "generation with do_sample=True does not draw by the probabilities"),
        _draws("temperature", 2.0, 61, 1.0, "softmax(logits / 2)", "generation: the temperature must divide the logits"),
        _draws("top_k", 1.0, 3, 1.0, "the three likeliest only", "generation: top_k must keep the k likeliest tokens"),
        _draws("top_p", 1.0, 61, 0.7, "probabilities 0.4, 0.25, 0.2: the fewest that reach 0.7",
               "generation: top_p must keep the fewest tokens that reach it"),
        _draws("a small top_p", 1.0, 61, 0.3, "the likeliest alone", "generation: top_p must always keep the likeliest"),
    ]  # fmt: skip


def _draws(name: str, temperature: float, top_k: int, top_p: float, expects: str, hint: str) -> Check:
    case, options = CASES["dice"], {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert isinstance(case, Dice)

    def expected(R: type[Reference]) -> Array:
        model = R(case.config, case.weights)
        return model.draw(model.logits(case.ids)[0, -1], **options)

    def read(value: dict[str, int]) -> list[Array]:
        counts = np.zeros(case.config["vocab_size"])
        for token, count in value.items():
            counts[int(token)] = count
        return [counts / counts.sum()]

    def gap(drawn: Array, p: Array) -> float:
        """The largest difference of a frequency from its probability; 1 if a token was drawn that must not be."""
        return 1.0 if drawn.shape != p.shape or (drawn[p == 0] > 0).any() else float(np.abs(drawn - p).max())

    arguments = {"case": "dice", "rows": 500, "times": 8, "options": options}
    return numeric(f"generation: {name}", "generation", "draws", arguments, expected, f"{expects}; 4,000 draws", hint,
                   tolerance=0.04, read=read, gap=gap)  # fmt: skip


# ---- gradients


PARTS = {"embed_tokens": "decoder", "input_layernorm": "RMSNorm", "q_proj": "attention", "k_proj": "attention",
         "v_proj": "attention", "q_norm": "attention", "k_norm": "attention", "o_proj": "attention",
         "post_attention_layernorm": "RMSNorm", "gate_proj": "SwiGLU", "up_proj": "SwiGLU", "down_proj": "SwiGLU",
         "norm": "RMSNorm", "lm_head": "head"}  # fmt: skip  # in the order in which a text passes them


def gradient_check() -> Check:
    """Every parameter's gradient along one direction against the slope of the reference."""
    case = CASES["gradients"]
    random = np.random.default_rng(20)
    towards = random.normal(size=(*case.ids.shape, case.config["vocab_size"])).astype(np.float32)
    directions = {n: (random.normal(size=w.shape) / np.sqrt(w.size)).astype(np.float32) for n, w in case.weights.items()}

    def expected(R: type[Reference]) -> Array:
        def slope(name: str) -> float:
            w, d = case.weights[name].astype(np.float64), directions[name]
            return _slope(lambda h: (towards * R(case.config, case.weights | {name: w + h * d}).logits(case.ids)).sum())

        return np.array([slope(name) for name in directions])

    def gap(found: Array, right: Array) -> float:
        return float((np.abs(found - right) / (np.abs(right) + 0.01 * np.abs(right).max())).max())

    def judge(value: dict[str, float | None]) -> Verdict:
        found, right = np.array([value[n] or 0.0 for n in directions], dtype=np.float64), expected(Reference)
        deviation = gap(found, right)
        silent = [n for n, slope in zip(directions, found, strict=True) if slope == 0]
        if not silent:
            wrong = [n for n, f, r in zip(directions, found, right, strict=True) if gap(f[None], r[None]) > 0.02]
            said = ", ".join(wrong[:4]) + " …" * (len(wrong) > 4)
            hint = f"the gradient of {said} is not the slope of the logits: something on their way is detached"
            return Verdict(deviation <= 0.02, deviation, f"another slope: {said}", hint, arrays=(found,))
        said = ", ".join(n.removesuffix(".weight") for n in silent[:4]) + " …" * (len(silent) > 4)
        component = _cut(silent, list(directions), case.config["num_hidden_layers"])
        hint = f"{component}: no gradient reaches {said}: detach(), .data or no_grad() on the way, or they are not used"
        return Verdict(False, deviation, f"no gradient in {len(silent)} of {len(found)} parameters", hint, True, component,
                       (found,))  # fmt: skip

    arguments = {"case": "gradients", "towards": towards.tolist(), "directions": {n: d.tolist() for n, d in directions.items()}}  # noqa: E501
    return Check("decoder: gradients", "decoder", "gradients", arguments, "the slope of the logits in every parameter",
                 judge, expected, 0.02, gap, compare_mistakes=False)  # fmt: skip


def _cut(silent: list[str], names: list[str], layers: int) -> str:
    """The part that keeps the gradient back: the last of the silent ones on a text's way, unless whole layers are."""
    part = {n: n.split(".")[-2] for n in names}
    for n in range(layers):
        matrices = [name for name in names if f"layers.{n}." in name and "norm" not in name]
        if set(matrices) <= set(silent):
            return "decoder"
    order = list(PARTS)
    return PARTS[max((part[n] for n in silent), key=order.index)]
