"""The hand-in: what is missing is said at once, what is packed runs elsewhere and tells nothing of the machine."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.files import file_sha256
from roclab.core.runs import Run
from roclab.course.handin.checklist import Item, notebook_trouble
from roclab.course.handin.logs import scalars
from roclab.course.handin.pack import experiment, handin
from roclab.course.handin.prove import run_notebook, run_script
from roclab.course.handin.requirements import requirements
from roclab.report.build import report
from roclab.report.privacy import Relative, absolute_paths, find_private
from roclab.report.settings import Settings
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import HEAD, load_model, save_head
from tests.processes import roclab
from tests.report.conftest import NAME
from tests.test_install import call, install
from tests.vision.small import make_images

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
    assert any(line.startswith("python part1/main.py --data Code/noise") for line in done["proven"])
    assert any("was executed again where it lies" in line for line in done["proven"])
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        config = json.loads(archive.read("Code/part1/results/features-0/config.json"))
        notebook = archive.read("Code/part2/Tokenizer_Lab.ipynb").decode()
        readme = archive.read("README.md").decode()
    assert names >= {
        "latex/report.pdf", "latex/report.tex", "evaluation/facts.json", "Code/part1/main.py",
        "Code/part1/results/features-0/metrics.jsonl", "Code/part2/roclm_model.py", "Code/roclab/cli/__init__.py",
        "Code/part1/results/tensorboard.png", "Code/part1/README.md", "Code/requirements.txt",
    }  # fmt: skip
    heads = [f"Code/part1/results/features-{seed}/checkpoints/head.safetensors" for seed in (0, 1)]
    assert [name for name in sorted(names) if name.endswith((".safetensors", ".pyc"))] == [
        *heads, "Code/roclab/course/verify/stored.safetensors",
    ]  # fmt: skip
    assert not config["data"].startswith("/")
    assert "/home/ada" not in notebook
    assert "x.json" in notebook
    assert "Code/part2/Tokenizer_Lab.ipynb" in done["made_relative"]
    digest = file_sha256(runs / "finetune-0" / "checkpoints" / "best.safetensors")
    assert re.search(rf"\| finetune-0 \| \d+ \| {digest} \| no \|", readme)
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
    one = runs / "features-0"  # the proof repeats the experiment, and that of all is proven above
    command = ("handin", "--student-id", "31415", "--name", "Ada", "--runs", one, "--report", tmp_path / "report",
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
    # without its runs, so that the proof has no experiment to run
    done = handin("31415", NAME, [tmp_path / "none"], made, lab, tmp_path / "handin.zip", incomplete=True)
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


def test_a_frozen_run_s_head_is_enough_with_its_backbone(runs, tmp_path):
    run = Run.open(runs / "features-0")
    whole = load_model(run)[0]
    save_head(run, run.checkpoints / HEAD)
    (run.checkpoints / "best.safetensors").unlink()
    alone = load_model(run)[0]
    assert alone.module.state_dict().keys() == whole.module.state_dict().keys()
    assert all(torch.equal(value, whole.module.state_dict()[name]) for name, value in alone.module.state_dict().items())
    assert alone.preprocessing == whole.preprocessing
    other = Run(run.path, run.config | {"seed": 5})  # other random weights
    with pytest.raises(CheckpointError, match=r"head\.safetensors is the head of the backbone .*; none is another one"):
        load_model(other)


def test_the_experiment_is_said_as_compare_s_options(runs):
    opened = [VisionRun.open(path) for path in sorted(runs.iterdir())]
    opened[0].config |= {"weights": "/home/ada/mine.safetensors", "model": "resnet50"}
    words = experiment(opened)
    said = dict(zip(words[::2], words[1::2], strict=True))
    assert said["--models"] == "resnet50,test_resnet"
    assert said["--weights"] == "resnet50=mine.safetensors,test_resnet=none"
    assert (said["--strategies"], said["--epochs"]) == ("features,finetune", "2")
    assert (said["--first-seed"], said["--seeds"]) == ("0", "2")
    assert said["--data"] == Path(opened[0].config["data"]).name
    assert experiment([]) == []


def test_the_logs_picture_is_drawn_from_what_tensorboard_holds(runs):
    run = VisionRun.open(runs / "finetune-0")
    steps, values = scalars(run)["val_loss"]
    assert steps == [row["step"] for row in run.metrics()]
    assert values == pytest.approx([row["val_loss"] for row in run.metrics()], rel=1e-5)


def test_a_requirement_is_met_or_says_what_it_lacks(runs):
    opened = [VisionRun.open(path) for path in sorted(runs.iterdir())]
    checks = [{"component": part, "passed": part != "mask"} for part in ("RMSNorm", "mask", "mask", "decoder", "head")]
    items = [Item("people consulted, filled in", True), Item("AI tools used, filled in", False, "say it")]
    rows = requirements(["latex/report.pdf"], opened, items, {"verify": {"checks": checks}, "errors": {"n": 1}})
    lacks = {row.sentence[:24]: " ".join(row.lacks) for row in rows}
    assert lacks["Please include at the to"] == ""
    assert lacks["If you utilized AI tools"] == "missing: AI tools used, filled in"
    assert lacks["Instead of LayerNorm, Ro"] == lacks["Complementing these metr"] == ""
    assert lacks["Autoregressive generatio"] == "2 of 2 checks of mask failed"
    assert lacks["The feed-forward block u"].startswith("SwiGLU was not checked")
    assert "no finished run of Swin-T, frozen and of Swin-T, fine-tuned" in lacks["Both models are trained "]
    assert "the images have 3 classes, not 37" in lacks["ResNet-50 is a 50-layer "]
    assert lacks['"latex": This is the ass'] == ""
    assert "no evaluation/facts.json" in lacks['"evaluation" This folder']
    assert all(row.where and row.section for row in rows)
    empty = requirements([], [], [], {})
    assert sum(not row.lacks for row in empty) == 0  # nothing is met by nothing


def test_a_notebook_that_finds_another_roclab_is_caught(tmp_path):
    path = tmp_path / "part2" / "n.ipynb"
    path.parent.mkdir()

    def write(source: str) -> None:
        cell = {"cell_type": "code", "source": source, "outputs": [], "execution_count": 1, "metadata": {}, "id": "a"}
        path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))

    write("import sys; sys.path.insert(0, '..'); import roclab")
    assert run_notebook(path, tmp_path).startswith("it imports roclab from ")
    (tmp_path / "roclab").mkdir()
    (tmp_path / "roclab" / "__init__.py").touch()
    assert run_notebook(path, tmp_path) is None
    write("1 / 0")
    assert "cell 1 fails" in run_notebook(path, tmp_path)


@pytest.mark.slow
def test_the_programs_run_with_what_requirements_names_and_nothing_else(runs, lab, made, tmp_path):
    handin("31415", NAME, [runs], made, lab, tmp_path / "handin.zip", incomplete=True)
    with zipfile.ZipFile(tmp_path / "handin.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    code = tmp_path / "unzipped" / "Code"
    programs = install(tmp_path / "environment", "-r", str(code / "requirements.txt"))
    make_images(tmp_path / "images", each=6)
    small = ("--data", tmp_path / "images", "--weights", "none", "--image-size", "32", "--epochs", "1")
    for command in (
        ("python", "part2/roclm_model.py"),
        ("python", "part1/main.py", *small),
        ("python", "part1/main.py", "predict", "part1/results/features-0", tmp_path / "images"),
        ("python", "part2/roc_demo.py", "--help"),
        ("jupyter-nbconvert", "--to", "notebook", "--execute", "part2/Tokenizer_Lab.ipynb"),
    ):
        done = call(programs / command[0], *command[1:], cwd=code)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    assert (code / "part1" / "results" / "again" / "comparison.json").exists()
