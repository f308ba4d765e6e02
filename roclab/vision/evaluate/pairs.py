"""Arms compared two by two on the same images, each run with the run of the other arm that has its seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from roclab.core.sentences import Evidence, Sentence, counted, interval, listed, percent, pointer, strength
from roclab.core.statistics import add_holm, sign_test, wilson
from roclab.vision.evaluate.metrics import mcnemar, paired_bootstrap
from roclab.vision.evaluate.run_reader import VisionRun, side_by_side

SCORES = ("top1", "mean_per_class", "macro_f1", "ece")
SEEDS = 6  # with fewer, even if all of them agree, the sign test's p-value is above 0.05


def compare_pairs(
    correct: Mapping[str, Mapping[int, np.ndarray]], labels: np.ndarray, unmatched: bool = False
) -> list[dict[str, Any]]:
    """Every two arms: `correct` gives an arm's runs by seed, each (N,) bool over the same images with `labels` (N,).

    Over images, for the networks that were trained: for each seed that both arms have, McNemar's exact test; of the
    scores averaged over those seeds, the difference a - b with its paired bootstrap interval. `median_p` is the median
    of the tests, `p` the same after Holm's correction over the pairs. Over seeds, where there are at least `SEEDS` of
    them: the sign test of the seeds' differences under "over_seeds", with its own correction over the pairs.
    `at_chance`: the arms whose accuracy is not shown to be above the share of the commonest class.

    Arms without a common seed are left out, or compared by their means and their first runs if `unmatched`.
    """
    found: list[dict[str, Any]] = []
    for a, b in combinations(correct, 2):
        runs, others = correct[a], correct[b]
        seeds = sorted(runs.keys() & others.keys())
        if not seeds and not unmatched:
            continue
        tested = [(runs[s], others[s]) for s in seeds] or [(next(iter(runs.values())), next(iter(others.values())))]
        scores = [np.mean([side[s] for s in seeds or side], axis=0) for side in (runs, others)]
        tests = [mcnemar(one, other) for one, other in tested]
        median = float(np.median([test["p"] for test in tests]))
        known = {"a": a, "b": b, "seeds": seeds, "mcnemar": tests, "median_p": median, **paired_bootstrap(*scores)}
        chances = [name for name, score in zip((a, b), scores, strict=True) if not above_chance(score, labels)]
        found.append(known | {"at_chance": chances, "over_seeds": _over_seeds(tests) if len(seeds) >= SEEDS else None})
    add_holm(found, "median_p", "p")
    add_holm((pair["over_seeds"] for pair in found if pair["over_seeds"]), tests=len(found))
    return found


def above_chance(score: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the mean of `score` (N,), right or wrong or a mean over runs, is shown to be above what naming the
    commonest of the `labels` (N,) every time would reach: Wilson's interval lies above that share."""
    return wilson(float(score.sum()), len(labels))[0] > chance_of(labels)


def chance_of(labels: np.ndarray) -> float:
    """The share of the commonest class."""
    return float(np.bincount(labels).max() / len(labels))


def _over_seeds(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many seeds are better for either side, and the p-value of the sign test."""
    gaps = [test["only_a"] - test["only_b"] for test in tests]
    a, b = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    return {"a_better": a, "b_better": b, "p": sign_test(a, b)}


def verdicts(pairs: Sequence[Mapping[str, Any]], split: str) -> list[Sentence]:
    """A sentence about each of the pairs of `compare_pairs`, which stand under "pairs" in the facts."""
    return [verdict(pair, split, pointer("pairs", i), len(pairs)) for i, pair in enumerate(pairs)]


def verdict(pair: Mapping[str, Any], split: str, key: str, pairs: int = 1) -> Sentence:
    """Which of two arms is better, by how much, how sure that is, and over what; `pairs` is how many were compared.

    Better is said only where the interval leaves out zero and `p` is below 0.05 (over a handful of images the bootstrap
    alone is too sure), and never of a network that is not shown to be above chance.
    """
    a, b, difference, (low, high) = pair["a"], pair["b"], pair["difference"], pair["ci95"]
    if difference < 0:
        a, b, difference, low, high = b, a, -difference, -high, -low
    tests, seeds = [test["p"] for test in pair["mcnemar"]], pair["over_seeds"]
    holm = f"; {pair['p']:.3g} after Holm's correction" if pairs > 1 else ""
    runs = f"these {len(tests)} seeds" if len(tests) > 1 else "one run each"
    shown = f"{interval([low, high], sign='+')} over images, for {runs}"
    shown += f" (McNemar p per seed: {', '.join(f'{p:.3g}' for p in tests)}{holm})"
    kind = strength(pair["p"], low > 0 or high < 0) if not pair["at_chance"] else "none"
    if not any(test["only_a"] + test["only_b"] for test in pair["mcnemar"]):
        text = f"{a} and {b} are right on the same images: nothing tells them apart."
    elif pair["at_chance"]:
        guessing = listed(pair["at_chance"]) + (" are" if len(pair["at_chance"]) > 1 else " is")
        text = f"{a} is {percent(difference)} points above {b} {shown}, but {guessing} not shown to be above chance."
    elif difference == 0:
        text = f"{a} and {b} are right equally often {shown}: these images do not show which is better."
    elif kind == "none":
        text = f"{a} leads {b} by {percent(difference)} points {shown}: these images do not show which is better."
    else:
        text = f"{a} is better than {b} by {percent(difference)} points {shown}{_seeds_too(pair, a, pairs)}."
    numbers = {"difference": pair["difference"], "ci95": pair["ci95"], "p": pair["p"], "mcnemar_p": tests}
    return Sentence(text, Evidence(kind, numbers | ({"seeds_p": seeds["p_holm"]} if seeds else {}), split=split), key)


def _seeds_too(pair: Mapping[str, Any], better: str, pairs: int) -> str:
    """Whether other seeds would show the same, where there are enough of them to ask."""
    found = pair["over_seeds"]
    if not found:
        return ""
    won = found["a_better" if better == pair["a"] else "b_better"]
    shown = strength(found["p_holm"], won > len(pair["seeds"]) / 2) != "none"
    holm = " after Holm's correction" if pairs > 1 else ""
    words = "; over seeds too" if shown else "; that other seeds would show it too is open"
    return (
        f"{words} (better in {won} of {counted(len(pair['seeds']), 'seed')}, sign test p = {found['p_holm']:.3g}{holm})"
    )


def comparison(arms: dict[str, list[VisionRun]], split: str) -> dict[str, Any]:
    """Mean and standard deviation of each arm over its seeds, every two arms compared, and a sentence for each pair."""
    found: dict[str, Any] = {"split": split, "arms": {}}
    for name, runs in arms.items():
        results = [run.results(split) for run in runs]
        found["arms"][name] = {
            "runs": [str(run.path) for run in runs],
            "seeds": [run.config["seed"] for run in runs],
            "n": results[0]["n"],
            "top1": [row["top1"] for row in results],
            **{f"{key}_mean": float(np.mean([row[key] for row in results])) for key in SCORES},
            **{f"{key}_std": float(np.std([r[key] for r in results], ddof=len(runs) > 1)) for key in SCORES},
            "top1_ci95": [float(np.mean([row["ci95"]["top1"][side] for row in results])) for side in (0, 1)],
            "kept_start": [run.config["seed"] for run in runs if run.kept_start],
            **_costs(runs),
            "peak_memory_mb": max(row["peak_memory_mb"] for row in results),
        }
    members = [run for runs in arms.values() for run in runs]
    first, probs = side_by_side(members, split)
    right = probs.argmax(2) == first.labels
    found["chance"] = chance_of(first.labels)
    for name, runs in arms.items():
        score = right[[members.index(run) for run in runs]].mean(0)
        found["arms"][name]["above_chance"] = above_chance(score, first.labels)
    found["pairs"] = compare_pairs(
        {name: {run.config["seed"]: right[members.index(run)] for run in runs} for name, runs in arms.items()},
        first.labels,
    )
    said = verdicts(found["pairs"], split)
    for pair, sentence in zip(found["pairs"], said, strict=True):
        pair["shown"] = sentence.claims
    return found | {"sentences": [sentence.json() for sentence in said]}


def _costs(runs: Sequence[VisionRun]) -> dict[str, Any]:
    """What the runs took, as `VisionRun.cost` has it: seconds as means, epochs to convergence one by one."""
    costs = [run.cost() for run in runs]
    found: dict[str, Any] = {"epochs_to_convergence": [cost["epochs_to_convergence"] for cost in costs]}
    for name in ("head_seconds", "mean_train_seconds_per_epoch", "train_seconds"):
        known = [value for cost in costs if (value := cost[name]) is not None]
        found[name] = float(np.mean(known)) if known else None
    return found
