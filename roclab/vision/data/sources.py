"""Where images come from: Oxford-IIIT Pet, the elpv package, a folder, a table. Each reader only lists files.

A `Listing` says which files there are, what their label is, and which split they belong to where the source says so
(None: not said, to be cut by `data.load_data`).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from roclab.core.exceptions import DataError
from roclab.core.fetch import fetch_archives, package_folder
from roclab.vision.data.files import is_dangling, is_image, is_ours, printable, visible, walk
from roclab.vision.data.tables import read_table

T = TypeVar("T")

PETS_FOLDER = "oxford-iiit-pet"  # torchvision's name for the folder inside its root
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


@dataclass(frozen=True)
class Entry:
    path: Path
    label: str
    split: str | None = None  # "train", "val", "test", or None: not said
    stratum: str = ""  # what a cut keeps the proportions of; the label where empty
    certainty: float = 1.0  # probability that the label is right


@dataclass
class Listing:
    name: str
    root: Path  # the folder that paths in a manifest are relative to
    entries: list[Entry]
    classes: list[str]  # every class the source names, those without an image too
    species: dict[str, str] | None = None  # class -> "cat" or "dog", for pets
    test_fraction: float = 0.2  # of what is not yet in a split, where the source has no test split
    flips: str = "horizontal"  # or "dihedral": the things in these images have no up
    ignored: list[Path] = field(default_factory=list)  # files that are no images by their name, or have no class
    notes: list[str] = field(default_factory=list)  # what the user should know of how the source was read


def list_images(spec: str, data_root: str | os.PathLike | None = None, mirror: str | None = None) -> Listing:
    """List the images of `spec`: "pets", "elpv", a folder or a CSV file.

    Raises `DataError` naming what is wrong with the source as a whole; single images are not opened here.
    """
    if spec == "pets":
        return list_pets(get_pets(Path(data_root or "data"), mirror))
    if spec == "elpv":
        return list_elpv(Path(data_root) if data_root else None)
    path = Path(spec)
    if data_root and not path.exists() and (Path(data_root) / spec).exists():
        path = Path(data_root) / spec
    if path.is_dir():
        for folder in (path, path / PETS_FOLDER):
            if (folder / "annotations" / "trainval.txt").is_file():
                return list_pets(folder)
        return list_folder(path)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return list_csv(path, Path(data_root) if data_root else None)
    kind = "is not a folder or a .csv file" if path.exists() else "does not exist"
    raise DataError(f"--data {spec}: {path} {kind}; give pets, elpv, a folder of images or a table path,label[,split]")


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


def list_pets(folder: Path) -> Listing:
    """Oxford-IIIT Pet (Parkhi et al. 2012) or a part of it: `annotations/{trainval,test}.txt` and `images/`.

    A line of an annotation file is: name of the image, class id from 1, species (1 cat, 2 dog), breed id.
    Classes are named as torchvision names them.
    """
    ids: dict[str, int] = {}
    species: dict[str, str] = {}

    def entry(words: list[str]) -> Entry:
        name, class_id, species_id, _ = words
        breed = " ".join(word.title() for word in name.rsplit("_", 1)[0].split("_"))
        ids[breed], species[breed] = int(class_id), {"1": "cat", "2": "dog"}[species_id]
        return Entry(folder / "images" / f"{name}.jpg", breed, split)

    entries: list[Entry] = []
    for split in ("trainval", "test"):  # torchvision's trainval is for training: val is cut from it, test is left alone
        file, columns = folder / "annotations" / f"{split}.txt", "name, class id, species, breed id"
        entries += _read_lines(file, f"{folder} does not hold a whole copy of Oxford-IIIT Pet", columns, entry)
    return Listing("pets", folder, entries, sorted(ids, key=ids.__getitem__), species)


def list_elpv(folder: Path | None = None) -> Listing:
    """elpv: 2,624 electroluminescence images of solar cells, 300 x 300 px (Deitsch et al. 2019, Solar Energy 185).

    `labels.csv` gives each cell's probability of a defect (0, 1/3, 2/3, 1) and whether it is mono- or
    polycrystalline. A probability above 0.5 is "defective". The published protocol keeps a quarter for the test;
    which quarter is not published, so ours is stratified by probability and cell type.
    """
    folder = folder or elpv_folder()
    classes = ["functional", "defective"]

    def entry(words: list[str]) -> Entry:
        name, probability, kind = words
        defect = float(probability)
        label, certainty = classes[defect > 0.5], round(max(defect, 1 - defect), 6)
        return Entry(folder / name, label, stratum=f"{defect:.2f} {kind}", certainty=certainty)

    missing, columns = f"{folder} does not hold the elpv data", "path, probability, type"
    entries = _read_lines(folder / "labels.csv", missing, columns, entry)
    return Listing("elpv", folder, entries, classes, test_fraction=0.25, flips="dihedral")


def _read_lines(file: Path, missing: str, columns: str, read: Callable[[list[str]], T]) -> list[T]:
    """`read` of the words of each line; empty lines and comments do not count."""
    if not file.is_file():
        raise DataError(f"{file} is missing: {missing}")
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found += [read(line.split())] if line.strip() and not line.startswith("#") else []
        except (ValueError, KeyError):
            raise DataError(f"{file}, line {number}: not a line of {columns}") from None
    return found


def elpv_folder() -> Path:
    """The data folder of the package `elpv-dataset`, which is installed if it is not there."""
    return package_folder("elpv-dataset==1.0.0.post1", "elpv_dataset") / "data"


def list_folder(root: Path) -> Listing:
    """A folder per class, or folders train, val, test (val and test may be missing) with a folder per class in each.

    Images are found at any depth below their class; hidden files, and folders that RocLab wrote, are passed over, and
    files that are no images by their name or lie in no class's folder are passed over and reported.
    """
    folders, loose = _inside(root)
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    parts: list[tuple[Path, str | None, list[Path], list[Path]]] = [(root, None, folders, loose)]
    if "train" in splits.values():  # a class may be called "test"; only with a train beside it is it a split
        if odd := next((folder for folder in folders if folder not in splits), None):
            raise DataError(f"{root} has a train folder and beside it {odd.name}: keep only train, val and test there")
        parts = [(root, None, [], loose), *((folder, split, *_inside(folder)) for folder, split in splits.items())]
    entries: list[Entry] = []
    ignored, notes, names = [], [], []
    for part, split, classes, files in parts:
        ignored += files
        if unlabelled := sum(map(is_image, files)):
            where = f"{unlabelled} images in {part} are in no class folder, so they have no label"
            notes.append(f"{where}: `roclab vision predict RUN {part}` predicts them")
        for folder in classes:
            names.append(folder.name)
            for file in walk(folder, root, part) if folder.is_dir() else [folder]:
                if is_image(file):
                    entries.append(Entry(file, clean(folder.name), split))
                else:
                    ignored.append(file)
    if not names:
        remedy = "put the images of each class into a folder of the class's name, or list them in a table path,label"
        raise DataError(f"{root} has no folders: {remedy}")
    notes += _alike(names)
    return Listing(root.resolve().name, root, entries, _sorted_classes(names), ignored=ignored, notes=notes)


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """What may be folders of classes, and everything else. A link to a missing folder is of the first kind."""
    folders: list[Path] = []
    loose: list[Path] = []
    for path in visible(folder):
        may_be_class = not _holds_runs(path) if path.is_dir() else is_dangling(path) and not path.suffix
        (folders if may_be_class else loose).append(path)
    return folders, loose


def _holds_runs(folder: Path) -> bool:
    """RocLab wrote everything in this folder."""
    inside = [folder] if is_ours(folder) else visible(folder)
    return bool(inside) and all(path.is_dir() and is_ours(path) for path in inside)


def list_csv(table: Path, base: Path | None = None) -> Listing:
    """A table with the columns path, label and, if they are given, split (train, val or test) and certainty (of the
    label: a probability).

    Paths are relative to `base`, or to the table's folder if that is not given.
    """
    base = base or table.parent
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    real = cache(os.path.realpath)
    rows, notes = read_table(table, ("path", "label"))
    for line, cells in rows:
        where = f"{table}, line {line}"
        if not cells["path"] or not cells["label"]:
            raise DataError(f"{where}: path or label is empty: fill it in, or remove the line")
        split = None
        if "split" in cells and (split := SPLIT_NAMES.get(cells["split"].lower())) is None:
            raise DataError(f"{where}: split is {cells['split']!r}, must be train, val or test")
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", cells["path"]):
            relative_to = "write it relative to the table, or to --data-root"
            raise DataError(f"{where}: {cells['path']} is a path on a Windows machine: {relative_to}")
        if re.match(r"[A-Za-z][\w+.-]+://", cells["path"]):
            raise DataError(f"{where}: {cells['path']} is an address: images must be files here, download them first")
        path = _spelled(base, cells["path"])
        key = os.path.join(real(path.parent), path.name)  # the file, however its folder is written
        if key in seen:
            raise DataError(f"{where}: {cells['path']} stands in line {seen[key]} already")
        seen[key] = line
        certainty = _probability(cells.get("certainty") or "1")
        if not 0 < certainty <= 1:
            raise DataError(f"{where}: certainty is {cells['certainty']!r}, must be above 0 and at most 1")
        entries.append(Entry(path, clean(cells["label"]), split, certainty=certainty))
    if not entries:
        raise DataError(f"{table} lists no images")
    labels = {cells["label"] for _, cells in rows}
    _check_certainty(table, entries, rows)
    notes += several_labels(table, labels)
    return Listing(table.stem, base, entries, _sorted_classes(labels), notes=notes + _alike(labels))


def _check_certainty(table: Path, entries: Iterable[Entry], rows: Iterable[tuple[int, dict[str, str]]]) -> None:
    """Raise `DataError` for a certainty at which every other label is likelier than its own."""
    classes = len({entry.label for entry in entries})
    for entry, (line, cells) in zip(entries, rows, strict=True):
        if entry.certainty * classes < 0.97:  # 0.33 of three classes is a third
            raise DataError(
                f"{table}, line {line}: certainty is {cells['certainty']!r}, with which each of the other labels is "
                f"likelier than {entry.label!r}: name the likeliest one"
            )


def _probability(cell: str) -> float:
    """A number, with a decimal comma too; 0 for what is none."""
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return 0.0


def several_labels(table: Path, labels: Iterable[str]) -> list[str]:
    """A note if cells of a table seem to hold several labels, between ; or | or commas: if a part of one stands in
    another at another place ("cat;dog", "dog;bird").

    Raises `DataError` if that is clear: every part of at least two such cells stands alone somewhere too.
    """
    whole = {clean(label) for label in labels}
    for separator in ";|,":
        cells = {label: [p.strip() for p in label.split(separator)] for label in sorted(whole) if separator in label}
        cells = {label: parts for label, parts in cells.items() if all(parts)}
        places = {(part, at) for parts in cells.values() for at, part in enumerate(parts)}
        one = f"such as {next(iter(cells), '')!r}"
        if len(cells) > 1 and all(part in whole for parts in cells.values() for part in parts):
            remedy = f"keep one of each (if it is one name, write it without the {separator!r})"
            raise DataError(f"{table}: {len(cells)} labels {one} are several labels, and an image has one: {remedy}")
        if len({part for part, _ in places}) < len(places):
            return [f"{len(cells)} labels {one} may be several labels each: every one is trained as a class of its own"]
    return []


def _spelled(base: Path, name: str) -> Path:
    """The file that a table names: as it stands there, with Windows's separators, in another form of Unicode, or with
    the bytes that it had on an old Windows disk."""
    slashes = name.replace("\\", "/")
    forms = [unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes)]
    with suppress(UnicodeEncodeError):
        forms.append(os.fsdecode(forms[0].encode("cp1252")))
    paths = [os.path.join(base, spelled) for spelled in (name, slashes, *forms)]
    return Path(next(filter(os.path.lexists, paths), paths[1]))


def relative(path: Path, root: Path) -> str:
    """The name of a file in records: relative to the source's folder, absolute where it lies elsewhere."""
    path = path.absolute()
    for base in (root.absolute(), root.resolve()):  # they differ where the folder is reached by a link
        if path.is_relative_to(base):
            return printable(path.relative_to(base).as_posix())
    return printable(path)


def clean(label: str) -> str:
    """A label without what nobody sees: blanks around it or twice, and which form of Unicode its letters have."""
    return " ".join(unicodedata.normalize("NFC", printable(label)).split()) or label


def alike(label: str) -> str:
    """The same for labels that are likely meant to be one: in case, blanks, or as 1 and 1.0."""
    return re.sub(r"[\s_]+|(?<=\d)\.0+$", "", clean(label).casefold())


def _alike(names: Iterable[str]) -> list[str]:
    """A note of each class that has several spellings, and of classes that look like one."""
    spellings: dict[str, set[str]] = defaultdict(set)
    twins: dict[str, set[str]] = defaultdict(set)
    for name in sorted(set(names)):
        spellings[clean(name)].add(name)
        twins[alike(name)].add(clean(name))
    merged = [name for name, group in spellings.items() if len(group) > 1]
    apart = [", ".join(map(repr, sorted(group))) for group in twins.values() if len(group) > 1]
    return [
        *(f"the class {name!r} is spelled in several ways (blanks, Unicode): they are read as one" for name in merged),
        *(f"the classes {group} have nearly the same name: give them one if they are one" for group in apart),
    ]


def _sorted_classes(labels: Iterable[str]) -> list[str]:
    """By name; by number if all are numbers, so that 10 comes after 9."""
    names = set(map(clean, labels))
    return sorted(names, key=lambda name: (int(name) if all(n.isdecimal() for n in names) else 0, name))
