"""Folders as people have them: train, audit and predict see the same files, and name what they pass over."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from roclab.core.exceptions import DataError
from roclab.core.files import write_json
from roclab.vision.data.audit import audit, describe
from roclab.vision.data.dataset import load_data
from roclab.vision.data.files import inspect_files
from roclab.vision.data.sources import list_images
from roclab.vision.evaluate.evaluate import find_images
from tests.vision.conftest import picture


def listed(folder: Path) -> dict[str, list[str]]:
    """The names of each class's images."""
    listing = list_images(str(folder))
    return {name: [e.path.name for e in listing.entries if e.label == name] for name in listing.classes}


def move(folder: Path, **parts: str) -> None:
    """Lay a folder of classes out as train, val and test, each with the classes named: three images of their own."""
    for number, (part, classes) in enumerate(parts.items()):
        (folder / part).mkdir()
        for c in classes.split():
            (folder / part / c).mkdir()
            for i in range(3):
                picture(1000 * number + 100 * ord(c[0]) + i).save(folder / part / c / f"{i}.png")
    shutil.rmtree(folder / "cat")
    shutil.rmtree(folder / "dog")


LEFT = [
    ".ipynb_checkpoints/1.jpg",
    "cat/._1.jpg",
    "cat/.DS_Store",
    "__MACOSX/cat/._1.jpg",
    "dog/__MACOSX/1.jpg",
    ".Trash-1/1.jpg",
]


@pytest.mark.parametrize(
    "left", [*LEFT, "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.jpg", ".Trash-1000/1.jpg"]
)
def test_hidden_files_and_leavings_are_passed_over_by_all(folder: Path, left: str):
    path = folder / left
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
    assert audit(str(folder))["images"] == 20
    assert load_data(str(folder)).notes == []
    assert len(find_images([folder])) == 20
    assert find_images([path]) == [path]  # unless it is named itself


def test_linked_folders_are_walked_and_circles_are_not(folder: Path, tmp_path: Path):
    more = tmp_path / "more"
    more.mkdir()
    (folder / "cat" / "9.jpg").rename(more / "9.jpg")
    (folder / "cat" / "more").symlink_to(more)
    (folder / "dog").rename(tmp_path / "real dog")
    (folder / "dog").symlink_to(tmp_path / "real dog")
    whole = {name: [f"{i}.jpg" for i in range(10)] for name in ("cat", "dog")}
    assert listed(folder) == whole
    for circle, target in ((folder / "cat" / "up", folder / "cat"), (more / "up", folder), (more / "root", "/")):
        circle.symlink_to(target)
    (folder / "cat" / "again").symlink_to(more)  # the same folder by another link
    assert {name: sorted(files) for name, files in listed(folder).items()} == whole
    (tmp_path / "link").symlink_to(folder)
    assert {name: sorted(files) for name, files in listed(tmp_path / "link").items()} == whole
    assert len(find_images([folder / "dog"])) == len(find_images([folder / "cat"])) == 10
    (folder / "loop").symlink_to(folder)  # a class of all images would be wrong: it has none
    assert listed(folder)["loop"] == []


@pytest.mark.parametrize(("name", "named"), [("cat/x.jpg", "cat/x.jpg"), ("cat/more", "cat/more"), ("bird", "bird")])
def test_a_link_that_leads_nowhere_is_named(folder: Path, name: str, named: str):
    (folder / name).symlink_to("/nowhere/x")
    reason = "a link to /nowhere/x, where there is nothing"
    assert audit(str(folder))["unreadable"] == [{"path": named, "reason": reason}]
    with pytest.raises(DataError, match=f"{named}: {reason}"):
        load_data(str(folder))
    if name != "bird":
        assert folder / name in find_images([folder / "cat"])


def test_links_to_themselves_and_links_between_classes_are_said(folder: Path):
    (folder / "dog" / "self.jpg").symlink_to("self.jpg")
    (folder / "kitten").symlink_to("cat")
    assert [row["path"] for row in audit(str(folder))["unreadable"]] == ["dog/self.jpg"]
    notes = load_data(str(folder), skip_bad=True).notes
    assert any(note.startswith("10 images are there under different labels") for note in notes)


def test_a_label_is_that_of_the_link_not_of_its_target(folder: Path, tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    picture(77).save(tmp_path / "blobs" / "abc", format="PNG")
    (folder / "cat" / "n.png").symlink_to(tmp_path / "blobs" / "abc")
    (folder / "cat" / "d.jpg").symlink_to("../dog/1.jpg")
    assert {"n.png", "d.jpg"} < set(listed(folder)["cat"])
    notes = load_data(str(folder)).notes
    assert "1 images are there under different labels, byte for byte; first cat/d.jpg = dog/1.jpg" in notes


def test_files_that_are_passed_over_are_counted_in_train_as_in_audit(folder: Path):
    for number, name in enumerate(("A.JPG", "b", "c.jpg_large", "d.jpeg~")):
        (folder / "cat" / f"{number}.jpg").rename(folder / "cat" / name)
    for name in ("Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / "dog" / name).write_bytes(b"left")
    os.mkfifo(folder / "cat" / "pipe.jpg")  # reading it would wait for ever
    report = audit(str(folder))
    assert (report["classes"]["cat"], len(report["ignored"])) == (7, 7)
    assert "7 passed over" in describe(report)
    assert load_data(str(folder)).notes[0].startswith("7 passed over, no images by their name or in no class folder")


def test_what_was_not_downloaded_is_recognised_in_one_line(folder: Path):
    for i in range(300):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{i:064d}\nsize 12345\n"
        (folder / "cat" / f"p{i:03d}.jpg").write_text(pointer)
    for i in range(20):
        (folder / "dog" / f"h{i:02d}.jpg").write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(DataError, match=r"p000.jpg: a Git LFS pointer.*`git lfs pull` \(and 319 more: .*--skip-bad"):
        load_data(str(folder))
    dataset = load_data(str(folder), skip_bad=True)
    assert len(dataset.skipped) == 320
    assert [note.split(str(folder))[1] for note in dataset.notes] == [
        "/cat/p000.jpg and 299 more: a Git LFS pointer, not the file itself: run `git lfs pull`",
        "/dog/h00.jpg and 19 more: a web page, not the file itself: download it again",
    ]
    assert len(describe(audit(str(folder))).splitlines()) < 30


def test_many_reasons_are_cut(folder: Path):
    for i in range(1, 13):
        data = (folder / "cat" / "0.jpg").read_bytes()
        (folder / "cat" / f"cut{i:02d}.jpg").write_bytes(data[: -50 * i])
    dataset = load_data(str(folder), skip_bad=True)
    assert len(dataset.skipped) == 12
    assert len([note for note in dataset.notes if note.startswith("left out")]) <= 11


def test_names_that_are_not_utf8_are_named(folder: Path):
    for name in (b"caf\xe9.jpg", b"\x8d\xdd.jpg"):  # Latin-1; Shift JIS, as in old archives
        picture(len(name)).save(os.fsdecode(os.fsencode(folder / "cat") + b"/" + name))
    shutil.copytree(folder / "dog", os.fsdecode(os.fsencode(folder) + b"/ch\xe2t"))
    report = audit(str(folder))
    reason = "its name is not UTF-8, as from an old disk or archive: rename it"
    assert {"path": "cat/caf\\xe9.jpg", "reason": reason} in report["unreadable"]
    assert len(report["unreadable"]) == 12
    json.dumps(report, ensure_ascii=False).encode()
    with pytest.raises(DataError, match=r"name is not UTF-8.*11 more") as caught:
        load_data(str(folder))
    str(caught.value).encode()
    dataset = load_data(str(folder), skip_bad=True)
    assert dataset.classes == ["cat", "dog"]
    write_json(folder.parent / "split.json", dataset.manifest())
    assert len(find_images([folder])) == 32  # predict needs no record of them


def test_unicode_twins_and_blanks_are_one_class_and_cases_are_named(folder: Path, caplog: pytest.LogCaptureFixture):
    for i, name in enumerate(("caf\u00e9", "cafe\u0301", "cat ", "Dog")):
        (folder / name).mkdir()
        picture(500 + i).save(folder / name / "n.png")
        picture(600 + i).save(folder / name / "e\u0301.png")
        picture(700 + i).save(folder / name / "\u00e9.png")  # a twin among the files: two files
    dataset = load_data(str(folder))
    assert dataset.classes == ["Dog", "caf\u00e9", "cat", "dog"]
    assert sum(dataset.counts().values()) == 32
    with caplog.at_level(logging.WARNING, "roclab"):
        assert audit(str(folder))["classes"] == {"Dog": 3, "caf\u00e9": 6, "cat": 13, "dog": 10}
    for text in ("class 'caf\u00e9' is spelled", "class 'cat' is spelled", "classes 'Dog', 'dog' have nearly the same"):
        assert any(text in note for note in dataset.notes)
        assert text in caplog.text


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "a b", "val": "a b c"}, "class 'c' of images has images in val but none to train on"),
        ({"train": "a b c", "val": "b c d"}, "class 'd' .* in val "),
        ({"train": "a b", "test": "a b c"}, "class 'c' .* in test "),
        ({"train": "a b", "val": "A b"}, r"class 'A' \(is it 'a'\?\) .* in val "),
    ],
)
def test_a_class_that_nothing_is_trained_on_is_refused(folder: Path, parts: dict[str, str], message: str):
    move(folder, **parts)
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=message):
            load_data(str(folder), skip_bad=skip_bad)


def test_classes_of_val_go_by_name(folder: Path):
    move(folder, train="a b c", val="b c")
    dataset = load_data(str(folder))
    assert all(dataset.classes[image.label] == image.path.parent.name for image in dataset.images)
    assert "val has no image of 1 of 3 classes: a" in dataset.notes


def test_a_test_folder_without_classes_is_for_predict(folder: Path, caplog: pytest.LogCaptureFixture):
    move(folder, train="a b")
    (folder / "test").mkdir()
    for i in range(3):
        picture(i).save(folder / "test" / f"{i}.png")
    (folder / "sample_submission.csv").write_text("id,label\n")
    dataset = load_data(str(folder))
    assert dataset.counts()["test"] == 0
    says = f"3 images in {folder / 'test'} are in no class folder, so they have no label: `roclab vision predict RUN"
    assert dataset.notes[0].startswith(says)
    assert "4 passed over" in dataset.notes[1]
    with caplog.at_level(logging.WARNING, "roclab"):
        assert len(audit(str(folder))["ignored"]) == 4
    assert says in caplog.text
    shutil.rmtree(folder / "train" / "a")
    shutil.rmtree(folder / "train" / "b")
    picture(9).save(folder / "train" / "cat.0.png")  # dogs-vs-cats: the label is in the name
    with pytest.raises(DataError, match=r"put the images of each class into a folder.*or list them in a table"):
        load_data(str(folder))


@pytest.mark.parametrize("place", ["run", "runs/seed0", "cat/run"])
def test_a_run_inside_the_data_is_no_class(folder: Path, place: str):
    run = folder / place
    (run / "figures").mkdir(parents=True)
    picture(5).save(run / "figures" / "confusion.png")
    for name in ("config.json", "provenance.json"):
        (run / name).write_text("{}")
    report = audit(str(folder))
    assert (list(report["classes"]), report["images"], len(report["ignored"])) == (["cat", "dog"], 20, 1)
    assert "1 passed over" in load_data(str(folder)).notes[0]
    assert len(find_images([folder])) == 20


def test_a_run_or_a_comparison_beside_train_is_no_fault(folder: Path):
    move(folder, train="a b", val="a b")
    (folder / "compared" / "figures").mkdir(parents=True)
    (folder / "compared" / "comparison.json").write_text("{}")
    assert load_data(str(folder)).classes == ["a", "b"]


def test_two_images_of_each_class_are_too_few(folder: Path):
    for path in [*folder.glob("*/[2-9].jpg")]:
        path.unlink()
    with pytest.raises(DataError, match="three of a class are needed"):
        load_data(str(folder))


def test_the_folder_around_that_of_the_classes(folder: Path, tmp_path: Path):
    (tmp_path / "around").mkdir()
    folder.rename(tmp_path / "around" / "animals")
    with pytest.raises(DataError, match=r"one class with images, 'animals': .* \(is it the folder that holds theirs\?"):
        load_data(str(tmp_path / "around"))


def test_a_readable_image_keeps_its_inspection(folder: Path):
    [found] = inspect_files([folder / "cat" / "1.jpg"])
    assert (found.error, found.format) == ("", "JPEG")
