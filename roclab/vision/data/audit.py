"""What is in a set of images, before anything is trained on it: counts, formats, faults by name, duplicates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from roclab.vision.data.images import exact_duplicates, inspect_images, near_duplicates
from roclab.vision.data.sources import list_images, relative


def audit(spec: str, data_root: str | os.PathLike | None = None, mirror: str | None = None) -> dict[str, Any]:
    """Look at every image of `spec` ("pets", "elpv", a folder, a CSV file) and report, as JSON-able values.

    Nothing is changed and nothing stops at a bad image: each is named, with the reason, under "unreadable". Paths
    are relative to "root".
    """
    listing = list_images(spec, data_root, mirror)
    images = inspect_images([entry.path for entry in listing.entries])
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
        "unreadable": [
            {"path": n, "reason": image.error} for n, image in zip(names, images, strict=True) if image.error
        ],
        "wrong_extension": [{"path": name, "format": image.format} for name, image in good if image.wrong_extension],
        "rotated_by_exif": [name for name, image in good if image.rotated],
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
    lines = [
        f"{report['name']}: {report['images']} images, {len(counts)} classes, {report['megabytes']} MB",
        f"  splits: {_listed(report['splits'])}",
        f"  formats: {_listed(report['formats'])}; modes: {_listed(report['modes'])}",
    ]
    for side in ("width", "height") if report["width"] else ():
        low, middle, high = (report[side][key] for key in ("min", "median", "max"))
        lines.append(f"  {side}: {low} to {high} px, median {middle:g}")
    largest = sorted(counts, key=lambda name: -counts[name])
    few = largest if len(largest) <= shown else [*largest[:3], *largest[-3:]]
    lines.append(f"  classes: {_listed({n: counts[n] for n in few})}{'' if few == largest else ' (largest, smallest)'}")
    if report["imbalance"] is not None:
        lines.append(f"  imbalance: the largest class has {report['imbalance']:g} times the images of the smallest")

    def heading(title: str, items: list[str]) -> None:
        if items:
            lines.append(f"{len(items)} {title}:")
            lines.extend(f"  {item}" for item in items[:shown])
            if len(items) > shown:
                lines.append(f"  … and {len(items) - shown} more (--json lists all)")

    heading("unreadable", [f"{row['path']}: {row['reason']}" for row in report["unreadable"]])
    heading("classes without images", report["empty_classes"])
    heading("classes with one image (it stays in training; nothing validates it)", report["one_image_classes"])
    heading("with the wrong extension", [f"{row['path']}: {row['format']}" for row in report["wrong_extension"]])
    heading("turned by their EXIF data (shown upright)", report["rotated_by_exif"])
    heading("animated (the first frame counts)", report["animated"])
    heading("passed over, no images by their name", report["ignored"])
    conflicts = [row for row in report["duplicates"] if len(row["labels"]) > 1]
    heading("files with identical bytes under different labels", [" = ".join(row["paths"]) for row in conflicts])
    heading("groups of files with identical bytes", [" = ".join(row["paths"]) for row in report["duplicates"]])
    pairs = report["near_duplicates"]
    heading(
        "pairs of near-duplicates",
        [f"{' ~ '.join(r['paths'])} ({r['distance']} bits, correlation {r['correlation']:.3f})" for r in pairs],
    )
    return "\n".join(lines)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: list[int]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "none"
