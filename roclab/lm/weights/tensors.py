"""A tensor in a model file, read when it is asked for; and what each file format's module gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from roclab.core.exceptions import RocLabError
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import Tokenizer

SUPPORTED = ("qwen3", "qwen2", "llama", "mistral")  # architectures, as both formats name them
FLOAT_KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StoredTensor(Protocol):
    """One parameter as its file stores it.

    `shape` is the parameter's, `kind` the file's data type: F32, F16, BF16, or a block type of GGUF such as Q4_K.
    `raw` holds the bytes as in the file, uint8 (blocks, bytes of a block). `row_order` tells which row of the file is
    each row of the parameter; None: they are the same.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def row_order(self) -> Tensor | None: ...
    @property
    def raw(self) -> np.ndarray: ...

    def pieces(self) -> Iterator[np.ndarray]:
        """`raw` in pieces that fit the processor's caches. After the last one the file's pages may leave memory."""

    def load(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The parameter in `dtype`: dequantized, rows in our order. The file's pages may leave memory afterwards."""


@dataclass(frozen=True, eq=False)
class FloatTensor:
    """A StoredTensor of plain numbers. `read(dtype)` gives them."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[torch.dtype], Tensor]
    row_order: Tensor | None = None

    @property
    def raw(self) -> np.ndarray:
        return self.read(FLOAT_KINDS[self.kind]).contiguous().view(-1, 1).view(torch.uint8).numpy()

    def pieces(self) -> Iterator[np.ndarray]:
        yield self.raw

    def load(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.read(dtype)


def tensor_in_memory(tensor: Tensor) -> FloatTensor:
    """As a StoredTensor. What is loaded is a copy: training does not change it, and it keeps no mapped file open."""
    kind = next((kind for kind, dtype in FLOAT_KINDS.items() if dtype == tensor.dtype), str(tensor.dtype))
    return FloatTensor(tuple(tensor.shape), kind, lambda dtype: tensor.detach().to("cpu", dtype, copy=True))


class Contents(NamedTuple):
    """What is in a model file or folder, by RocLM's parameter names, unchecked. The tokenizer is read when called."""

    config: RocLMConfig
    tensors: dict[str, StoredTensor]
    tokenizer: Callable[[], Tokenizer]


def architecture_of(config: RocLMConfig) -> str:
    """The one of SUPPORTED that a configuration is written as."""
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.attention_bias and config.o_proj_bias is False else "llama"


def export_dtype(tensors: Mapping[str, StoredTensor], dtype: str) -> torch.dtype:
    """The dtype to write floats in: float32, bfloat16, float16; "auto": as the matrices are stored, quantized ones as
    float16. Raises RocLabError for another word."""
    if dtype == "auto":
        stored = {FLOAT_KINDS.get(t.kind, torch.float16) for t in tensors.values() if len(t.shape) > 1}
        return stored.pop() if len(stored) == 1 else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise RocLabError(f"--dtype {dtype}: choose one of auto, float32, bfloat16, float16")
    return getattr(torch, dtype)


def load_finite(name: str, tensor: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`. Raises RocLabError for numbers that it cannot hold."""
    loaded = tensor.load(dtype).contiguous()
    if not loaded.isfinite().all():
        raise RocLabError(f"tensor {name} holds numbers that are not finite in {dtype}; choose another --dtype")
    return loaded
