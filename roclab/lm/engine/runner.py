"""What the scheduler asks of a model: logits for any tokens of any sequences in one call.

Two runners exist: `torch_runner.TorchRunner`, the readable model on any device, and `cpu.runner.CPURunner`, the C
kernels. A third has to offer the methods below, nothing else; text, sampling and stop strings are not its business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.model import RocLMConfig


class Sequence(Protocol):
    """The KV cache of one request."""

    ids: list[int]  # the tokens whose keys and values it holds
    capacity: int  # how many fit

    @property
    def shareable(self) -> int:
        """How many of its first tokens another request may take over."""

    @property
    def bytes(self) -> int:
        """Memory in use."""

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""


# (sequence, ids to append, n): the logits of the last n of these ids are wanted
Work: TypeAlias = "tuple[Any, Items[int], int]"


class Runner(ABC):
    """A model behind the scheduler. Sequences are of the runner's own kind."""

    config: RocLMConfig
    device: torch.device
    dtype: torch.dtype | None  # of the weights; None: quantized
    name: str  # as --engine has it
    weight_bytes: int  # of all weights, read for every token
    activations: str  # what a matrix product multiplies with the weights: "float32", … or, rounded, "int8"
    batch_invariant: bool  # a row's logits are the same bits, whatever else is in the call
    block: int  # a prompt is computed in pieces that end at multiples of this, and shared in such pieces
    engine: Any = None  # the scheduler over it, where `roclab.lm.generate` has made one

    @abstractmethod
    def new_sequence(self, capacity: int) -> Any:
        """An empty sequence; about `capacity` tokens are expected."""

    @abstractmethod
    def copy(self, sequence: Any, length: int, capacity: int) -> Any:
        """A new sequence that holds the first `length` tokens of another."""

    @abstractmethod
    def forward(self, work: Items[Work], *, scratch: bool = False) -> Tensor:
        """Append the ids of each entry to its sequence; returns the logits wanted, in order, (Σ n, V) float.

        With `scratch` they lie in memory that the next such call overwrites. Raises RocLabError for ids that do not
        fit.
        """

    def hidden(self, ids: Items[int]) -> Tensor:
        """The last hidden states (T, D) of one text, after the final norm, float32. Raises RocLabError for a runner
        that does not give them."""
        raise RocLabError(f"the engine {self.name} gives no hidden states")

    def settle(self, sequence: Any) -> Tensor:
        """Logits (1, V) after the sequence's last token, as computed without any other sequence."""
        last = sequence.ids[-1]
        sequence.cut(len(sequence.ids) - 1)
        return self.forward([(sequence, [last], 1)])


def score(runner: Runner, ids: Items[int], last: int) -> Tensor:
    """Logits (last, V) of the last positions of one text, computed from nothing."""
    return runner.forward([(runner.new_sequence(len(ids)), ids, last)])
