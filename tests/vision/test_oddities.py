"""The audit names images that stand out, and tables that are likely not what was meant."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from roclab.core.exceptions import DataError, RocLabError
from roclab.vision.data.audit import audit, describe
from roclab.vision.data.images import THUMBNAIL, Inspection
from roclab.vision.data.oddities import odd_images, unlike
from roclab.vision.data.sources import list_csv, several_labels
from roclab.vision.models.exported import exported_file
from roclab.vision.train.train import train
from tests.vision.conftest import picture
from tests.vision.small import config


def sharp(number: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    noise = np.random.default_rng(number).normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(picture(number, size)) + noise, 0, 255).astype(np.uint8))


def test_what_stands_out_is_named_and_nothing_else(tmp_path: Path):
    for c in ("cat", "dog"):
        (tmp_path / c).mkdir()
        for i in range(15):
            sharp(i + 100 * (c == "dog")).save(tmp_path / c / f"{i}.png")
    dark = sharp(50).point(lambda v: v // 20)
    dark.save(tmp_path / "cat" / "dark.png")
    sharp(51).point(lambda v: 240 + v // 20).save(tmp_path / "cat" / "bright.png")
    Image.new("RGB", (200, 150), (120, 130, 110)).save(tmp_path / "cat" / "plain.png")
    sharp(52).filter(ImageFilter.GaussianBlur(9)).save(tmp_path / "dog" / "blurred.png")
    sharp(53, (400, 50)).save(tmp_path / "dog" / "long.png")
    report = audit(str(tmp_path))
    named = {kind: {row["path"] for row in rows} for kind, rows in report["odd"].items()}
    assert named["dark"] == {"cat/dark.png"}
    assert named["bright"] == {"cat/bright.png"}
    assert "cat/plain.png" in named["plain"]
    assert named["plain"] <= {"cat/plain.png", "cat/dark.png", "cat/bright.png"}
    assert named["blurred"] == {"dog/blurred.png"}
    assert named["shape"] == {"dog/long.png"}
    assert report["sizes"] == {"200 x 150": 34, "400 x 50": 1}
    text = describe(report)
    assert "1 of an odd shape (width / height):\n  dog/long.png: 8" in text
    assert "sizes: 2 different, most often 200 x 150 px (34 images)" in text


def test_what_all_images_are_is_no_fault(tmp_path: Path):
    """Dark, blurred strips throughout: as X-rays and spectrograms are."""
    grey = np.random.default_rng(0).integers(2, 20, (50, THUMBNAIL * THUMBNAIL), dtype=np.uint8)
    images = [
        Inspection(Path(f"{i}.png"), width=400 + i, height=50, thumbnail=row.tobytes(), sharpness=5 + i / 20)
        for i, row in enumerate(grey)
    ]
    assert {kind: found for kind, found in odd_images(images).items() if found} == {}
    strip = Inspection(Path("strip.png"), width=2000, height=50, thumbnail=grey[0].tobytes(), sharpness=5)
    assert odd_images([*images, strip])["shape"] == [(50, 40.0)]  # over 16:1 it is cut, whatever the rest is
    assert not any(odd_images([]).values())
    assert not any(odd_images(images[:1]).values())
    assert np.allclose(unlike(np.array([1.0, 2, 3, 4, 100]))[[0, 4]], [-2 / 1.4826, 97 / 1.4826])


def test_short_lists_in_the_text_and_all_in_the_report(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for i in range(60):
        sharp(i).save(tmp_path / "a" / f"{i:02d}.png")
    for i in range(8):
        sharp(100 + i, (800, 60)).save(tmp_path / "a" / f"long{i}.png")
    report = audit(str(tmp_path))
    assert len(report["odd"]["shape"]) == 8
    text = describe(report)
    assert text.count("/long") == 5
    assert "and 3 more (--json lists all)" in text
    assert "one class: training needs at least two" in text
    assert "1 class," in text
    assert "times the images" not in text
    assert "splits: none given" in text


def test_a_name_cannot_act_on_the_terminal(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "\x1b[31mred\n.png").write_text("x")
    report = audit(str(tmp_path))
    text = describe(report)
    assert "a/\\x1b[31mred\\n.png: not an image" in text
    assert report["unreadable"][0]["path"] == "a/\x1b[31mred\n.png"  # a script finds the file


def table(path: Path, labels: list[str]) -> Path:
    rows = "".join(f'{i}.png,"{label}"\n' for i, label in enumerate(labels))
    path.write_text(f"path,label\n{rows}", encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [";", "|", ","])
def test_several_labels_in_a_cell_are_asked_about(tmp_path: Path, separator: str):
    labels = ["cat", "dog", f"cat{separator}dog", f"dog{separator} cat", "bird"]
    with pytest.raises(DataError, match=r"2 labels such as 'cat. ?dog' are several labels, and an image has one"):
        list_csv(table(tmp_path / "t.csv", labels))
    (note,) = list_csv(table(tmp_path / "t.csv", [f"cat{separator}dog", f"dog{separator}bird", "fish"])).notes
    assert "2 labels such as" in note
    assert "may be several labels each" in note


def test_names_with_commas_are_names(tmp_path: Path):
    names = ["terrier, Scottish", "terrier, Yorkshire", "cat", "red, white and blue", "AC/DC", "a;b", "terrier"]
    assert several_labels(tmp_path, names) == []
    assert several_labels(tmp_path, ["yes", "no", "yes;"]) == []


def test_an_address_in_a_table_is_named(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,label\nhttps://example.org/a.jpg,cat\n")
    with pytest.raises(
        DataError, match=r"line 2: https://example\.org/a\.jpg is an address: images must be files here"
    ):
        list_csv(tmp_path / "t.csv")


def test_a_file_as_out_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RocLabError, match="is a file, and a run is a folder: choose a new or empty --out"):
        train(config(tmp_path), tmp_path / "file")


def test_a_renamed_export_is_found(tmp_path: Path):
    (tmp_path / "mine.onnx").touch()
    assert exported_file(tmp_path) == tmp_path / "mine.onnx"
    (tmp_path / "other.onnx").touch()
    assert exported_file(tmp_path) is None
    (tmp_path / "model.onnx").touch()
    assert exported_file(tmp_path) == tmp_path / "model.onnx"
