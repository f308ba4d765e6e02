"""What a user may set for the language model: how to load it, and how a request chooses its tokens.

Each setting is declared once (`roclab.core.settings`); nothing heavy is imported, so that the command line can make its
flags from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    max_new_tokens: int | None = setting(None, "At most this many new tokens.", low=1, flags=("--max-new-tokens", "-n"))
    stop: Sequence[str] = setting((), "End before this text; may be repeated.")
    logprobs: int | None = setting(None, "With --json: log-probabilities and the N best tokens.", low=0, high=100)
    ignore_eos: bool = False  # for benchmarks: go on until max_new_tokens

    def __post_init__(self) -> None:
        check_settings(self)
        if "" in self.stop:
            raise RocLabError("a stop string is empty: give the text that ends an answer")
