"""The images that the report shows, chosen from the error analysis, and their pictures from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST = 6  # images of a gallery
SIDE, GREY = 280, (245, 245, 245)  # px of a picture, and what fills its square up
UNPROVEN = 2  # pairs of classes, where none is shown to be confused more than chance would have it
ARMS = 2  # whose predictions stand below an image: the best
DOUBTS = "labels in doubt"


def galleries(found: Mapping[str, Any], folder: Path, best: Sequence[str]) -> dict[str, Any]:
    """The galleries of an error analysis (`found` is its JSON): contact sheet, confused pairs, top losses, what one arm
    alone gets wrong, labels in doubt. Each image has its picture's name, its true class and the predictions.

    `best` names the arms, best first: of all pairs of arms, the first pair of different models is shown. An older
    analysis has not all of them; images whose pictures are missing are left out.
    """
    images, sheet = found.get("images", {}), found.get("sheet", {})

    def pictures(numbers: Sequence[int], arms: Sequence[str] | None = None) -> list[dict[str, Any]]:
        made = (_picture(found, folder, images[str(i)], arms) | {"number": i} for i in numbers if str(i) in images)
        return [row for row in made if row["file"]]

    told = [name for name in best if name in found.get("told", found.get("arms", {}))]
    random = [name for name, why in found.get("left_out", {}).items() if why == "random"]
    pair = _two(found, [name for name in best if name in told or name in random])
    doubts = {row["image"]: row for row in found.get("label_errors", {}).get("images", [])}
    heats = {(row["image"], row["arm"]) for row in found.get("decided", {}).get("shown", [])}
    rows = [row for row in found.get("confused", []) if row.get("images")]
    rows = [row for row in rows if row["p"] < 0.05] or rows[:UNPROVEN]
    confused = [row | {"pictures": pictures(row["images"], told[:ARMS])} for row in rows]
    return {
        "sheet": {"arm": sheet.get("arm"), "pictures": pictures(sheet.get("images", []), [sheet.get("arm", "")])},
        "confused": [row | {"heats": _heats(found, folder, row, heats)} for row in confused if told],
        "losses": pictures(found.get("losses", [])[:MOST], told[:ARMS]) if told else [],
        "apart": [
            {"wrong": pair[one], "right": pair[two], "count": pair[f"{one}_wrong_{two}_right"],
             "pictures": pictures(pair[f"only_{one}_wrong"][:MOST], (pair[one], pair[two]))}
            for one, two in ("ab", "ba")
        ] if pair else [],
        DOUBTS: [row | doubts[row["number"]] for row in pictures(list(doubts)[:MOST], told[:ARMS])] if told else [],
    }  # fmt: skip


def _picture(
    found: Mapping[str, Any], folder: Path, about: Mapping[str, Any], arms: Sequence[str] | None
) -> dict[str, Any]:
    name = f"{about['sha256'][:16]}.jpg"
    predictions = {arm: row for arm, row in about.get("predictions", {}).items() if arms is None or arm in arms}
    return {
        "file": name if (folder / "thumbs" / name).exists() else None,
        "true": about["true"],
        "loss": about["loss"],
        "predictions": predictions,
    }


def _heats(found: Mapping[str, Any], folder: Path, row: Mapping[str, Any], heats: set[Any]) -> list[dict[str, Any]]:
    """The heat maps of a confused pair's images: the best arm's."""
    made = []
    for i, arm in ((i, arm) for i in row["images"] for arm in found["arms"] if (i, arm) in heats):
        about = found["images"][str(i)]
        name = f"{about['sha256'][:16]}-heat-{list(found['arms']).index(arm)}.jpg"
        if (folder / "thumbs" / name).exists():
            made.append(
                {"file": name, "arm": arm, "true": about["true"], "predicted": about["predictions"][arm]["class"]}
            )
    arms = list(dict.fromkeys(row["arm"] for row in made))[:1]
    return [row for row in made if row["arm"] in arms][: MOST // 2]


def _two(found: Mapping[str, Any], best: Sequence[str]) -> Mapping[str, Any] | None:
    """The best two arms of different models; else the best two."""
    pairs = [pair for pair in found.get("pairs", []) if pair["a"] in best and pair["b"] in best]
    rank = {name: i for i, name in enumerate(best)}

    def key(pair: Mapping[str, Any]) -> tuple[bool, int]:
        return pair["a"].split(",")[0] == pair["b"].split(",")[0], rank[pair["a"]] + rank[pair["b"]]

    return min(pairs, key=key, default=None)


def copy_pictures(shown: Mapping[str, Any], errors: Path, folder: Path) -> None:
    """Copy the pictures that the galleries show into `folder`, each on a square, so that rows of them are even."""
    from PIL import Image, ImageOps

    rows = [*shown["sheet"]["pictures"], *shown["losses"], *shown[DOUBTS]]
    rows += [
        row for part in (*shown["confused"], *shown["apart"]) for row in (*part["pictures"], *part.get("heats", ()))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name in {row["file"] for row in rows}:
        with Image.open(errors / "thumbs" / name) as picture:
            ImageOps.pad(picture.convert("RGB"), (SIDE, SIDE), color=GREY).save(folder / f"image-{name}", quality=85)
