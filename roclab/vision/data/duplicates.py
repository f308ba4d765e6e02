"""Images that are the same: byte for byte, or nearly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roclab.vision.data.images import Inspection

if TYPE_CHECKING:
    import numpy as np

# Two images are near-duplicates if their perceptual hashes differ in at most 4 of 64 bits and their 32 x 32 px grey
# thumbnails correlate at 0.95 or more. On pets3 this finds the six pairs in which a person sees the same image
# (cropped, recompressed, watermarked) and no other; the next pair has distance 10 and correlation 0.76. The correlation
# is for sets whose images all look alike, as elpv's cells: the hash alone also pairs cells of different modules.
MAX_DISTANCE = 4
MIN_CORRELATION = 0.95
MOST = 100_000


@dataclass(frozen=True)
class NearDuplicate:
    """Images number `first` and `second` (first < second): hash distance in bits, correlation of thumbnails."""

    first: int
    second: int
    distance: int
    correlation: float


def exact_duplicates(hashes: Sequence[str]) -> list[list[int]]:
    """Groups of two or more files with identical bytes, by index."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, sha256 in enumerate(hashes):
        groups[sha256].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: Sequence[Inspection]) -> list[NearDuplicate]:
    """Pairs of readable images that look the same but are not the same bytes, closest first.

    About `MOST` pairs at most: ten thousand frames of one dark scene have fifty million, too many to read.
    """
    import numpy as np

    readable = np.array([i for i, image in enumerate(images) if not image.error], dtype=int)
    if len(readable) < 2:
        return []
    thumbnails = np.array([np.frombuffer(images[i].thumbnail, np.uint8) for i in readable], np.float32)
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    found: list[NearDuplicate] = []
    for i, j, distance in hash_pairs([images[k].phash for k in readable], MAX_DISTANCE):
        for part in range(0, len(i), 4096):  # pairs at a time, so that their thumbnails fit into the caches
            if len(found) >= MOST:
                break
            a, b = i[part : part + 4096], j[part : part + 4096]
            correlation = np.einsum("nd,nd->n", thumbnails[a], thumbnails[b])
            for k in np.flatnonzero(correlation >= MIN_CORRELATION):
                first, second = int(readable[a[k]]), int(readable[b[k]])
                if images[first].sha256 != images[second].sha256:
                    pair = NearDuplicate(first, second, int(distance[part + k]), round(float(correlation[k]), 4))
                    found.append(pair)
    return sorted(found, key=lambda pair: (pair.distance, -pair.correlation))


def hash_pairs(hashes: Sequence[int], limit: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs i < j of 64-bit hashes that differ in at most `limit` bits: arrays of i, j and distance, block by block.

    Every pair is compared, as matrix products of ±1 vectors: the product of a and b is 64 - 2 distance.
    """
    import numpy as np

    bits = np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)
    signs = bits.astype(np.float32) * 2 - 1  # (N, 64)
    rows = max(1, 2**24 // len(hashes))  # a block of products takes 64 MB
    for start in range(0, len(hashes), rows):
        products = signs[start : start + rows] @ signs[start:].T  # (rows, N - start)
        i, j = np.nonzero(np.triu(products >= 64 - 2 * limit, k=1))
        yield start + i, start + j, (64 - products[i, j]).astype(int) // 2
