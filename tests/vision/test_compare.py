"""The comparison: runs what is missing, takes what is there, and judges on the same images."""

import json
import re

import numpy as np
import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json, write_json
from roclab.core.statistics import holm
from roclab.report.kit import render
from roclab.vision.compare import compare
from roclab.vision.evaluate.figures import run_figure
from roclab.vision.evaluate.metrics import mcnemar
from roclab.vision.evaluate.pairs import compare_pairs, verdict
from roclab.vision.evaluate.run_reader import VisionRun, group_arms
from roclab.vision.models.classifier import build_model
from roclab.vision.train.train import train
from tests.vision.small import MODEL, config, make_images


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images")
    base = config(images, epochs=2)
    return base, tmp_path / "out", compare(base, [MODEL], ["features", "finetune"], [0, 1], tmp_path / "out")


def test_comparison_is_complete_and_takes_finished_runs_as_they_are(compared):
    base, out, found = compared
    assert found["split"] == "test"
    assert list(found["arms"]) == [f"{MODEL}, frozen (random weights)", f"{MODEL}, fine-tuned (random weights)"]
    for name in ("comparison.json", *(f"figures/{f}.png" for f in ("loss", "accuracy", "confusion", "f1"))):
        assert (out / name).stat().st_size > 500, name
    for arm in found["arms"].values():
        assert arm["top1_mean"] == pytest.approx(np.mean(arm["top1"]))
        assert arm["top1_std"] == pytest.approx(np.std(arm["top1"], ddof=1))
    opened = {path: path.read_bytes() for path in out.rglob("*") if path.name in ("training.json", "test_opened.json")}
    assert len(opened) == 8
    again = compare(base, [MODEL], ["features", "finetune"], [0, 1], out)
    assert again == found == read_json(out / "comparison.json")
    assert all(path.read_bytes() == content for path, content in opened.items())  # nothing trained, no test opened


def test_paired_statistics_are_over_the_same_images(compared):
    _, out, found = compared
    import csv

    pair = found["pairs"][0]
    right = {}
    for strategy in ("features", "finetune"):
        with open(out / f"{MODEL}-{strategy}-seed0" / "predictions.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        right[strategy] = np.array([row["true"] == row["predicted"] for row in rows])
    assert pair["mcnemar"][0] == mcnemar(right["features"], right["finetune"])
    arms = list(found["arms"].values())
    assert pair["difference"] == pytest.approx(arms[0]["top1_mean"] - arms[1]["top1_mean"])


def test_what_was_cut_is_carried_on_and_another_question_refused(compared):
    base, out, found = compared
    run = out / f"{MODEL}-finetune-seed1"
    (run / "training.json").unlink()
    (run / "results-test.json").unlink()
    assert compare(base, [MODEL], ["features", "finetune"], [0, 1], out)["arms"].keys() == found["arms"].keys()
    assert (run / "training.json").exists()
    before = read_json(out / "comparison.json")
    for epochs, said in ((3, "epochs = 2, now asked for 3"), (None, "epochs = 2, now asked for its default")):
        with pytest.raises(RocLabError, match=said):
            compare(config(base.data, epochs=epochs), [MODEL], ["features", "finetune"], [0, 1, 2], out)
    with pytest.raises(RocLabError, match="image_size = 64, now asked for 96"):  # of the runs that are not asked for
        compare(config(base.data, epochs=2, image_size=96), [MODEL], ["features"], [2], out)
    assert read_json(out / "comparison.json") == before
    assert not list(out.glob("*seed2"))


def test_a_comparison_grows_and_loses_nothing(compared, caplog):
    base, out, _ = compared
    (out / f"{MODEL}-finetune-seed0" / "training.json").unlink()  # cut, and not asked for
    train(config(base.data, refit=True), out / "mine")  # not of the comparison
    caplog.set_level("INFO", "roclab")
    more = compare(config(base.data), [MODEL], ["features"], [1, 2], out)  # epochs are of no concern here
    with pytest.raises(RocLabError, match="epochs = 2, now asked for its default"):  # and not forgotten
        compare(config(base.data), [MODEL], ["finetune"], [1], out)
    assert {name: sorted(arm["seeds"]) for name, arm in more["arms"].items()} == {
        f"{MODEL}, frozen (random weights)": [0, 1, 2],
        f"{MODEL}, fine-tuned (random weights)": [1],
    }
    assert "finetune-seed0 is not finished: it takes no part" in caplog.text
    assert "run 1 of 1: test_resnet-features-seed2, " in caplog.text
    assert more["pairs"][0]["seeds"] == [1]


def test_weights_are_looked_at_before_anything_is_trained_and_not_needed_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    torch.save(build_model(MODEL, "none").module.state_dict(), tmp_path / "mine.pth")
    base = config(make_images(tmp_path / "images", each=6), weights=str(tmp_path / "mine.pth"), epochs=1)
    out = tmp_path / "out"
    with pytest.raises(RocLabError, match=r"gone\.pth"):
        compare(base, [MODEL, "test_vit"], ["features"], [0], out, {"test_vit": str(tmp_path / "gone.pth")})
    assert not list(out.glob("*/config.json"))
    compare(base, [MODEL], ["finetune"], [0], out)
    (out / f"{MODEL}-finetune-seed0" / "training.json").unlink()
    (tmp_path / "mine.pth").rename(tmp_path / "moved.pth")
    compare(base, [MODEL], ["finetune"], [0], out)
    assert (out / f"{MODEL}-finetune-seed0" / "training.json").exists()


def test_epochs_are_fine_tunings_alone(compared, tmp_path):
    """Two comparisons that differ in --epochs have the same frozen run, and say so where both are named."""
    base, out, _ = compared
    compare(config(base.data, epochs=1), [MODEL], ["features", "finetune"], [0], tmp_path / "short")
    folders = (out, tmp_path / "short")
    frozen, tuned = ([VisionRun.open(f / f"{MODEL}-{s}-seed0") for f in folders] for s in ("features", "finetune"))
    assert frozen[0].metrics() == frozen[1].metrics()
    assert len(frozen[0].metrics()) == frozen[0].training["solver_steps"] > 2
    assert [run.config["epochs"] for run in (*frozen, *tuned)] == [None, None, 2, 1]
    assert len(group_arms(frozen)) == 1
    assert [name.split(" (")[1] for name in group_arms(tuned)] == [
        "random weights, epochs 2)",
        "random weights, epochs 1)",
    ]
    cost = tuned[0].cost()
    assert cost["train_seconds"] == pytest.approx(2 * cost["mean_train_seconds_per_epoch"])  # without a trained head
    assert frozen[0].cost()["mean_train_seconds_per_epoch"] is None
    assert frozen[0].cost()["epochs_to_convergence"] is None


def test_a_run_of_an_older_version_whose_solver_was_cut_is_called_that(compared):
    _, out, _ = compared
    runs = [VisionRun.open(out / f"{MODEL}-features-seed{seed}") for seed in (0, 1)]
    steps = len(runs[0].metrics())
    write_json(runs[0].path / "config.json", runs[0].config | {"epochs": steps})
    write_json(runs[1].path / "config.json", runs[1].config | {"epochs": 100})  # as far as it would have gone
    names = list(group_arms([VisionRun.open(run.path) for run in runs]))
    assert names == [
        f"{MODEL}, frozen (random weights, solver cut at {steps} steps)",
        f"{MODEL}, frozen (random weights)",
    ]


def test_a_run_that_kept_its_starting_head_is_called_that(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "roclab")
    harmful = {"strategy": "finetune", "lr": 0.3, "ema": 0.0, "batch_size": 8, "val_fraction": 0.4}
    base = config(make_images(tmp_path / "images"), epochs=2, **harmful)
    found = compare(base, [MODEL], ["features", "finetune"], [0], tmp_path / "out")
    frozen, tuned = found["arms"]
    assert tuned == f"{MODEL}, fine-tuned (random weights, kept its starting head)"
    assert found["arms"][tuned]["kept_start"] == [0]
    assert (
        found["sentences"][0]["text"] == f"{frozen} and {tuned} are right on the same images: nothing tells them apart."
    )
    page = render("comparison.md", found=found)
    assert "no epoch of fine-tuning was better on validation (seed 0), so the model is the frozen run's" in page
    run = VisionRun.open(tmp_path / "out" / f"{MODEL}-finetune-seed0")
    assert "it kept its starting head: no epoch" in (run.path / "log.txt").read_text()
    said = render("evaluation.txt", found=run.results("test"), figure="f.png")
    assert "kept its starting head: equal to the frozen run's (without refit)" in said
    lines = [line for line in caplog.messages if "epoch " in line and "train loss" in line]
    assert [re.sub(r", \d+ (s|min) left", ", … left", line[:40])[:32] for line in lines] == [
        f"run 2 of 2, … left: epoch {n}/2 at"[:32] for n in (1, 2)
    ]


def test_the_page_shows_every_arm_and_every_pair(compared):
    _, _, found = compared
    page = render("comparison.md", found=found)
    assert page.startswith("# Comparison on test (")
    assert page.count("\n| test\\_resnet, ") == 2
    assert sum(line.startswith("- ") for line in page.splitlines()) == 1


DISAGREE = {"only_a": 2, "only_b": 12, "p": 0.01}


def test_a_verdict_claims_only_what_is_shown():
    pair = {"a": "A", "b": "B", "difference": -0.05, "ci95": [-0.08, -0.02], "mcnemar": [DISAGREE], "p": 0.01}
    pair |= {"seeds": [0], "over_seeds": None, "at_chance": []}
    said = verdict(pair, "test", "/pairs/0")
    over = "over images, for one run each (McNemar p per seed: 0.01)"
    assert said.text == f"B is better than A by 5.0 points [+2.0, +8.0] {over}."
    assert (said.evidence.kind, said.evidence.split, said.evidence.numbers["difference"]) == ("moderate", "test", -0.05)
    few = verdict(pair | {"p": 0.0625}, "test", "", pairs=3)
    assert not few.claims
    assert few.text.endswith("0.0625 after Holm's correction): these images do not show which is better.")
    assert "do not show" in verdict(pair | {"difference": 0.01, "ci95": [-0.02, 0.04]}, "test", "").text
    assert "right equally often" in verdict(pair | {"difference": 0.0, "ci95": [-0.02, 0.02]}, "test", "").text
    for name in "AB":  # whichever is at chance
        guessing = verdict(pair | {"at_chance": [name]}, "test", "")
        assert not guessing.claims
        assert guessing.text.endswith(f"but {name} is not shown to be above chance.")
    same = pair | {"difference": 0.0, "ci95": [0.0, 0.0], "mcnemar": [{"only_a": 0, "only_b": 0, "p": 1.0}], "p": 1.0}
    assert verdict(same, "test", "").text == "A and B are right on the same images: nothing tells them apart."


def test_a_verdict_says_whether_it_covers_seeds():
    pair = {"a": "A", "b": "B", "difference": -0.05, "ci95": [-0.08, -0.02], "mcnemar": [DISAGREE] * 6, "p": 0.01}
    pair |= {"seeds": list(range(6)), "at_chance": []}
    all_six, five = ({"a_better": 6 - n, "b_better": n, "p_holm": p} for n, p in ((6, 0.031), (5, 0.22)))
    said = verdict(pair | {"over_seeds": all_six}, "test", "")
    assert "over images, for these 6 seeds" in said.text
    assert said.text.endswith("; over seeds too (better in 6 of 6 seeds, sign test p = 0.031).")
    assert said.evidence.numbers["seeds_p"] == 0.031
    said = verdict(pair | {"over_seeds": five}, "test", "", pairs=3)
    assert said.claims  # over images
    assert "that other seeds would show it too is open (better in 5 of 6 seeds" in said.text


def test_arms_are_paired_by_seed_and_corrected_over_all_pairs():
    draw = np.random.default_rng(0).random((3, 40))
    right = {name: {0: draw[i] < 0.5 + i / 10, 1: draw[i] < 0.6} for i, name in enumerate("abc")}
    right["d"] = {7: draw[0] < 0.9}
    labels = np.arange(40) % 4
    pairs = compare_pairs(right, labels)
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(pair["seeds"] == [0, 1] for pair in pairs)
    assert pairs[0]["mcnemar"][0] == mcnemar(right["a"][0], right["b"][0])
    means = [np.mean(list(right[name].values())) for name in "ab"]
    assert pairs[0]["difference"] == pytest.approx(means[0] - means[1])
    assert [pair["p"] for pair in pairs] == holm([pair["median_p"] for pair in pairs])
    assert len(compare_pairs(right, labels, unmatched=True)) == 6


def test_seeds_are_asked_where_there_are_six_and_chance_is_the_commonest_class():
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 4
    good, worse, guess = ({seed: draw.random(200) < p for seed in range(6)} for p in (0.95, 0.7, 0.25))
    pairs = compare_pairs({"good": good, "worse": worse, "guess": guess}, labels)
    assert [pair["at_chance"] for pair in pairs] == [[], ["guess"], ["guess"]]
    found = pairs[0]["over_seeds"]
    assert (found["a_better"], found["b_better"], found["p"]) == (6, 0, 2 / 64)
    assert found["p_holm"] == 3 * 2 / 64  # of three pairs
    five = [{seed: arm[seed] for seed in range(5)} for arm in (good, worse)]
    assert compare_pairs({"good": five[0], "worse": five[1]}, labels)[0]["over_seeds"] is None


def test_a_run_has_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    run = train(config(make_images(tmp_path / "images", each=6)), tmp_path / "run")
    from PIL import Image

    with Image.open(run_figure(run)) as picture:
        assert picture.width > 1000
    assert json.loads((run.path / "results-val.json").read_text())["n"] > 0
