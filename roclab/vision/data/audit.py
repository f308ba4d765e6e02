"""What is in a set of images, before anything is trained on it: counts, formats, faults by name, duplicates."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from roclab.core.sentences import one_line, written
from roclab.vision.data.files import inspect_files
from roclab.vision.data.images import exact_duplicates, near_duplicates
from roclab.vision.data.oddities import odd_images
from roclab.vision.data.sources import list_images, relative

SHOWN_ODD = 5  # of each kind, in the text

logger = logging.getLogger(__name__)


def audit(spec: str, data_root: str | os.PathLike | None = None, mirror: str | None = None) -> dict[str, Any]:
    """Look at every image of `spec` ("pets", "elpv", a folder, a CSV file) and report, as JSON-able values.

    Nothing is changed and nothing stops at a bad image: each is named, with the reason, under "unreadable". Paths
    are relative to "root".
    """
    listing = list_images(spec, data_root, mirror)
    for note in listing.notes:
        logger.warning(note)
    images = inspect_files([entry.path for entry in listing.entries])
    names = [relative(entry.path, listing.root) for entry in listing.entries]
    labels = [entry.label for entry in listing.entries]
    good = [(name, image) for name, image in zip(names, images, strict=True) if not image.error]
    readable = [i for i, image in enumerate(images) if not image.error]
    same = [[readable[i] for i in group] for group in exact_duplicates([image.sha256 for _, image in good])]
    counts = dict.fromkeys(listing.classes, 0) | Counter(labels[i] for i in readable)
    present = [number for number in counts.values() if number]
    return {
        "name": listing.name,
        "root": str(listing.root),
        "images": len(images),
        "megabytes": round(sum(image.num_bytes for image in images) / 1e6, 1),
        "classes": counts,  # readable images of each
        "splits": _counted(listing.entries[i].split or "not given" for i in readable),
        "empty_classes": [name for name, number in counts.items() if number == 0],
        "one_image_classes": [name for name, number in counts.items() if number == 1],
        "imbalance": round(max(present) / min(present), 2) if present else None,  # largest class over smallest
        "formats": _counted(image.format for _, image in good),
        "modes": _counted(image.mode for _, image in good),
        "width": _spread([image.width for _, image in good]),
        "height": _spread([image.height for _, image in good]),
        "sizes": _counted(f"{image.width} x {image.height}" for _, image in good),
        "odd": {
            kind: [{"path": good[i][0], "value": value} for i, value in found]
            for kind, found in odd_images([image for _, image in good]).items()
        },
        "unreadable": [
            {"path": n, "reason": image.error} for n, image in zip(names, images, strict=True) if image.error
        ],
        "wrong_extension": [{"path": name, "format": image.format} for name, image in good if image.wrong_extension],
        "rotated_by_exif": [name for name, image in good if image.rotated],
        **({"nearly_black": dark} if (dark := [name for name, image in good if image.nearly_black]) else {}),
        "animated": [name for name, image in good if image.frames > 1 and image.format != "MPO"],
        "ignored": [relative(path, listing.root) for path in listing.ignored],
        "duplicates": [
            {"paths": [names[i] for i in group], "labels": sorted({labels[i] for i in group})} for group in same
        ],
        "near_duplicates": [
            {
                "paths": [names[pair.first], names[pair.second]],
                "labels": [labels[pair.first], labels[pair.second]],
                "distance": pair.distance,
                "correlation": pair.correlation,
            }
            for pair in near_duplicates(images)
        ],
    }


def describe(report: dict[str, Any], shown: int = 10) -> str:
    """The report as text, at most `shown` lines under each heading."""
    counts = report["classes"]
    largest = sorted(counts, key=lambda name: -counts[name])
    few = largest if len(largest) <= shown else [*largest[:3], *largest[-3:]]
    values = report | {"few": {name: counts[name] for name in few}, "shown": shown, "shown_odd": SHOWN_ODD}
    return written(Path(__file__).with_suffix(".txt"), **_plain(values)).rstrip("\n")


def _plain(value: Any) -> Any:
    """The same with every text on one line: names of files go to a terminal."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    return [*map(_plain, value)] if isinstance(value, list) else one_line(value) if isinstance(value, str) else value


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: list[int]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None
