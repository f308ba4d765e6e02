"""GGUF, the file format of llama.cpp: metadata, tokenizer and quantized tensors in one file, read through mmap.

    file = GGUFFile("model.gguf")
    file.metadata["general.architecture"]          # 'llama'
    file.tensors["token_embd.weight"].shape        # (49152, 576), rows first as in torch
    file.load("token_embd.weight")                 # dequantized, float32

The `gguf` package reads the same files, but takes seconds to index a vocabulary; here opening costs a tenth of a
second, and the tests hold every block type against that package's own dequantization, bit for bit.

Layout and block formats: the GGUF specification and ggml's quantization structs. A block is a run of 32 or 256
weights that share scales. In the functions below n is the number of blocks.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roclab.core.exceptions import CheckpointError

Array = np.ndarray


def _f16(blocks: Array) -> Array:
    """(n, 2) bytes → (n, 1) float32."""
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """(n, 16) bytes → (n, 32): the low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(packed: Array) -> Array:
    """(n, 4) bytes → (n, 32): bit i, moved to place 4, belongs to weight i."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(b: Array) -> Array:  # scale 2, weights 16: d·(q − 8)
    return _f16(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(b: Array) -> Array:  # scale 2, minimum 2, weights 16: d·q + m
    return _f16(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _f16(b[:, 2:4])


def _q5_0(b: Array) -> Array:  # scale 2, fifth bits 4, weights 16: d·(q − 16)
    q = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
    return _f16(b[:, :2]) * (q.astype(np.int8) - 16).astype(np.float32)


def _q5_1(b: Array) -> Array:  # scale 2, minimum 2, fifth bits 4, weights 16: d·q + m
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _f16(b[:, :2]) * q.astype(np.float32) + _f16(b[:, 2:4])


def _q8_0(b: Array) -> Array:  # scale 2, weights 32: d·q
    return _f16(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(packed: Array) -> tuple[Array, Array]:
    """The eight 6-bit scales and eight 6-bit minima of a Q4_K or Q5_K block: (n, 12) bytes → 2 × (n, 8).

    Bytes 0–3 and 4–7 hold the first four scales and minima in their low 6 bits; bytes 8–11 hold the low nibbles of
    the other four, whose high 2 bits sit on top of bytes 0–7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=1)
    minima = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_nibbles(packed: Array) -> Array:
    """(n, 128) bytes → (n, 8, 32): each run of 32 bytes holds one sub-block in its low and one in its high halves."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(b: Array) -> Array:  # scale 2, minimum 2, 6-bit sub-scales 12, weights 128: d·sc·q − dmin·m
    scales, minima = _k_scales(b[:, 4:16])
    d, m = (_f16(b[:, :2]) * scales)[:, :, None], (_f16(b[:, 2:4]) * minima)[:, :, None]
    return (d * _k_nibbles(b[:, 16:]).astype(np.float32) - m).reshape(-1, 256)


def _q5_k(b: Array) -> Array:  # as Q4_K, with 32 bytes before the weights: bit j of byte i is for sub-block j
    scales, minima = _k_scales(b[:, 4:16])
    d, m = (_f16(b[:, :2]) * scales)[:, :, None], (_f16(b[:, 2:4]) * minima)[:, :, None]
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # (n, 8, 32)
    q = _k_nibbles(b[:, 48:]) | (high << 4)
    return (d * q.astype(np.float32) - m).reshape(-1, 256)


def _q6_k(b: Array) -> Array:  # low nibbles 128, high pairs 64, int8 sub-scales 16, scale 2: d·sc·(q − 32)
    halves = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([halves & 0x0F, halves >> 4], axis=2).reshape(-1, 8, 32)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (low | (high.reshape(-1, 8, 32) << 4)).astype(np.int8) - 32
    d = _f16(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)  # (n, 16): one scale per 16 weights
    return (d[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


@dataclass(frozen=True)
class BlockType:
    """How a run of weights is stored: `size` weights in `nbytes` bytes; `dequantize` (n, nbytes) → (n, size)."""

    name: str
    size: int
    nbytes: int
    dequantize: Callable[[Array], Array]


def _bf16(b: Array) -> Array:
    return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, lambda b: b.view(np.float32)),
    1: BlockType("F16", 1, 2, _f16),
    30: BlockType("BF16", 1, 2, _bf16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
}


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file: `shape` rows first, `start` in bytes from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.size * self.type.nbytes


class GGUFFile:
    """An open GGUF file: `metadata` (a dict), `tensors` (by name), `load(name)`. Raises CheckpointError if the file
    is not GGUF, is cut off, or holds a block type that is not among BLOCK_TYPES."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError):
            raise self._broken("the file ends inside its header, or the header is damaged") from None

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what} (file of {len(self._map):,} bytes); fetch the file again")

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise CheckpointError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        self._at = 4
        version, tensor_count, entry_count = self._unpack("I"), self._unpack("Q"), self._unpack("Q")
        if version not in (2, 3):
            raise CheckpointError(f"{self.path}: GGUF version {version} is not supported (supported: 2, 3)")
        self.metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            self.metadata[key] = self._value(self._unpack("I"))

        entries = []
        for _ in range(tensor_count):
            name = self._string()
            dims = [self._unpack("Q") for _ in range(self._unpack("I"))]  # columns first: reversed below
            entries.append((name, tuple(reversed(dims)), self._unpack("I"), self._unpack("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"general.alignment is {alignment!r}, not a number of bytes")
        data_start = -(-self._at // alignment) * alignment

        self.tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_id, offset in entries:
            if type_id not in BLOCK_TYPES:
                known = ", ".join(t.name for t in BLOCK_TYPES.values())
                raise CheckpointError(
                    f"{self.path}: tensor {name} is stored as ggml type {type_id}, which is not supported "
                    f"(supported: {known}); take another quantization of the model"
                )
            tensor = GGUFTensor(name, shape, BLOCK_TYPES[type_id], data_start + offset)
            if not 1 <= len(shape) <= 4 or 0 in shape:
                raise self._broken(f"tensor {name} has the shape {shape}; one to four sizes above 0 were expected")
            if shape[-1] % tensor.type.size:
                raise self._broken(f"tensor {name} has rows of {shape[-1]}, not a multiple of {tensor.type.size}")
            if tensor.start + tensor.nbytes > len(self._map):
                raise self._broken(
                    f"cut off: tensor {name} ends at byte {tensor.start + tensor.nbytes:,}, beyond the file's end"
                )
            self.tensors[name] = tensor

    def _unpack(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._map, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._unpack("Q")
        if self._at + length > len(self._map):
            raise struct.error
        value = self._map[self._at : self._at + length].decode("utf-8")
        self._at += length
        return value

    def _strings(self, count: int) -> list[str]:
        """As `_string`, for a vocabulary: a hundred thousand of them, so in one loop without a call of ours."""
        values: list[bytes] = []
        at, data = self._at, self._map
        length_at, append = struct.Struct("<Q").unpack_from, values.append
        for _ in range(count):
            (length,) = length_at(data, at)
            start = at + 8
            at = start + length
            append(data[start:at])
        if at > len(data):
            raise struct.error
        self._at = at
        return [value.decode("utf-8") for value in values]

    _SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")  # by the file's type numbers
    _STRING, _ARRAY = 8, 9

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == self._STRING:
            return self._string()
        if kind != self._ARRAY:
            return self._unpack(self._SCALARS[kind] or "")
        if depth > 8:
            raise self._broken("the metadata holds arrays inside arrays without end")
        kind, count = self._unpack("I"), self._unpack("Q")
        if kind == self._STRING:
            return self._strings(count)
        if kind == self._ARRAY:
            return [self._value(kind, depth + 1) for _ in range(count)]
        code = f"<{count}{self._SCALARS[kind]}"
        if self._at + struct.calcsize(code) > len(self._map):
            raise struct.error
        values = list(struct.unpack_from(code, self._map, self._at))
        self._at += struct.calcsize(code)
        return values

    def raw(self, name: str) -> Array:
        """The tensor's bytes as they lie in the file, unread until touched: uint8 (blocks, bytes of a block)."""
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start)
        return flat.reshape(-1, tensor.type.nbytes)

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The tensor dequantized, in `dtype`."""
        tensor = self.tensors[name]
        blocks, out = self.raw(name), torch.empty(tensor.shape, dtype=dtype)
        flat = out.view(-1, tensor.type.size)
        # In pieces that stay in the cache: whole tensors would move every temporary through memory.
        step = max(1, 32768 // tensor.type.size)
        if tensor.type.size == 1:
            step = 1 << 20
        for start in range(0, len(blocks), step):
            piece = tensor.type.dequantize(blocks[start : start + step])
            flat[start : start + step] = torch.from_numpy(piece if piece.flags.writeable else piece.copy())
        self.release(name)
        return out

    def release(self, name: str) -> None:
        """Tell the system that these pages of the file are not needed for now, where it can be told: else the file
        stays in memory beside the weights made of it."""
        if hasattr(mmap, "MADV_DONTNEED"):
            tensor = self.tensors[name]
            start = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.nbytes - start)
