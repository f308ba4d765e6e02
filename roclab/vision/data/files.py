"""Files in folders: the one walk of train, audit and predict, and what is wrong with a file before it is an image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from roclab.core.exceptions import DataError
from roclab.vision.data.images import EXTENSIONS, Inspection, inspect_images

# What macOS, Synology and Windows leave behind in folders.
LEAVINGS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
# What marks a folder that RocLab wrote: a run, a comparison, an error analysis, a report. Their figures are no data.
OURS = [
    ("config.json", "provenance.json"),
    *((f"{name}.json", "figures") for name in ("comparison", "errors", "facts")),
]


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files and leavings."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name not in LEAVINGS)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}") from None


def walk(folder: Path, *within: Path) -> Iterator[Path]:
    """The files in a folder at any depth, in order of their names.

    Linked folders are walked too, each once, and none that holds `folder` or a folder of `within`, so no circle of
    links is followed. A folder that RocLab wrote is not walked but yielded itself.
    """
    entered = set(folder.resolve().parents)
    for path in within:
        entered |= {path.resolve(), *path.resolve().parents}
    yield from _walk(folder, entered)


def _walk(folder: Path, entered: set[Path]) -> Iterator[Path]:
    if (real := folder.resolve()) in entered:
        return
    entered.add(real)
    for path in visible(folder):
        if path.is_dir() and not is_ours(path):
            yield from _walk(path, entered)
        else:
            yield path


def is_ours(folder: Path) -> bool:
    """RocLab wrote this folder."""
    return any(all((folder / name).exists() for name in names) for names in OURS)


def is_image(path: Path) -> bool:
    """An image by its name. A link that leads nowhere is one too, so that it is named as unreadable."""
    if is_dangling(path):
        return path.suffix.lower() in {"", *EXTENSIONS}
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def printable(path: str | os.PathLike) -> str:
    """A path as text. Bytes that are not UTF-8 become \\xe9 and the like, so that every file and terminal takes it."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inspect_files(paths: Sequence[Path]) -> list[Inspection]:
    """`inspect_images`, with a better reason where the fault is not in the image but in the file."""
    return [replace(found, error=_fault(found) or found.error) for found in inspect_images(paths)]


def _fault(found: Inspection) -> str:
    if printable(found.path) != str(found.path):
        return "its name is not UTF-8, as from an old disk or archive: rename it"
    if found.error and is_dangling(found.path):
        return f"a link to {printable(os.readlink(found.path))}, where there is nothing"
    return ""
