"""Sources, leak-proof splits, what happens to bad images, the manifest, the download."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roclab.core.exceptions import DataError, RocLabError
from roclab.vision.data import dataset as data_module
from roclab.vision.data.dataset import TEST_SEED, Dataset, load_data, targets_of
from roclab.vision.data.sources import Entry
from tests.vision.conftest import picture

ROOT = Path(__file__).parents[2]


def everyone(dataset: Dataset) -> list:
    return [*dataset.images, *dataset.test(opened_by="evaluate")]


# ---------------------------------------------------------------- splits


def test_a_folder_per_class_is_cut_into_stratified_splits(folder: Path):
    dataset = load_data(str(folder))
    assert dataset.classes == ["cat", "dog"]
    assert dataset.counts() == {"train": 13, "val": 3, "test": 4}
    for images in (dataset.split("train"), dataset.split("val"), dataset.test("evaluate")):
        numbers = Counter(image.label for image in images)
        assert abs(numbers[0] - numbers[1]) <= 1
    assert {dataset.classes[image.label] == image.path.parent.name for image in everyone(dataset)} == {True}


def test_the_seed_moves_val_and_never_test(folder: Path):
    a, again, b = (load_data(str(folder), seed=seed) for seed in (0, 0, 1))
    assert a == again
    assert a.split("val") != b.split("val")
    assert a.test("evaluate") == b.test("evaluate")
    assert {p.path for p in a.images} == {p.path for p in b.images}


def test_fewer_images_of_each_class_are_drawn_by_the_seed_and_leave_test_alone(folder: Path):
    every = load_data(str(folder))
    few, fewer, other = (load_data(str(folder), seed=seed, per_class=n) for n, seed in ((4, 0), (2, 0), (4, 1)))
    assert few.test("evaluate") == every.test("evaluate")
    assert Counter(image.label for image in few.images) == {0: 4, 1: 4}
    assert few.counts()["val"] >= 1
    paths, less, drawn_again = ({image.path for image in data.images} for data in (few, fewer, other))
    assert less < paths
    assert drawn_again != paths
    assert "at most 4 images of each class" in few.notes[0]
    assert load_data(str(folder), per_class=100).fingerprint() == every.fingerprint()


def test_only_evaluate_opens_test(folder: Path):
    dataset = load_data(str(folder))
    assert {image.split for image in dataset.images} == {"train", "val"}
    with pytest.raises(RocLabError, match="only"):
        dataset.split("test")
    with pytest.raises(RocLabError, match="not by train"):
        dataset.test(opened_by="train")


@settings(max_examples=60, deadline=None)
@given(
    copies=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=30),
    seed=st.integers(0, 5),
    fraction=st.floats(0.05, 0.6),
)
def test_identical_files_never_lie_on_both_sides_of_a_cut(copies: list, seed: int, fraction: float):
    """Pictures with a class and a number of copies each; a class of one picture is never cut."""
    entries, hashes = [], []
    for i, (label, number) in enumerate(copies):
        for k in range(number):
            entries.append(Entry(Path(f"{label}/{i}_{k}.jpg"), str(label)))
            hashes.append(str(i))
    kinds = Counter(label for label, _ in copies)
    if max(kinds.values()) < 2:
        with pytest.raises(DataError, match="too few"):
            data_module._choose(range(len(entries)), entries, hashes, fraction, seed)
        return
    chosen = data_module._choose(range(len(entries)), entries, hashes, fraction, seed)
    rest = set(range(len(entries))) - set(chosen)
    assert len(set(chosen)) == len(chosen)
    assert not {hashes[i] for i in chosen} & {hashes[i] for i in rest}
    drawn = Counter(copies[int(picture)][0] for picture in {hashes[i] for i in chosen})
    cut = {label: number for label, number in kinds.items() if number > 1}
    assert drawn.keys() <= cut.keys()
    for label, number in cut.items():  # its share, to the nearest picture
        assert abs(drawn[label] - number * drawn.total() / sum(cut.values())) < 1


def test_train_val_test_folders_are_taken_as_they_are(folder: Path, tmp_path: Path):
    for split, numbers in (("train", range(6)), ("valid", range(6, 8)), ("test", range(8, 10))):
        for name in ("cat", "dog"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in numbers:
                (folder / name / f"{i}.jpg").rename(tmp_path / "own" / split / name / f"{i}.jpg")
    dataset = load_data(str(tmp_path / "own"))
    assert dataset.counts() == {"train": 12, "val": 4, "test": 4}
    assert {(p.split, p.path.parent.parent.name) for p in everyone(dataset)} == {
        ("train", "train"),
        ("val", "valid"),
        ("test", "test"),
    }
    for name in ("cat", "dog"):  # without a val folder, val is cut from train; without a test folder there is none
        for i in (6, 7):
            (tmp_path / "own" / "valid" / name / f"{i}.jpg").unlink()
        (tmp_path / "own" / "valid" / name).rmdir()
        for i in (8, 9):
            (tmp_path / "own" / "test" / name / f"{i}.jpg").unlink()
        (tmp_path / "own" / "test" / name).rmdir()
    (tmp_path / "own" / "valid").rmdir()
    (tmp_path / "own" / "test").rmdir()
    dataset = load_data(str(tmp_path / "own"))
    assert dataset.counts() == {"train": 10, "val": 2, "test": 0}
    with pytest.raises(DataError, match="no test split"):
        dataset.test("evaluate")


def test_a_stray_folder_beside_train_is_named(folder: Path):
    (folder / "cat").rename(folder / "train")
    with pytest.raises(DataError, match="beside it dog"):
        load_data(str(folder))


def test_a_table(folder: Path, tmp_path: Path):
    rows = [f"images/{p.parent.name}/{p.name},{p.parent.name}" for p in sorted(folder.rglob("*.jpg"))]
    (tmp_path / "table.csv").write_text("\ufeffPath, Label\n" + "\n".join(rows))  # as spreadsheets write it
    assert load_data(str(tmp_path / "table.csv")).counts() == {"train": 13, "val": 3, "test": 4}
    splits = ["train"] * 7 + ["validation"] + ["test"] * 2
    lines = [f"{row},{split}" for row, split in zip(rows, splits * 2, strict=True)]
    (tmp_path / "table.csv").write_text("path,label,split\n" + "\n".join(lines))
    assert load_data(str(tmp_path / "table.csv")).counts() == {"train": 14, "val": 2, "test": 4}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "table.csv").rename(tmp_path / "elsewhere" / "table.csv")
    assert load_data(str(tmp_path / "elsewhere" / "table.csv"), tmp_path).counts()["train"] == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n", "must name the columns"),
        ("", "must name the columns"),
        ("path,label\n", "lists no images"),
        ("path,label\na.jpg,\n", "line 2: path or label is empty"),
        ("path,label\na.jpg,x\na.jpg,y\n", "line 3: a.jpg stands in line 2"),
        ("path,label,split\na.jpg,x,holdout\n", "line 2: split is 'holdout'"),
        ("path,label,certainty\na.jpg,x,1.5\n", "line 2: certainty is '1.5', must be above 0 and at most 1"),
        ("path,label,certainty\na.jpg,x,sure\n", "line 2: certainty is 'sure'"),
        ("path,label,certainty\na.jpg,x,0.5\nb.jpg,y,0.3\n", "line 3: certainty is '0.3', .* likelier than 'y'"),
        ("path,label,split\na.jpg,x\n", "line 2: split is ''"),
        ("path,label\na.jpg,x\n", "a.jpg: there is no such file"),
    ],
)
def test_a_faulty_table_is_named_with_the_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "t.csv"))


def test_numbers_as_classes_are_sorted_as_numbers(tmp_path: Path):
    for name in ("2", "10", "1"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in range(4):
            picture(hash((name, i)) % 1000).save(tmp_path / "digits" / name / f"{i}.png")
    assert load_data(str(tmp_path / "digits")).classes == ["1", "2", "10"]


@pytest.mark.parametrize("spec", ["nowhere", "table.txt"])
def test_a_source_that_is_not_one_is_named(tmp_path: Path, spec: str):
    (tmp_path / "table.txt").write_text("")
    with pytest.raises(DataError, match=spec):
        load_data(str(tmp_path / spec))


def test_val_fraction_is_checked(folder: Path):
    with pytest.raises(RocLabError, match="between 0 and 1"):
        load_data(str(folder), val_fraction=1.0)


# ---------------------------------------------------------------- bad images


@pytest.fixture
def hard(folder: Path) -> Path:
    """The folder with every difficulty the issue names."""
    big = picture(50, (200, 200))
    big.save(folder / "cat" / "truncated.jpg")
    whole = (folder / "cat" / "truncated.jpg").read_bytes()
    (folder / "cat" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "text.jpg").write_text("hello")
    (folder / "dog" / "notes.txt").write_text("no image by its name")
    (folder / "dog" / ".hidden.jpg").write_text("not looked at")
    (folder / "lonely").mkdir()
    picture(51).save(folder / "lonely" / "only.jpg")
    (folder / "nothing").mkdir()
    import numpy as np

    deep = np.asarray(picture(52).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "cat" / "deep.png")
    picture(53).convert("CMYK").save(folder / "cat" / "print.jpg")
    picture(54).save(folder / "dog" / "moving.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(55).save(folder / "dog" / "turned.jpg", exif=exif)
    return folder


def test_training_stops_on_an_unreadable_image_and_names_it(hard: Path):
    with pytest.raises(DataError, match=r"cat/truncated.jpg: .*truncated.*1 more.*--skip-bad"):
        load_data(str(hard))


def test_an_empty_class_stops_too(hard: Path):
    (hard / "cat" / "truncated.jpg").unlink()
    (hard / "dog" / "text.jpg").unlink()
    with pytest.raises(DataError, match=r"class 'nothing' .* has no images"):
        load_data(str(hard))
    (hard / "nothing").rmdir()
    dataset = load_data(str(hard))
    assert dataset.skipped == []
    assert dataset.counts() == {"train": 16, "val": 4, "test": 5}


def test_skip_bad_leaves_them_out_everywhere_and_says_so(hard: Path):
    dataset = load_data(str(hard), skip_bad=True)
    assert dataset.classes == ["cat", "dog", "lonely"]
    assert {path.name for path, _ in dataset.skipped} == {"truncated.jpg", "text.jpg", "nothing"}
    assert not {image.path.name for image in everyone(dataset)} & {"truncated.jpg", "text.jpg", "notes.txt"}
    assert len(everyone(dataset)) == 25
    assert sum("left out" in note for note in dataset.notes) == 3
    # the single image of its class stays in training, and the notes say what that means
    assert [p.split for p in everyone(dataset) if p.path.name == "only.jpg"] == ["train"]
    assert any("val has no image of 1 of 3 classes: lonely" in note for note in dataset.notes)


def test_one_class_is_not_enough(folder: Path):
    for path in (folder / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="at least two"):
        load_data(str(folder), skip_bad=True)


def test_a_class_only_in_test_is_named(folder: Path, tmp_path: Path):
    rows = [f"{p},{p.parent.name},{'test' if p.parent.name == 'dog' else 'train'}" for p in folder.rglob("*.jpg")]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"'dog' .* none to train on"):
        load_data(str(tmp_path / "t.csv"))


def test_duplicates_across_given_splits_are_reported(folder: Path, tmp_path: Path):
    source = folder / "cat" / "0.jpg"
    (folder / "cat" / "copy.jpg").write_bytes(source.read_bytes())
    Image.open(source).save(folder / "cat" / "again.jpg", quality=60)
    test = {"copy.jpg", "again.jpg"}
    rows = [f"{p},{p.parent.name},{'test' if p.name in test else 'train'}" for p in sorted(folder.rglob("*.jpg"))]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(rows))
    dataset = load_data(str(tmp_path / "t.csv"))
    assert any("1 images of test are also in" in note and "byte for byte" in note for note in dataset.notes)
    pairs = [{Path(path).name for path in pair["images"]} for pair in dataset.near_duplicates]
    assert {"0.jpg", "again.jpg"} in pairs
    assert {"copy.jpg", "again.jpg"} not in pairs  # both in test
    assert dataset.manifest()["near_duplicates_across_splits"] == dataset.near_duplicates


# ---------------------------------------------------------------- manifest


def test_a_manifest_brings_back_the_very_same_split(folder: Path, tmp_path: Path):
    dataset = load_data(str(folder), seed=3)
    manifest = json.loads(json.dumps(dataset.manifest()))
    assert manifest["seed"] == 3
    assert manifest["test_seed"] == TEST_SEED
    assert len(manifest["images"]) == 20
    assert not any(str(tmp_path) in image["path"] for image in manifest["images"])
    assert everyone(Dataset.from_manifest(manifest)) == everyone(dataset)
    folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"missing.*--data-root"):
        Dataset.from_manifest(manifest)
    moved = Dataset.from_manifest(manifest, tmp_path / "moved")
    assert [p.path.name for p in everyone(moved)] == [p.path.name for p in everyone(dataset)]
    assert moved.fingerprint() == dataset.fingerprint()


def test_paths_are_relative_to_a_linked_folder_too(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    manifest = load_data(tmp_path / "link", seed=0).manifest()
    assert not any(Path(p["path"]).is_absolute() for p in manifest["images"])
    assert Path(manifest["root"], manifest["images"][0]["path"]).is_file()


def test_a_run_made_elsewhere_finds_the_package_and_the_pets(tmp_path: Path, shared_data: Path):
    pytest.importorskip("elpv_dataset", reason="the package elpv-dataset is not installed")
    for dataset, root in ((load_data("elpv"), None), (load_data("pets", shared_data / "pets3"), shared_data / "pets3")):
        manifest = dataset.manifest() | {"root": str(tmp_path / "on" / "another" / "machine")}
        assert Dataset.from_manifest(manifest, root).fingerprint() == dataset.fingerprint()


def test_a_changed_image_or_record_is_noticed(folder: Path):
    dataset = load_data(str(folder))
    manifest = dataset.manifest()
    picture(99).save(folder / "dog" / "3.jpg")
    with pytest.raises(DataError, match=r"dog/3.jpg has changed"):
        Dataset.from_manifest(manifest)
    edited = json.loads(json.dumps(manifest))
    edited["images"][0]["split"] = "test"
    with pytest.raises(DataError, match="edited"):
        Dataset.from_manifest(edited)
    with pytest.raises(DataError, match="damaged"):
        Dataset.from_manifest({"name": "x"})


def test_fingerprint_follows_content_labels_and_split(folder: Path):
    base = load_data(str(folder))
    assert load_data(str(folder)).fingerprint() == base.fingerprint()
    assert load_data(str(folder), seed=1).fingerprint() != base.fingerprint()
    picture(98).save(folder / "cat" / "0.jpg")
    assert load_data(str(folder)).fingerprint() != base.fingerprint()


def test_a_label_that_is_not_certain_leaves_a_share_to_the_other_classes(folder: Path, tmp_path: Path):
    names = [path.relative_to(folder.parent).as_posix() for path in sorted(folder.glob("*/*.*"))]
    certainty = ["0,75", *[""] * (len(names) - 1)]
    rows = [f"{name};{Path(name).parent.name};train;{sure}" for name, sure in zip(names, certainty, strict=True)]
    (tmp_path / "t.csv").write_text("path;label;split;certainty\n" + "\n".join(rows))
    dataset = load_data(str(tmp_path / "t.csv"), folder.parent)
    targets = targets_of(dataset.images, 3)
    doubted = [image.certainty for image in dataset.images].index(0.75)
    assert targets[doubted].tolist() == [0.75, 0.125, 0.125]
    assert sorted(map(tuple, np.delete(targets, doubted, axis=0))) == [(0, 1, 0)] * 10 + [(1, 0, 0)] * 9
    manifest = dataset.manifest()
    assert Dataset.from_manifest(manifest).images == dataset.images
    for row in manifest["images"]:  # as a version wrote it that knew no certainty
        row.pop("certainty", None)
    assert dataset.has_images_of(manifest)
    manifest["images"][0]["sha256"] = "0" * 64
    assert not dataset.has_images_of(manifest)
    assert all(("certainty" in row) == (row.get("certainty", 1) < 1) for row in dataset.manifest()["images"])


# ---------------------------------------------------------------- elpv and pets


def test_elpv_is_split_as_published():
    pytest.importorskip("elpv_dataset", reason="the package elpv-dataset is not installed")
    dataset = load_data("elpv")
    assert dataset.classes == ["functional", "defective"]
    assert dataset.counts() == {"train": 1574, "val": 394, "test": 656}  # 75/25, as Deitsch et al. 2019
    assert dataset.flips == "dihedral"
    table = (dataset.root / "labels.csv").read_text().splitlines()
    facts = {line.split()[0]: (float(line.split()[1]), line.split()[2]) for line in table if line.strip()}
    where = {image.path.relative_to(dataset.root).as_posix(): image for image in everyone(dataset)}
    assert where.keys() == facts.keys()
    for path, (probability, _) in facts.items():
        assert where[path].label == (probability > 0.5)
        assert where[path].certainty == pytest.approx(max(probability, 1 - probability), abs=0.01)
    for stratum in set(facts.values()):  # probability and cell type in the same proportion on both sides
        inside = [where[path].split == "test" for path, fact in facts.items() if fact == stratum]
        assert abs(sum(inside) * 4 - len(inside)) < 4  # to the nearest image


@pytest.mark.parametrize(("name", "classes", "counts"), [("pets37", 37, (207, 52, 111)), ("pets3", 3, (240, 60, 298))])
def test_pets_copies_agree_with_torchvision(shared_data: Path, name: str, classes: int, counts: tuple):
    from torchvision.datasets import OxfordIIITPet

    dataset = load_data("pets", shared_data / name)
    assert len(dataset.classes) == classes
    assert tuple(dataset.counts().values()) == counts
    for split, images in (("trainval", dataset.images), ("test", dataset.test("evaluate"))):
        theirs = OxfordIIITPet(str(shared_data / name), split=split)
        expected = {
            path.name: theirs.classes[label] for path, label in zip(theirs._images, theirs._labels, strict=True)
        }
        assert {image.path.name: dataset.classes[image.label] for image in images} == expected
    assert load_data(str(shared_data / name)).fingerprint() == dataset.fingerprint()  # the folder by name does as well


def test_species(shared_data: Path):
    species = load_data("pets", shared_data / "pets3").species
    assert species == {"Abyssinian": "cat", "American Bulldog": "dog", "Bengal": "cat"}


def test_looking_at_a_image_does_not_load_torch(folder: Path):
    code = (
        f"import sys; from roclab.vision.data.audit import audit; audit({str(folder)!r}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
