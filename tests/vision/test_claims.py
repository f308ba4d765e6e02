"""Every claim of a comparison, derived once more from predictions.csv alone, by other means than the code's own."""

import csv
import math
import re
from collections import Counter
from itertools import combinations
from statistics import NormalDist, median

import numpy as np
import pytest
from scipy.stats import binomtest

from roclab.core.files import write_json
from roclab.vision.evaluate.metrics import classification_metrics
from roclab.vision.evaluate.pairs import comparison
from roclab.vision.evaluate.run_reader import group_arms
from tests.vision.finished import finished_run
from tests.vision.small import make_images

ARMS = {"a": 0.95, "b": 0.93, "c": 0.7, "guess": 0.34}
BETTER = re.compile(r"(?P<better>\S+), frozen is better than (?P<worse>\S+), frozen by (?P<points>[\d.]+) points")


def read(path) -> dict[str, bool]:
    """Whether each test image is right, by its path."""
    with open(path / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return {row["path"]: row["true"] == row["predicted"] for row in rows}


@pytest.fixture(scope="module", params=[1, 3, 6], ids="{} seeds".format)
def compared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    images = make_images(folder / "images", each=150, size=16)
    runs = []
    for number, (name, accuracy) in enumerate(ARMS.items()):
        for seed in range(request.param):
            at, drawn = folder / f"{name}-{seed}", 100 * number + seed
            # predictions drawn from a seed of their own; images cut by the run's
            run = finished_run(at, images, seed=seed, accuracy=accuracy, model=name, drawn=drawn)
            got = run.predictions("test")
            metrics = classification_metrics(got.labels, got.probs, run.manifest["classes"])
            write_json(at / "results-test.json", metrics | {"peak_memory_mb": 1.0})
            runs.append(run)
    return runs, comparison(group_arms(runs), "test")


def by_arm(runs) -> dict[str, list[dict[str, bool]]]:
    return {f"{name}, frozen": [read(run.path) for run in runs if run.config["model"] == name] for name in ARMS}


def test_scores_and_their_intervals(compared):
    runs, found = compared
    z = NormalDist().inv_cdf(0.975)
    for name, right in by_arm(runs).items():
        shares = [sum(one.values()) / len(one) for one in right]
        assert found["arms"][name]["top1"] == pytest.approx(shares)
        ends = []
        for p, n in ((share, len(right[0])) for share in shares):  # Wilson 1927
            middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            ends.append([(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)])
        assert found["arms"][name]["top1_ci95"] == pytest.approx(np.mean(ends, axis=0).tolist(), abs=1e-6)


def test_differences_and_their_tests(compared):
    runs, found = compared
    arms, own = by_arm(runs), []
    for a, b in combinations(arms, 2):
        tests, gaps = [], []
        for one, other in zip(arms[a], arms[b], strict=True):
            assert one.keys() == other.keys()
            only_a, only_b = (sum(x[k] > y[k] for k in x) for x, y in ((one, other), (other, one)))
            tests.append(binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0)
            gaps.append([one[k] - other[k] for k in sorted(one)])
        own.append({"a": a, "b": b, "p": median(tests), "gaps": np.mean(gaps, axis=0)})
    ordered, largest = sorted(own, key=lambda pair: pair["p"]), 0.0
    for rank, pair in enumerate(ordered):  # Holm 1979
        largest = max(largest, min(1.0, (len(own) - rank) * pair["p"]))
        pair["holm"] = largest
    for pair, theirs in zip(own, found["pairs"], strict=True):
        assert (pair["a"], pair["b"]) == (theirs["a"], theirs["b"])
        assert theirs["difference"] == pytest.approx(pair["gaps"].mean())
        assert theirs["p"] == pytest.approx(pair["holm"], rel=1e-6)
        half = 1.96 * pair["gaps"].std() / math.sqrt(len(pair["gaps"]))
        assert theirs["ci95"] == pytest.approx([pair["gaps"].mean() - half, pair["gaps"].mean() + half], abs=0.02)


def test_a_sentence_claims_what_the_predictions_show_and_no_more(compared):
    runs, found = compared
    arms = by_arm(runs)
    with open(runs[0].path / "predictions.csv", newline="") as file:
        labels = Counter(row["true"] for row in csv.DictReader(file) if row["split"] == "test")
    chance = max(labels.values()) / sum(labels.values())
    share = {name: np.mean([list(one.values()) for one in right]) for name, right in arms.items()}
    claims = 0
    for pair, sentence in zip(found["pairs"], found["sentences"], strict=True):
        text = sentence["text"]
        said = BETTER.search(text)
        shown = pair["p"] < 0.05 and not (pair["ci95"][0] <= 0 <= pair["ci95"][1])
        guessing = any("guess" in pair[side] for side in "ab")
        assert bool(said) == (shown and not guessing), text
        if guessing:
            assert "not shown to be above chance" in text
            continue
        if said:
            claims += 1
            gap = share[f"{said['better']}, frozen"] - share[f"{said['worse']}, frozen"]
            assert float(said["points"]) == pytest.approx(100 * gap, abs=0.051)
            assert gap > 0
        assert "over images, for" in text
        seeds = len(runs) // len(ARMS)
        assert ("seed" in text.partition("(McNemar")[2].replace("per seed", "")) == (bool(said) and seeds >= 6)
    assert claims >= 2  # c is worse than a and b
    assert share["guess, frozen"] < chance + 0.1
