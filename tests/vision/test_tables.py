"""Tables as people save them: read rightly, or refused in one line with the row, the cause and the remedy."""

import logging
import os
from pathlib import Path

import pytest

from roclab.core.exceptions import DataError
from roclab.vision.data.audit import audit
from roclab.vision.data.dataset import load_data
from roclab.vision.data.sources import list_images
from tests.vision.conftest import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of two classes, one with an umlaut in its name."""
    (tmp_path / "D").mkdir()
    for i, name in enumerate(("Müller", "cat2", "dog1", "dog2")):
        picture(i).save(tmp_path / "D" / f"{name}.png")
    return tmp_path


ROWS = [("D/Müller.png", "Kätzchen"), ("D/cat2.png", "Kätzchen"), ("D/dog1.png", "dog"), ("D/dog2.png", "dog")]


def written(separator: str, end: str = "\r\n") -> str:
    return end.join(separator.join(row) for row in [("path", "label"), *ROWS]) + end


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (written(",").encode("utf-8-sig"), ""),
        (written(";").encode(), ""),
        (written(";").encode("cp1252"), "Windows-1252"),  # "CSV" of Excel on a German machine
        (written("\t").encode("utf-16"), ""),  # "Unicode Text"
        (written("\t").encode("utf-16-le"), ""),  # the same without its BOM
        (written(",").encode("utf-32"), ""),
        (written("\t").encode(), ""),
        (written("|").encode(), ""),
        (("sep=;\r\n" + written(";")).encode("utf-8-sig"), ""),
        (written(",", end="\r").encode(), ""),
        ((written(";").replace("\r\n", ";;\r\n") + ";;;\r\n").encode(), ""),  # empty columns and rows at the end
        (written(",").replace("D/", "D\\").encode(), ""),
        (written(",").replace("D/", ".\\D\\").encode("cp1252"), "Windows-1252"),
        (written(",").replace("ü", "u\u0308").encode(), ""),  # a Mac's form of ü; the file has the other one
        (written(",").replace(",", "\u00a0,\u00a0").encode(), ""),  # blanks of a web page or a word processor
        (b'"Path" , "LABEL"\n' + written(",").split("\r\n", 1)[1].encode(), ""),
    ],
)
def test_a_spreadsheet_s_table_is_read(images: Path, content: bytes, note: str):
    (images / "t.csv").write_bytes(content)
    listing = list_images(str(images / "t.csv"))
    assert [
        (entry.path.resolve().relative_to(images.resolve()).as_posix(), entry.label) for entry in listing.entries
    ] == ROWS
    assert all(entry.path.is_file() for entry in listing.entries)
    assert [note in text for text in listing.notes] == [True] * bool(note)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_file_whose_name_is_not_utf8_is_found_and_named(images: Path, encoding: str):
    (images / "D" / "Müller.png").rename(os.fsdecode(os.fsencode(images / "D") + b"/M\xfcller.png"))
    (images / "t.csv").write_bytes(written(",").encode(encoding))
    report = audit(str(images / "t.csv"))
    reason = "its name is not UTF-8, as from an old disk or archive: rename it"
    assert report["unreadable"] == [{"path": "D/M\\xfcller.png", "reason": reason}]


def test_what_is_guessed_is_said_by_audit_and_train(images: Path, caplog: pytest.LogCaptureFixture):
    for i in range(4, 10):
        picture(i).save(images / "D" / f"{i}.png")
    rows = "".join(f"D/{i}.png,{'Kätzchen' if i % 2 else 'dog'}\n" for i in range(4, 10))
    (images / "t.tsv").write_bytes((written(",", end="\n") + rows).encode("cp1252"))
    with caplog.at_level(logging.WARNING, "roclab"):
        assert audit(str(images / "t.tsv"))["classes"] == {"Kätzchen": 5, "dog": 5}
    assert "Windows-1252" in caplog.text
    assert any("Windows-1252" in note for note in load_data(str(images / "t.tsv")).manifest()["notes"])


GOOD = "path,label\nD/cat2.png,cat\nD/dog1.png,dog\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "D/dog2.png,dog,oops\n", r"line 4: 3 cells, but the first line names 2: .* quotes"),
        (GOOD + "D/dog2.png,dog, big\n", "line 4: 3 cells"),
        (GOOD + "D/dog2.png\n", "line 4: path or label is empty"),
        (GOOD + 'D/Müller.png,"cat\nD/dog2.png,dog\n', "line 4: .*a quote opens here and is never closed"),
        (GOOD + 'D/Müller.png,"cat\nD/dog2.png,"dog"\n', "line 4: .* look for a missing quote"),
        (GOOD + 'D/Müller.png,"cat\nD/dog2.png,dog"\n', "line 4: label goes on in the next line"),
        (GOOD + "D/dog2.png,do\0g\n", "line 4: .*NUL.* save it as"),
        (GOOD + "D/dog\x002.png,dog\n", "line 4: .*NUL"),
        (GOOD + "D/dog2.png," + "x" * 200_000 + "\n", "line 4: .*field larger"),
        (GOOD + "D/dog2.png," + "x" * 5_000 + "\n", "line 4: label has 5000 characters"),
        (GOOD + "C:\\pictures\\dog2.png,dog\n", "line 4: .* Windows machine: write it relative to the table"),
        (GOOD + "\\\\server\\dog2.png,dog\n", "line 4: .* Windows machine"),
        ("path,label,label\nD/cat2.png,cat,tabby\n", "line 1: it names the column label twice"),
        ("path label\nD/cat2.png cat\n", "must name the columns path,label.*not 'path label'"),
        (b"PK\x03\x04\x14\0\x06\0", "workbook.* save it as"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "workbook"),
        (b"path,label\n\x81.png,cat\n", "not text in UTF-8, UTF-16 or Windows-1252"),
        (b"\xff\xfep\0a\0", "must name the columns"),
        (b"\xff\xfep", "not text in UTF-8"),
        *(
            (GOOD + twin + ",dog\n", "line 4: .*cat2.png stands in line 2 already")
            for twin in (
                "./D/cat2.png",
                "D/../D/cat2.png",
                "{root}/D/cat2.png",
                "linked/cat2.png",
                "D\\cat2.png",
                "D//cat2.png",
            )
        ),
    ],
)
def test_a_fault_is_named_with_its_line(images: Path, content: str | bytes, message: str):
    (images / "linked").symlink_to("D")
    data = content if isinstance(content, bytes) else content.replace("{root}", str(images)).encode()
    (images / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list_images(str(images / "t.csv"))
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)
    assert len(str(caught.value).replace(str(images), "")) < 250


def test_a_cell_of_another_column_may_have_lines_and_a_label_a_comma(images: Path):
    (images / "t.csv").write_text('path,label,note\n"D/cat2.png" , "cat, tabby" ,"found\nin March"\n\nD/dog1.png,dog\n')
    assert [entry.label for entry in list_images(str(images / "t.csv")).entries] == ["cat, tabby", "dog"]


def test_classes_that_look_alike_are_named(images: Path):
    (images / "t.csv").write_text(
        "path,label\nD/cat2.png,1\nD/Müller.png,1.0\nD/dog1.png,Big Dog\nD/dog2.png,big_dog\n"
    )
    notes = list_images(str(images / "t.csv")).notes
    assert ["'1', '1.0'" in notes[0], "'Big Dog', 'big_dog'" in notes[1], len(notes)] == [True, True, 2]
