"""Images in leak-proof splits.

Train and val are split from the training part only, stratified, by the recorded seed. Where the source has no test
split, one is split off first, by a seed that never changes, so that runs with other seeds are evaluated on the same
images. Files with identical bytes are always in the same split. `Dataset.test` is the only access to the test split,
for `evaluate` alone.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import file_sha256, read_json
from roclab.vision.data.files import inspect_files, printable
from roclab.vision.data.images import Inspection, exact_duplicates, in_threads, near_duplicates
from roclab.vision.data.sources import PETS_FOLDER, Entry, Listing, alike, elpv_folder, list_images, relative

TEST_SEED = 20190  # makes the test split where the source has none; recorded in the manifest, the same for all runs

UNUSED = "unused"  # images of the training part beyond `per_class`
RECORDED = ("name", "classes", "species", "seed", "val_fraction", "flips", "notes")  # in the manifest as they are


@dataclass(frozen=True)
class LabelledImage:
    path: Path
    label: int  # index into Dataset.classes
    split: str  # "train", "val" or "test"
    sha256: str
    certainty: float = 1.0  # probability that the label is right, where the source says so


@dataclass
class Dataset:
    """Images of `classes`, each in one split. `notes` are lines for the user; `skipped` is what was left out."""

    name: str
    classes: list[str]
    root: Path
    seed: int
    _images: list[LabelledImage] = field(repr=False)
    species: dict[str, str] | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    val_fraction: float = 0.2
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)  # pairs across splits, as paths
    flips: str = "horizontal"  # what `transforms.train_transform` may do: "horizontal" or "dihedral"

    @property
    def images(self) -> list[LabelledImage]:
        """The images that training may see: train and val."""
        return [image for image in self._images if image.split != "test"]

    def split(self, name: str) -> list[LabelledImage]:
        """The images of "train" or "val"."""
        if name not in ("train", "val"):
            raise RocLabError(f"split {name!r} is not for training: only `roclab vision evaluate` opens test")
        return [image for image in self._images if image.split == name]

    def test(self, opened_by: str) -> list[LabelledImage]:
        """The images of the test split, for `evaluate` alone, which records in the run that it used them."""
        if opened_by != "evaluate":
            raise RocLabError(f"the test split is opened by `roclab vision evaluate` alone, not by {opened_by}")
        images = [image for image in self._images if image.split == "test"]
        if not images:
            raise DataError(f"{self.name} has no test split: give it a test folder, or evaluate --split val")
        return images

    def without_known(self, images: Sequence[LabelledImage]) -> list[LabelledImage]:
        """Those of other images that are not in any of its splits, test too, by the hash of their bytes."""
        known = {image.sha256 for image in self._images}
        return [image for image in images if image.sha256 not in known]

    def has_doubts(self) -> bool:
        """Whether a label is not certain."""
        return any(image.certainty < 1 for image in self._images)

    def counts(self) -> dict[str, int]:
        """Number of images in each split."""
        found = Counter(image.split for image in self._images)
        return {name: found[name] for name in ("train", "val", "test")}

    def fingerprint(self) -> str:
        """SHA-256 over every image's hash, label and split: two runs with the same one used the same data."""
        facts = ((image.sha256, image.label, image.split, *_doubt(image)) for image in self._images)
        lines = sorted(" ".join(map(str, row)) + "\n" for row in facts)
        return hashlib.sha256("".join([*lines, *self.classes]).encode()).hexdigest()

    def has_images_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether its images, labels and splits are those of a run's record; older ones know no label's certainty."""
        own = sorted((image.sha256, image.label, image.split) for image in self._images)
        return own == sorted((row["sha256"], row["label"], row["split"]) for row in manifest["images"]) and (
            self.classes == manifest["classes"]
        )

    def manifest(self) -> dict[str, Any]:
        """The split as JSON, with each file's hash: saved in every run, read back by `from_manifest`."""
        return {
            **{name: getattr(self, name) for name in RECORDED},
            "root": str(self.root.resolve()),
            "test_seed": TEST_SEED,
            "fingerprint": self.fingerprint(),
            "skipped": [[relative(path, self.root), reason] for path, reason in self.skipped],
            "near_duplicates_across_splits": self.near_duplicates,
            "images": [self._row(image) for image in self._images],
        }

    def _row(self, image: LabelledImage) -> dict[str, Any]:
        known = {name: value for name, value in vars(image).items() if name != "certainty" or _doubt(image)}
        return known | {"path": relative(image.path, self.root)}

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any], root: str | os.PathLike | None = None) -> Dataset:
        """The dataset of a run, exactly: every file is hashed again, and one that changed raises `DataError`.

        `root`: where the images are now, if they have moved; it may be the `data_root` that `load_data` was given.
        """
        try:
            base = find_root(manifest, root)
            images = [LabelledImage(**row | {"path": base / row["path"]}) for row in manifest["images"]]
            dataset = cls(
                root=base,
                _images=images,
                skipped=[(base / path, reason) for path, reason in manifest["skipped"]],
                near_duplicates=manifest["near_duplicates_across_splits"],
                **{name: manifest[name] for name in RECORDED},
            )
            recorded = manifest["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the run's record of its images is damaged ({error!r}): train again") from None
        if dataset.fingerprint() != recorded:
            raise DataError("the run's record of its images was edited: its fingerprint does not match")
        for image, found in zip(images, in_threads(_hash_or_none, images, "checking images"), strict=True):
            if found is None:
                raise DataError(f"{image.path} is missing: the run was made with it; say where it is with --data-root")
            if found != image.sha256:
                raise DataError(f"{image.path} has changed since the run was made")
        return dataset


def _doubt(image: LabelledImage) -> list[float]:
    """The certainty of a label that is not certain: records of certain ones are as they were before it was known."""
    return [image.certainty] if image.certainty < 1 else []


def find_root(manifest: dict[str, Any], root: str | os.PathLike | None) -> Path:
    """The folder that the manifest's paths are relative to: as recorded, or where the user or the package has it."""
    base = Path(root if root is not None else manifest["root"])
    first = next((p["path"] for p in manifest["images"] if not Path(p["path"]).is_absolute()), None)
    if first is None or (base / first).exists():
        return base
    if (base / PETS_FOLDER / first).exists():
        return base / PETS_FOLDER
    if root is None and manifest["name"] == "elpv":  # the run was made on another machine, or in another environment
        return elpv_folder()
    return base


def labels_of(images: Sequence[LabelledImage]) -> np.ndarray:
    """Labels (N,) of images."""
    return np.array([image.label for image in images])


def targets_of(images: Sequence[LabelledImage], classes: int, soft: bool = True) -> np.ndarray:
    """What a loss compares with: labels (N,); if `soft`, and not all are certain, probabilities (N, C) float32, in
    which the other classes share what a label's certainty leaves."""
    labels = labels_of(images)
    if not soft:
        return labels
    certainty = np.array([[image.certainty] for image in images], dtype=np.float32)
    if not len(images) or certainty.min() == 1:
        return labels
    own = np.eye(classes, dtype=np.float32)[labels]
    return own * certainty + (1 - own) * (1 - certainty) / (classes - 1)


def read_manifest(run: str | os.PathLike) -> dict[str, Any]:
    """A run folder's split.json; version 0.1 had "photos" for "images". Raises `DataError` if it is damaged."""
    path = Path(run) / "split.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise DataError(f"{path} is damaged (it holds no record of images): train again")
    for row in (manifest, *manifest.get("near_duplicates_across_splits", ())):
        if "photos" in row:
            row["images"] = row.pop("photos")
    if missing := [name for name in (*RECORDED, "root", "fingerprint", "images") if name not in manifest]:
        raise DataError(f"{path} is damaged (it lacks {', '.join(missing)}): train again")
    return manifest


def _hash_or_none(image: LabelledImage) -> str | None:
    try:
        return file_sha256(image.path)
    except OSError:
        return None


def load_data(
    spec: str,
    data_root: str | os.PathLike | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    mirror: str | None = None,
    per_class: int | None = None,
) -> Dataset:
    """List, check and split the images of `spec`: "pets", "elpv", a folder or a CSV file.

    `per_class`: at most so many images of each class are left to train and validate on, drawn by the seed. What is
    drawn for a smaller number is part of what is drawn for a larger one.

    Every image is opened (once: what is found is cached under the file's hash). One that cannot be read raises a
    `DataError` that names it; `skip_bad` leaves all such images, and classes without images, out of every split and
    records them in `Dataset.skipped`.
    """
    if not 0 < val_fraction < 1:
        raise RocLabError(f"--val-fraction is {val_fraction}, must be between 0 and 1")
    listing, entries, checks, skipped = _readable(spec, data_root, mirror, skip_bad)
    classes = _classes(listing, entries, skip_bad, skipped)
    hashes = [check.sha256 for check in checks]
    splits = _split(entries, hashes, listing.test_fraction, val_fraction, seed, per_class)
    labels = [classes.index(entry.label) for entry in entries]
    rows = [row for row in zip(entries, labels, splits, hashes, strict=True) if row[2] != UNUSED]
    few = [f"at most {per_class} images of each class to train and validate on, drawn by the seed"] if per_class else []
    dataset = Dataset(
        name=listing.name,
        classes=classes,
        root=listing.root,
        seed=seed,
        _images=[LabelledImage(entry.path, label, split, sha, entry.certainty) for entry, label, split, sha in rows],
        species={name: listing.species[name] for name in classes} if listing.species else None,
        skipped=skipped,
        notes=[*listing.notes, *few, *_passed_over(listing.ignored), *_left_out(skipped)],
        val_fraction=val_fraction,
        flips=listing.flips,
    )
    _note_missing(dataset)
    _note_duplicates(dataset, [check for check, split in zip(checks, splits, strict=True) if split != UNUSED])
    return dataset


def labelled_images(
    spec: str, data_root: str | os.PathLike | None, classes: Sequence[str], skip_bad: bool = False
) -> list[LabelledImage]:
    """All images of `spec`, of whatever split, labelled by the names of `classes`; of some classes there may be none.

    Raises `DataError` for a class that is not among them, and for images as `load_data` does.
    """
    listing, entries, checks, _ = _readable(spec, data_root, None, skip_bad)
    for name in sorted({entry.label for entry in entries} - set(classes)):
        named = f"{name!r}{_twin(name, classes)}"
        raise DataError(f"{listing.name} has a class {named}, which is none of the run's: {', '.join(classes)}")
    return [
        LabelledImage(entry.path, classes.index(entry.label), "test", check.sha256)
        for entry, check in zip(entries, checks, strict=True)
    ]


def _twin(name: str, classes: Sequence[str]) -> str:
    """A question whether another class is meant, one that differs in case or blanks."""
    return next((f" (is it {other!r}?)" for other in classes if alike(other) == alike(name)), "")


def _readable(
    spec: str, data_root: str | os.PathLike | None, mirror: str | None, skip_bad: bool
) -> tuple[Listing, list[Entry], list[Inspection], list[tuple[Path, str]]]:
    """The images of `spec` that can be read, with what was found of each, and those left out."""
    listing = list_images(spec, data_root, mirror)
    checks = inspect_files([entry.path for entry in listing.entries])
    bad = [check for check in checks if check.error]
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more: `roclab vision audit` names them all)" if len(bad) > 1 else ""
        first = f"{printable(bad[0].path)}: {bad[0].error}"
        raise DataError(f"{first}{more}; repair or remove it, or leave it out with --skip-bad")
    entries = [entry for entry, check in zip(listing.entries, checks, strict=True) if not check.error]
    return (
        listing,
        entries,
        [check for check in checks if not check.error],
        [(check.path, check.error) for check in bad],
    )


def _passed_over(files: list[Path]) -> list[str]:
    """A note of the files that are no images by their name, or have no class."""
    what = f"{len(files)} passed over, no images by their name or in no class folder"
    return [f"{what}: first {printable(files[0])}; `roclab vision audit` lists them"] if files else []


def _left_out(skipped: list[tuple[Path, str]], shown: int = 10) -> list[str]:
    """A note for each reason to leave images out, `shown` at most."""
    first = {reason: path for path, reason in reversed(skipped)}
    notes = []
    for reason, number in Counter(reason for _, reason in skipped).items():
        more = f" and {number - 1} more" if number > 1 else ""
        notes.append(f"left out {printable(first[reason])}{more}: {reason}")
    rest = f"left out {len(skipped)} in all, for {len(notes) - shown} more reasons: split.json names them"
    return notes if len(notes) <= shown else [*notes[:shown], rest]


def _classes(listing: Listing, entries: list[Entry], skip_bad: bool, skipped: list[tuple[Path, str]]) -> list[str]:
    """The classes that have images to train on. An empty one raises, or is left out with `skip_bad`."""
    present = {entry.label for entry in entries if entry.split not in ("val", "test")}
    for name in (name for name in listing.classes if name not in present):
        if there := next((entry.split for entry in entries if entry.label == name), None):
            twin = _twin(name, sorted(present))
            raise DataError(f"class {name!r}{twin} of {listing.name} has images in {there} but none to train on")
        if not skip_bad:
            raise DataError(f"class {name!r} of {listing.name} has no images: add some, remove it, or use --skip-bad")
        skipped.append((listing.root / name, "a class without images"))
    classes = [name for name in listing.classes if name in present]
    if len(classes) < 2:
        only = f"one class with images, {classes[0]!r}" if classes else "no class with images"
        raise DataError(f"{listing.name} has {only}: at least two are needed (is it the folder that holds theirs?)")
    return classes


def _split(
    entries: Sequence[Entry],
    hashes: Sequence[str],
    test_fraction: float,
    val_fraction: float,
    seed: int,
    per_class: int | None,
) -> list[str]:
    """The split of each entry: as the source has it; test (if the source has none), what `per_class` leaves unused, and
    val are chosen."""
    splits = ["train" if entry.split == "trainval" else entry.split for entry in entries]
    if None in splits:
        for i in _choose(range(len(entries)), entries, hashes, test_fraction, TEST_SEED):
            splits[i] = "test"
        splits = [split or "train" for split in splits]
    if per_class:
        for i in _surplus([i for i, split in enumerate(splits) if split == "train"], entries, per_class, seed):
            splits[i] = UNUSED
    if "val" not in splits:
        training = [i for i, split in enumerate(splits) if split == "train"]
        for i in _choose(training, entries, hashes, val_fraction, seed):
            splits[i] = "val"
    return [str(split) for split in splits]


def _surplus(indices: Sequence[int], entries: Sequence[Entry], per_class: int, seed: int) -> list[int]:
    """Those of `indices` that are beyond `per_class` of their class, in an order drawn by the seed."""
    places = sorted(indices, key=lambda i: entries[i].path.as_posix())
    seen: Counter[str] = Counter()
    surplus = []
    for place in np.random.default_rng(seed).permutation(len(places)):
        label = entries[places[place]].label
        seen[label] += 1
        if seen[label] > per_class:
            surplus.append(places[place])
    return surplus


def _choose(
    indices: Sequence[int], entries: Sequence[Entry], hashes: Sequence[str], fraction: float, seed: int
) -> list[int]:
    """Choose `fraction` of `indices`, stratified, files with identical bytes together (scikit-learn's split).

    A stratum with a single image is never split: its image stays in training. Where the shares of small strata round to
    nothing, `_note_missing` says which classes a split has no image of.
    """
    from sklearn.model_selection import train_test_split

    copies: dict[str, list[int]] = defaultdict(list)
    for i in sorted(indices, key=lambda i: entries[i].path.as_posix()):
        copies[hashes[i]].append(i)
    strata = {sha256: entries[i[0]].stratum or entries[i[0]].label for sha256, i in copies.items()}
    sizes = Counter(strata.values())
    units = [sha256 for sha256 in copies if sizes[strata[sha256]] > 1]
    labels = [strata[sha256] for sha256 in units]
    kinds = len(set(labels))
    if not units:
        needed = "three of a class are needed, one each for train, val and test (two if the source has its own test)"
        raise DataError(f"there are too few images for a validation or test split: {needed}")
    number = min(max(round(fraction * len(units)), kinds), len(units) - kinds)  # scikit-learn wants room for each
    _, chosen = train_test_split(units, test_size=number, stratify=labels, random_state=seed)
    return [i for sha256 in chosen for i in copies[sha256]]


def _note_missing(dataset: Dataset) -> None:
    """Note which classes a split has no image of: nothing is known of their share of the figures."""
    counts = dataset.counts()
    for name in (name for name in counts if counts[name]):
        present = {image.label for image in dataset._images if image.split == name}
        if absent := [c for i, c in enumerate(dataset.classes) if i not in present]:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            dataset.notes.append(f"{name} has no image of {len(absent)} of {len(dataset.classes)} classes: {shown}")
    if not counts["train"] or not counts["val"]:
        raise DataError(f"{dataset.name}: the splits leave nothing to train on or to validate with: {counts}")


def _note_duplicates(dataset: Dataset, checks: Sequence[Inspection]) -> None:
    """Note which images are in more than one split: identical bytes (only where the source made the split) and
    near-duplicates. A test image that was trained on makes the test figure too good."""
    images = dataset._images
    same = [[images[i] for i in group] for group in exact_duplicates([image.sha256 for image in images])]
    if torn := [group for group in same if len({image.label for image in group}) > 1]:
        first = " = ".join(relative(image.path, dataset.root) for image in torn[0])
        dataset.notes.append(f"{len(torn)} images are there under different labels, byte for byte; first {first}")
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        there = {image.sha256 for image in images if image.split == a}
        if common := {image.sha256: str(image.path) for image in images if image.split == b and image.sha256 in there}:
            first = min(common.values())
            dataset.notes.append(f"{len(common)} images of {b} are also in {a}, byte for byte; first {first}")
    for pair in near_duplicates(checks):
        both = images[pair.first], images[pair.second]
        if both[0].split != both[1].split:
            dataset.near_duplicates.append(
                {
                    "images": [relative(image.path, dataset.root) for image in both],
                    "splits": [image.split for image in both],
                    "same_label": both[0].label == both[1].label,
                    "distance": pair.distance,
                    "correlation": pair.correlation,
                }
            )
    if found := dataset.near_duplicates:
        with_test = sum("test" in pair["splits"] for pair in found)
        dataset.notes.append(
            f"{len(found)} pairs of near-duplicates lie across splits, {with_test} of them with the test split "
            f"(perceptual hash); closest {' and '.join(found[0]['images'])}; `roclab vision audit` lists them"
        )
