"""A tensor in a model file, read when it is asked for; and what each file format's module gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.lm.model import ROPE_SCALING, RocLMConfig
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


def checked_architecture(kind: Any, has_experts: bool, origin: str) -> str:
    """Raises CheckpointError for an architecture that we do not have."""
    if has_experts:  # Mixtral's GGUF files call themselves "llama"
        raise CheckpointError(f"{origin}: a mixture of experts, which is not supported; take a dense model")
    if kind not in SUPPORTED:
        raise CheckpointError(f"{origin}: architecture {kind!r} is not supported (supported: {', '.join(SUPPORTED)})")
    return kind


def architecture_of(config: RocLMConfig) -> str:
    """The one of SUPPORTED that a configuration is written as."""
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.attention_bias and config.o_proj_bias is False else "llama"


def checked_rope_scaling(rope: Mapping[str, Any], context: int | None, origin: str) -> dict[str, Any] | None:
    """A file's `rope_scaling`, or None if it has none. Raises CheckpointError for one that says too little, contradicts
    itself, or asks for what RocLM does not compute; it tells how far the model works without."""
    kinds = {rope[key] for key in ("rope_type", "type") if rope.get(key)}
    kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else None
    constants = ROPE_SCALING.get(kind or "", ())
    given = {key: value for key, value in rope.items() if value is not None and key not in ("rope_type", "type")}
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "finetuned": True}  # yarn's, which RocLM has built in
    wrong = [key for key in constants if key not in given]
    wrong += [key for key in given if key not in constants and usual.get(key) != given[key] and kind != "default"]
    if kind in ROPE_SCALING and not wrong and (kind != "default" or "factor" not in given):
        return None if kind == "default" else {"rope_type": kind, **{key: given[key] for key in constants}}
    far = given.get("original_max_position_embeddings") or context
    raise CheckpointError(
        f"{origin}: rope_scaling {dict(rope)} is not supported (supported: "
        + "; ".join(f"{name}: {', '.join(keys)}" for name, keys in ROPE_SCALING.items() if keys)
        + f"); without it the model works up to {far} tokens: remove it from the file"
    )


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
