"""How accuracy depends on the image itself: its size, sharpness, brightness, and how much of it the animal fills."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import DataError
from roclab.core.statistics import Z, add_holm, proportion
from roclab.vision.data.images import SIDE, FactCache, decoding, grey_at_side, in_threads, open_image, opened, sharpness
from roclab.vision.error_analysis.gather import JointPredictions

MEASURES = {
    "megapixels": "size of the image (megapixels)",
    "sharpness": f"sharpness (variance of the Laplacian at {SIDE} px)",
    "brightness": "brightness (mean grey, 0 to 255)",
    "animal": "share of the image that the animal fills",
    "head": "share of the image that the animal's head fills",
}
LOGARITHMIC = {"megapixels", "sharpness"}  # they span factors: their logarithm goes into the regression
CHANNELS = ("red", "green", "blue")
GROUPS = 4
SIDES = ("xmin", "ymin", "xmax", "ymax", "width", "height")  # of a box in a Pascal VOC annotation, and of the image
BOX = re.compile(rf"<({'|'.join(SIDES)})>\s*([\d.]+)\s*<")


def image_covariates(joint: JointPredictions) -> dict[str, Any]:
    """For each measure: accuracy in quarters of the images with intervals, and the slope of a logistic regression.

    `p` is Holm's over the measures. `left_out` says why a measure is missing, `missing` names images that could not
    be read. Accuracy is the mean over the runs.
    """
    values, missing = _measure_all(joint)
    if missing:
        joint.notes.append(
            f"{len(missing)} of {len(values)} images are not where the runs had them, or have changed, {missing[0]} "
            "first: left out of what is measured on images; --data-root says where they are"
        )
    right = 1 - joint.wrong_share
    measures: dict[str, Any] = {}
    left_out = {}
    for name, says in MEASURES.items():
        there = np.array([i for i, row in enumerate(values) if row.get(name) is not None], dtype=int)
        x = np.array([values[i][name] for i in there], dtype=float)
        if not len(there):
            left_out[name] = "the data do not say it" if name in ("animal", "head") else "no image could be read"
        elif np.ptp(x) < 1e-9:
            left_out[name] = "it is the same in every image"
        else:
            slope = logistic_slope(np.log(np.maximum(x, 1e-6)) if name in LOGARITHMIC else x, right[there])
            measures[name] = {"says": says, "n": len(there), "groups": _groups(x, right[there]), "slope": slope}
            if slope is None:
                measures[name]["why_no_slope"] = "too few errors (or too few right answers) to fit a curve"
    add_holm(row["slope"] for row in measures.values() if row["slope"])
    return {"measures": measures, "left_out": left_out, "missing": missing, "colours": _colours(joint, values)}


def _colours(joint: JointPredictions, values: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """The mean colour (red, green, blue, 0 to 255) of each class's images, the background included."""
    found = {}
    for label, name in enumerate(joint.classes):
        inside = [row for i in np.flatnonzero(joint.labels == label) if (row := values[i]).get("red") is not None]
        if inside:
            found[name] = [float(np.mean([row[channel] for row in inside])) for channel in CHANNELS]
    return found


def logistic_slope(x: np.ndarray, right: np.ndarray) -> dict[str, Any] | None:
    """How the odds of being right change with x (N,), standardised: odds ratio per standard deviation.

    Logistic regression of the share of runs that are right (N,), in [0, 1], with the sandwich variance (Papke and
    Wooldridge 1996), which holds for shares as for zeros and ones. Returns odds_ratio, its 95 % interval and p; None
    if x does not vary, fewer than ten images' worth are wrong (or right), or the fit does not converge.
    """
    from scipy.stats import norm

    n = len(x)
    if x.std() < 1e-12 or min(right.sum(), n - right.sum()) < 10:
        return None
    design = np.stack([np.ones(n), (x - x.mean()) / x.std()], 1)
    beta = np.zeros(2)
    for _ in range(50):  # Newton's method
        mean = 1 / (1 + np.exp(-design @ beta))
        information = (design * (mean * (1 - mean))[:, None]).T @ design
        if np.linalg.cond(information) > 1e10:
            return None
        step = np.linalg.solve(information, design.T @ (right - mean))
        if np.abs(step).max() < 1e-10:
            break
        beta = beta + np.clip(step, -2, 2)
    else:
        return None
    bread, scores = np.linalg.inv(information), design * (right - mean)[:, None]
    error = float(np.sqrt((bread @ (scores.T @ scores) @ bread)[1, 1] * n / (n - 2)))
    return {
        "odds_ratio": float(np.exp(beta[1])),
        "ci95": [float(np.exp(beta[1] + side * Z * error)) for side in (-1, 1)],
        "p": float(2 * norm.sf(abs(beta[1]) / error)),
    }


def _groups(x: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Quarters of the images by x (fewer groups where values coincide), each with its accuracy."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, GROUPS + 1)))
    which = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
    return [
        {
            "from": float(x[which == g].min()),
            "to": float(x[which == g].max()),
            **proportion(float(right[which == g].sum()), int((which == g).sum())),
        }
        for g in range(len(edges) - 1)
        if (which == g).any()
    ]


def _measure_all(joint: JointPredictions) -> tuple[list[dict[str, float | None]], list[str]]:
    """The measures of each image, opened one at a time (cached by their bytes), and the images that are not there."""
    cache = FactCache("measures-2")
    own: dict[str, dict[str, Any]] = {}

    def look(i: int) -> dict[str, float | None] | None:
        sha256 = joint.sha256[i]
        try:
            path = joint.file(i)
            own[sha256] = cache.get(sha256) or measure(path)
        except (OSError, DataError):
            return None
        return own[sha256] | annotated(joint.root, path)

    rows = in_threads(look, range(len(joint.paths)), "measuring images")
    cache.add(own)
    missing = [path for path, row in zip(joint.paths, rows, strict=True) if row is None]
    return [row or {} for row in rows], missing


def measure(path: Path) -> dict[str, float | None]:
    """Size, sharpness, brightness and mean colour of one image."""
    with opened(path) as header:
        pixels = header.width * header.height  # of the file: open_image may decode at a fraction of it
    with decoding.part(pixels):
        colours = open_image(path, at_least=SIDE).convert("RGB")
    grey = grey_at_side(colours.convert("L"))
    means = zip(CHANNELS, np.asarray(colours).mean((0, 1)).tolist(), strict=True)
    facts = {"megapixels": pixels / 1e6, "sharpness": sharpness(grey), "brightness": float(grey.mean())}
    return facts | dict(means)


def annotated(root: Path, image: Path) -> dict[str, float | None]:
    """What Oxford-IIIT Pet's annotations say of an image, where they are: share that the animal and its head fill.

    `annotations/trimaps/NAME.png` has 1 for the animal, 2 for the background, 3 for the band between them, of which
    half is counted; `annotations/xmls/NAME.xml` has a box around the head.
    """
    from PIL import Image

    found: dict[str, float | None] = {"animal": None, "head": None}
    trimap = root / "annotations" / "trimaps" / f"{image.stem}.png"
    with suppress(Exception), Image.open(trimap) as picture:
        counts = np.bincount(np.asarray(picture).ravel(), minlength=4)
        found["animal"] = float((counts[1] + counts[3] / 2) / counts.sum())
    box = root / "annotations" / "xmls" / f"{image.stem}.xml"
    with suppress(Exception):
        values = dict(reversed(BOX.findall(box.read_text(encoding="utf-8"))))  # the first box
        left, top, right, bottom, width, height = (float(values[name]) for name in SIDES)
        found["head"] = (right - left) * (bottom - top) / (width * height)
    return found
