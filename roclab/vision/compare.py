"""A fair comparison: every model under every strategy on the same images, the same split and the same seeds.

`compare` trains what is missing, goes on with what was cut, evaluates each run once, and says which is better, by how
much, and how sure that is. Everything it says comes from the run folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.exceptions import RocLabError
from roclab.core.files import write_json
from roclab.core.sentences import pointer
from roclab.vision.config import TrainConfig
from roclab.vision.evaluate.evaluate import evaluate
from roclab.vision.evaluate.figures import comparison_figures
from roclab.vision.evaluate.pairs import compare_pairs, verdict
from roclab.vision.evaluate.run_reader import BY_BUDGET, Predictions, VisionRun, group_arms
from roclab.vision.models.classifier import check_name
from roclab.vision.train.train import finish

SCORES = ("top1", "mean_per_class", "macro_f1", "ece")


def compare(
    base: TrainConfig,
    models: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    weights: dict[str, str] | None = None,
    engine: str = "local",
) -> dict[str, Any]:
    """Compare `models` × `strategies` over `seeds`; writes comparison.json and figures/ into `out`.

    `base` holds what all runs share; `weights` a model's own weights where they differ from `base.weights`. Runs in
    `out` that are finished are used as they are. `engine` "ray" trains them as tasks of a Ray cluster.
    """
    check_engine(engine)
    for name in models:  # all of them, before hours go into the first
        check_name(name)
    out = Path(out)
    configs = {
        out / f"{model.replace('/', '-')}-{strategy}-seed{seed}": replace(
            # no refit: fine-tuning is not trained on validation images, so a frozen backbone's head may not be either
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
        _check_same_question(path, config)
    unfinished = {path: config for path, config in configs.items() if not (path / "training.json").exists()}
    if engine == "ray":
        map_over_cluster(lambda job: finish(job[0].resolve(), job[1]), list(unfinished.items()))
    else:
        for path, config in unfinished.items():
            finish(path, config)

    runs = [VisionRun.open(path) for path in configs]
    split = "test" if runs[0].images("test") else "val"
    for run in runs:
        if not run.has_results(split):
            evaluate(run, split)
    arms = group_arms(runs)
    found = comparison(arms, split)
    write_json(out / "comparison.json", found)
    comparison_figures(arms, split, out / "figures")
    return found


def _check_same_question(path: Path, config: TrainConfig) -> None:
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
    found["pairs"] = compare_pairs(_correct(arms, split))
    said = [verdict(pair, split, pointer("pairs", i), len(found["pairs"])) for i, pair in enumerate(found["pairs"])]
    for pair, sentence in zip(found["pairs"], said, strict=True):
        pair["shown"] = sentence.claims
    return found | {"sentences": [sentence.json() for sentence in said]}


def _correct(arms: dict[str, list[VisionRun]], split: str) -> dict[str, dict[int, np.ndarray]]:
    """Whether each run predicted each image correctly, by arm and seed; all in the image order of the first run."""
    first: Predictions | None = None
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, runs in arms.items():
        found[name] = {}
        for run in runs:
            read = run.predictions(split)
            first = first or read
            rows = read.rows_like(first)
            if rows is None:
                raise RocLabError("two runs of the comparison were evaluated on different images: choose another --out")
            found[name][run.config["seed"]] = (read.probs.argmax(1) == read.labels)[rows]
    return found
