"""Which images to label next: those that a run is unsure of, and unlike one another."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.files import atomic_write
from roclab.vision.data.files import printable
from roclab.vision.evaluate.embed import Embedding

POOL = 5  # times as many images as are asked for are looked at, and at most half of all: the most uncertain


def suggest(found: Embedding, count: int) -> list[dict[str, Any]]:
    """`count` images to label next, in an order of which every beginning is a good choice too.

    Of the `POOL` times `count` images, but at most half of all, with the smallest margin (the probability of the
    likeliest class minus that of the second; Scheffer et al. 2001), the most uncertain comes first, then always the one
    whose features are farthest from all that were taken (k-center, Sener and Savarese 2018). Returns path, margin, and
    the two likeliest `classes` with their `probabilities`.
    """
    best = np.argsort(-found.probs, axis=1, kind="stable")[:, :2]
    likely = np.take_along_axis(found.probs, best, 1)
    margin = likely[:, 0] - likely[:, 1]
    pool = np.argsort(margin, kind="stable")[: max(count, min(POOL * count, len(margin) // 2))]
    return [
        {
            "path": printable(found.paths[i]),
            "margin": float(margin[i]),
            "classes": [found.classes[c] for c in best[i]],
            "probabilities": likely[i].tolist(),
        }
        for i in pool[spread(found.features[pool], count)]
    ]


def spread(features: np.ndarray, count: int) -> list[int]:
    """`count` of the features (N, D), greedily: the first, then always the one farthest (in angle) from those taken."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    taken = [0]
    near = unit @ unit[0]
    while len(taken) < min(count, len(unit)):
        near[taken] = np.inf
        taken.append(int(near.argmin()))
        near = np.maximum(near, unit @ unit[taken[-1]])
    return taken


def write_table(rows: list[dict[str, Any]], out: Path) -> None:
    """A CSV file of `suggest`'s rows with a label to fill in: then it is a table that `--data` takes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "margin", "first", "p(first)", "second", "p(second)"])
    for row in rows:
        (first, second), likely = row["classes"], [f"{p:.4f}" for p in row["probabilities"]]
        path = str(Path(row["path"]).absolute())
        table.writerow([path, "", f"{row['margin']:.4f}", first, likely[0], second, likely[1]])
    atomic_write(out, text.getvalue())
