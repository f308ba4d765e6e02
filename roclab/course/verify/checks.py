"""The checks, in the order in which their parts build on each other: an early one that fails is nearer to the fault."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES, CONFIG, shapes
from roclab.course.verify.generation_checks import generation_checks
from roclab.course.verify.judge import Check, Verdict, numeric, slope
from roclab.course.verify.model_checks import gradient_check, model_checks
from roclab.course.verify.reference import Array, Reference

COMPONENTS = (
    "file",
    "RMSNorm",
    "SwiGLU",
    "attention",
    "GQA",
    "RoPE",
    "mask",
    "decoder",
    "head",
    "generation",
    "checkpoint",
)

NAMES = [
    "RocLMConfig",
    "RocLMRMSNorm",
    "RocLMMLP",
    "RocLMAttention",
    "RocLMRotaryEmbedding",
    "RocLMDecoderLayer",
    "RocLMModel",
    "RocLMForCausalLM",
    "rotate_half",
    "apply_rotary_pos_emb",
    "repeat_kv",
    "create_roclm_model",
]

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "tie_word_embeddings": True,
    "layer_types": None,
}


@lru_cache
def all_checks() -> tuple[Check, ...]:
    return (
        *file_checks(),
        *norm_checks(),
        *gated_checks(),
        *function_checks(),
        *state_checks(),
        *model_checks(),
        *generation_checks(),
        gradient_check(),
    )


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
            f"RMSNorm: {name}",
            "RMSNorm",
            "norm",
            arguments,
            lambda R: R({}).norm(x64, g64, eps),
            expects,
            hint,
            tolerance=2e-5,
            read=lambda value: [np.asarray(value["y"], dtype=np.float64)],
        )

    def judge_scale(value: dict[str, Any]) -> Verdict:
        if not value["learnable"]:
            return Verdict(
                False,
                None,
                "weight is not a Parameter that learns",
                "RMSNorm's scale must be learnable: nn.Parameter(torch.ones(hidden_size))",
                True,
            )
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
                return Verdict(
                    False,
                    off,
                    f"{value['dtype']} comes back",
                    f"RMSNorm must return the dtype it is given, {dtype}",
                    True,
                )
            hint = f"RMSNorm must square in float32: {dtype} overflows or loses digits"
            return Verdict(off <= tolerance, off, f"off by {off:.3g}", hint, True)

        return judge

    return [
        check("the formula", x, g, 1e-6, "g·x / √(mean(x²) + ε)", "RMSNorm is not g·x / √(mean(x²) + ε)"),
        check("no centring", x + 4, g, 1e-6, "the same on inputs whose mean is not 0", "RMSNorm must not centre"),
        check(
            "eps inside the root",
            x * 0.02,
            g,
            0.01,
            "g·x / √(mean(x²) + 0.01) on small inputs",
            "RMSNorm's eps must be the one handed in, added under the root",
        ),
        check("single token", x[0, :1], ones, 1e-6, "the same on (1, 16)", "RMSNorm must take any leading dimensions"),
        Check(
            "RMSNorm: a learnable scale",
            "RMSNorm",
            "norm",
            {"x": x.tolist(), "weight": g.tolist(), "eps": 1e-6},
            "a Parameter of ones",
            judge_scale,
        ),
        Check(
            "RMSNorm: float16",
            "RMSNorm",
            "norm_dtype",
            {"x": _large("float16").tolist(), "dtype": "float16"},
            "float16 in, float16 out, squared in float32",
            judge_dtype("float16", 4e-3),
        ),
        Check(
            "RMSNorm: bfloat16",
            "RMSNorm",
            "norm_dtype",
            {"x": _large("bfloat16").tolist(), "dtype": "bfloat16"},
            "bfloat16 in, bfloat16 out",
            judge_dtype("bfloat16", 5e-2),
        ),
        _norm_slope(),
    ]


def _large(dtype: str) -> Array:
    """(3, 16) numbers whose squares overflow float16, exact in float16 and bfloat16."""
    return np.random.default_rng(3).integers(75, 125, (3, 16)) * (4.0 if dtype == "float16" else 1.0)


def _norm_slope() -> Check:
    x, g, towards = draw(4, 2, 3, 8), draw(5, 8), draw(6, 2, 3, 8)

    def slopes(R: type[Reference]) -> Array:
        def value(x: Array, g: Array) -> float:
            return float((towards * R({}).norm(x, g, 1e-6)).sum())

        x64, g64 = x.astype(np.float64), g.astype(np.float64)
        by_x = [slope(lambda h, d=d: value(x64 + h * d, g64)) for d in np.eye(x.size).reshape(-1, *x.shape)]
        return np.array(by_x + [slope(lambda h, d=d: value(x64, g64 + h * d)) for d in np.eye(8)])

    arguments = {"x": x.tolist(), "weight": g.tolist(), "towards": towards.tolist()}
    return numeric(
        "RMSNorm: the gradient",
        "RMSNorm",
        "norm_slope",
        arguments,
        slopes,
        "the slopes of the formula by x and by the weight",
        "RMSNorm's gradient is not its slope: nothing in it may be detached, nor run under no_grad",
        tolerance=1e-3,
    )


# ---- SwiGLU and the functions


def gated_checks() -> list[Check]:
    x, case = draw(7, 2, 3, CONFIG["hidden_size"]), CASES["order"]

    def expected(R: type[Reference]) -> Array:
        return R(case.config, case.weights).layer_mlp(x.astype(np.float64), "model.layers.0")

    return [
        numeric(
            "SwiGLU: the formula",
            "SwiGLU",
            "mlp",
            {"case": "order", "x": x.tolist()},
            expected,
            "down( silu(gate(x)) ⊙ up(x) )",
            "SwiGLU is not down( silu(gate(x)) ⊙ up(x) )",
        )
    ]


def function_checks() -> list[Check]:
    x, heads = draw(8, 1, 2, 5, 8), draw(9, 2, 2, 3, 4)
    q, k, angles = draw(10, 1, 4, 5, 8), draw(11, 1, 2, 5, 8), np.tile(draw(12, 5, 4), 2)
    cos, sin = np.cos(angles), np.sin(angles)

    def turned(R: type[Reference]) -> Array:
        return np.concatenate(R({"head_dim": 8}).rotary(*(v.astype(np.float64) for v in (q, k, cos, sin))), axis=1)

    return [
        numeric(
            "RoPE: rotate_half",
            "RoPE",
            "rotate_half",
            {"x": x.tolist()},
            lambda R: R({}).rotate_half(x.astype(np.float64)),
            "(x₁, x₂) → (−x₂, x₁)",
            "rotate_half must turn the halves of the last dimension: (x₁, x₂) → (−x₂, x₁)",
        ),
        numeric(
            "RoPE: apply_rotary_pos_emb",
            "RoPE",
            "apply_rotary",
            {"q": q.tolist(), "k": k.tolist(), "cos": cos.tolist(), "sin": sin.tolist()},
            turned,
            "q·cos + rotate_half(q)·sin, and k likewise",
            "apply_rotary_pos_emb must give q·cos + rotate_half(q)·sin, and the same of k",
            read=lambda value: [np.asarray(v, dtype=np.float64) for v in value] or [np.zeros(0)],
        ),
        numeric(
            "GQA: repeat_kv",
            "GQA",
            "repeat_kv",
            {"x": heads.tolist(), "n_rep": 3},
            lambda R: R({}).repeat_kv(heads.astype(np.float64), 3),
            "heads 0, 0, 0, 1, 1, 1",
            "repeat_kv must repeat each key-value head n_rep times in a row, (B, K, S, C) → (B, K·n_rep, S, C)",
        ),
        numeric(
            "GQA: repeat_kv once",
            "GQA",
            "repeat_kv",
            {"x": heads.tolist(), "n_rep": 1},
            lambda R: R({}).repeat_kv(heads.astype(np.float64), 1),
            "n_rep = 1 changes nothing",
            "repeat_kv with n_rep = 1 must return what it is given",
        ),
    ]


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
        found = {
            n: next((s for name, s in value["shapes"].items() if name.endswith(f"{n}.weight")), None)
            for n in ("q_norm", "k_norm")
        }
        wrong = {n: s for n, s in found.items() if s != [C]}
        said = ", ".join(f"{n}.weight {'missing' if s is None else tuple(s)}" for n, s in wrong.items())
        hint = f"attention needs q_norm and k_norm, RMSNorm over head_dim ({C}): {said}"
        return Verdict(not wrong, None, said, hint, True)

    def judge_shapes(value: dict[str, Any]) -> Verdict:
        found = value["shapes"]
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        other = [
            f"{n} {tuple(found[n])} for {tuple(wanted[n])}" for n in wanted if n in found and found[n] != wanted[n]
        ]
        lists = {"missing": missing, "not in the handout's layout": extra, "of another shape": other}
        said = "; ".join(
            f"{what}: {', '.join(some[:4])}{' …' * (len(some) > 4)}" for what, some in lists.items() if some
        )
        hint = f"the checkpoint's parameter names do not fit: {said}"
        if extra and not missing and all("rotary" in n or "inv_freq" in n or "mask" in n or "cos" in n for n in extra):
            hint = f"buffers stand in the state dict ({', '.join(extra)}): register them with persistent=False"
        return Verdict(not said, None, said, hint, True)

    def judge_load(value: dict[str, Any]) -> Verdict:
        said = value["error"]
        if said is not None:
            return Verdict(False, None, said, f"load_state_dict(strict=True) refuses the checkpoint: {said}")
        other = value["other"]
        found = f"the state dict gives back other values: {', '.join(other[:4])}"
        if other and set(other) <= {"model.embed_tokens.weight", "lm_head.weight"}:
            hint = "head: head and embedding share one matrix where tie_word_embeddings is False"
            return Verdict(False, None, found, hint, True, "head")
        return Verdict(
            not other, None, found, f"a loaded checkpoint is not kept as it is: {', '.join(other[:4])}", True
        )

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
        Check(
            "RMSNorm: no bias",
            "RMSNorm",
            "state",
            arguments,
            "norms with a weight alone",
            judge_bias("RMSNorm", lambda n: "norm" in n),
        ),
        Check(
            "SwiGLU: no bias",
            "SwiGLU",
            "state",
            arguments,
            "gate, up and down without bias",
            judge_bias("SwiGLU", lambda n: ".mlp." in n),
        ),
        Check(
            "attention: no bias",
            "attention",
            "state",
            arguments,
            "q, k, v, o without bias (attention_bias False)",
            judge_bias("attention (attention_bias False)", lambda n: ".self_attn." in n and "norm" not in n),
        ),
        Check(
            "attention: q_norm and k_norm", "attention", "state", arguments, "one weight over head_dim each", judge_qk
        ),
        Check(
            "head: no bias",
            "head",
            "state",
            arguments,
            "lm_head without bias",
            judge_bias("the head", lambda n: n.startswith("lm_head")),
        ),
        Check(
            "checkpoint: names and shapes", "checkpoint", "state", arguments, "those of Qwen3's layout", judge_shapes
        ),
        Check(
            "checkpoint: strict loading",
            "checkpoint",
            "state",
            arguments,
            "load_state_dict(…, strict=True)",
            judge_load,
        ),
        Check(
            "checkpoint: the configuration's defaults",
            "checkpoint",
            "defaults",
            {"wanted": list(DEFAULTS)},
            "the handout's",
            judge_defaults,
        ),
        Check(
            "checkpoint: unknown configuration keys",
            "checkpoint",
            "unknown_key",
            {"key": "hiden_size"},
            "an error that names the key",
            judge_unknown,
        ),
    ]
