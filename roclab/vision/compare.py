"""A fair comparison: every model under every strategy on the same images, the same split and the same seeds.

`compare` trains what is missing, goes on with what was cut, evaluates each run once, and says which is better, by how
much, and how sure that is. Everything it says comes from the run folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, write_json
from roclab.vision.config import TrainConfig
from roclab.vision.evaluate.evaluate import evaluate
from roclab.vision.evaluate.metrics import mcnemar, paired_bootstrap
from roclab.vision.evaluate.run_reader import BY_BUDGET, VisionRun, group_arms
from roclab.vision.models.classifier import check_name
from roclab.vision.train.train import finish


def compare(
    base: TrainConfig,
    models: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    weights: dict[str, str] | None = None,
    engine: str = "local",
) -> dict[str, Any]:
    """Compare `models` × `strategies` over `seeds`; writes comparison.json, comparison.md and figures/ into `out`.

    `base` holds what all runs share; `weights` a model's own weights where they differ from `base.weights`. Runs in
    `out` that are finished are used as they are. `engine` "ray" trains them as tasks of a Ray cluster.
    """
    check_engine(engine)
    for name in models:  # all of them, before hours go into the first
        check_name(name)
    out = Path(out)
    configs = {
        out / f"{model.replace('/', '-')}-{strategy}-seed{seed}": replace(
            # no refit: fine-tuning has no use for the validation images, so the frozen backbone may not learn from them
            base,
            model=model,
            strategy=strategy,
            seed=seed,
            weights=(weights or {}).get(model, base.weights),
            refit=False,
        )
        for model in models
        for strategy in strategies
        for seed in seeds
    }
    for path, config in configs.items():
        _same_question(path, config)
    unfinished = {path: config for path, config in configs.items() if not (path / "training.json").exists()}
    if engine == "ray":
        map_over_cluster(lambda job: finish(job[0].resolve(), job[1]), list(unfinished.items()))
    else:
        for path, config in unfinished.items():
            finish(path, config)

    runs = [VisionRun.open(path) for path in configs]
    arms = group_arms(runs)
    split = "test" if runs[0].images("test") else "val"
    for run in runs:
        if not run.has_results(split):
            evaluate(run, split)
    found = judge(arms, split)
    write_json(out / "comparison.json", found)
    atomic_write(out / "comparison.md", markdown(found))

    from roclab.vision.evaluate.figures import comparison_figures

    comparison_figures(arms, split, out / "figures")
    return found


def _same_question(path: Path, config: TrainConfig) -> None:
    """A run that is there already must be the run asked for, or its figures would answer another question."""
    if not (path / "config.json").exists():
        return
    there = VisionRun.open(path).config
    # what was left open (None) or to a budget was decided by the run itself
    decided = BY_BUDGET if config.budget else set()
    for name, wanted in config.asdict().items():
        if wanted is not None and name not in decided and there.get(name) != wanted:
            raise RocLabError(
                f"{path} was made with {name} = {there.get(name)}, now asked for {wanted}: choose another --out"
            )


def judge(arms: dict[str, list[VisionRun]], split: str) -> dict[str, Any]:
    """Mean and deviation of each arm over its seeds, and the paired statistics of every two arms."""
    found: dict[str, Any] = {"split": split, "arms": {}, "pairs": []}
    correct: dict[str, dict[int, dict[tuple, bool]]] = {}
    for name, runs in arms.items():
        results = [run.results(split) for run in runs]
        top1 = [row["top1"] for row in results]
        correct[name] = {run.config["seed"]: correct_by_image(run, split) for run in runs}
        found["arms"][name] = {
            "runs": [str(run.path) for run in runs],
            "seeds": [run.config["seed"] for run in runs],
            "n": results[0]["n"],
            "top1": top1,
            **{
                f"{key}_{what}": float(function([row[key] for row in results]))
                for key in ("top1", "mean_per_class", "macro_f1", "ece")
                for what, function in (("mean", np.mean), ("std", _deviation))
            },
            "top1_ci95": [float(np.mean([row["ci95"]["top1"][side] for row in results])) for side in (0, 1)],
            "epochs_to_convergence": [row["epochs_to_convergence"] for row in results],
            "mean_train_seconds_per_epoch": float(np.mean([r["mean_train_seconds_per_epoch"] for r in results])),
            "peak_memory_mb": max(row["peak_memory_mb"] for row in results),
        }
    for a, b in combinations(arms, 2):
        if seeds := sorted(correct[a].keys() & correct[b].keys()):  # a run is compared with the one of its own seed
            sides = ([correct[arm][seed] for seed in seeds] for arm in (a, b))
            found["pairs"].append({"a": a, "b": b, "seeds": seeds, **_paired(*sides)})
    return found


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def correct_by_image(run: VisionRun, split: str) -> dict[tuple, bool]:
    """Whether the run's prediction of each image is right; the keys are the same in every run."""
    read = run.predictions(split)
    return dict(zip(read.keys, (read.probs.argmax(1) == read.labels).tolist(), strict=True))


def _paired(a: list[dict[tuple, bool]], b: list[dict[tuple, bool]]) -> dict[str, Any]:
    """McNemar's test for each seed, and the paired bootstrap over images of their mean score over the seeds."""
    scores: dict[tuple, list[tuple[bool, bool]]] = {}
    tests = []
    for one, other in zip(a, b, strict=True):
        if one.keys() != other.keys():
            raise RocLabError("two runs of the comparison were judged on different images: choose another --out")
        paths = list(one)
        tests.append(mcnemar(np.array([one[p] for p in paths]), np.array([other[p] for p in paths])))
        for path in paths:
            scores.setdefault(path, []).append((one[path], other[path]))
    means = np.array([np.mean(rows, axis=0) for rows in scores.values()])  # (images, 2)
    return {"mcnemar": tests, **paired_bootstrap(means[:, 0], means[:, 1])}


def is_shown(pair: dict[str, Any]) -> bool:
    """Whether the images show that one of the pair is better: the interval leaves out zero, and the median of the
    seeds' McNemar tests is below 0.05. Over a handful of images the bootstrap alone is too sure of itself. Where many
    pairs are asked about at once, `pair["p"]` is that median after Holm's correction, and decides in its place."""
    low, high = pair["ci95"]
    p = pair.get("p", float(np.median([test["p"] for test in pair["mcnemar"]])))
    return (low > 0 or high < 0) and p < 0.05


def verdict(pair: dict[str, Any]) -> str:
    """One sentence on a pair: which is better, by how much, how sure. Better is said only where `is_shown`."""
    low, high = (100 * value for value in pair["ci95"])
    difference = 100 * pair["difference"]
    a, b = pair["a"], pair["b"]
    if difference < 0:
        a, b, difference, low, high = b, a, -difference, -high, -low
    values = [test["p"] for test in pair["mcnemar"]]
    adjusted = f"; {pair['p']:.3g} after Holm's correction" if "p" in pair else ""
    shown = f"[{low:+.1f}, {high:+.1f}] (McNemar p per seed: {', '.join(f'{p:.3g}' for p in values)}{adjusted})"
    if difference == 0:
        return f"{a} and {b} are right equally often {shown}: these images do not show which is better."
    if is_shown(pair):
        return f"{a} is better than {b} by {difference:.1f} points {shown}."
    return f"{a} leads {b} by {difference:.1f} points {shown}: these images do not show which is better."


def markdown(found: dict[str, Any]) -> str:
    """The comparison as a Markdown page: a table of the arms and a sentence for each pair."""
    first = next(iter(found["arms"].values()))
    lines = [
        f"# Comparison on {found['split']} ({first['n']} images, seeds {', '.join(map(str, first['seeds']))})",
        "",
        "| model and strategy | top-1 % (mean ± sd) | 95 % interval | mean per class % | macro F1 | ECE | epochs to "
        "convergence | s per epoch | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        low, high = (100 * value for value in arm["top1_ci95"])
        lines.append(
            f"| {name} | {100 * arm['top1_mean']:.2f} ± {100 * arm['top1_std']:.2f} | {low:.1f} – {high:.1f} "
            f"| {100 * arm['mean_per_class_mean']:.2f} ± {100 * arm['mean_per_class_std']:.2f} "
            f"| {arm['macro_f1_mean']:.3f} | {arm['ece_mean']:.3f} "
            f"| {', '.join(map(str, arm['epochs_to_convergence']))} | {arm['mean_train_seconds_per_epoch']:.1f} "
            f"| {arm['peak_memory_mb']:.0f} |"
        )
    notes = [f"- {verdict(pair)}" for pair in found["pairs"]]
    tail = [
        "",
        "Interval of an arm: Wilson's, averaged over the seeds. Interval of a difference: paired bootstrap over the "
        "images, of the score averaged over the seeds.",
        "",
    ]
    return "\n".join([*lines, "", *notes, *tail])
