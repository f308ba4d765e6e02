"""What a user may set for the language model: how to load it, and how a request chooses its tokens.

Each setting is declared once (`roclab.core.settings`); nothing heavy is imported, so that the command line can make its
flags from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roclab.core.exceptions import RocLabError
from roclab.core.settings import check_settings, setting


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. The defaults are greedy and end with the model's end token.

    `logprobs`: None for none, n for the chosen token's log-probability and the n most likely ones beside it; they are
    the model's own, before any penalty, temperature or filter. `max_new_tokens` None: up to the model's context.
    Raises RocLabError for a value out of range.
    """

    temperature: float = setting(0.0, "0 takes the most likely token.", low=0, flags=("--temperature", "-t"))
    top_k: int = setting(0, "Choose among the k most likely tokens; 0: all.", low=0)
    top_p: float = setting(1.0, "Choose among the most likely tokens that make up this probability.", low=0, high=1)
    min_p: float = setting(0.0, "Drop tokens less likely than this share of the most likely one.", low=0, high=1)
    repetition_penalty: float = setting(
        1.0, "Above 1: tokens of the prompt and the answer so far become less likely.", low=0.01, high=100
    )
    seed: int = setting(0, "The same seed gives the same text.", low=0, high=2**63 - 1)
    max_new_tokens: int | None = setting(
        None,
        "At most this many new tokens; if not given 256, or what the context holds.",
        low=1,
        flags=("--max-new-tokens", "-n"),
    )
    stop: Sequence[str] = setting((), "End before this text; may be repeated.")
    logprobs: int | None = setting(None, "With --json: log-probabilities and the N best tokens.", low=0, high=100)
    ignore_eos: bool = False  # for benchmarks: go on until max_new_tokens

    def __post_init__(self) -> None:
        check_settings(self)
        if "" in self.stop:
            raise RocLabError("a stop string is empty: give the text that ends an answer")


@dataclass(frozen=True)
class LoadOptions:
    """How `roclab.lm.load` opens a model. Raises RocLabError for a value that is not allowed.

    `float_activations` belongs to the CPU kernels: True keeps activations as floats, False rounds them to int8, None
    leaves it to the kernels, which round.
    """

    tokenizer: Path | None = setting(None, "A folder with tokenizer.json, if it does not lie beside the weights.")
    dtype: str = setting("float32", "float32, bfloat16 or float16.", choices=("float32", "bfloat16", "float16"))
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, …; auto takes a GPU where there is one.")
    engine: str = setting(
        "auto",
        "fast (quantized CPU kernels), torch, or auto: without a CUDA GPU, fast where it fits.",
        choices=("auto", "fast", "torch"),
    )
    quantize: str | None = setting(
        None, "Round float weights to int8 or int4, for the fast engine.", choices=("int8", "int4")
    )
    float_activations: bool | None = setting(
        None,
        "Fast engine: whether activations stay floats (slower, and at temperature 0 the words of --engine torch) "
        "or are rounded to int8; by default floats for greedy generation, int8 elsewhere.",
        flags=("--float-activations/--int8-activations",),
    )
    threads: int | None = setting(None, "Fast engine: by default the fastest number is found.", low=1, high=64)

    def __post_init__(self) -> None:
        check_settings(self)

    def for_temperature(self, temperature: float) -> LoadOptions:
        """These options for generating at `temperature`: at 0 activations stay floats unless told otherwise. Who asks
        for the likeliest text should get the model's own: between two tokens almost alike, int8's rounding decides, and
        that differs between processors."""
        greedy = self.float_activations is None and temperature == 0
        return replace(self, float_activations=True) if greedy else self
