"""Oxford-IIIT Pet: where it is on disk, or fetched from."""

from __future__ import annotations

from pathlib import Path

from roclab.core.fetch import fetch_archives

PETS_FOLDER = "oxford-iiit-pet"  # torchvision's name for the folder inside its root


def get_pets(root: Path, mirror: str | None = None) -> Path:
    """Folder of Oxford-IIIT Pet in `root`; a copy already there is used and never written to, else it is fetched.

    The archives and their hashes are torchvision's; `mirror` is the address of a folder that holds archives of the
    same names and takes the place of theirs.
    """
    for folder in (root / PETS_FOLDER, root):
        if (folder / "annotations" / "trainval.txt").is_file() and (folder / "images").is_dir():
            return folder
    from torchvision.datasets import OxfordIIITPet

    return fetch_archives(root / PETS_FOLDER, OxfordIIITPet._RESOURCES, mirror)
