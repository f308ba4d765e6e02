"""The statistics of the error analysis against textbook cases, and that they stay silent where there is nothing."""

import numpy as np
import pytest

from roclab.core.statistics import difference, holm
from roclab.vision.error_analysis import facts
from roclab.vision.error_analysis.covariates import logistic_slope
from roclab.vision.error_analysis.facts import contact_sheet, harder_than_the_rest
from roclab.vision.error_analysis.gradcam import covering_tells
from roclab.vision.error_analysis.likeness import closer_than
from roclab.vision.evaluate.metrics import calibration, expected_calibration_error
from tests.vision.finished import joint_predictions, random_probs


def test_holm_of_a_case_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01], tests=10) == pytest.approx([0.1])
    assert holm([]) == []


def test_newcombes_interval_of_his_own_example():
    # 56/70 - 48/80 (Newcombe 1998, Statistics in Medicine 17:873, table II, method 10): 0.0524 to 0.3339
    found = difference(56, 70, 48, 80)
    assert found["difference"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx([0.0524, 0.3339], abs=5e-5)


def test_a_class_is_held_against_the_rest_by_fishers_test_and_by_its_draws():
    from scipy.stats import fisher_exact

    wrong = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=float)
    inside = np.arange(14) < 4
    expected = fisher_exact([[3, 1], [1, 9]], alternative="greater").pvalue
    assert harder_than_the_rest(wrong, inside) == pytest.approx(expected)
    several = wrong * 0.5 + 0.0  # the same order, but drawn: levels 0 and 1/2
    assert harder_than_the_rest(several, inside) == pytest.approx(expected, abs=0.01)
    assert harder_than_the_rest(np.zeros(14), inside) == 1.0


def test_the_slope_is_that_of_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, 400)
    right = (rng.random(400) < 1 / (1 + np.exp(-(x - 2)))).astype(float)
    found = logistic_slope(x, right)
    z = (x - x.mean()) / x.std()
    peer = LogisticRegression(C=1e9, tol=1e-8).fit(z[:, None], right)
    assert found["odds_ratio"] == pytest.approx(np.exp(peer.coef_[0, 0]), rel=1e-3)
    assert found["ci95"][0] < found["odds_ratio"] < found["ci95"][1]
    assert found["p"] < 1e-6
    assert logistic_slope(np.ones(400), right) is None
    assert logistic_slope(x, np.ones(400)) is None  # nothing is wrong: nothing to fit


def test_calibration_tells_honest_from_too_sure():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 500)
    honest = random_probs(rng, labels, 4, 0.8)
    found = calibration(labels, honest[None])
    assert found["ece"] == pytest.approx(expected_calibration_error(labels, honest))
    assert found["p"] > 0.05
    assert found["gap_ci95"][0] < 0 < found["gap_ci95"][1]
    sure = np.where(honest == honest.max(1, keepdims=True), 0.97, 0.01)
    found = calibration(labels, sure[None])
    assert found["p"] < 0.01
    assert found["gap_ci95"][0] > 0.1
    assert sum(b["images"] for b in found["bins"]) == pytest.approx(500)
    twice = calibration(labels, np.stack([sure, sure]))  # the same run twice is no more evidence
    assert twice["ece"] == pytest.approx(found["ece"])
    assert twice["gap_ci95"] == pytest.approx(found["gap_ci95"])


def test_where_errors_fall_at_random_there_are_hardly_any_claims():
    """Sixty worlds in which every class is equally hard and errors go anywhere: a family of questions may claim
    something in one of twenty."""
    false = {"hardest": 0, "confused": 0, "pairs": 0, "shared": 0, "crossing": 0, "difference": 0, "decided": 0}
    species = {f"class {i}": "cat" if i < 3 else "dog" for i in range(8)}
    for world in range(60):
        rng = np.random.default_rng(world)
        labels = np.repeat(np.arange(8), 15)
        probs = np.stack([random_probs(rng, labels, 8, 0.75) for _ in range(2)])
        seen = joint_predictions(labels, probs, {"A": [0], "B": [1]}, species=species)
        groups = facts._species(seen)
        false["crossing"] += groups["crossing"]["p"] < 0.05
        false["difference"] += groups["difference"]["p"] < 0.05
        false["shared"] += facts._shared(seen)["p"] < 0.05
        covering = [covering_tells(*rng.normal(size=(2, 16))) for _ in range(4)]
        false["decided"] += any(p < 0.05 for p in holm(covering))
        false["hardest"] += any(row["p"] < 0.05 for row in facts._hardest(seen, 0))
        false["confused"] += any(row["p"] < 0.05 for row in facts._confused(seen))
        false["pairs"] += facts._pairs(seen)[0]["p"] < 0.05
    assert max(false.values()) <= 7, false  # binomial: more than 7 of 60 at 5 % has a probability below 1 %


def test_what_was_planted_is_found():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 30)
    probs = np.stack([random_probs(rng, labels, 6, 0.97) for _ in range(3)])
    for row in probs:  # class 2 is called class 5 half of the time, by every run
        row[60:75] = 0.002
        row[60:75, 5] = 0.99
    probs[2, :20] = np.roll(probs[2, :20], 1, axis=1)  # and the third run alone is wrong on class 0
    species = {f"class {i}": "cat" if i in (2, 5) else "dog" for i in range(6)}
    seen = joint_predictions(labels, probs, {"A": [0, 1], "B": [2]}, species=species)
    hardest = {row["class"]: row for row in facts._hardest(seen, 0)}
    assert hardest["class 2"]["p"] < 0.01
    assert hardest["class 3"]["p"] > 0.5
    first = facts._confused(seen)[0]
    assert (first["a"], first["b"]) == ("class 2", "class 5")
    assert first["p"] < 1e-6
    pair = facts._pairs(seen)[0]
    assert pair["b_wrong_a_right"] >= 18
    assert pair["p"] < 0.05
    assert pair["ci95"][0] > 0
    groups = facts._species(seen)
    assert groups["kinds"]["cat"]["share"] < groups["kinds"]["dog"]["share"]
    shared = facts._shared(seen)
    assert set(range(60, 75)) <= set(shared["by_all"])
    assert shared["p"] < 0.01
    assert sum(shared["wrong_by"]) == 180
    doubted = facts._label_errors(seen)
    assert doubted["found"] >= 10
    assert {row["suggested"] for row in doubted["images"][:5]} == {"class 5"}


def test_a_contact_sheet_holds_one_mistake():
    labels = np.arange(40) % 4
    probs = np.full((1, 40, 4), 0.1)
    probs[0, np.arange(40), labels] = 0.7
    probs[0, :3] = [0.1, 0.1, 0.1, 0.7]  # images 0 to 2 are of other classes
    joint = joint_predictions(labels, probs, {"A": [0]})
    sheet = contact_sheet(joint, seed=0)
    assert len(set(sheet["images"])) == 8
    assert sum(i < 3 for i in sheet["images"]) == 1


def test_arms_at_chance_explain_nothing():
    """Their errors stay out of every question but that of accuracy."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    good = np.full((200, 4), 0.1)
    good[np.arange(200), np.where(rng.random(200) < 0.8, labels, rng.integers(0, 4, 200))] = 0.7
    joint = joint_predictions(labels, np.stack([good, rng.dirichlet(np.ones(4), 200)]), {"good": [0], "guess": [1]})
    assert joint.left_out() == {"guess": "chance"}
    told = joint.of_arms(["good"])
    assert told.arms == {"good": [0]}
    assert np.array_equal(told.probs[0], good)


def test_random_weights_and_repeats_do_not_blur_the_errors_of_the_others():
    labels = np.arange(200) % 4
    good, better = np.full((200, 4), 0.1), np.full((200, 4), 0.1)
    good[np.arange(200), np.where(np.arange(200) % 5, labels, 0)] = 0.7
    better[np.arange(200), np.where(np.arange(200) % 9, labels, 0)] = 0.7
    arms = {"frozen": [0], "kept its head": [1], "random": [2]}
    joint = joint_predictions(labels, np.stack([good, good + 1e-6, better]), arms)
    joint.runs[2].config["weights"] = "none"
    assert joint.left_out() == {"kept its head": "frozen", "random": "random"}
    for run in joint.runs:  # where all began so, none blurs the others
        run.config["weights"] = "none"
    assert joint.left_out() == {"kept its head": "frozen"}


def test_pairs_of_classes_are_close_by_their_means():
    classes = list("abcdefg")
    means = np.array([[0.0], [0.1], [5.0], [9.0], [14.0], [20.0], [27.0]])
    assert closer_than(classes, means, "a", "b") == 1.0  # all other pairs lie further apart
    assert closer_than(classes, means, "a", "g") == 0.0
    assert closer_than(classes[:3], means[:3], "a", "b") is None  # three pairs say nothing
