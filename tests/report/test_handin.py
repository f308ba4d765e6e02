"""The hand-in: what is missing is said at once, what is packed runs elsewhere and tells nothing of the machine."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from roclab.core.exceptions import RocLabError
from roclab.course.handin.checklist import notebook_trouble
from roclab.course.handin.pack import handin
from roclab.course.handin.prove import run_script
from roclab.report.build import report
from roclab.report.privacy import Relative, absolute_paths, find_private
from roclab.report.settings import Settings
from tests.processes import roclab
from tests.report.conftest import NAME

KEY = "hf_" + "a1B2" * 9  # looks like a token, is none


@pytest.fixture
def made(runs, lab, tmp_path):
    out = tmp_path / "report"
    report([runs], out, Settings(author=NAME, student_id="31415", consulted=[], ai_tools=[]), lab=lab)
    return out


def test_a_hand_in_stands_alone(runs, lab, made, tmp_path):
    packed = tmp_path / "handin.zip"
    done = handin("31415", NAME, [runs], made, lab, packed, incomplete=True)
    assert any("part2/roclm_model.py runs" in line for line in done["proven"])
    assert any("part1/main.py --help runs" in line for line in done["proven"])
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        config = json.loads(archive.read("Code/part1/results/features-0/config.json"))
        notebook = archive.read("Code/part2/Tokenizer_Lab.ipynb").decode()
        readme = archive.read("README.md").decode()
    assert names >= {
        "latex/report.pdf", "latex/report.tex", "evaluation/facts.json", "Code/part1/main.py",
        "Code/part1/results/features-0/metrics.jsonl", "Code/part2/roclm_model.py", "Code/roclab/cli/__init__.py",
    }  # fmt: skip
    assert not any(name.endswith((".safetensors", ".pyc")) for name in names if "part1/results" in name)
    assert not config["data"].startswith("/")
    assert "/home/ada" not in notebook
    assert "x.json" in notebook
    assert "Code/part2/Tokenizer_Lab.ipynb" in done["made_relative"]
    assert "Checkpoints are not included" in readme
    assert "Swin-T" in readme  # what is missing is said inside
    first = hashlib.sha256(packed.read_bytes()).hexdigest()
    handin("31415", NAME, [runs], made, lab, packed, incomplete=True)
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == first


def test_everything_missing_is_named_at_once(runs, lab, made, tmp_path):
    (runs / "features-1" / "training.json").unlink()
    with pytest.raises(RocLabError) as caught:
        handin("2718", "Someone Else", [runs], made, lab, tmp_path / "handin.zip")
    said = str(caught.value)
    for part in ("ResNet-50, fine-tuned", "Swin-T, frozen", "features-1: training finished", "report’s student ID",
                 "report’s name", "the tokenizer lab’s student ID", "the error analysis"):  # fmt: skip
        assert part in said, part
    assert "\n" not in said
    assert not (tmp_path / "handin.zip").exists()


def test_without_a_lab_an_incomplete_hand_in_is_packed_and_says_so(runs, tmp_path):
    report([runs], tmp_path / "report", Settings())
    packed = tmp_path / "handin.zip"
    command = ("handin", "--student-id", "31415", "--name", "Ada", "--runs", runs, "--report", tmp_path / "report",
               "--out", packed)  # fmt: skip
    done = roclab(*command)
    assert done.returncode == 2
    assert "the tokenizer lab’s folder (no --lab was given: roclab tokenizer lab" in done.stderr
    assert not packed.exists()
    done = roclab(*command, "--incomplete")
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert "missing: the tokenizer lab’s folder (no --lab was given: " in said
    for what in ("name", "student ID"):
        assert f"missing: the report’s {what} (not filled in: say it in the settings and make it with" in said
    assert "None" not in said
    with zipfile.ZipFile(packed) as archive:
        assert "Code/part2/Tokenizer_Lab.ipynb" not in archive.namelist()
        assert "- the tokenizer lab’s folder" in archive.read("README.md").decode()


def test_a_notebook_that_was_not_executed_is_missing_but_no_hindrance(runs, lab, made, tmp_path):
    notebook = json.loads((lab / "Tokenizer_Lab.ipynb").read_text(encoding="utf-8"))
    notebook["cells"][0]["execution_count"] = None
    (lab / "Tokenizer_Lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    done = handin("31415", NAME, [runs], made, lab, tmp_path / "handin.zip", incomplete=True)
    assert "Tokenizer_Lab.ipynb, executed" in [row["what"] for row in done["missing"]]
    assert not any("Tokenizer_Lab" in line for line in done["proven"])


def test_folders_that_are_not_there_are_missing_things_too(tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(RocLabError, match=r"does not exist.*report\.pdf.*Tokenizer_Lab\.ipynb"):
        handin("1", "x", [gone], gone, gone, tmp_path / "handin.zip")


def test_a_report_older_than_its_runs_is_noticed(runs, lab, made, tmp_path):
    found = json.loads((runs / "features-0" / "results-test.json").read_text(encoding="utf-8"))
    (runs / "features-0" / "results-test.json").write_text(json.dumps(found | {"top1": 1.0}), encoding="utf-8")
    with pytest.raises(RocLabError, match=r"features-0 differ from it"):
        handin("31415", NAME, [runs], made, lab, tmp_path / "handin.zip")


def test_a_secret_stops_it_and_the_older_zip_stays(runs, lab, made, tmp_path):
    packed = tmp_path / "handin.zip"
    packed.write_bytes(b"the older one")
    (runs / "features-0" / "log.txt").write_text(f"login with {KEY}\n", encoding="utf-8")
    with pytest.raises(RocLabError) as caught:
        handin("31415", NAME, [runs], made, lab, packed, incomplete=True)
    assert "log.txt: what looks like a Hugging Face token" in str(caught.value)
    assert KEY not in str(caught.value)
    assert packed.read_bytes() == b"the older one"
    assert not list(tmp_path.glob(".handin*"))


@pytest.mark.parametrize(
    ("cells", "trouble"),
    [
        ([{"cell_type": "code", "source": "x", "outputs": [], "execution_count": None}], "no outputs"),
        ([{"cell_type": "code", "source": "x", "outputs": [{"output_type": "error"}], "execution_count": 1}], "error"),
        (
            [{"cell_type": "code", "source": "x", "outputs": [{"output_type": "stream"}], "execution_count": None}],
            "not",
        ),
        ([{"cell_type": "code", "source": ["x"], "outputs": [{"output_type": "stream"}], "execution_count": 2}], None),
    ],
)
def test_a_notebook_must_be_executed(tmp_path, cells, trouble):
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    found = notebook_trouble(path)
    assert (found is None) if trouble is None else trouble in found


def test_a_script_that_reaches_for_another_roclab_is_caught(tmp_path):
    (tmp_path / "lone.py").write_text("import roclab", encoding="utf-8")
    assert "lone.py" in run_script(tmp_path, "lone.py", (), alone=False)  # nothing beside it, and no editable install
    (tmp_path / "fine.py").write_text("print('hello')", encoding="utf-8")
    assert run_script(tmp_path, "fine.py", (), alone=True) is None


def test_paths_become_relative_wherever_they_stand():
    relative = Relative({"/data/pets": "pets", "/data/pets/run 1": "Code/run 1"})
    assert relative.text("/data/pets/run 1/log.txt and /data/pets") == "Code/run 1/log.txt and pets"
    assert relative.text("/data/petshop/x") in ("/data/petshop/x", "x")  # another folder, not this one
    assert relative.text("python /home/ada/venv/bin/roclab --out=/tmp/x/y") == "python roclab --out=tmp/x/y"
    assert relative.text(r"C:\Users\Ada\runs\a.json") == "a.json"
    assert relative.text("see https://example.org/home/ada/page and and/or") == (
        "see https://example.org/home/ada/page and and/or"
    )
    assert relative.data({"/data/pets": [1, "/data/pets/a.jpg"]}) == {"pets": [1, "pets/a.jpg"]}
    assert not absolute_paths("#!/usr/bin/env python, /proc/cpuinfo, 3/4")


def test_private_things_are_found_in_pictures_and_notebooks_and_pdfs():
    about = PngInfo()
    about.add_text("Source", "/home/ada/secret/figure.py", zip=True)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG", pnginfo=about)
    assert find_private("a.png", picture.getvalue())
    assert find_private("a.ipynb", b'{"text": "file:///home/ada/x.txt"}')
    assert find_private("a.pdf", b"%PDF-1.7 /URI (file:///Users/ada/x.pdf)")
    assert find_private("a.txt", b"-----BEGIN RSA " + b"PRIVATE KEY-----")
    assert find_private("events", b"\x00\xff\x01 logdir /home/ada/runs/x \x00")
    clean = io.BytesIO()
    Image.new("RGB", (4, 4)).save(clean, "PNG")
    assert not find_private("b.png", clean.getvalue())
