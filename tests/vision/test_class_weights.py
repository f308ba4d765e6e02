"""--class-weights balanced: every class weighs the same in training; not asked for, it changes nothing."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from roclab.core.exceptions import RocLabError
from roclab.vision.config import TrainConfig
from roclab.vision.evaluate.run_reader import VisionRun, group_arms
from roclab.vision.train.head import Space, balanced_weights, choose_head, fit_head
from roclab.vision.train.mixing import mixed_cross_entropy, neighbours
from roclab.vision.train.train import train
from tests.vision.finished import finished_run
from tests.vision.small import config, make_images


def unequal(seed: int = 0, n: int = 400):
    """Features and labels of a common and a rare class (19 to 1) that overlap."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 20 == 0).astype(int)
    return rng.normal(size=(n, 5)) + 0.5 * y[:, None], y


def test_the_weighted_head_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_class_weight

    x, y = unequal()
    weights = balanced_weights("balanced", y, 2)
    assert np.allclose(weights, compute_class_weight("balanced", classes=np.arange(2), y=y))
    head = fit_head(x, y, 2, c=0.05, space=Space(np.zeros(5), np.ones(5), x, None), weights=weights)
    # two classes are one row of weights there, of twice the strength: W and -W here
    peer = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10).fit(x, y)
    assert np.allclose(head.probs(x), peer.predict_proba(x), atol=1e-3)


def test_the_rare_class_is_found_more_often():
    (x, y), (x_val, y_val) = unequal(0), unequal(1)
    cut = (x, y, x_val, y_val)
    plain, weighted = (choose_head(cut, 2, weights=balanced_weights(kind, y, 2)) for kind in (None, "balanced"))
    recall = [(head.probs(x)[y == 1].argmax(1) == 1).mean() for head in (plain, weighted)]
    assert recall[1] > recall[0] + 0.3


def test_the_loss_of_finetuning_is_the_weighted_sum_over_the_batch():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 2, 0]), torch.tensor([0.5, 2.0, 3.0])
    each = cross_entropy(logits, labels, reduction="none")
    assert torch.isclose(mixed_cross_entropy(logits, labels, 1.0, 0.0, weights), (weights[labels] * each).mean())
    halves = [mixed_cross_entropy(logits[i : i + 3], labels[i : i + 3], 1.0, 0.1, weights) for i in (0, 3)]
    assert torch.isclose(sum(halves) / 2, mixed_cross_entropy(logits, labels, 1.0, 0.1, weights))
    other = labels[neighbours(6)]
    mixed = 0.7 * (weights[labels] * each).mean()
    mixed += 0.3 * (weights[other] * cross_entropy(logits, other, reduction="none")).mean()
    assert torch.isclose(mixed_cross_entropy(logits, labels, 0.7, 0.0, weights), mixed)
    assert torch.equal(
        mixed_cross_entropy(logits, labels, 1.0, 0.1), cross_entropy(logits, labels, label_smoothing=0.1)
    )


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """One class with few images."""
    images = make_images(tmp_path_factory.mktemp("skewed"), each=45, size=24)
    for path in sorted((images / "sky").iterdir())[4:]:
        path.unlink()
    return images


@pytest.mark.parametrize("strategy", ["features", "finetune"])
def test_it_is_recorded_and_named_where_classes_are_unequal(skewed, tmp_path, strategy, monkeypatch, caplog):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    options = {"strategy": strategy, "image_size": 32} | ({"epochs": 1} if strategy == "finetune" else {})
    with caplog.at_level("INFO", "roclab"):
        plain = train(config(skewed, **options), tmp_path / "plain")
    assert [r.levelname for r in caplog.records if "--class-weights balanced" in r.message] == ["WARNING"]
    caplog.clear()
    with caplog.at_level("INFO", "roclab"):
        doubts = {"class_weights": "balanced", "soft_labels": True}  # of labels that are all certain
        balanced = train(config(skewed, **options, **doubts), tmp_path / "balanced")
    assert "--class-weights" not in caplog.text
    assert "--soft-labels changes nothing" in caplog.text
    assert json.loads((balanced.path / "config.json").read_text())["class_weights"] == "balanced"
    rows = [run.metrics()[-1] for run in (plain, balanced)]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    assert ["val_weighted_top1" in row for row in rows] == [False, strategy == "finetune"]


def test_runs_of_older_versions_are_of_the_same_arm(tmp_path):
    images = make_images(tmp_path / "images", each=10)
    own = {"older": {}, "plain": {"class_weights": None}, "balanced": {"class_weights": "balanced"}}
    runs = [finished_run(tmp_path / name, images, i, **more) for i, (name, more) in enumerate(own.items())]
    arms = group_arms([VisionRun.open(run.path) for run in runs])
    assert [[run.name for run in members] for members in arms.values()] == [["older", "plain"], ["balanced"]]
    assert [name.partition("class weights ")[2] for name in arms] == ["default)", "balanced)"]


def test_another_word_is_refused():
    with pytest.raises(RocLabError, match="--class-weights inverse: choose one of balanced"):
        TrainConfig(class_weights="inverse")
