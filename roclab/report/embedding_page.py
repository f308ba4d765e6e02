"""The folder of `roclab vision embed`: features.npz, features.csv, embedding.json, and a page with a map of the images
that opens from the disk alone."""

from __future__ import annotations

import base64
import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import DataError
from roclab.core.files import atomic_write
from roclab.report.folders import EMBEDDING
from roclab.report.kit import render
from roclab.vision.data.files import printable
from roclab.vision.data.images import in_threads, open_image
from roclab.vision.evaluate.embed import Embedding, map_2d, most_similar

MAPPED = 5000  # images on the page: with more, it is too large for a browser
THUMBNAIL = 96  # px, longer side


def write_embedding(found: Embedding, out: str | os.PathLike, as_csv: bool = False, seed: int = 0) -> dict[str, Any]:
    """Write the images' features and the page into the folder `out`; returns what embedding.json holds.

    Of more than `MAPPED` images the map shows as many, drawn by the seed; the others have no place (x and y are null).
    Raises `RocLabError` if `out` holds something else than such a folder.
    """
    rows = _rows(found)
    n = len(rows)
    mapped = np.sort(np.random.default_rng(seed).permutation(n)[:MAPPED])
    for i, (x, y) in zip(mapped, map_2d(found.features[mapped], seed).round(4).tolist(), strict=True):
        rows[i] |= {"x": x, "y": y}
    with EMBEDDING.new(out) as (work, record):
        record |= {"images": rows, "classes": found.classes, "mapped": len(mapped), "seed": seed}
        with open(work / "features.npz", "wb") as file:
            np.savez_compressed(file, **_arrays(found))
        if as_csv:
            atomic_write(work / "features.csv", _table(found))
        page = render("embedding.html", points=_points(found, rows, mapped.tolist()), images=n)
        atomic_write(work / "index.html", page)
    return record


def _rows(found: Embedding) -> list[dict[str, Any]]:
    """What is known of each image: path, label, prediction, and the images most like it."""
    indices, cosines = most_similar(found.features)
    names = [printable(path) for path in found.paths]
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        like = [
            {"image": int(j), "path": names[j], "similarity": round(float(value), 4)}
            for j, value in zip(indices[i], cosines[i], strict=True)
        ]
        row = {"path": name, "label": found.labels[i] or None, "prediction": found.predictions[i]}
        rows.append(row | {"probability": round(float(found.probs[i].max()), 4), "x": None, "y": None, "similar": like})
    return rows


def _points(found: Embedding, rows: list[dict[str, Any]], mapped: list[int]) -> list[dict[str, Any]]:
    """The rows on the page with their thumbnails; of similar images, `at` which point they are (None: not shown)."""
    at = {i: point for point, i in enumerate(mapped)}
    thumbs = in_threads(_thumbnail, [found.paths[i] for i in mapped], "thumbnails")
    similar = [[other | {"at": at.get(other["image"])} for other in rows[i]["similar"]] for i in mapped]
    parts = zip(mapped, thumbs, similar, strict=True)
    return [rows[i] | {"thumb": thumb, "similar": others} for i, thumb, others in parts]


def _arrays(found: Embedding) -> dict[str, Any]:
    paths = np.array([printable(path) for path in found.paths])
    arrays = {"paths": paths, "features": found.features.astype(np.float32), "predictions": np.array(found.predictions)}
    return arrays | ({"labels": np.array(found.labels)} if any(found.labels) else {})


def _table(found: Embedding) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["path", "label", "prediction", *(f"f{i}" for i in range(found.features.shape[1]))])
    for path, label, prediction, row in zip(found.paths, found.labels, found.predictions, found.features, strict=True):
        table.writerow([printable(path), label, prediction, *(f"{value:.6g}" for value in row)])
    return out.getvalue()


def _thumbnail(path: Path) -> str | None:
    """A small JPEG in base64; None where the image has gone meanwhile."""
    try:
        image = open_image(path, at_least=THUMBNAIL)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=75)
    return base64.b64encode(data.getvalue()).decode()
