"""The checks of the whole model: first cases in which all parts but one add nothing, then everything together, and its
gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES, stored_arrays
from roclab.course.verify.check import Check, Verdict, expectation, fault, largest_gap, model, numbers, slope
from roclab.course.verify.reference import Array, Formulas


def first(logits: list[Array]) -> Array:
    return logits[0]


def last_token(logits: list[Array]) -> Array:
    """No causal mask hides anything from it."""
    return logits[0][:, -1]


def of_logits(
    component: str, title: str, case: str, expects: str, hint: str,
    result: Callable[[list[Array]], Array] = first, texts: list[Array] | None = None, scales: tuple[float, ...] = (),
    **more: Any,
) -> Check:  # fmt: skip
    """A check of `result`, computed from the logits of each of `texts`, which are the case's ids if none are given.
    `scales` are factors of q_proj and k_proj, one a text."""
    texts = texts or [CASES[case].ids]
    scales = scales or (1,) * len(texts)

    def logits(replaced: Formulas, ids: Array, scale: float) -> Array:
        reference = model(case, replaced)
        for name in reference.weights:
            if scale != 1 and ("q_proj" in name or "k_proj" in name):
                reference.weights[name] *= scale
        return reference.logits(ids)

    def expected(replaced: Formulas) -> Array:
        return result([logits(replaced, ids, scale) for ids, scale in zip(texts, scales, strict=True)])

    def read(value: Any) -> list[Array]:
        return [result([numbers(v) for v in value])]

    arguments = {"case": case, "texts": texts, "scales": scales}
    return Check(component, title, "logits", arguments, expects, hint, **{"expected": expected, "read": read} | more)


# ---- what is compared


def texts_of_visible() -> list[Array]:
    """The case's ids, and for each place the same with another token there."""
    ids, vocabulary = CASES["sees"].ids, CASES["sees"].config["vocab_size"]
    places = np.arange(ids.shape[1])
    return [ids, *(np.where(places == s, (ids + 7) % (vocabulary - 1), ids) for s in places)]


def visible(logits: list[Array]) -> Array:
    """(T, T): 1 at [t, s] where another token at s changes the logits at t."""
    with np.errstate(invalid="ignore"):
        changes = [np.abs(other - logits[0])[0].max(-1) > 1e-3 for other in logits[1:]]
    return np.stack(changes, axis=-1) * 1.0


def texts_of_future() -> list[Array]:
    """The case's ids, and the same with other tokens in the last three places."""
    ids, vocabulary = CASES["leak"].ids, CASES["leak"].config["vocab_size"]
    return [ids, np.where(np.arange(ids.shape[1]) < ids.shape[1] - 3, ids, (ids + 7) % (vocabulary - 1))]


def difference_before(logits: list[Array]) -> Array:
    difference = logits[0] - logits[1]
    return difference[:, :-3] if difference.shape[1] > 1 else difference


def dropout_fault(value: Any) -> Verdict | None:
    hint = "attention's dropout is active in eval: pass self.training to it (SDPA's dropout_p 0 in eval)"
    same = largest_gap(numbers(value[0]), numbers(value[1])) <= 1e-4
    return None if same else fault("two runs on the same ids differ", hint)


def model_checks() -> list[Check]:
    dropout, stack, stored = CASES["dropout"].ids, CASES["stack"].ids, CASES["stored"].ids
    seen = "the mask must show each token itself and all before it, and nothing else"
    return [
        of_logits("head", "logits of the embeddings", "head", "lm_head(norm(embedding)) where all layers add nothing",
                  "the head is not lm_head(model.norm(x)), or x is not the embedding as it is where the layers add "
                  "nothing"),
        Check("head", "tied", "tied", {"case": "tied"}, "tie_word_embeddings True: one matrix for embedding and head",
              "with tie_word_embeddings the head must be the embedding's own matrix",
              lambda replaced: model("tied", replaced).logits(CASES["tied"].ids)),
        of_logits("decoder", "the MLP's half of a layer", "mlp", "x + SwiGLU(RMSNorm(x)), attention adding nothing",
                  "the decoder is not x + SwiGLU(RMSNorm(x)) where attention adds nothing"),
        of_logits("attention", "one token", "one token", "x + o_proj(v): a single token can only look at itself",
                  "attention's v_proj, o_proj, the heads' order, or the residual around attention is wrong"),
        of_logits("GQA", "one token, grouped", "one token, grouped", "query head h reads value head h // 3",
                  "GQA: value heads are not shared in runs of n_rep query heads"),
        of_logits("mask", "which tokens count", "sees",
                  "token s changes the logits of token t (1 at [t, s]) where s is t or before it, and nowhere else",
                  seen, visible, texts_of_visible(), tolerance=0.5),
        of_logits("attention", "scores", "scores", "softmax over the keys of q·kᵀ/√head_dim, where RoPE turns nothing",
                  "attention is not softmax(q·kᵀ/√head_dim)·v over the keys", last_token),
        of_logits("GQA", "grouped scores", "grouped", "query head h reads key head h // 3",
                  "GQA: key heads are not shared in runs of n_rep query heads", last_token),
        of_logits("RMSNorm", "the configuration's eps", "eps", "rms_norm_eps 0.5 in every norm",
                  "RMSNorm must use the config's rms_norm_eps"),
        of_logits("mask", "nothing from the future", "leak",
                  "other last tokens leave the logits before them as they are",
                  "the mask lets tokens see what comes after them", difference_before, texts_of_future()),
        of_logits("mask", "what each token sees", "mask",
                  "itself and all before it alike, where all scores are equal", seen),
        of_logits("attention", "QK-norm takes the length out", "qk", "q_proj and k_proj times ten change nothing",
                  "attention: q_norm and k_norm are missing or do not normalise each head",
                  lambda logits: logits[1] - logits[0], [CASES["qk"].ids] * 2, (1, 10), tolerance=2e-4),
        of_logits("RoPE", "positions", "rope", "q and k turned by position · rope_theta^(−2i/C), halves paired",
                  "RoPE: angles, pairing or positions are wrong (or QK-norm does not come before it)"),
        of_logits("RoPE", "far positions", "far", "the same over 90 tokens with another rope_theta",
                  "RoPE: positions or frequencies are wrong far from the beginning, or not those of rope_theta"),
        of_logits("attention", "QK-norm before RoPE", "qk", "q_norm and k_norm over head_dim, then the rotation",
                  "attention: q_norm and k_norm must normalise each head over head_dim, before RoPE"),
        of_logits("attention", "dropout off in eval", "dropout",
                  "attention_dropout 0.5 changes nothing after model.eval()", "attention is wrong in eval mode",
                  np.stack, [dropout] * 2, fault=dropout_fault),
        of_logits("decoder", "order and residuals", "order", "x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))",
                  "the decoder's layer has another order, norm or residual"),
        of_logits("RMSNorm", "eps in every norm", "every eps",
                  "rms_norm_eps 0.5 in the layers' norms, q_norm and k_norm too",
                  "one of the layer's norms (input_layernorm, post_attention_layernorm, q_norm, k_norm) does not use "
                  "the config's rms_norm_eps"),
        of_logits("decoder", "three layers", "stack", "each layer reads what the one before it returned",
                  "the decoder does not run its layers one after the other, or a part works otherwise behind the "
                  "first layer"),
        of_logits("decoder", "rows of a batch", "stack", "each row as if it were alone",
                  "rows of a batch influence each other", lambda logits: logits[0] - np.concatenate(logits[1:]),
                  [stack, *np.split(stack, len(stack))]),
        of_logits("decoder", "stored logits", "stored",
                  "the logits of a whole model, as an independent reference computed them",
                  "the whole model's logits are wrong, though its parts may pass",
                  expected=lambda replaced:
                      model("stored", replaced).logits(stored) if replaced else stored_arrays()["logits"]),
    ]  # fmt: skip


# ---- gradients

PARTS = {
    "embed_tokens": "decoder", "input_layernorm": "RMSNorm", "q_proj": "attention", "k_proj": "attention",
    "v_proj": "attention", "q_norm": "attention", "k_norm": "attention", "o_proj": "attention",
    "post_attention_layernorm": "RMSNorm", "gate_proj": "SwiGLU", "up_proj": "SwiGLU", "down_proj": "SwiGLU",
    "norm": "RMSNorm", "lm_head": "head",
}  # in the order in which the model uses them  # fmt: skip


def relative_gap(found: Array, right: Array) -> float:
    return float((np.abs(found - right) / (np.abs(right) + 0.01 * np.abs(right).max())).max())


def shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + " …" * (len(names) > 4)


def part_without_gradient(silent: list[str]) -> str:
    """The part that stops the gradient: that of the last parameter without one, unless a layer has none at all."""
    layers = [name.split(".")[2] for name in silent if "_proj" in name]
    if any(layers.count(n) == 7 for n in layers):
        return "decoder"
    return PARTS[max((name.split(".")[-1] for name in silent), key=list(PARTS).index)]


def gradient_check() -> Check:
    """Every parameter's gradient along one direction against the slope of the reference."""
    case, random = CASES["gradients"], np.random.default_rng(20)
    towards = random.normal(size=(*case.ids.shape, case.config["vocab_size"])).astype(np.float32)
    directions = {
        n: (random.normal(size=w.shape) / np.sqrt(w.size)).astype(np.float32) for n, w in case.weights.items()
    }

    def expected(replaced: Formulas) -> Array:
        def moved(name: str, h: float) -> float:
            reference = model("gradients", replaced)
            reference.weights[name] += h * directions[name]
            return float((towards * reference.logits(case.ids)).sum())

        return np.array([slope(lambda h, name=name: moved(name, h)) for name in directions])

    def read(value: dict[str, float | None]) -> list[Array]:
        return [numbers([value[name] or 0.0 for name in directions])]

    def find(value: dict[str, float | None]) -> Verdict | None:
        found, right = read(value)[0], expectation(check)
        assert right is not None
        if silent := [name.removesuffix(".weight") for name, s in zip(directions, found, strict=True) if s == 0]:
            component = part_without_gradient(silent)
            hint = f"{component}: no gradient reaches {shortened(silent)}: detach(), .data or no_grad() on the way, or "
            text = f"no gradient in {len(silent)} of {len(found)} parameters"
            return fault(text, hint + "they are not used", component)
        if relative_gap(found, right) <= 0.02:
            return None
        wrong = [n for i, n in enumerate(directions) if relative_gap(found[i, None], right[i, None]) > 0.02]
        hint = f"the gradient of {shortened(wrong)} is not the slope of the logits: something on their way is detached"
        return fault(f"another slope: {shortened(wrong)}", hint, specific=False)

    arguments = {"case": "gradients", "towards": towards, "directions": directions}
    check = Check(
        "decoder", "gradients", "gradients", arguments, "the slope of the logits in every parameter", "", expected,
        0.02, find, read, relative_gap, compare_mistakes=False)  # fmt: skip
    return check
