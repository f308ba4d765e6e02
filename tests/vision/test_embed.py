"""What a run's features are good for: a map, images that are alike, what to label next; and the mirror image's mean."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roclab.core.exceptions import RocLabError
from roclab.report.embedding_page import MAPPED, write_embedding
from roclab.vision.data.images import open_image
from roclab.vision.evaluate.embed import Embedding, embed, map_2d, most_similar
from roclab.vision.evaluate.evaluate import evaluate, evaluate_on, predict
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.evaluate.suggest import POOL, spread, suggest, write_table
from roclab.vision.models.classifier import load_model
from roclab.vision.models.inference import predict_probs
from roclab.vision.train.train import train
from tests.processes import roclab
from tests.vision.small import CLASSES, config, make_images


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images in folders of classes, and a run of each strategy on them."""
    folder = tmp_path_factory.mktemp("embed")
    images = make_images(folder / "images", each=10)
    (images / "sky" / "00.jpg").rename(images / "sky" / "<img src=x>&.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCLAB_CACHE", str(folder / "cache"))
        frozen = train(config(images, image_size=32), folder / "frozen")
        tuned = train(config(images, image_size=32, strategy="finetune", epochs=1, lr=0.01), folder / "tuned")
        yield images, VisionRun.open(frozen.path), VisionRun.open(tuned.path)


@pytest.mark.parametrize("which", [1, 2])
def test_features_are_those_that_the_head_sees(world, which):
    images, run = world[0], world[which]
    found = embed(run.path, [images])
    model, classes, size = load_model(run)
    assert found.labels == [path.parent.name for path in found.paths]
    assert found.features.shape == (30, model.head.in_features)
    assert found.features.dtype == np.float32
    assert np.allclose(found.probs, predict_probs(model, found.paths, size), atol=1e-5)
    assert found.classes == classes


def test_labels_are_the_folders_below_the_one_named(world, tmp_path):
    images, run, _ = world
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "sky").symlink_to(images / "sky")
    (tmp_path / "loose.jpg").write_bytes((images / "sky" / "01.jpg").read_bytes())
    assert set(embed(run.path, [tmp_path / "train", tmp_path / "loose.jpg"]).labels) == {"sky", ""}
    assert set(embed(run.path, [tmp_path]).labels) == {"sky", ""}
    assert set(embed(run.path, [images / "sky"]).labels) == {""}


def test_the_most_similar_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8)).astype(np.float32)
    features[7] = 3 * features[20]
    indices, cosines = most_similar(features, 5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = unit @ unit.T - 2 * np.eye(40)
    assert np.allclose(cosines, -np.sort(-wanted, axis=1)[:, :5], atol=1e-6)
    assert indices[7, 0] == 20
    assert indices[20, 0] == 7
    assert most_similar(features[:1])[0].shape == (1, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 60])
def test_a_map_of_any_number_of_images_keeps_groups_together(n):
    rng = np.random.default_rng(n)
    group = np.arange(n) % 2
    places = map_2d((rng.normal(size=(n, 20)) + 8 * group[:, None]).astype(np.float32))
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()
    assert places.min() >= 0
    assert places.max() <= 1
    if n == 60:
        assert (group[most_similar(places - places.mean(0), 1)[0][:, 0]] == group).mean() > 0.9


def test_the_folder_has_everything_and_no_name_acts_as_markup(world, tmp_path):
    images, run, _ = world
    record = write_embedding(embed(run.path, [images]), tmp_path / "map", as_csv=True)
    written = json.loads((tmp_path / "map" / "embedding.json").read_text())
    assert written.pop("files") == ["features.csv", "features.npz", "index.html"]
    assert record == written
    arrays = np.load(tmp_path / "map" / "features.npz")
    assert arrays["paths"].tolist() == [row["path"] for row in record["images"]]
    assert arrays["labels"].tolist() == [row["label"] for row in record["images"]]
    head, *rows = csv.reader((tmp_path / "map" / "features.csv").read_text("utf-8").splitlines())
    assert head[:4] == ["path", "label", "prediction", "f0"]
    assert np.allclose(np.array([row[3:] for row in rows], dtype=float), arrays["features"], atol=1e-4)
    page = (tmp_path / "map" / "index.html").read_text(encoding="utf-8")
    assert "<img src=x>" not in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    points = json.loads(re.search(r'<script type="application/json" id="points">(.*?)</script>', page, re.S)[1])
    assert len(points) == 30
    assert all(point["thumb"] and len(point["similar"]) == 6 for point in points)
    assert points[points[3]["similar"][0]["at"]]["path"] == record["images"][3]["similar"][0]["path"]
    write_embedding(embed(run.path, [images / "sky"]), tmp_path / "map")  # replaces the older one, its table too
    assert not (tmp_path / "map" / "features.csv").exists()
    with pytest.raises(RocLabError, match=r"is not a map of images of `roclab vision embed`: choose another --out"):
        write_embedding(embed(run.path, [images / "sky"]), images)


def test_of_many_images_the_map_shows_some(tmp_path, monkeypatch):
    monkeypatch.setattr("roclab.report.embedding_page.MAPPED", 12)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i:02d}.png")
        Image.new("RGB", (8, 8), (i, 0, 0)).save(paths[-1])
    found = Embedding(paths, [""] * 40, features, np.full((40, 2), 0.5), ["a", "b"])
    record = write_embedding(found, tmp_path / "map")
    assert sum(row["x"] is not None for row in record["images"]) == record["mapped"] == 12 < MAPPED
    page = (tmp_path / "map" / "index.html").read_text(encoding="utf-8")
    assert "12 of the 40 images are shown" in page
    assert "labels" not in np.load(tmp_path / "map" / "features.npz")


def test_suggestions_are_uncertain_and_unlike_one_another(tmp_path):
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(6), 20, axis=0) + rng.normal(0, 0.01, (120, 6))
    first = np.where(np.arange(120) % 20 < 5, 0.55, 0.95)  # five uncertain ones in each of six groups
    probs = np.stack([first, 0.99 - first, np.full(120, 0.01)], 1)
    found = Embedding([tmp_path / f"{i:03d}.jpg" for i in range(120)], [""] * 120, features, probs, ["a", "b", "c"])
    rows = suggest(found, 6)
    numbers = [int(row["path"][-7:-4]) for row in rows]
    assert {n // 20 for n in numbers} == set(range(6))
    assert all(n % 20 < 5 for n in numbers)
    assert rows[0]["classes"] == ["a", "b"]
    assert rows[0]["margin"] == pytest.approx(0.11)
    assert len(suggest(found, 500)) == 120
    unsure = np.argsort(first, kind="stable")[:60]  # five times 30 are more than all: half of them still are left out
    assert {int(row["path"][-7:-4]) for row in suggest(found, 30)} <= set(unsure.tolist())
    assert spread(features[:1], 3) == [0]
    assert POOL > 1
    write_table(rows, tmp_path / "to_label.csv")
    head, row, *_ = csv.reader((tmp_path / "to_label.csv").read_text("utf-8").splitlines())
    assert head[:3] == ["path", "label", "margin"]
    assert row[:2] == [rows[0]["path"], ""]


def test_tta_is_the_mean_with_the_mirror_image_and_leaves_the_plain_figures(world, tmp_path):
    images, *runs = world
    mirrored = tmp_path / "mirrored"
    for path in images.rglob("*.jpg"):
        (mirrored / path.parent.name).mkdir(parents=True, exist_ok=True)
        image = open_image(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(mirrored / path.parent.name / f"{path.stem}.png")
    for run in runs:
        before = {path: path.read_bytes() for path in run.path.glob("*.*") if path.name != "log.txt"}
        model, _, size = load_model(run)
        paths = sorted(images.rglob("*.jpg"))
        others = [mirrored / path.parent.name / f"{path.stem}.png" for path in paths]
        wanted = (predict_probs(model, paths, size) + predict_probs(model, others, size)) / 2
        # the middle crop of an odd width and its mirror image's may lie a pixel apart
        assert np.allclose(predict_probs(model, paths, size, tta=True), wanted, atol=0.02)
        found = evaluate(run, "val", tta=True)
        assert found["tta"] is True
        assert json.loads((run.path / "results-val-tta.json").read_text()) == found
        assert {path: path.read_bytes() for path in before} == before
        assert evaluate_on(run, str(images), tta=True)["tta"] is True
        rows = predict(run.path, [images / "sky"], tta=True)
        plain = predict(run.path, [images / "sky"])
        assert [row["path"] for row in rows] == [row["path"] for row in plain]
        assert rows != plain


def test_the_commands(world, tmp_path):
    images, run, _ = world
    said = json.loads(roclab("vision", "embed", run.path, images, "--out", tmp_path / "map", "--json").stdout)
    assert len(said["images"]) == 30
    table = tmp_path / "next.csv"
    new = make_images(tmp_path / "more", each=3, seed=7) / "sky"
    done = roclab("vision", "suggest", run.path, images, new, "--n", "3", "--out", table)
    assert "left out" in done.stderr
    assert "30 images" in done.stderr
    assert {Path(line.split(": margin")[0]).parent for line in done.stdout.splitlines()[:-1]} == {new}
    assert re.fullmatch(
        rf"(.+: margin [01]\.\d+, \w+ [01]\.\d+ or \w+ 0\.\d+\n){{3}}table: {re.escape(str(table))}\n", done.stdout
    )
    assert set(CLASSES) >= set(re.findall(r"or (\w+)", done.stdout))
    for words, why in (
        (["suggest", run.path, images, "--out", table], "is there already"),
        (["suggest", run.path, images], "all images given are"),
        (["embed", run.path, images, "--out", images], "is not a map of images"),
        (["embed", tmp_path / "nowhere", images, "--out", tmp_path / "new"], "nowhere"),
    ):
        done = roclab("vision", *words)
        assert done.returncode == 2
        assert why in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_exported_model_has_no_features(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(RocLabError, match="an exported model, not a run: name the run"):
        embed(tmp_path, [tmp_path])
    for command in ("evaluate", "export"):
        done = roclab("vision", command, tmp_path, *(["--out", tmp_path / "out"] if command == "export" else []))
        assert "an exported model, not a run" in done.stderr
    with pytest.raises(RocLabError, match="--tta: an exported model sees each image once"):
        predict(tmp_path, [tmp_path], tta=True)
