"""Photos that are the same picture: byte for byte, or nearly so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from roclab.vision.photos import Inspection

# Two photos are near-duplicates if their perceptual hashes differ in at most 4 of 64 bits and their 32 x 32 px grey
# thumbnails correlate at 0.95 or more. On pets3 this finds the six pairs a person calls the same picture (cropped,
# recompressed, watermarked) and no other; the next pair has distance 10 and correlation 0.76. The correlation is for
# sets whose photos all look alike, as elpv's cells: the hash alone also pairs cells of different modules.
MAX_DISTANCE = 4
MIN_CORRELATION = 0.95


@dataclass(frozen=True)
class NearDuplicate:
    """Photos number `first` and `second` (first < second): hash distance in bits, correlation of thumbnails."""

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


def near_duplicates(photos: Sequence[Inspection]) -> list[NearDuplicate]:
    """All pairs of readable photos that look the same but are not the same bytes, closest first."""
    import numpy as np

    readable = [i for i, photo in enumerate(photos) if not photo.error]
    if len(readable) < 2:
        return []
    thumbnails = np.array([np.frombuffer(photos[i].thumbnail, np.uint8) for i in readable], np.float32)
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    found = []
    for i, j, distance in hash_pairs([photos[k].phash for k in readable], MAX_DISTANCE):
        correlation = float(thumbnails[i] @ thumbnails[j])
        first, second = readable[i], readable[j]
        if correlation >= MIN_CORRELATION and photos[first].sha256 != photos[second].sha256:
            found.append(NearDuplicate(first, second, distance, round(correlation, 4)))
    return sorted(found, key=lambda pair: (pair.distance, -pair.correlation))


def hash_pairs(hashes: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """Pairs (i, j, distance) with i < j of 64-bit hashes that differ in at most `limit` bits.

    Every pair is compared, as matrix products of ±1 vectors in blocks: the product of a and b is 64 - 2 distance.
    """
    import numpy as np

    bits = np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)
    signs = bits.astype(np.float32) * 2 - 1  # (N, 64)
    pairs = []
    for start in range(0, len(hashes), 1024):
        products = signs[start : start + 1024] @ signs[start:].T  # (1024, N - start)
        for i, j in np.argwhere(products >= 64 - 2 * limit):
            if i < j:
                pairs.append((start + int(i), start + int(j), int(64 - products[i, j]) // 2))
    return pairs
