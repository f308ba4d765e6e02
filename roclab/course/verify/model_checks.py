"""The checks of the whole model: crafted cases first, each silencing all parts but one, then everything together, and
its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES, Stored
from roclab.course.verify.judge import Check, Verdict, numeric, slope
from roclab.course.verify.reference import Array, Reference


def case_logits(name: str) -> Any:
    case = CASES[name]
    return lambda R: R(case.config, case.weights).logits(case.ids)


def model_checks() -> list[Check]:
    def check(name: str, component: str, case: str, expects: str, hint: str) -> Check:
        return numeric(f"{component}: {name}", component, "logits", {"case": case}, case_logits(case), expects, hint)

    def last(name: str, component: str, case: str, expects: str, hint: str) -> Check:
        """Of the last token alone, which no causal mask keeps from anything."""
        expected = case_logits(case)
        return numeric(
            f"{component}: {name}",
            component,
            "logits",
            {"case": case},
            lambda R: expected(R)[:, -1],
            expects,
            hint,
            read=lambda value: [np.asarray(value, dtype=np.float64)[:, -1]],
        )

    return [
        check(
            "logits of the embeddings",
            "head",
            "head",
            "lm_head(norm(embedding)) where all layers add nothing",
            "the head is not lm_head(model.norm(x)), or x is not the embedding as it is where the layers add nothing",
        ),
        numeric(
            "head: tied",
            "head",
            "tied",
            {"case": "tied"},
            case_logits("tied"),
            "tie_word_embeddings True: one matrix for embedding and head",
            "with tie_word_embeddings the head must be the embedding's own matrix",
        ),
        check(
            "the MLP's half of a layer",
            "decoder",
            "mlp",
            "x + SwiGLU(RMSNorm(x)), attention adding nothing",
            "the decoder is not x + SwiGLU(RMSNorm(x)) where attention adds nothing",
        ),
        check(
            "one token",
            "attention",
            "one token",
            "x + o_proj(v): a single token can only look at itself",
            "attention's v_proj, o_proj, the heads' order, or the residual around attention is wrong",
        ),
        check(
            "one token, grouped",
            "GQA",
            "one token, grouped",
            "query head h reads value head h // 3",
            "GQA: value heads are not shared in runs of n_rep query heads",
        ),
        _sees(),
        last(
            "scores",
            "attention",
            "scores",
            "softmax over the keys of q·kᵀ/√head_dim, where RoPE turns nothing",
            "attention is not softmax(q·kᵀ/√head_dim)·v over the keys",
        ),
        last(
            "grouped scores",
            "GQA",
            "grouped",
            "query head h reads key head h // 3",
            "GQA: key heads are not shared in runs of n_rep query heads",
        ),
        check(
            "the configuration's eps",
            "RMSNorm",
            "eps",
            "rms_norm_eps 0.5 in every norm",
            "RMSNorm must use the config's rms_norm_eps",
        ),
        _leak(),
        check(
            "what each token sees",
            "mask",
            "mask",
            "itself and all before it alike, where all scores are equal",
            "the mask must show each token itself and all before it, and nothing else",
        ),
        _stretched(),
        check(
            "positions",
            "RoPE",
            "rope",
            "q and k turned by position · rope_theta^(−2i/C), halves paired",
            "RoPE: angles, pairing or positions are wrong (or QK-norm does not come before it)",
        ),
        check(
            "far positions",
            "RoPE",
            "far",
            "the same over 90 tokens with another rope_theta",
            "RoPE: positions or frequencies are wrong far from the beginning, or not those of rope_theta",
        ),
        check(
            "QK-norm before RoPE",
            "attention",
            "qk",
            "q_norm and k_norm over head_dim, then the rotation",
            "attention: q_norm and k_norm must normalise each head over head_dim, before RoPE",
        ),
        _dropout(),
        check(
            "order and residuals",
            "decoder",
            "order",
            "x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))",
            "the decoder's layer has another order, norm or residual",
        ),
        check(
            "eps in every norm",
            "RMSNorm",
            "every eps",
            "rms_norm_eps 0.5 in the layers' norms, q_norm and k_norm too",
            "one of the layer's norms (input_layernorm, post_attention_layernorm, q_norm, k_norm) does not use the "
            "config's rms_norm_eps",
        ),
        check(
            "three layers",
            "decoder",
            "stack",
            "each layer reads what the one before it returned",
            "the decoder does not run its layers one after the other, or a part works otherwise behind the first layer",
        ),
        _batch(),
        _stored(),
    ]


def _sees() -> Check:
    """Which tokens count for which: [t, s] is 1 where another token at s changes the logits at t."""
    case = CASES["sees"]
    T, V = case.ids.shape[1], case.config["vocab_size"]
    texts = [case.ids, *(np.where(np.arange(T) == s, (case.ids + 7) % (V - 1), case.ids) for s in range(T))]

    def pattern(logits: list[Array]) -> Array:
        first, *others = logits
        with np.errstate(invalid="ignore"):
            return np.stack([(np.abs(other - first)[0].max(-1) > 1e-3) * 1.0 for other in others], axis=-1)

    def expected(R: type[Reference]) -> Array:
        return pattern([R(case.config, case.weights).logits(ids) for ids in texts])

    return numeric(
        "mask: which tokens count",
        "mask",
        "logits_of",
        {"case": "sees", "texts": [ids.tolist() for ids in texts]},
        expected,
        "token s changes the logits of token t (1 at [t, s]) where s is t or before it, and nowhere else",
        "the mask must show each token itself and all before it, and nothing else",
        tolerance=0.5,
        read=lambda value: [pattern([np.asarray(v, dtype=np.float64) for v in value])],
    )


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

    return numeric(
        "mask: nothing from the future",
        "mask",
        "logits_of",
        {"case": "leak", "texts": [case.ids.tolist(), changed.tolist()]},
        expected,
        "other last tokens leave the logits before them as they are",
        "the mask lets tokens see what comes after them",
        read=read,
    )


def _stretched() -> Check:
    """QK-norm takes the length out of q and k: ten times the projections change nothing."""
    case = CASES["qk"]

    def expected(R: type[Reference]) -> Array:
        weights = {n: w * (10 if "q_proj" in n or "k_proj" in n else 1) for n, w in case.weights.items()}
        return R(case.config, weights).logits(case.ids) - R(case.config, case.weights).logits(case.ids)

    return numeric(
        "attention: QK-norm takes the length out",
        "attention",
        "logits_stretched",
        {"case": "qk", "factor": 10},
        expected,
        "q_proj and k_proj times ten change nothing",
        "attention: q_norm and k_norm are missing or do not normalise each head",
        tolerance=2e-4,
        read=lambda value: [np.asarray(value[1], dtype=np.float64) - np.asarray(value[0], dtype=np.float64)],
    )


def _dropout() -> Check:
    """attention_dropout 0.5 in eval mode: the same as without, twice."""
    case = CASES["dropout"]

    def expected(R: type[Reference]) -> Array:
        return np.stack([R(case.config, case.weights).logits(case.ids)] * 2)

    arguments = {"case": "dropout", "texts": [case.ids.tolist()] * 2}
    check = numeric(
        "attention: dropout off in eval",
        "attention",
        "logits_of",
        arguments,
        expected,
        "attention_dropout 0.5 changes nothing after model.eval()",
        "attention is wrong in eval mode",
    )

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
    return numeric(
        "decoder: rows of a batch",
        "decoder",
        "logits_of",
        {"case": "stack", "texts": texts},
        expected,
        "each row as if it were alone",
        "rows of a batch influence each other",
        read=read,
    )


def _stored() -> Check:
    """Logits against the stored ones; mistakes are computed anew."""
    case = CASES["stored"]
    assert isinstance(case, Stored)

    def expected(R: type[Reference]) -> Array:
        return case.logits if R is Reference else R(case.config, case.weights).logits(case.ids)

    return numeric(
        "decoder: stored logits",
        "decoder",
        "logits",
        {"case": "stored"},
        expected,
        "the logits of a whole model, as an independent reference computed them",
        "the whole model's logits are wrong, though its parts may pass",
    )


# ---- gradients


PARTS = {
    "embed_tokens": "decoder",
    "input_layernorm": "RMSNorm",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "q_norm": "attention",
    "k_norm": "attention",
    "o_proj": "attention",
    "post_attention_layernorm": "RMSNorm",
    "gate_proj": "SwiGLU",
    "up_proj": "SwiGLU",
    "down_proj": "SwiGLU",
    "norm": "RMSNorm",
    "lm_head": "head",
}  # in the order in which a text passes them


def gradient_check() -> Check:
    """Every parameter's gradient along one direction against the slope of the reference."""
    case = CASES["gradients"]
    random = np.random.default_rng(20)
    towards = random.normal(size=(*case.ids.shape, case.config["vocab_size"])).astype(np.float32)
    directions = {
        n: (random.normal(size=w.shape) / np.sqrt(w.size)).astype(np.float32) for n, w in case.weights.items()
    }

    def expected(R: type[Reference]) -> Array:
        def along(name: str) -> float:
            w, d = case.weights[name].astype(np.float64), directions[name]
            return slope(lambda h: (towards * R(case.config, case.weights | {name: w + h * d}).logits(case.ids)).sum())

        return np.array([along(name) for name in directions])

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
        return Verdict(
            False,
            deviation,
            f"no gradient in {len(silent)} of {len(found)} parameters",
            hint,
            True,
            component,
            (found,),
        )

    arguments = {
        "case": "gradients",
        "towards": towards.tolist(),
        "directions": {n: d.tolist() for n, d in directions.items()},
    }
    return Check(
        "decoder: gradients",
        "decoder",
        "gradients",
        arguments,
        "the slope of the logits in every parameter",
        judge,
        expected,
        0.02,
        gap,
        compare_mistakes=False,
    )


def _cut(silent: list[str], names: list[str], layers: int) -> str:
    """The part that keeps the gradient back: the last of the silent ones on a text's way, unless whole layers are."""
    part = {n: n.split(".")[-2] for n in names}
    for n in range(layers):
        matrices = [name for name in names if f"layers.{n}." in name and "norm" not in name]
        if set(matrices) <= set(silent):
            return "decoder"
    order = list(PARTS)
    return PARTS[max((part[n] for n in silent), key=order.index)]
