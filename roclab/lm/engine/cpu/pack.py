"""A checkpoint's matrices as the kernels want them: GGUF blocks of 32 weights, then tiles of 16 rows (matmul.h).

Q4_0, Q4_1 and Q8_0 are taken as they lie in the file. Q4_K's sub-blocks become Q4_1 blocks with the same quants, and
Q5_0 blocks become Q8_0 blocks, which holds them exactly. Everything else is dequantized and rounded to int8 (Q8_0).
Float weights are quantized only where the user says so: "int8" (Q8_0), or "int4" (Q4_1, with the embedding, the head,
k_proj and v_proj in int8, on which quality hangs most).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import PackJob
from roclab.lm.weights.checkpoint import Checkpoint
from roclab.lm.weights.gguf_blocks import fifth_bits, float16, k_nibbles, k_scales, nibbles
from roclab.lm.weights.tensors import FLOAT_KINDS, StoredTensor

QUANTIZATIONS = ("int8", "int4")
KINDS = {"Q4_0": 0, "Q4_1": 1, "Q8_0": 2}  # enum kind in matmul.h
GROUP, TILE = 32, 16

Array = np.ndarray


def stays_int8(name: str) -> bool:
    """Whether this matrix (a module's name) is kept in int8 where the others become int4: k_proj and v_proj are the
    smallest of a layer, and cost most for their size (docs/log.md)."""
    return name.endswith(("embed_tokens", "lm_head", "k_proj", "v_proj"))


class Blocks(NamedTuple):
    """A matrix as GGUF blocks: its block type, uint8 (n, bytes), the order of rows (None: as they are), and whether the
    bytes are those of the mapped file."""

    kind: str
    data: Array
    order: Array | None = None
    mapped: bool = False


def blocks_of(library: ctypes.CDLL, name: str, stored: StoredTensor, quantize: str | None) -> Blocks:
    """The matrix of the parameter `name`. Raises RocLabError for numbers that are not finite."""
    if quantize is None and stored.kind in (*KINDS, *_REPACKED):
        order = None if stored.row_order is None else stored.row_order.to(torch.int32).numpy()
        if stored.kind in KINDS:
            return Blocks(stored.kind, stored.raw, order, mapped=True)
        kind, repack = _REPACKED[stored.kind]
        return Blocks(kind, np.concatenate([repack(piece) for piece in stored.pieces()]), order)
    weight = stored.load(torch.float32).contiguous()
    if not weight.isfinite().all():
        raise RocLabError(f"tensor {name} holds numbers that are not finite: it cannot be quantized")
    kind = "Q4_1" if quantize == "int4" and not stays_int8(name.removesuffix(".weight")) else "Q8_0"
    blocks = np.empty((weight.numel() // GROUP, 20 if kind == "Q4_1" else 34), np.uint8)
    library.roclm_quantize(KINDS[kind], weight.data_ptr(), len(blocks), blocks.ctypes.data)
    return Blocks(kind, blocks)


class Packing:
    """Matrices to lay out as tiles. Any number of threads may `run` it: each takes the next job that nobody has taken
    yet, in one call that leaves the interpreter alone."""

    PIECE = 1 << 21  # weights: large matrices are several jobs

    def __init__(self, library: ctypes.CDLL):
        self._library, self._next = library, ctypes.c_int(0)
        self._jobs: list[PackJob] = []
        self._kept: list[Blocks] = []  # alive until they are laid out

    def add(self, blocks: Blocks, rows: int, columns: int, tiles: int) -> None:
        """`tiles`: the address where they go."""
        kind = KINDS[blocks.kind]
        row_bytes, tile_row = blocks.data.nbytes // rows, columns // GROUP * self._library.roclm_tile_bytes(kind)
        order = None if blocks.order is None else blocks.order.ctypes.data
        # An order tells where in the whole matrix each row lies: such a matrix stays one job.
        step = rows if order else max(1, self.PIECE // (columns * TILE)) * TILE
        for start in range(0, rows, step):
            source, target = blocks.data.ctypes.data + start * row_bytes, tiles + start // TILE * tile_row
            count = min(step, rows - start)
            self._jobs.append(PackJob(kind, count, columns, blocks.mapped, source, order, target))
        self._kept.append(blocks)

    def run(self) -> None:
        """Return once all jobs are taken; those that other threads took may not be done yet."""
        jobs = (PackJob * len(self._jobs))(*self._jobs)
        self._library.roclm_pack(jobs, len(jobs), self._next)


def is_packable(checkpoint: Checkpoint) -> bool:
    """Whether every matrix can be packed from the file's own bytes."""
    return all(kind in KINDS for kind in _matrix_kinds(checkpoint))


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether the matrices are quantized already, as in most GGUF files."""
    return not _matrix_kinds(checkpoint) & set(FLOAT_KINDS)


def _matrix_kinds(checkpoint: Checkpoint) -> set[str]:
    return {tensor.kind for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2}


def why_not(checkpoint: Checkpoint, quantize: str | None) -> str | None:
    """The reason why the kernels cannot take this checkpoint, or None if they can."""
    config = checkpoint.config
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise RocLabError(f"--quantize {quantize}: choose int8 or int4")
    widths = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    widths["the heads' width"] = config.num_attention_heads * config.head_dim
    for what, width in widths.items():
        if width % GROUP:
            return f"{what} is {width}, not a multiple of {GROUP}"
    if config.head_dim % TILE:
        return f"head_dim is {config.head_dim}, not a multiple of {TILE}"
    if quantize is None and not is_quantized(checkpoint):
        return "its weights are floats; --quantize int8 or int4 rounds them"
    return None


def _q4_k(raw: Array) -> Array:
    """d·sc·q − dmin·m in eight runs of 32 → Q4_1 blocks with scale d·sc and minimum −dmin·m, rounded to float16."""
    scales, minima = k_scales(raw[:, 4:16])
    ends = np.stack([float16(raw[:, :2]) * scales, -float16(raw[:, 2:4]) * minima], axis=-1)  # (n, 8, 2)
    q = k_nibbles(raw[:, 16:])  # (n, 8, 32)
    packed = q[..., :16] | q[..., 16:] << 4
    head = ends.astype(np.float16).view(np.uint8).reshape(len(raw), 8, 4)
    return np.concatenate([head, packed], axis=-1).reshape(-1, 20)


def _q5_0(raw: Array) -> Array:
    """d·(q − 16) with q in 0 … 31 → Q8_0 blocks with the same d."""
    q = (nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])).astype(np.int8) - 16
    return np.concatenate([raw[:, :2], q.view(np.uint8)], axis=1)


_REPACKED: dict[str, tuple[str, Callable[[Array], Array]]] = {"Q4_K": ("Q4_1", _q4_k), "Q5_0": ("Q8_0", _q5_0)}
