"""The judge is judged: each number against a case worked out by hand or a second way of computing it."""

import numpy as np
import pytest

from roclab.vision.evaluate import metrics


def one_hot(labels, classes, confidence=1.0):
    rest = (1 - confidence) / (classes - 1)
    return np.where(np.eye(classes)[labels] > 0, confidence, rest)


def test_metrics_of_a_case_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    probs = one_hot(np.array([0, 0, 1, 1, 2, 2]), 3)
    found = metrics.classification_metrics(labels, probs, ["a", "b", "c"])
    assert found["n"] == 6
    assert found["top1"] == pytest.approx(4 / 6)
    assert found["mean_per_class"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["per_class"]["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_a_class_without_images_is_left_out_of_the_means():
    found = metrics.classification_metrics(np.array([0, 1]), one_hot(np.array([0, 1]), 3), ["a", "b", "c"])
    assert found["mean_per_class"] == 1.0
    assert found["macro_f1"] == 1.0
    assert found["per_class"]["c"]["support"] == 0


def test_per_class_interval_agrees_with_drawing_images():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 300)
    correct = rng.random(300) < 0.6 + 0.1 * labels
    draws = []
    for _ in range(2000):
        recalls = [rng.choice(correct[labels == c], (labels == c).sum()).mean() for c in range(4)]
        draws.append(np.mean(recalls))
    assert metrics.per_class_interval(labels, correct) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.012)


def test_calibration_error():
    labels = np.zeros(100, int)
    predicted = np.where(np.arange(100) < 80, 0, 1)
    # says 0.8 and is right in 80 of 100: calibrated; says 0.99: off by 0.19
    assert metrics.expected_calibration_error(labels, one_hot(predicted, 2, 0.8)) == pytest.approx(0, abs=1e-9)
    assert metrics.expected_calibration_error(labels, one_hot(predicted, 2, 0.99)) == pytest.approx(0.19)


def test_mcnemar_counts_only_disagreements():
    a = np.array([1] * 50 + [1] * 9 + [0] * 1, bool)
    b = np.array([1] * 50 + [0] * 9 + [1] * 1, bool)
    found = metrics.mcnemar(a, b)
    assert (found["only_a"], found["only_b"]) == (9, 1)
    assert found["p"] == pytest.approx(2 * (1 + 10) / 2**10)  # two-sided binomial tail of 1 in 10
    assert metrics.mcnemar(a, a)["p"] == 1.0


def test_paired_bootstrap_knows_a_real_difference_from_none():
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.9
    b = a & (rng.random(400) < 0.9)
    found = metrics.paired_bootstrap(a, b)
    assert found["difference"] == pytest.approx(a.mean() - b.mean())
    assert found["ci95"][0] > 0
    low, high = metrics.paired_bootstrap(a, rng.permutation(a))["ci95"]
    assert low < 0 < high


def test_epochs_to_convergence():
    def rows(*accuracies, first=1):
        return [{"epoch": i, "val_top1": top1} for i, top1 in enumerate(accuracies, start=first)]

    assert metrics.epochs_to_convergence(rows(0.5, 0.8, 0.896, 0.9, 0.9)) == 3
    assert metrics.epochs_to_convergence(rows(0.9, 0.8, first=0)) == 0
    assert metrics.epochs_to_convergence(rows(0.9)) == 1
    assert metrics.epochs_to_convergence([]) is None
