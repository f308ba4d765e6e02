"""Small models to compare an implementation on: configurations, weights and token ids, all made by numpy.

Both sides know them: the process that runs a user's file builds its model from them, and the reference computes what it
should answer. In most cases some parts add nothing (their output matrix is zero), so that a fault shows in the case of
its own part first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from roclab.course.verify.reference import Array, Reference

# head_dim is not hidden_size / heads and the query heads per key-value head are not the key-value heads: a formula
# that takes one for the other gives another number.
CONFIG: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rope_theta": 500.0,
    "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 60, "tie_word_embeddings": False,
}  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of the handout's layout and its shape."""
    D, F, V, C = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    HC, KC = config["num_attention_heads"] * C, config["num_key_value_heads"] * C
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (HC, D), "self_attn.k_proj": (KC, D), "self_attn.v_proj": (KC, D),
        "self_attn.o_proj": (D, HC), "self_attn.q_norm": (C,), "self_attn.k_norm": (C,), "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D), "mlp.down_proj": (D, F), "input_layernorm": (D,), "post_attention_layernorm": (D,),
    }  # fmt: skip
    layers = range(config["num_hidden_layers"])
    inner = {f"model.layers.{n}.{name}.weight": shape for n in layers for name, shape in layer.items()}
    return {EMBEDDING: (V, D), **inner, "model.norm.weight": (D,), HEAD: (V, D)}


@dataclass(frozen=True)
class Case:
    """A model and its input. `silent` names the matrices (by a part of their names) that are zero; `adjust` changes
    weights and ids in place."""

    seed: int
    tokens: tuple[int, int] = (2, 6)  # B, T
    changes: dict[str, Any] = field(default_factory=dict)  # of CONFIG
    silent: tuple[str, ...] = ()
    adjust: Callable[[dict[str, Array], Array], None] = lambda weights, ids: None

    @cached_property
    def config(self) -> dict[str, Any]:
        return CONFIG | self.changes

    @cached_property
    def drawn(self) -> tuple[dict[str, Array], Array]:
        """Random float32 weights, large enough that every part matters: norms in 0.5 … 2, matrices of unit gain. And
        ids (B, T) without the end token."""
        random, weights = np.random.default_rng(self.seed), {}
        for name, shape in shapes(self.config).items():
            if "norm" in name:
                w = random.uniform(0.5, 2.0, shape)
            else:
                w = random.normal(size=shape) * (1.0 if "embed" in name else 1.5 / np.sqrt(shape[1]))
            weights[name] = w.astype(np.float32) * (not any(part in name for part in self.silent))
        ids = np.random.default_rng(self.seed + 1000).integers(1, self.config["vocab_size"] - 1, self.tokens)
        self.adjust(weights, ids)
        return weights, ids

    @property
    def weights(self) -> dict[str, Array]:
        return self.drawn[0]

    @property
    def ids(self) -> Array:
        return self.drawn[1]

    def texts(self, kind: str) -> list[Array]:
        """The lists of ids that a check compares the logits of."""
        ids, places = self.ids, np.arange(self.tokens[1])
        other = (ids + 7) % (self.config["vocab_size"] - 1)
        return {
            "once": [ids],
            "twice": [ids, ids],
            "and row by row": [ids, *np.split(ids, len(ids))],
            "one other token": [ids, *(np.where(places == s, other, ids) for s in places)],
            "another end": [ids, np.where(places < len(places) - 3, ids, other)],
        }[kind]


def one_score(weights: dict[str, Array], ids: Array) -> None:
    """All tokens but the last are token 7, whose embedding is zero, and so are its q, k and v. The last one's scores
    are 0 for them and q·k/√C for itself, whatever angle RoPE turns both by: scale and softmax alone are left."""
    weights[EMBEDDING][7] = 0
    ids[:, -1] += ids[:, -1] == 7
    ids[:, :-1] = 7


# At shuffled places, so that a filter that mixes up sorted and unsorted order shows; no other token is ever drawn.
PROBABILITIES = {37: 0.4, 5: 0.25, 50: 0.2, 18: 0.1, 22: 0.05}


def dice(weights: dict[str, Array], ids: Array) -> None:
    """The same known logits after every token: layers that add nothing, one embedding for all, the head's rows set."""
    for name, w in weights.items():
        w[:] = "norm" in name or name == EMBEDDING
    V, D = weights[HEAD].shape
    p = np.full(V, np.exp(-20))
    p[list(PROBABILITIES)] = list(PROBABILITIES.values())
    weights[HEAD][:] = np.log(p)[:, None] / D


STORED = Path(__file__).parent / "stored.safetensors"  # weights, ids, and the logits that the reference computed once


@cache
def stored_arrays() -> dict[str, Array]:
    from safetensors.numpy import load_file

    return load_file(STORED)


def stored(weights: dict[str, Array], ids: Array) -> None:
    """The arrays of the file, whatever numpy draws today."""
    weights.update((name, stored_arrays()[name]) for name in weights)
    ids[:] = stored_arrays()["ids"]


STORED_CHANGES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "eos_token_id": 63,
}  # fmt: skip
BOTH = ("o_proj", "down_proj")  # the layers add nothing

CASES: dict[str, Case] = {
    "head": Case(1, changes={"num_hidden_layers": 2}, silent=BOTH),
    "eps": Case(2, changes={"rms_norm_eps": 0.5}, silent=BOTH),
    "tied": Case(3, changes={"tie_word_embeddings": True}, silent=BOTH),
    "mlp": Case(4, silent=("o_proj",)),
    "one token": Case(5, (3, 1), {"num_key_value_heads": 6}, ("down_proj",)),
    "one token, grouped": Case(6, (3, 1), silent=("down_proj",)),
    "sees": Case(21, (1, 6), silent=("q_proj", "down_proj")),  # all scores are 0: what is seen counts alike
    "leak": Case(9, (2, 7), {"num_hidden_layers": 3}),
    "scores": Case(7, (4, 2), {"num_key_value_heads": 6}, ("down_proj",), one_score),
    "grouped": Case(8, (4, 2), silent=("down_proj",), adjust=one_score),
    "mask": Case(20, (2, 9), silent=("q_proj", "down_proj")),
    "rope": Case(10, (2, 7), silent=("down_proj",)),
    "far": Case(11, (1, 90), {"rope_theta": 20.0}, silent=("down_proj",)),
    "qk": Case(12, silent=("down_proj",)),
    "dropout": Case(13, changes={"attention_dropout": 0.5}),
    "order": Case(14, (2, 5)),
    "every eps": Case(22, (2, 5), {"rms_norm_eps": 0.5}),
    "stack": Case(15, (2, 5), {"num_hidden_layers": 3}),
    "generation": Case(16, (2, 5), {"num_hidden_layers": 2}),
    "end": Case(16, (1, 5), {"num_hidden_layers": 2}),  # its end token is set in generation_checks.py
    "dice": Case(17, (1, 1), adjust=dice),
    "gradients": Case(18, (2, 5), {"num_hidden_layers": 2}),
    "stored": Case(19, (2, 16), STORED_CHANGES, adjust=stored),
}


@cache
def end_token() -> int:
    """The third token of the greedy text of the case `end`, which is its end token where a check asks for an end."""
    case = CASES["end"]
    return int(Reference(case.config, case.weights).greedy(case.ids, 8)[0, -1])


# ---- inputs of the parts by themselves


def exact(x: Array) -> Array:
    """Rounded to float32, in float64: both sides compute with the same numbers."""
    return x.astype(np.float32).astype(np.float64)


def draw(seed: int, *shape: int) -> Array:
    return exact(np.random.default_rng(seed).normal(size=shape))


X, ANGLES = draw(2, 2, 3, 16) * 3, np.tile(draw(12, 5, 4), 2)
HUNDREDS = np.random.default_rng(3).integers(75, 125, (3, 16)) * 1.0  # exact in float16 and bfloat16, fourfold too

INTEGERS = np.random.default_rng(21)
# exp overflows or is 0 in all: in the first for the target, in the second for the others, in the third for all.
LARGE = np.array([[[1e4, 0, -1e4]], [[1e4, -1e4, 0]], [[-1e4, -1e4, -1e4]]])

INPUTS: dict[str, Array] = {
    "x": exact(X), "x + 4": exact(X + 4), "small x": exact(X * 0.02), "one token": exact(X[0, :1]), "ones": np.ones(16),
    "g": exact(np.random.default_rng(1).uniform(0.5, 2, 16)), "about a hundred": HUNDREDS, "hundreds": 4 * HUNDREDS,
    "x of 8": draw(4, 2, 3, 8), "g of 8": draw(5, 8), "towards": draw(6, 2, 3, 8),
    "hidden": draw(7, 2, 3, 24), "heads of 8": draw(8, 1, 2, 5, 8), "heads of 4": draw(9, 2, 2, 3, 4),
    "few logits": draw(22, 4, 6) * 3, "their targets": INTEGERS.integers(0, 6, 4), "logits": draw(23, 2, 3, 5, 11) * 3,
    "targets": INTEGERS.integers(0, 11, (2, 3, 5)), "large logits": LARGE,
    "targets of large ones": np.array([[0], [1], [2]]), "parameters": draw(24, 17), "gradients": draw(25, 12, 17),
    "tokens": 50.0 + INTEGERS.permutation(12),
    "q": draw(10, 1, 4, 5, 8), "k": draw(11, 1, 2, 5, 8), "cos": exact(np.cos(ANGLES)), "sin": exact(np.sin(ANGLES)),
}  # fmt: skip


@cache
def directions() -> tuple[Array, dict[str, Array]]:
    """Along which the gradients are measured: one in the logits, one in each parameter."""
    case, random = CASES["gradients"], np.random.default_rng(20)
    towards = random.normal(size=(*case.ids.shape, case.config["vocab_size"])).astype(np.float32)
    weights = case.weights.items()
    return towards, {n: (random.normal(size=w.shape) / np.sqrt(w.size)).astype(np.float32) for n, w in weights}
