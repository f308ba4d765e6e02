"""What the reference answers to the questions of `probes.py`, with the formulas of a mistake replaced; and how an
answer is read: the arrays of numbers that are compared, of which the nearest one counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES, INPUTS, directions, end_token, stored_arrays
from roclab.course.verify.reference import Array, Formulas, Reference


def model(case: str, replaced: Formulas | None = None, **changes: Any) -> Reference:
    """The reference for a case, its configuration changed, with the formulas of a mistake."""
    return Reference(CASES[case].config | changes, CASES[case].weights, replaced)


def formulas(replaced: Formulas, **config: Any) -> Reference:
    """The reference without weights, for a formula by itself."""
    return Reference(config, {}, replaced)


def slope(f: Callable[..., Any], h: float = 1e-5) -> float:
    """The derivative of f at 0, by a central difference."""
    return float((f(h) - f(-h)) / (2 * h))


# ---- answers, each with the name and the arguments of its probe


def norm(replaced: Formulas, x: str, weight: str, eps: float, dtype: str = "") -> dict[str, Array]:
    g = INPUTS[weight]
    return {"y": formulas(replaced).norm(INPUTS[x], g, eps), "initial": np.ones(len(g))}


def norm_slope(replaced: Formulas, x: str, weight: str, towards: str) -> Array:
    inputs = [INPUTS[x], INPUTS[weight]]

    def moved(which: int, by: Array) -> float:
        x, g = (v + by if n == which else v for n, v in enumerate(inputs))
        return float((INPUTS[towards] * formulas(replaced).norm(x, g, 1e-6)).sum())

    units = [(n, d) for n, v in enumerate(inputs) for d in np.eye(v.size).reshape(-1, *v.shape)]
    return np.array([slope(lambda h, n=n, d=d: moved(n, h * d)) for n, d in units])


def logits(replaced: Formulas, case: str, texts: str = "once", scales: Sequence[float] = ()) -> list[Array]:
    if case == "stored" and not replaced:  # computed once, whatever numpy or the reference compute today
        return [stored_arrays()["logits"]]
    answers, ids_of_texts = [], CASES[case].texts(texts)
    for ids, scale in zip(ids_of_texts, scales or [1] * len(ids_of_texts), strict=True):
        reference = model(case, replaced)
        for name in reference.weights:
            if "q_proj" in name or "k_proj" in name:
                reference.weights[name] *= scale
        answers.append(reference.logits(ids))
    return answers


def gradients(replaced: Formulas, case: str) -> dict[str, float]:
    towards, along = directions()

    def moved(name: str, h: float) -> float:
        reference = model(case, replaced)
        reference.weights[name] += h * along[name]
        return float((towards * reference.logits(CASES[case].ids)).sum())

    return {name: slope(lambda h, name=name: moved(name, h)) for name in along}


def generate(replaced: Formulas, case: str, options: dict[str, Any], ends: bool = False) -> list[Array]:
    """`ends`: of the last row alone, which is the last one to end."""
    reference = model(case, replaced, **({"eos_token_id": end_token()} if ends else {}))
    return [reference.greedy(CASES[case].ids[-ends:], options["max_length"])]


def draws(replaced: Formulas, case: str, rows: int, times: int, options: dict[str, Any]) -> dict[int, float]:
    """The distribution of the token after the case `dice`."""
    reference = model(case, replaced)
    chosen = (options[name] for name in ("temperature", "top_k", "top_p"))
    return dict(enumerate(reference.draw(reference.logits(CASES[case].ids)[0, -1], *chosen)))


# ---- of the training parts


def cross_entropy(replaced: Formulas, logits: str, targets: str) -> list[float]:
    pairs = zip(INPUTS[logits], INPUTS[targets].astype(int), strict=True)
    return [formulas(replaced).cross_entropy(x, y) for x, y in pairs]


def cross_entropy_slope(replaced: Formulas, logits: str, targets: str) -> Array:
    x, y, reference = INPUTS[logits], INPUTS[targets].astype(int), formulas(replaced)
    units = np.eye(x.size).reshape(-1, *x.shape)
    return np.array([slope(lambda h, d=d: reference.cross_entropy(x + h * d, y)) for d in units]).reshape(x.shape)


def adamw(
    replaced: Formulas, lr: list[float], betas: list[float], eps: float, weight_decay: float, reload: int = 0,
    idle: bool = False,
) -> Array:  # fmt: skip
    """Right forms differ in whether the decay comes before or after the update, and in whether ε is added before or
    after √v's correction. No check sees that: lr² · λ is below its tolerance, and with β₂ = 0 nothing is corrected."""
    w, gradients = INPUTS["parameters"], INPUTS["gradients"][: len(lr)]
    found = formulas(replaced).adamw(w, gradients, lr, betas, eps, weight_decay, reload)
    return np.concatenate([found, np.ones((len(lr), 3))], axis=1) if idle else found


def schedule(replaced: Formulas, its: list[int], settings: Sequence[Any]) -> list[float]:
    return [formulas(replaced).learning_rate(it, *settings) for it in range(*its)]


def clip(replaced: Formulas, max_norm: float, generator: bool = False, idle: bool = False) -> Array:
    return np.concatenate(formulas(replaced).clipped(np.split(INPUTS["gradients"][0], [12]), max_norm))


def batches(replaced: Formulas, context_length: int, batch_size: int, times: int) -> dict[str, Any]:
    reference = formulas(replaced)
    starts = dict(enumerate(reference.starts(len(INPUTS["tokens"]), context_length)))
    return {"shifts": [reference.shift()], "starts": starts}


ANSWERS: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy, "cross_entropy_slope": cross_entropy_slope, "adamw": adamw, "schedule": schedule,
    "clip": clip, "batches": batches,
    "norm": norm, "norm_slope": norm_slope, "logits": logits, "gradients": gradients, "generate": generate,
    "draws": draws, "tied": lambda replaced, case: logits(replaced, case)[0],
    "mlp": lambda replaced, case, x: model(case, replaced).layer_mlp(INPUTS[x], "model.layers.0"),
    "rotate_half": lambda replaced, x: formulas(replaced).rotate_half(INPUTS[x]),
    "repeat_kv": lambda replaced, x, n_rep: formulas(replaced).repeat_kv(INPUTS[x], n_rep),
    "apply_rotary": lambda replaced, **inputs: [
        np.concatenate(formulas(replaced, head_dim=8).rotary(**{n: INPUTS[x] for n, x in inputs.items()}), axis=1)
    ],
}  # fmt: skip


# ---- how answers are read


def numbers(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)


def of_logits(result: Callable[[list[Array]], Array]) -> Callable[[Any], list[Array]]:
    return lambda value: [result([numbers(v) for v in value])]


def visible(logits: list[Array]) -> Array:
    """(T, T): 1 at [t, s] where another token at s changes the logits at t."""
    with np.errstate(invalid="ignore"):
        changes = [np.abs(other - logits[0])[0].max(-1) > 1e-3 for other in logits[1:]]
    return np.stack(changes, axis=-1) * 1.0


def difference_before(logits: list[Array]) -> Array:
    """Of the texts whose last three tokens are others."""
    difference = logits[0] - logits[1]
    return difference[:, :-3] if difference.shape[1] > 1 else difference


def up_to_the_end(value: Any, behind: tuple[int, ...] | None) -> list[Array]:
    """The last row up to its end token, in both forms that are right: with that token and without. Only the tokens
    `behind` may follow it (None: any); if others do, the row stays as it is."""
    row, prompt, eos = list(value[0][-1]), CASES["end"].tokens[1], end_token()
    if eos in row[prompt:]:
        last = row.index(eos, prompt)
        if behind is None or set(row[last + 1 :]) <= {*behind, eos}:
            row = row[: last + 1]
    return [np.asarray([row]), np.asarray([[*row, eos]])]


def frequencies(value: Mapping[Any, float], among: int = CASES["dice"].config["vocab_size"]) -> list[Array]:
    counts = np.zeros(among)
    for token, count in value.items():
        counts[int(token)] = count
    return [counts / counts.sum()]


READINGS: dict[str, Callable[[Any], list[Array]]] = {
    "whole": lambda value: [numbers(value)],
    "each": lambda value: [numbers(v) for v in value] or [np.zeros(0)],
    "normed": lambda value: [numbers(value["y"])],
    "initial": lambda value: [numbers(value["initial"])],
    "in order": lambda value: [numbers([value[name] or 0.0 for name in directions()[1]])],
    "first": of_logits(lambda logits: logits[0]),
    "last token": of_logits(lambda logits: logits[0][:, -1]),  # no causal mask hides anything from it
    "difference": of_logits(lambda logits: logits[1] - logits[0]),
    "difference of rows": of_logits(lambda logits: logits[0] - np.concatenate(logits[1:])),
    "difference before": of_logits(difference_before),
    "stacked": of_logits(np.stack),
    "visible": of_logits(visible),
    "up to the end": lambda value: up_to_the_end(value, (0,)),
    "up to any end": lambda value: up_to_the_end(value, None),
    "frequencies": frequencies,
    "shifts": lambda value: [numbers(value["shifts"])],
    "starts": lambda value: frequencies(value["starts"], len(INPUTS["tokens"])),
}


# ---- how far two arrays are apart


def largest_gap(a: Array, b: Array) -> float:
    """The largest absolute difference. Infinite where the shapes differ or one is NaN and the other is not."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def frequency_gap(found: Array, p: Array) -> float:
    """The largest difference of a frequency from its probability; 1 if a token was drawn that must not be."""
    return 1.0 if found.shape != p.shape or (found[p == 0] > 0).any() else float(np.abs(found - p).max())


def relative_gap(found: Array, right: Array) -> float:
    return float((np.abs(found - right) / (np.abs(right) + 0.01 * np.abs(right).max())).max())


GAPS = {"largest": largest_gap, "frequency": frequency_gap, "relative": relative_gap}
