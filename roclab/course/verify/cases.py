"""Small models to hold an implementation against: configurations, weights and token ids, all made by numpy.

Both sides know them: the process that runs a user's file builds its model from them, the judge computes what it should
answer. Most cases silence a part (its output matrix is zero), so that a fault shows in the case of its own part first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray

# head_dim is not hidden_size / heads and the query heads per key-value head are not the key-value heads: a formula
# that takes one for the other gives another number.
CONFIG: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rope_theta": 500.0,
    "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 60, "tie_word_embeddings": False,
}  # fmt: skip

STORED = Path(__file__).parent / "stored.safetensors"  # written by `python -m roclab.course.verify.cases`


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of the handout's layout and its shape."""
    D, F, V, C = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    HC, KC = config["num_attention_heads"] * C, config["num_key_value_heads"] * C
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        found |= {f"{at}.self_attn.{p}.weight": s for p, s in (
            ("q_proj", (HC, D)), ("k_proj", (KC, D)), ("v_proj", (KC, D)), ("o_proj", (D, HC)),
            ("q_norm", (C,)), ("k_norm", (C,)))}  # fmt: skip
        found |= {f"{at}.mlp.{p}_proj.weight": s for p, s in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F)))}
        found |= {f"{at}.{p}_layernorm.weight": (D,) for p in ("input", "post_attention")}
    return found | {"model.norm.weight": (D,), "lm_head.weight": (V, D)}


def draw_weights(config: dict[str, Any], seed: int) -> dict[str, Array]:
    """Random float32 weights, large enough that every part matters: norms in 0.5 … 2, matrices of unit gain."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config).items():
        if "norm" in name:
            w = random.uniform(0.5, 2.0, shape)
        else:
            w = random.normal(size=shape) * (1.0 if "embed" in name else 1.5 / np.sqrt(shape[1]))
        weights[name] = w.astype(np.float32)
    return weights


@dataclass(frozen=True)
class Case:
    """A model and what it reads. `silent` names the matrices (by a part of their names) that are zero."""

    seed: int
    tokens: tuple[int, int] = (2, 6)  # B, T
    changes: dict[str, Any] = field(default_factory=dict)
    silent: tuple[str, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        return CONFIG | self.changes

    @cached_property
    def weights(self) -> dict[str, Array]:
        weights = draw_weights(self.config, self.seed)
        for name in weights:
            if any(part in name for part in self.silent):
                weights[name] = np.zeros_like(weights[name])
        return weights

    @cached_property
    def ids(self) -> Array:
        """(B, T), the end token left out."""
        return np.random.default_rng(self.seed + 1000).integers(1, self.config["vocab_size"] - 1, self.tokens)


class OneScore(Case):
    """All tokens but the last are nothing: their embedding is zero, and so are their q, k and v. The last one's scores
    are 0 for them and q·k/√C for itself, whatever angle RoPE turns both by: scale and softmax alone are left."""

    NOTHING = 7

    @cached_property
    def weights(self) -> dict[str, Array]:
        weights = super().weights
        weights["model.embed_tokens.weight"][self.NOTHING] = 0
        return weights

    @cached_property
    def ids(self) -> Array:
        ids = super().ids.copy()
        ids[:, -1] += ids[:, -1] == self.NOTHING
        ids[:, :-1] = self.NOTHING
        return ids


class Tied(Case):
    """Head and embedding are one. The worker loads `lm_head.weight` into both, then writes the embedding anew."""

    @cached_property
    def config(self) -> dict[str, Any]:
        return CONFIG | self.changes | {"tie_word_embeddings": True}


class Dice(Case):
    """The same known logits after every token: silent layers, one embedding for all, the head's rows set."""

    # At shuffled places, so that a filter that mixes up sorted and unsorted order shows; the others are out of reach.
    PROBABILITIES: ClassVar = {37: 0.4, 5: 0.25, 50: 0.2, 18: 0.1, 22: 0.05}

    @cached_property
    def weights(self) -> dict[str, Array]:
        weights = {name: np.zeros(shape, np.float32) for name, shape in shapes(self.config).items()}
        weights |= {name: np.ones_like(w) for name, w in weights.items() if "norm" in name}
        weights["model.embed_tokens.weight"][:] = 1
        weights["lm_head.weight"][:] = -20 / self.config["hidden_size"]
        for token, p in self.PROBABILITIES.items():
            weights["lm_head.weight"][token] = np.log(p) / self.config["hidden_size"]
        return weights


class Stored(Case):
    """Weights, ids and logits from the file: what the reference said when they were written, whatever numpy draws
    today."""

    @cached_property
    def _file(self) -> dict[str, Array]:
        from safetensors.numpy import load_file

        return load_file(STORED)

    @property
    def weights(self) -> dict[str, Array]:
        return {name: self._file[name] for name in shapes(self.config)}

    @property
    def ids(self) -> Array:
        return self._file["ids"]

    @property
    def logits(self) -> Array:
        return self._file["logits"]


STORED_CHANGES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "eos_token_id": 63,
}  # fmt: skip

CASES: dict[str, Case] = {
    "head": Case(1, changes={"num_hidden_layers": 2}, silent=("o_proj", "down_proj")),
    "eps": Case(2, changes={"rms_norm_eps": 0.5}, silent=("o_proj", "down_proj")),
    "tied": Tied(3, silent=("o_proj", "down_proj")),
    "mlp": Case(4, silent=("o_proj",)),
    "one token": Case(5, (3, 1), {"num_key_value_heads": 6}, ("down_proj",)),
    "one token, grouped": Case(6, (3, 1), silent=("down_proj",)),
    "sees": Case(21, (1, 6), silent=("q_proj", "down_proj")),  # all scores are 0: what is seen counts alike
    "leak": Case(9, (2, 7), {"num_hidden_layers": 3}),
    "scores": OneScore(7, (4, 2), {"num_key_value_heads": 6}, ("down_proj",)),
    "grouped": OneScore(8, (4, 2), silent=("down_proj",)),
    "mask": Case(20, (2, 9), silent=("q_proj", "down_proj")),
    "rope": Case(10, (2, 7), silent=("down_proj",)),
    "far": Case(11, (1, 90), {"rope_theta": 20.0}, silent=("down_proj",)),
    "qk": Case(12, silent=("down_proj",)),
    "dropout": Case(13, changes={"attention_dropout": 0.5}),
    "order": Case(14, (2, 5), {"num_hidden_layers": 1}),
    "every eps": Case(22, (2, 5), {"rms_norm_eps": 0.5}),
    "stack": Case(15, (2, 5), {"num_hidden_layers": 3}),
    "generation": Case(16, (2, 5), {"num_hidden_layers": 2}),
    "end": Case(16, (1, 5), {"num_hidden_layers": 2}),  # its end token is set in checks.py
    "dice": Dice(17, (1, 1)),
    "gradients": Case(18, (2, 5), {"num_hidden_layers": 2}),
    "stored": Stored(19, (2, 16), STORED_CHANGES),
}


def write_stored() -> None:
    """Compute the stored values anew and write them beside this file."""
    from safetensors.numpy import save

    from roclab.core.files import atomic_write
    from roclab.course.verify.reference import Reference

    case = Case(19, (2, 16), STORED_CHANGES)
    logits = Reference(case.config, case.weights).logits(case.ids)
    atomic_write(STORED, save({**case.weights, "ids": case.ids.astype(np.int64), "logits": logits}))


if __name__ == "__main__":
    write_stored()
