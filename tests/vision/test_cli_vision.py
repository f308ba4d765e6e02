"""The words of the command line, as a user types them."""

import csv
import json

import pytest

from tests.processes import roclab
from tests.vision.small import MODEL, make_images


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    images = make_images(folder / "images", each=8)
    cache = {"ROCLAB_CACHE": str(folder / "cache")}
    options = ["--model", MODEL, "--weights", "none", "--image-size", "64"]
    done = roclab("vision", "train", "--data", images, *options, "--out", folder / "run", **cache)
    assert done.returncode == 0, done.stderr
    return folder, images, cache, done


def test_train_says_what_it_does_and_how_long_it_takes(world):
    _, _, _, done = world
    assert "expected to take about" in done.stderr
    assert "finished: val top-1" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_as_json_has_every_figure(world):
    folder, _, cache, _ = world
    done = roclab("vision", "evaluate", folder / "run", "--split", "test", "--json", **cache)
    found = json.loads(done.stdout)
    wanted = "split n top1 mean_per_class ci95 macro_f1 ece per_class confusion epochs_to_convergence"
    wanted += " mean_train_seconds_per_epoch images_per_second peak_memory_mb"
    assert set(wanted.split()) <= found.keys()
    assert set(found["ci95"]) == {"top1", "mean_per_class"}
    assert set(found["per_class"]["sky"]) == {"precision", "recall", "f1", "support"}
    assert (folder / "run" / "figures" / "test.png").exists()
    text = roclab("vision", "evaluate", folder / "run", **cache).stdout
    assert "val: top-1" in text
    assert "brick" in text


def test_predict_in_words_and_json(world):
    folder, images, cache, _ = world
    done = roclab("vision", "predict", folder / "run", images / "sky", "--top", "2", "--json", **cache)
    found = json.loads(done.stdout)
    assert len(found) == 8
    assert all(len(row["predictions"]) == 2 for row in found)
    done = roclab("vision", "predict", folder / "run", images / "sky" / "00.jpg", **cache)
    assert done.stdout.startswith(str(images / "sky" / "00.jpg"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "elpv"], "--out"),
        (["train", "--out", "x", "--strategy", "magic"], "--strategy magic"),
        (["train", "--out", "x", "--data", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--out", "x", "--model", "resnet5000"], "resnet5000"),
        (["evaluate", "nowhere"], "nowhere"),
        (["compare", "--seeds", "1", "--out", "x", "--strategies", "magic"], "--strategy magic"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, tmp_path):
    data = [] if "--data" in words or words[0] != "train" else ["--data", str(make_images(tmp_path / "images", each=4))]
    data = [] if words == ["train", "--data", "elpv"] or "--resume" in words else data
    done = roclab("vision", *words, *data, ROCLAB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_csv_with_its_own_split_goes_all_the_way(world, tmp_path):
    _, images, cache, _ = world
    table = tmp_path / "images.csv"
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for number, path in enumerate(sorted(images.rglob("*.jpg"))):
            rows.writerow([path, path.parent.name, "test" if number % 4 == 0 else "train"])
    options = ["--model", MODEL, "--weights", "none", "--image-size", "64", "--out", tmp_path / "run"]
    done = roclab("vision", "train", "--data", table, *options, **cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(roclab("vision", "evaluate", tmp_path / "run", "--split", "test", "--json", **cache).stdout)
    assert found["n"] == 6


def test_help_names_an_example_for_every_command():
    for command in ("train", "evaluate", "compare", "predict"):
        done = roclab("vision", command, "--help")
        assert "Example: roclab vision" in done.stdout.replace("\n", " ")
