"""`roclab project`: the plan as data, what fits a budget, resuming, refusals; and one small hand-in from end to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pypandoc")
pytest.importorskip("typst")
pytest.importorskip("nbformat")

from roclab.core.exceptions import RocLabError
from roclab.course.project import plan
from roclab.course.project.plan import A_RUN, Asked, Choice, Machine, as_json, fit, pick_networks
from roclab.course.project.project import RECORD, Step, carry_out, open_project
from roclab.course.project.steps import steps_of
from roclab.report.settings import Settings
from roclab.vision.config import TrainConfig
from roclab.vision.models.classifier import can_be_had
from roclab.vision.train.budget import Costs
from tests.processes import ENVIRONMENT, roclab
from tests.vision import small

WHOLE = Choice({"resnet50": "default", "swin_t": "default"}, 224, 12, [5, 10], "swin_t")
ASKED = Asked(Settings(author="Ada", student_id="31415"), TrainConfig(data="pets"))


def seconds(choice: Choice) -> dict[str, float]:
    """A machine that takes a minute for an epoch at full size."""
    return {
        "comparison": 60 * choice.epochs * (choice.image_size / 224) ** 2,
        "curve": 20.0 * len(choice.per_class),
        "study": 15.0 if choice.quick else 120.0,
        "report": 30.0,
    }


def test_without_a_budget_nothing_is_taken_away():
    assert fit(WHOLE, None, seconds, True, True) == WHOLE


@pytest.mark.parametrize("limit", [300, 400, 600, 1000, 2000])
def test_what_fits_a_budget_is_the_largest_that_does(limit):
    found = fit(WHOLE, limit, seconds, True, True)
    assert sum(seconds(found).values()) <= 0.9 * limit
    if found.epochs < 12:  # one more would be too much, or leave the extras more than their share
        more = replace(found, epochs=found.epochs + 1)
        assert sum(seconds(more).values()) > 0.9 * limit
    assert (
        found.image_size == 224 or found.epochs == 12 or sum(seconds(replace(found, image_size=224)).values()) > limit
    )


def test_what_was_given_is_not_changed_by_the_budget():
    assert fit(replace(WHOLE, image_size=64, epochs=2), 400, seconds, False, False).epochs == 2
    with pytest.raises(RocLabError, match="is too short"):
        fit(WHOLE, 400, seconds, False, False)


def test_a_budget_that_is_too_small_says_what_would_fit():
    with pytest.raises(RocLabError, match=r"--budget 40 s is too short .* \(3 epochs at 96 px\) takes about 8\d s"):
        fit(WHOLE, 40, seconds, True, True)


def test_the_seconds_of_a_plan_follow_from_what_was_measured():
    cost = Costs.__new__(Costs)  # a tenth of a second an image forward, three tenths with the backward pass, at 128 px
    cost.counts, cost.size, cost.read = {"train": 100, "val": 20, "test": 50}, 128, 0.0
    cost.forward, cost.backward = 0.1, 0.3
    costs = {"deit": cost, "swin_t": cost}  # networks that are trained at one size
    machine = Machine(TrainConfig(), costs, "swin_t", classes=2, tokens_per_second=90)
    choice = Choice(dict.fromkeys(costs, "none"), 128, 3, [5], "swin_t")
    found = machine.seconds(choice)
    assert found["study"] == 64 * 4  # answers of 90 tokens
    # for each network features 12 s, the head 5 s, fine-tuning 3 x 33 s and 4 x 2 s, the test images twice, two runs
    assert found["comparison"] == pytest.approx(2 * (12 + 5 + 107 + 10 + 2 * A_RUN))
    assert found["curve"] == pytest.approx(3 * 8 * 0.33 + 4 * 2 * 0.1 + 10 + 2 * A_RUN)
    small = machine.seconds(replace(choice, image_size=64, quick=True, per_class=[]))
    assert small["comparison"] == pytest.approx(2 * ((12 + 107 + 10) / 4 + 5 + 2 * A_RUN))
    assert (small["curve"], small["study"]) == (0, 16)


def test_whether_weights_can_be_had_is_known_without_fetching_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody there
    assert not can_be_had("resnet50", "v1")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth").touch()
    assert can_be_had("resnet50", "v1")
    assert can_be_had("resnet50", "none")
    assert can_be_had("efficientnet_lite0", "default")


def test_random_weights_are_said_and_a_pretrained_network_is_taken_beside_them():
    networks, notes = pick_networks("none")
    assert networks == {"resnet50": "none", "swin_t": "none", "efficientnet_lite0": "default"}
    assert any("Swin-T begins from random weights: its figures say nothing" in note for note in notes)
    networks, notes = pick_networks("resnet50=mine.safetensors,swin_t=none")
    assert networks == {"resnet50": "mine.safetensors", "swin_t": "none"}
    assert not any("ResNet-50" in note for note in notes)
    with pytest.raises(RocLabError, match="MODEL=WEIGHTS"):
        pick_networks("vgg=none")


def test_the_steps_are_data(tmp_path):
    steps = steps_of(ASKED, WHOLE, tmp_path)
    names = [step.name for step in steps]
    assert names == ["comparison", "curve", "errors", "verify", "demo", "study", "lab", "report", "handin"]
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number]), "a step comes after those that it reads"
        json.dumps(step.settings)
    assert "curve" not in [step.name for step in steps_of(ASKED, replace(WHOLE, per_class=[]), tmp_path)]
    assert not any(tmp_path.iterdir())


# ---- going on


def steps_in(folder: Path, log: list[str], report: str = "a") -> list[Step]:
    """Three steps: two that write a file, and one that joins them."""

    def write(name: str, text: str) -> None:
        log.append(name)
        (folder / name).write_text(text, encoding="utf-8")

    def join() -> None:
        write("c", (folder / "a").read_text() + (folder / "b").read_text())

    return [
        Step("first", "", ("a",), lambda: write("a", "1"), {}),
        Step("second", "", ("b",), lambda: write("b", report), {"report": report}),
        Step("third", "", ("c",), join, {}, ("first", "second")),
    ]


def new_record() -> dict:
    return {"seconds": dict.fromkeys(("first", "second", "third"), 1.0), "done": {}}


def go_on(folder: Path, report: str = "a") -> list[str]:
    log: list[str] = []
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    carry_out(steps_in(folder, log, report), record, folder)
    return log


def test_only_what_is_not_done_or_no_longer_true_is_made_again(tmp_path):
    carry_out(steps_in(tmp_path, []), new_record(), tmp_path)
    assert go_on(tmp_path) == []
    assert go_on(tmp_path, report="other") == ["b", "c"]  # another setting, and what was made from its output
    assert (tmp_path / "c").read_text() == "1other"
    (tmp_path / "a").write_text("edited")
    assert go_on(tmp_path, report="other") == ["a"]  # it is as it was: what came after it still holds
    (tmp_path / "c").unlink()
    assert go_on(tmp_path, report="other") == ["c"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.course.test_project import carry_out, new_record, steps_in
folder, log = Path(sys.argv[1]), []
steps = steps_in(folder, log)
make = steps[1].make
def killed():
    make()
    os.kill(os.getpid(), signal.SIGKILL)
object.__setattr__(steps[1], "make", killed)
carry_out(steps, new_record(), folder)
"""


def test_a_killed_project_goes_on_with_the_step_that_was_cut(tmp_path):
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": root},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "b").exists()
    assert go_on(tmp_path) == ["b", "c"]


def test_a_folder_of_another_project_or_of_anything_else_is_refused(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"asked": as_json(ASKED), "done": {}}), encoding="utf-8")
    assert open_project(ASKED, tmp_path)["done"] == {}
    moved = replace(ASKED, me=replace(ASKED.me, consulted=["Bob"]), base=replace(ASKED.base, data_root="elsewhere"))
    open_project(moved, tmp_path)  # where the images lie and what the author adds are no other settings
    for other, what in (
        (replace(ASKED, me=replace(ASKED.me, student_id="2718")), "student_id = 31415, now asked for 2718"),
        (replace(ASKED, budget="2h"), "budget = its default, now asked for 2h"),
        (replace(ASKED, base=replace(ASKED.base, data="elpv")), "data = pets, now asked for elpv"),
    ):
        with pytest.raises(RocLabError, match=f"was made with .*{what}: choose another --out"):
            open_project(other, tmp_path)
    (tmp_path / RECORD).unlink()
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RocLabError, match="holds other files and no project"):
        open_project(ASKED, tmp_path)


def test_missing_libraries_are_named_with_the_command(tmp_path, monkeypatch):
    about = tmp_path / "roclab-9.dist-info" / "METADATA"
    about.parent.mkdir()
    needs = ('numpy; extra == "vision"', 'no-such-package>=1; extra == "lab"', 'other-one; extra == "report"')
    about.write_text(
        "Metadata-Version: 2.1\nName: roclab\nVersion: 9\n" + "".join(f"Requires-Dist: {n}\n" for n in needs)
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RocLabError, match=r"needs other-one, no-such-package: .*'roclab\[report,lab\]'"):
        plan.require_packages()


# ---- from end to end


@pytest.mark.slow
def test_a_small_hand_in_from_end_to_end(tmp_path, smollm_path):
    images, out = small.make_images(tmp_path / "images", each=12), tmp_path / "project"
    command = (
        "project", "--student-id", "31415", "--name", "Ada Lovelace", "--data", images, "--weights", "none", "--epochs",
        "1", "--image-size", "32", "--budget", "30m", "--consulted", "", "--ai-tools", "", "--out", out,
    )  # fmt: skip
    done = roclab(*command, "--plan")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ 1  comparison", done.stdout, re.MULTILINE)
    assert not out.exists()
    done = roclab(*command)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out / "handin.zip") as archive:
        names, readme = archive.namelist(), archive.read("README.md").decode()
    assert {"evaluation/demo.txt", "Code/part2/Tokenizer_Lab.ipynb", "Code/part1/results/tensorboard.png"} <= set(names)
    assert sum(name.endswith("checkpoints/head.safetensors") for name in names) == 3
    page = (out / "requirements.md").read_text(encoding="utf-8")
    assert page.strip() in readme
    assert "ResNet-50 began from random weights" in page
    assert "the images have 3 classes, not 37" in page
    again = roclab(*command)
    assert again.stderr.count("done before") == 9
    other = roclab(*command, "--seed", "1")
    assert other.returncode == 2
    assert "was made with seed = 0, now asked for 1" in other.stderr
