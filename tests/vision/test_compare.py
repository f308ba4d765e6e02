"""The comparison: runs what is missing, takes what is there, and judges on the same images."""

import json

import numpy as np
import pytest

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json
from roclab.core.statistics import holm
from roclab.report.kit import render
from roclab.vision.compare import compare
from roclab.vision.evaluate.figures import run_figure
from roclab.vision.evaluate.metrics import mcnemar
from roclab.vision.evaluate.pairs import compare_pairs, verdict
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
    other = config(base.data, epochs=3)
    with pytest.raises(RocLabError, match="epochs = 2, now asked for 3"):
        compare(other, [MODEL], ["features", "finetune"], [0, 1], out)


def test_the_page_shows_every_arm_and_every_pair(compared):
    _, _, found = compared
    page = render("comparison.md", found=found)
    assert page.startswith("# Comparison on test (")
    assert page.count("\n| test\\_resnet, ") == 2
    assert sum(line.startswith("- ") for line in page.splitlines()) == 1


def test_a_verdict_claims_only_what_is_shown():
    pair = {"a": "A", "b": "B", "difference": -0.05, "ci95": [-0.08, -0.02], "mcnemar": [{"p": 0.01}], "p": 0.01}
    said = verdict(pair, "test", "/pairs/0")
    assert said.text == "B is better than A by 5.0 points [+2.0, +8.0] (McNemar p per seed: 0.01)."
    assert (said.evidence.kind, said.evidence.split, said.evidence.numbers["difference"]) == ("moderate", "test", -0.05)
    few = verdict(pair | {"p": 0.0625}, "test", "", pairs=3)
    assert not few.claims
    assert few.text.endswith("0.0625 after Holm's correction): these images do not show which is better.")
    assert "do not show" in verdict(pair | {"difference": 0.01, "ci95": [-0.02, 0.04]}, "test", "").text
    assert "right equally often" in verdict(pair | {"difference": 0.0, "ci95": [-0.02, 0.02]}, "test", "").text


def test_arms_are_paired_by_seed_and_corrected_over_all_pairs():
    draw = np.random.default_rng(0).random((3, 40))
    right = {name: {0: draw[i] < 0.5 + i / 10, 1: draw[i] < 0.6} for i, name in enumerate("abc")}
    right["d"] = {7: draw[0] < 0.9}
    pairs = compare_pairs(right)
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(pair["seeds"] == [0, 1] for pair in pairs)
    assert pairs[0]["mcnemar"][0] == mcnemar(right["a"][0], right["b"][0])
    means = [np.mean(list(right[name].values())) for name in "ab"]
    assert pairs[0]["difference"] == pytest.approx(means[0] - means[1])
    assert [pair["p"] for pair in pairs] == holm([pair["median_p"] for pair in pairs])
    assert len(compare_pairs(right, unmatched=True)) == 6


def test_a_run_has_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    run = train(config(make_images(tmp_path / "images", each=6)), tmp_path / "run")
    from PIL import Image

    with Image.open(run_figure(run)) as picture:
        assert picture.width > 1000
    assert json.loads((run.path / "results-val.json").read_text())["n"] > 0
