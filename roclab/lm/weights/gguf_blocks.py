"""GGUF's block types: how a run of 32 or 256 weights that share scales is stored, and how it is dequantized.

A new block type is one function and one line of BLOCK_TYPES. Source: ggml's quantization structs. The `gguf` package
has the same functions; these are 5 to 30 times as fast (docs/log.md), and the tests compare the two bit for bit.

In the functions below n is the number of blocks, and b holds their bytes: uint8 (n, bytes of a block).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def float16(pairs: Array) -> Array:
    """(n, 2) bytes → (n, 1) float32."""
    return np.ascontiguousarray(pairs).view(np.float16).astype(np.float32)


def nibbles(packed: Array) -> Array:
    """(n, 16) bytes → (n, 32): the low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def fifth_bits(packed: Array) -> Array:
    """(n, 4) bytes → (n, 32): bit i, moved to place 4, belongs to weight i."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(b: Array) -> Array:  # scale 2, weights 16: d·(q − 8)
    return float16(b[:, :2]) * (nibbles(b[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(b: Array) -> Array:  # scale 2, minimum 2, weights 16: d·q + m
    return float16(b[:, :2]) * nibbles(b[:, 4:]).astype(np.float32) + float16(b[:, 2:4])


def _q5_0(b: Array) -> Array:  # scale 2, fifth bits 4, weights 16: d·(q − 16)
    q = nibbles(b[:, 6:]) | fifth_bits(b[:, 2:6])
    return float16(b[:, :2]) * (q.astype(np.int8) - 16).astype(np.float32)


def _q5_1(b: Array) -> Array:  # scale 2, minimum 2, fifth bits 4, weights 16: d·q + m
    q = nibbles(b[:, 8:]) | fifth_bits(b[:, 4:8])
    return float16(b[:, :2]) * q.astype(np.float32) + float16(b[:, 2:4])


def _q8_0(b: Array) -> Array:  # scale 2, weights 32: d·q
    return float16(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def k_scales(packed: Array) -> tuple[Array, Array]:
    """The eight 6-bit scales and eight 6-bit minima of a Q4_K or Q5_K block: (n, 12) bytes → 2 × (n, 8).

    Bytes 0–3 and 4–7 hold the first four scales and minima in their low 6 bits; bytes 8–11 hold the low nibbles of
    the other four, whose high 2 bits are the high bits of bytes 0–7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=1)
    minima = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def k_nibbles(packed: Array) -> Array:
    """(n, 128) bytes → (n, 8, 32): each run of 32 bytes holds one sub-block in its low and one in its high halves."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(b: Array) -> Array:  # scale 2, minimum 2, 6-bit sub-scales 12, weights 128: d·sc·q − dmin·m
    scales, minima = k_scales(b[:, 4:16])
    d, m = (float16(b[:, :2]) * scales)[:, :, None], (float16(b[:, 2:4]) * minima)[:, :, None]
    return (d * k_nibbles(b[:, 16:]).astype(np.float32) - m).reshape(-1, 256)


def _q5_k(b: Array) -> Array:  # as Q4_K, with 32 bytes before the weights: bit j of byte i is for sub-block j
    scales, minima = k_scales(b[:, 4:16])
    d, m = (float16(b[:, :2]) * scales)[:, :, None], (float16(b[:, 2:4]) * minima)[:, :, None]
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # (n, 8, 32)
    q = k_nibbles(b[:, 48:]) | (high << 4)
    return (d * q.astype(np.float32) - m).reshape(-1, 256)


def _q6_k(b: Array) -> Array:  # low nibbles 128, high pairs 64, int8 sub-scales 16, scale 2: d·sc·(q − 32)
    halves = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([halves & 0x0F, halves >> 4], axis=2).reshape(-1, 8, 32)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (low | (high.reshape(-1, 8, 32) << 4)).astype(np.int8) - 32
    d = float16(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)  # (n, 16): one scale per 16 weights
    return (d[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # the places of four 2-bit numbers in a byte


def two_bits(packed: Array) -> Array:
    """(n, 64) bytes → (n, 16, 16): each run of 32 bytes holds four runs of 32 weights, the lowest bits first."""
    return ((packed.reshape(-1, 2, 1, 32) >> _PAIRS) & 3).reshape(-1, 16, 16)


def _q2_k(b: Array) -> Array:  # 4-bit sub-scales and minima 16, weights 64, scale 2, minimum 2: d·sc·q − dmin·m
    d = float16(b[:, 80:82]) * (b[:, :16] & 0x0F).astype(np.float32)
    m = float16(b[:, 82:84]) * (b[:, :16] >> 4).astype(np.float32)
    return (d[:, :, None] * two_bits(b[:, 16:80]).astype(np.float32) - m[:, :, None]).reshape(-1, 256)


def _q3_k(b: Array) -> Array:  # third bits 32, low pairs 64, 6-bit sub-scales 12, scale 2: d·(sc − 32)·(q − 4)
    low, high = b[:, 96:104], b[:, 104:108]  # nibbles of 16 scales, and their upper pairs
    scales = np.concatenate([low & 0x0F, low >> 4], axis=1) | ((high[:, None] >> _PAIRS) & 3).reshape(-1, 16) << 4
    third = (b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # (n, 8, 32)
    q = (two_bits(b[:, 32:96]) | third.reshape(-1, 16, 16) << 2).astype(np.int8) - 4
    d = float16(b[:, 108:]) * (scales.astype(np.int8) - 32).astype(np.float32)
    return (d[:, :, None] * q.astype(np.float32)).reshape(-1, 256)


# What the sixteen 4-bit numbers stand for: uneven steps, and 4-bit floats (doubled).
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _iq4_nl(b: Array) -> Array:  # scale 2, weights 16: d·table[q]
    return float16(b[:, :2]) * _IQ4[nibbles(b[:, 2:])]


def _iq4_xs(b: Array) -> Array:  # scale 2, sub-scales' upper pairs 2 and nibbles 4, weights 128: d·(sc − 32)·table[q]
    low = np.stack([b[:, 4:8] & 0x0F, b[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = ((b[:, 2:4, None] >> _PAIRS[:, 0]) & 3).reshape(-1, 8)
    d = float16(b[:, :2]) * ((low | high << 4).astype(np.int8) - 32).astype(np.float32)
    return (d[:, :, None] * _IQ4[nibbles(b[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)]).reshape(-1, 256)


def _mxfp4(b: Array) -> Array:  # the scale's exponent 1, weights 16: 2^(e − 128)·table[q]
    return np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128) * _FP4[nibbles(b[:, 1:])]


def _bf16(b: Array) -> Array:
    return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class BlockType:
    """`size` weights in `nbytes` bytes; `dequantize` (n, nbytes) → (n, size)."""

    name: str
    size: int
    nbytes: int
    dequantize: Callable[[Array], Array]


BLOCK_TYPES = {  # by the format's numbers
    0: BlockType("F32", 1, 4, lambda b: b.view(np.float32)),
    1: BlockType("F16", 1, 2, float16),
    30: BlockType("BF16", 1, 2, _bf16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    10: BlockType("Q2_K", 256, 84, _q2_k),
    11: BlockType("Q3_K", 256, 110, _q3_k),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl),
    23: BlockType("IQ4_XS", 256, 136, _iq4_xs),
    39: BlockType("MXFP4", 32, 17, _mxfp4),
}
