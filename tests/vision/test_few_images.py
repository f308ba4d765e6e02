"""What helps where a class has few images: what the weights know of its name, and images without labels."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from roclab.core.exceptions import RocLabError
from roclab.vision.models.classifier import build_model
from roclab.vision.models.imagenet import imagenet_names, imagenet_rows
from roclab.vision.train.head import Head, fit_head, self_train
from roclab.vision.train.train import train
from tests.vision.small import MODEL, config, make_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path) -> str:
    torch.manual_seed(0)
    save_file(build_model(MODEL, "none").module.state_dict(), tmp_path / "imagenet.safetensors")
    return str(tmp_path / "imagenet.safetensors")


def world(seed: int = 0, each: int = 30, sides: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), each)
    return np.eye(3, sides)[y] * 3.5 + rng.normal(size=(3 * each, sides)), y


def test_a_strongly_regularised_head_is_its_prior_and_a_prior_of_zeros_is_none():
    x, y = world()
    rng = np.random.default_rng(1)
    prior = Head(rng.normal(size=(3, 12)).astype(np.float32), np.zeros(3, np.float32), 0.0)
    near = fit_head(x, y, 3, c=1e-8, prior=prior)
    assert np.allclose(near.weight, prior.weight, atol=1e-4)
    far = fit_head(x, y, 3, c=1.0, prior=prior)
    assert not np.allclose(far.weight, prior.weight, atol=0.1)
    zeros = Head(np.zeros((3, 12), np.float32), np.zeros(3, np.float32), 0.0)
    assert np.array_equal(fit_head(x, y, 3, c=1.0, prior=zeros).weight, fit_head(x, y, 3, c=1.0).weight)


def test_a_head_that_is_pulled_to_the_truth_needs_fewer_images():
    x, y = world()
    test, truth = world(seed=5, each=200)
    few = np.r_[0:2, 30:32, 60:62]
    prior = Head((np.eye(3, 12) * 2).astype(np.float32), np.zeros(3, np.float32), 0.0)
    plain, pulled = fit_head(x[few], y[few], 3, c=0.1), fit_head(x[few], y[few], 3, c=0.1, prior=prior)
    right = [(head.probs(test).argmax(1) == truth).mean() for head in (plain, pulled)]
    assert right[1] > right[0] + 0.02


def test_self_training_learns_from_images_without_labels():
    x, y = world(each=100)
    test, truth = world(seed=5, each=200)
    few = np.r_[0:2, 100:102, 200:202]
    head = fit_head(x[few], y[few], 3, c=0.1)
    trained = self_train(head, x[few], y[few], np.delete(x, few, axis=0))
    before, after = ((h.probs(test).argmax(1) == truth).mean() for h in (head, trained))
    assert after > before + 0.02
    assert trained.c == head.c
    nothing = self_train(head, x[few], y[few], x[:0])
    assert np.allclose(nothing.weight, head.weight, atol=1e-5)


def test_imagenet_knows_a_class_by_any_of_its_names():
    names = imagenet_names()
    assert names["scottish terrier"] == names["scotch terrier"] == names["scottie"] == 199
    assert names["golden retriever"] == 207
    assert "bengal" not in names


def test_a_named_class_has_its_own_imagenet_logit_less_the_mean(weights):
    model = build_model(MODEL, weights)
    images = torch.randn(4, 3, 64, 64)
    weight, bias, named = imagenet_rows(MODEL, weights, ["Golden_Retriever", "my cat", "scottish-terrier"])
    assert named == ["Golden_Retriever", "scottish-terrier"]
    with torch.no_grad():
        logits = model.module(images)
        own = model.features(images) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    wanted = logits[:, [207, 199]] - logits.mean(1, keepdim=True)
    assert torch.allclose(own[:, [0, 2]], wanted, atol=1e-4)
    assert (own[:, 1] == 0).all()


def test_a_run_with_both_says_so_and_leaves_the_datas_own_images_out(tmp_path, weights):
    images = make_images(tmp_path / "images")
    for old, new in (("brick", "Golden retriever"), ("grass", "lawn mower")):
        (images / old).rename(images / new)
    spare = make_images(tmp_path / "spare", each=3, size=40)
    shutil.copy(images / "sky" / "00.jpg", spare / "again.jpg")
    run = train(config(images, weights=weights, imagenet_prior=True, unlabelled=str(spare)), tmp_path / "run")
    log = (run.path / "log.txt").read_text()
    assert "ImageNet knows 2 of 3 classes: Golden retriever and lawn mower" in log
    assert "9 images without labels" in log
    assert "left out, as images has them too: 1" in log
    assert re.search(r"without labels: val loss \S+ -> \S+, val top-1 \S+ -> \S+ on the \d+ validation images", log)
    plain = train(config(images, weights=weights), tmp_path / "plain")
    results = [json.loads((r.path / "results-val.json").read_text())["nll"] for r in (run, plain)]
    assert results[0] != results[1]


def test_what_cannot_help_is_refused(tmp_path, weights):
    images = make_images(tmp_path / "images", each=6)
    damaged = make_images(tmp_path / "damaged", each=2, size=40)
    (damaged / "sky" / "00.jpg").write_text("no image")
    cases = (
        ({"imagenet_prior": True}, "random weights know no ImageNet class"),
        ({"imagenet_prior": True, "weights": weights}, "ImageNet has no class called brick, grass, sky"),
        ({"unlabelled": str(images)}, "all of its 18 images are images of images"),
        ({"unlabelled": str(tmp_path / "none")}, "none"),
        ({"unlabelled": str(damaged)}, "--unlabelled: .*00.jpg: not an image that can be read; .* with --skip-bad"),
        ({"unlabelled": str(images), "strategy": "finetune"}, "--unlabelled is for the head of a frozen backbone"),
    )
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(RocLabError, match=message):
            train(config(images, **changes), tmp_path / f"run{number}")
        assert not (tmp_path / f"run{number}").exists()  # the command, put right, may have the same --out
