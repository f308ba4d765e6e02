"""GGUF, the file format of llama.cpp: metadata, tokenizer and quantized tensors in one file, read through mmap.

    file = GGUFFile("model.gguf")
    file.metadata["general.architecture"]          # 'llama'
    tensor = file.tensors["token_embd.weight"]
    tensor.shape                                   # (49152, 576), rows first as in torch
    tensor.load()                                  # dequantized, float32

The `gguf` package reads the same files, but takes seconds to index a vocabulary; here opening takes a tenth of a
second. Source of the layout: the GGUF specification.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roclab.core.exceptions import CheckpointError
from roclab.core.files import not_downloaded
from roclab.lm.weights.gguf_blocks import BLOCK_TYPES, Array, BlockType

PIECE = 1 << 15  # weights that are dequantized together: their temporaries stay in the processor's caches
FLOAT_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """A tensor of a GGUF file, a `StoredTensor`: `start` in bytes from the beginning of the mapped file."""

    shape: tuple[int, ...]
    type: BlockType
    start: int
    file: mmap.mmap
    row_order: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        return self.type.name

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.size * self.type.nbytes

    @property
    def raw(self) -> Array:
        return np.frombuffer(self.file, np.uint8, self.nbytes, self.start).reshape(-1, self.type.nbytes)

    def pieces(self) -> Iterator[Array]:
        raw, size = self.raw, self.type.size
        step = FLOAT_PIECE if size == 1 else PIECE // size
        for start in range(0, len(raw), step):
            yield raw[start : start + step]
        # Tell the system that these pages are not needed for now, where it can be told: else the file stays in memory
        # beside the weights made of it.
        if hasattr(mmap, "MADV_DONTNEED"):
            page = self.start // mmap.PAGESIZE * mmap.PAGESIZE
            self.file.madvise(mmap.MADV_DONTNEED, page, self.start + self.nbytes - page)

    def load(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        out = torch.empty(self.shape, dtype=dtype)
        flat, done = out.view(-1, self.type.size), 0
        for blocks in self.pieces():
            numbers = self.type.dequantize(blocks)
            numbers = numbers if numbers.flags.writeable else numbers.copy()  # torch warns of read-only memory
            flat[done : done + len(blocks)] = torch.from_numpy(numbers)
            done += len(blocks)
        return out if self.row_order is None else out[self.row_order]


class GGUFFile:
    """An open GGUF file: `metadata` and `tensors`, by the file's names. Raises CheckpointError if the file is not GGUF,
    is cut off, or holds a block type that is not among BLOCK_TYPES."""

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
            what = not_downloaded(self.path) or "not a GGUF file (it does not begin with 'GGUF')"
            raise CheckpointError(f"{self.path}: {what}")
        self._at = 4
        version, tensor_count, entry_count = self._unpack("I"), self._unpack("Q"), self._unpack("Q")
        if not version & 0xFFFF:
            raise CheckpointError(
                f"{self.path}: big-endian; take the little-endian file, or convert this one with gguf-convert-endian"
            )
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
            tensor = GGUFTensor(shape, BLOCK_TYPES[type_id], data_start + offset, self._map)
            if not 1 <= len(shape) <= 4 or 0 in shape:
                raise self._broken(f"tensor {name} has the shape {shape}; one to four sizes above 0 were expected")
            if shape[-1] % tensor.type.size:
                raise self._broken(f"tensor {name} has rows of {shape[-1]}, not a multiple of {tensor.type.size}")
            if tensor.start + tensor.nbytes > len(self._map):
                raise self._broken(
                    f"cut off: tensor {name} ends at byte {tensor.start + tensor.nbytes:,}, beyond the file's end"
                )
            if name in self.tensors:
                raise self._broken(f"tensor {name} stands in it twice")
            self.tensors[name] = tensor
        end, before = 0, ""
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].start):
            # read without a word, such a tensor would only answer nonsense
            if tensor.start < end:
                raise self._broken(f"tensor {name} begins at byte {tensor.start:,}, within tensor {before}")
            if tensor.start % alignment:
                raise self._broken(f"tensor {name} begins at byte {tensor.start:,}, not a multiple of {alignment}")
            end, before = tensor.start + tensor.nbytes, name

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
        """As `_string`, for a vocabulary: a hundred thousand of them, so in one loop without function calls."""
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
