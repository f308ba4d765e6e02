"""The checks of the parts by themselves: RMSNorm, SwiGLU and the functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from roclab.course.verify.cases import CONFIG
from roclab.course.verify.check import Check, Verdict, fault, model, numbers, slope
from roclab.course.verify.reference import Array, Formulas, Reference


def exact(x: Array) -> Array:
    """Rounded to float32, in float64: both sides compute with the same numbers."""
    return x.astype(np.float32).astype(np.float64)


def draw(seed: int, *shape: int) -> Array:
    return exact(np.random.default_rng(seed).normal(size=shape))


def formulas(replaced: Formulas, **config: Any) -> Reference:
    """The reference without weights, for a formula by itself."""
    return Reference(config, {}, replaced)


def of_norm(
    title: str, x: Array, g: Array, eps: float, expects: str, hint: str, dtype: str = "float32", **more: Any
) -> Check:  # fmt: skip
    x = exact(x)
    standard: dict[str, Any] = {"expected": lambda replaced: formulas(replaced).norm(x, g, eps), "tolerance": 2e-5}
    more = standard | {"read": lambda value: [numbers(value["y"])]} | more
    return Check("RMSNorm", title, "norm", {"x": x, "weight": g, "eps": eps, "dtype": dtype}, expects, hint, **more)


def of_dtype(dtype: str, expects: str, factor: float, tolerance: float) -> Check:
    x = np.random.default_rng(3).integers(75, 125, (3, 16)) * factor  # exact in both dtypes

    def dtype_fault(value: dict[str, Any]) -> Verdict | None:
        hint = f"RMSNorm must return the dtype it is given, {dtype}"
        return None if value["dtype"] == dtype else fault(f"{value['dtype']} comes back", hint)

    hint = f"RMSNorm must square in float32: {dtype} overflows or loses digits"
    more: dict[str, Any] = {"tolerance": tolerance, "fault": dtype_fault, "compare_mistakes": False}
    return of_norm(dtype, x, np.ones(16), 1e-6, expects, hint, dtype, **more)


def scale_fault(value: dict[str, Any]) -> Verdict | None:
    hint = "RMSNorm's scale must be learnable: nn.Parameter(torch.ones(hidden_size))"
    return None if value["learnable"] else fault("weight is not a Parameter that learns", hint)


def of_norm_gradient() -> Check:
    x, g, towards = draw(4, 2, 3, 8), draw(5, 8), draw(6, 2, 3, 8)

    def slopes(replaced: Formulas) -> Array:
        def value(x: Array, g: Array) -> float:
            return float((towards * formulas(replaced).norm(x, g, 1e-6)).sum())

        by_x = [slope(lambda h, d=d: value(x + h * d, g)) for d in np.eye(x.size).reshape(-1, *x.shape)]
        return np.array(by_x + [slope(lambda h, d=d: value(x, g + h * d)) for d in np.eye(8)])

    return Check(
        "RMSNorm", "the gradient", "norm_slope", {"x": x, "weight": g, "towards": towards},
        "the slopes of the formula by x and by the weight",
        "RMSNorm's gradient is not its slope: nothing in it may be detached, nor run under no_grad",
        slopes, tolerance=1e-3)  # fmt: skip


def part_checks() -> list[Check]:
    g, ones, x = exact(np.random.default_rng(1).uniform(0.5, 2, 16)), np.ones(16), draw(2, 2, 3, 16) * 3
    inputs, xs, heads = draw(7, 2, 3, CONFIG["hidden_size"]), draw(8, 1, 2, 5, 8), draw(9, 2, 2, 3, 4)
    q, k, angles = draw(10, 1, 4, 5, 8), draw(11, 1, 2, 5, 8), np.tile(draw(12, 5, 4), 2)
    cos, sin = exact(np.cos(angles)), exact(np.sin(angles))
    return [
        of_norm("the formula", x, g, 1e-6, "g·x / √(mean(x²) + ε)", "RMSNorm is not g·x / √(mean(x²) + ε)"),
        of_norm("no centring", x + 4, g, 1e-6, "the same on inputs whose mean is not 0", "RMSNorm must not centre"),
        of_norm("eps inside the root", x * 0.02, g, 0.01, "g·x / √(mean(x²) + 0.01) on small inputs",
                "RMSNorm's eps must be the argument, added under the root"),
        of_norm("single token", x[0, :1], ones, 1e-6, "the same on (1, 16)",
                "RMSNorm must take any leading dimensions"),
        of_norm("a learnable scale", x, g, 1e-6, "a Parameter of ones",
                "RMSNorm's weight begins as ones, one a dimension", expected=lambda _: ones, tolerance=0.0,
                fault=scale_fault, read=lambda value: [numbers(value["initial"])], compare_mistakes=False),
        of_dtype("float16", "float16 in, float16 out, squared in float32", 4.0, 4e-3),
        of_dtype("bfloat16", "bfloat16 in, bfloat16 out", 1.0, 5e-2),
        of_norm_gradient(),
        Check("SwiGLU", "the formula", "mlp", {"case": "order", "x": inputs}, "down( silu(gate(x)) ⊙ up(x) )",
              "SwiGLU is not down( silu(gate(x)) ⊙ up(x) )",
              lambda replaced: model("order", replaced).layer_mlp(inputs, "model.layers.0")),
        Check("RoPE", "rotate_half", "rotate_half", {"x": xs}, "(x₁, x₂) → (−x₂, x₁)",
              "rotate_half must turn the halves of the last dimension: (x₁, x₂) → (−x₂, x₁)",
              lambda replaced: formulas(replaced).rotate_half(xs)),
        Check("RoPE", "apply_rotary_pos_emb", "apply_rotary", {"q": q, "k": k, "cos": cos, "sin": sin},
              "q·cos + rotate_half(q)·sin, and k likewise",
              "apply_rotary_pos_emb must give q·cos + rotate_half(q)·sin, and the same of k",
              lambda replaced: np.concatenate(formulas(replaced, head_dim=8).rotary(q, k, cos, sin), axis=1),
              read=lambda value: [numbers(v) for v in value] or [np.zeros(0)]),
        Check("GQA", "repeat_kv", "repeat_kv", {"x": heads, "n_rep": 3}, "heads 0, 0, 0, 1, 1, 1",
              "repeat_kv must repeat each key-value head n_rep times in a row, (B, K, S, C) → (B, K·n_rep, S, C)",
              lambda replaced: formulas(replaced).repeat_kv(heads, 3)),
        Check("GQA", "repeat_kv once", "repeat_kv", {"x": heads, "n_rep": 1}, "n_rep = 1 changes nothing",
              "repeat_kv with n_rep = 1 must return what it is given",
              lambda replaced: formulas(replaced).repeat_kv(heads, 1)),
    ]  # fmt: skip
