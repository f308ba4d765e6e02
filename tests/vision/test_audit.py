"""The audit names every difficulty, changes nothing and stops at nothing."""

import json
from pathlib import Path

import pytest

from roclab.core.exceptions import DataError
from roclab.vision.data.audit import audit, describe
from tests.processes import roclab
from tests.vision.conftest import picture
from tests.vision.test_data import hard  # noqa: F401 (the folder with every difficulty)


def test_the_hard_folder(hard: Path):  # noqa: F811
    picture(60).save(hard / "cat" / "really_png.jpg", format="PNG")
    (hard / "dog" / "copy.jpg").write_bytes((hard / "cat" / "0.jpg").read_bytes())  # the same image, another label
    before = {str(path): path.stat().st_mtime_ns for path in hard.rglob("*")}
    report = json.loads(json.dumps(audit(str(hard))))
    assert {str(path): path.stat().st_mtime_ns for path in hard.rglob("*")} == before

    assert report["images"] == 29
    assert report["classes"] == {"cat": 13, "dog": 13, "lonely": 1, "nothing": 0}
    assert report["empty_classes"] == ["nothing"]
    assert report["one_image_classes"] == ["lonely"]
    assert report["imbalance"] == 13.0
    assert {row["path"]: row["reason"].split()[0] for row in report["unreadable"]} == {
        "cat/truncated.jpg": "cannot",
        "dog/text.jpg": "not",
    }
    assert report["wrong_extension"] == [{"path": "cat/really_png.jpg", "format": "PNG"}]
    assert report["rotated_by_exif"] == ["dog/turned.jpg"]
    assert report["ignored"] == ["dog/notes.txt"]
    assert report["formats"] == {"JPEG": 24, "PNG": 2, "GIF": 1}
    assert report["modes"] == {"RGB": 24, "I;16": 1, "CMYK": 1, "P": 1}
    assert report["duplicates"] == [{"paths": ["cat/0.jpg", "dog/copy.jpg"], "labels": ["cat", "dog"]}]
    assert report["near_duplicates"] == []
    assert report["width"] == {"min": 48, "median": 64, "max": 64}  # the turned image counts as it is shown
    text = describe(report)
    for row in ("cat/truncated.jpg: cannot be decoded", "2 unreadable", "lonely", "nothing", "really_png.jpg: PNG"):
        assert row in text


def test_long_lists_are_cut_in_the_text_and_whole_in_the_report(folder: Path):
    for i in range(15):
        (folder / "cat" / f"bad{i:02d}.jpg").write_text("x")
    report = audit(str(folder))
    assert len(report["unreadable"]) == 15
    text = describe(report, shown=3)
    assert "bad02.jpg" in text
    assert "bad03.jpg" not in text
    assert "and 12 more" in text


def test_nothing_readable_is_still_a_report(tmp_path: Path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "x.jpg").write_text("x")
    report = audit(str(tmp_path / "images"))
    assert report["imbalance"] is None
    assert report["width"] is None
    assert "1 unreadable" in describe(report)


def test_a_source_that_is_not_one_raises(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        audit(str(tmp_path / "nowhere"))


def test_pets3_has_a_png_named_jpg(shared_data: Path):
    report = audit("pets", shared_data / "pets3")
    assert report["wrong_extension"] == [{"path": "images/Abyssinian_5.jpg", "format": "PNG"}]
    assert report["unreadable"] == []
    assert report["classes"] == {"Abyssinian": 198, "American Bulldog": 200, "Bengal": 200}


def test_the_command(folder: Path):
    assert roclab("vision", "audit", folder).stdout.startswith("images: 20 images, 2 classes")
    assert json.loads(roclab("vision", "audit", folder, "--json").stdout)["classes"] == {"cat": 10, "dog": 10}
    wrong = roclab("vision", "audit", "nowhere")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("roclab: --data nowhere")
    assert wrong.stderr.count("\n") == 1
