"""The page of the error analysis: index.html, errors.json (all facts, and the figures' captions), figures/*.png, and
thumbs/*.jpg of the images shown alone, made one at a time."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

from roclab.core.exceptions import DataError
from roclab.core.files import atomic_write, file_sha256
from roclab.core.progress import track
from roclab.core.sentences import sentences_of
from roclab.report.error_figures import MOST, draw
from roclab.report.folders import ERRORS
from roclab.report.kit import render
from roclab.vision.data.images import open_image

THUMBNAIL = 320  # px, longer side
HEAT = 224  # px
GALLERIES = 6  # pairs of arms whose images are shown
ROWS = 15  # of the table of confused classes


def write_page(facts: dict[str, Any], out: str | os.PathLike) -> Path:
    """Write the facts of `analyse` as a page into the folder `out`; returns the path of index.html.

    An older page there is replaced. An image that is not where it was, or has changed since, is said to be missing in
    its place. Raises `RocLabError` if `out` holds something else than a page.
    """
    with ERRORS.new(out) as (work, record):
        captions = draw(facts, work / "figures")
        record |= facts | {"captions": {f"{name}.png": caption for name, caption in captions.items()}}
        page = render(
            "errors.html",
            facts=facts,
            captions=captions,
            pictures=_thumbnails(facts, work / "thumbs"),
            said=sentences_of(facts),
            pairs=sorted(facts["pairs"], key=lambda p: -sum(facts["arms"][p[side]]["share"] for side in "ab")),
            most=MOST | {"galleries": GALLERIES, "rows": ROWS},
            votes=votes,
        )
        atomic_write(work / "index.html", page)
    return Path(out).resolve() / "index.html"


def votes(image: dict[str, Any], arms: list[str] | None) -> list[tuple[str, str, float | None]]:
    """(arm, class, probability) of each arm's prediction for the image; of many arms, how many predict what."""
    found = {name: row for name, row in image["predictions"].items() if arms is None or name in arms}
    if len(found) <= 4:
        return [(name, row["class"], row["probability"]) for name, row in found.items()]
    counts = Counter(row["class"] for row in found.values())
    return [(f"{count} of {len(found)}", name, None) for name, count in counts.most_common(3)]


def _thumbnails(facts: dict[str, Any], folder: Path) -> dict[str, str]:
    """Small pictures of the images named and of the heat maps: number (or number and arm) -> file name."""
    made: dict[str, str] = {}
    heats: dict[str, list[dict[str, Any]]] = {}
    for row in facts["decided"]["shown"]:
        heats.setdefault(str(row["image"]), []).append(row)
    for key, about in track(facts["images"].items(), "thumbnails", len(facts["images"])):
        path = Path(facts["root"]) / about["path"]
        try:
            if file_sha256(path) != about["sha256"]:
                continue
            image = open_image(path, at_least=THUMBNAIL)
        except (OSError, DataError):
            continue
        name = about["sha256"][:16]
        small = image.copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        made[key] = _save_jpeg(small, folder / f"{name}.jpg")
        for row in heats.get(key, []):
            if arm := facts["decided"]["arms"].get(row["arm"]):
                file = folder / f"{name}-heat-{list(facts['arms']).index(row['arm'])}.jpg"
                seen = _heat_over(image, row["heat"], arm["resize"], arm["crop"])
                made[f"{key} {row['arm']}"] = _save_jpeg(seen, file)
    return made


def _save_jpeg(picture: Any, path: Path) -> str:
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=85)
    atomic_write(path, data.getvalue())
    return path.name


def _heat_over(image: Any, heat: list[list[float]], resize: int, crop: int) -> Any:
    """The part of the image that the network sees (shorter side to `resize`, centre crop) under its heat map."""
    import matplotlib
    import numpy as np
    from PIL import Image

    scale = resize / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    seen = image.crop((left, top, left + crop, top + crop)).resize((HEAT, HEAT))
    values = Image.fromarray((255 * np.array(heat, dtype=np.float32)).astype(np.uint8))
    smooth = values.resize((HEAT, HEAT), Image.Resampling.BICUBIC)
    colour = Image.fromarray(matplotlib.colormaps["inferno"](np.asarray(smooth), bytes=True)[..., :3])
    base = Image.blend(seen.convert("L").convert("RGB"), seen, 0.6)
    return Image.composite(colour, base, smooth.point(lambda hot: 0.15 * 255 + 0.55 * hot))
