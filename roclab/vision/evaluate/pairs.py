"""Arms compared two by two on the same images, each run with the run of the other arm that has its seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from roclab.core.sentences import Evidence, Sentence, interval, percent, pointer, strength
from roclab.core.statistics import add_holm
from roclab.vision.evaluate.metrics import mcnemar, paired_bootstrap
from roclab.vision.evaluate.run_reader import VisionRun, side_by_side

SCORES = ("top1", "mean_per_class", "macro_f1", "ece")


def compare_pairs(correct: Mapping[str, Mapping[int, np.ndarray]], unmatched: bool = False) -> list[dict[str, Any]]:
    """Every two arms: `correct` gives an arm's runs by seed, each (N,) bool over the same images.

    For each seed that both arms have, McNemar's exact test; of the scores averaged over those seeds, the difference
    a - b with its paired bootstrap interval over the images. `median_p` is the median of the tests, `p` the same after
    Holm's correction over the pairs. Arms without a common seed are left out, or compared by their means and their
    first runs if `unmatched`.
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
        found.append(
            {"a": a, "b": b, "seeds": seeds, "mcnemar": tests, "median_p": median, **paired_bootstrap(*scores)}
        )
    add_holm(found, "median_p", "p")
    return found


def verdicts(pairs: Sequence[Mapping[str, Any]], split: str) -> list[Sentence]:
    """A sentence about each of the pairs of `compare_pairs`, which stand under "pairs" in the facts."""
    return [verdict(pair, split, pointer("pairs", i), len(pairs)) for i, pair in enumerate(pairs)]


def verdict(pair: Mapping[str, Any], split: str, key: str, pairs: int = 1) -> Sentence:
    """Which of two arms is better, by how much, and how sure that is; `pairs` is how many were compared at once.

    Better is said only where the interval leaves out zero and `p` is below 0.05: over a handful of images the bootstrap
    alone is too sure.
    """
    a, b, difference, (low, high) = pair["a"], pair["b"], pair["difference"], pair["ci95"]
    if difference < 0:
        a, b, difference, low, high = b, a, -difference, -high, -low
    tests = [test["p"] for test in pair["mcnemar"]]
    adjusted = f"; {pair['p']:.3g} after Holm's correction" if pairs > 1 else ""
    shown = f"{interval([low, high], sign='+')} (McNemar p per seed: {', '.join(f'{p:.3g}' for p in tests)}{adjusted})"
    kind = strength(pair["p"], low > 0 or high < 0)
    if difference == 0:
        text = f"{a} and {b} are right equally often {shown}: these images do not show which is better."
    elif kind == "none":
        text = f"{a} leads {b} by {percent(difference)} points {shown}: these images do not show which is better."
    else:
        text = f"{a} is better than {b} by {percent(difference)} points {shown}."
    numbers = {"difference": pair["difference"], "ci95": pair["ci95"], "p": pair["p"], "mcnemar_p": tests}
    return Sentence(text, Evidence(kind, numbers, split=split), key)


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
            "epochs_to_convergence": [row["epochs_to_convergence"] for row in results],
            "mean_train_seconds_per_epoch": float(np.mean([r["mean_train_seconds_per_epoch"] for r in results])),
            "peak_memory_mb": max(row["peak_memory_mb"] for row in results),
        }
    members = [run for runs in arms.values() for run in runs]
    first, probs = side_by_side(members, split)
    right = probs.argmax(2) == first.labels
    found["pairs"] = compare_pairs(
        {name: {run.config["seed"]: right[members.index(run)] for run in runs} for name, runs in arms.items()}
    )
    said = verdicts(found["pairs"], split)
    for pair, sentence in zip(found["pairs"], said, strict=True):
        pair["shown"] = sentence.claims
    return found | {"sentences": [sentence.json() for sentence in said]}
