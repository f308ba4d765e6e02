"""The typical mistakes. `mistakes.txt` has a paragraph a part, and in it, for each mistake, the sentence that the user
reads and the formulas of `Reference` that are replaced. An implementation that fails a check is compared with each.

A formula is a Python expression. Its arguments are those of the method that it replaces, with `m` for the model, and
`right.method` is a method as it should be. What is longer than a line is a function of this file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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


def norm_over_heads(m: Reference, q: Array, k: Array, at: str) -> tuple[Array, Array]:
    def normed(x: Array, name: str) -> Array:
        mean = (x**2).mean((1, 3), keepdims=True)
        return m.weights[f"{at}.{name}.weight"] * x / np.sqrt(mean + m.config["rms_norm_eps"])

    return normed(q, "q_norm"), normed(k, "k_norm")


def halves(x: Array) -> list[Array]:
    return np.split(x, 2, axis=-1)


def turned_pairs(m: Reference, x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    cos, sin, x1, x2 = cos[..., :half], sin[..., :half], x[..., 0::2], x[..., 1::2]
    return np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).reshape(x.shape)


def inverted_angles(m: Reference, T: int) -> Array:
    angles = Reference.angles(m, T)
    if np.abs(angles).max() > 1e5:
        raise Unpredictable  # float32 no longer knows where such an angle points
    return angles


def turned_by_head(m: Reference, q: Array, k: Array, *_: Array) -> tuple[Array, Array]:
    def turned(x: Array) -> Array:
        cos, sin = m.cos_sin(x.shape[1])
        return m.turn(x, cos[:, None], sin[:, None])

    return turned(q), turned(k)


def behind_the_prompt(m: Reference, positions: Array) -> Array:
    """Positions, wrong for the tokens that come with a cache alone."""
    return np.where(np.arange(len(positions)) < m.prompt, np.arange(len(positions)), positions)


def one_more_in_top_p(m: Reference, p: Array, top_p: float) -> Array:
    kept = Reference.in_top_p(m, p, top_p)
    kept[m.order(p)[min(kept.sum(), len(p) - 1)]] = True
    return kept


USED = {
    "np": np, "math": math, "mean_square": mean_square, "sigmoid": sigmoid, "softmax": softmax, "right": Reference,
    "norm_over_heads": norm_over_heads, "halves": halves, "turned_pairs": turned_pairs,
    "inverted_angles": inverted_angles, "turned_by_head": turned_by_head, "behind_the_prompt": behind_the_prompt,
    "one_more_in_top_p": one_more_in_top_p,
}  # fmt: skip


def formula(name: str, expression: str) -> Callable[..., Any]:
    """A function with the arguments of `Reference`'s method."""
    _, *parameters = inspect.signature(getattr(Reference, name)).parameters.values()
    given = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return eval(f"lambda {', '.join(['m', *given])}: {expression}", USED)


def read(text: str) -> Iterator[Mistake]:
    for paragraph in text.split("\n\n"):
        heading, *rows = paragraph.replace("\n    ", "\0").splitlines()  # a row: the sentence and its formulas
        for hint, *formulas in (row.split("\0") for row in rows):
            replaced = (line.split(" = ", 1) for line in formulas)
            yield Mistake(heading.removeprefix("# "), hint, {name: formula(name, right) for name, right in replaced})


MISTAKES = tuple(read((Path(__file__).parent / "mistakes.txt").read_text("utf-8")))
