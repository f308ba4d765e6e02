"""The reader of runs: which runs are one arm, and what an arm is called."""

import pytest

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json, write_json
from roclab.vision.evaluate.run_reader import VisionRun, group_arms
from tests.vision.finished import finished_run
from tests.vision.small import make_images


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    return make_images(tmp_path / "images")


def test_runs_that_differ_in_seed_place_and_machine_are_one_arm(images, tmp_path):
    other = make_images(tmp_path / "elsewhere")  # the same images
    runs = [
        finished_run(tmp_path / "a", images, 0, device="cpu", workers=0, data_root=None, mirror=None),
        finished_run(tmp_path / "b", other, 1, device="cuda", workers=4, data_root="x", mirror="y"),
    ]
    assert group_arms(runs) == {"test_resnet, frozen": runs}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lr": 0.5}, "test_resnet, frozen (lr 0.5)"),
        ({"amp": "off"}, "test_resnet, frozen (amp off)"),
        ({"weights": "/models/mine.pth"}, "test_resnet, frozen (weights mine.pth)"),
        ({"weights": "none"}, "test_resnet, frozen (random weights)"),
        ({"strategy": "finetune"}, "test_resnet, fine-tuned"),
        ({"model": "swin_t"}, "Swin-T, frozen"),
        ({"budget": "20m"}, "test_resnet, frozen (budget 20m, image size 64)"),
    ],
)
def test_every_other_setting_makes_an_arm_and_names_it(images, tmp_path, changes, name):
    runs = [finished_run(tmp_path / "a", images), finished_run(tmp_path / "b", images, 1, **changes)]
    arms = group_arms(runs)
    assert [len(members) for members in arms.values()] == [1, 1]
    assert list(arms)[1] == name


def test_other_images_or_labels_make_an_arm(images, tmp_path):
    runs = [finished_run(tmp_path / "a", images), finished_run(tmp_path / "b", make_images(tmp_path / "more", each=13))]
    assert len(group_arms(runs)) == 2


def test_a_budget_decides_epochs_and_size_for_each_seed(images, tmp_path):
    runs = [finished_run(tmp_path / f"{i}", images, i, budget="20m", epochs=5 + i) for i in range(2)]
    assert len(group_arms(runs)) == 1
    tuned = {"strategy": "finetune"}
    runs = [finished_run(tmp_path / f"free-{i}", images, i, epochs=5 + i, **tuned) for i in range(2)]
    assert list(group_arms(runs)) == ["test_resnet, fine-tuned (epochs 5)", "test_resnet, fine-tuned (epochs 6)"]


def test_weights_are_known_by_their_values_not_their_place(images, tmp_path):
    def run(name, path, digest):
        made = finished_run(tmp_path / name, images, weights=path)
        about = read_json(made.path / "provenance.json") | {"hashes": {"weights": f"test_resnet:file:{digest * 64}"}}
        write_json(made.path / "provenance.json", about)
        return VisionRun.open(made.path)

    same = [run("a", "/here/mine.pth", "0"), run("b", "/there/mine.pth", "0")]
    assert len(group_arms(same)) == 1
    other = run("c", "/here/mine.pth", "1")
    assert list(group_arms([same[0], other])) == [
        "test_resnet, frozen (weights mine.pth)",
        "test_resnet, frozen (weights mine.pth) [c]",
    ]


def test_a_folder_that_is_no_vision_run_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", {"seed": 0})
    with pytest.raises(RocLabError, match=r"is not a run of `roclab vision train`: its config.json lacks model, strat"):
        VisionRun.open(tmp_path / "run")
