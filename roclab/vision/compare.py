"""A fair comparison: every model under every strategy on the same images, the same split and the same seeds.

`compare` trains what is missing, goes on with what was cut, evaluates each run once, and says which is better, by how
much, and how sure that is. Everything it says comes from the run folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.files import write_json
from roclab.vision.config import MOVABLE, TrainConfig, check_same
from roclab.vision.evaluate.evaluate import evaluate
from roclab.vision.evaluate.figures import comparison_figures
from roclab.vision.evaluate.pairs import comparison
from roclab.vision.evaluate.run_reader import BY_BUDGET, VisionRun, group_arms
from roclab.vision.models.classifier import check_name
from roclab.vision.train.train import finish, moved_to

PLACES = MOVABLE - {"weights"} | {"data"}  # what may differ where the images are the same


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
    for run, config in zip(runs, configs.values(), strict=True):
        if not run.has_results(split):
            evaluate(run, split, data_root=moved_to(run, config))
    arms = group_arms(runs)
    found = comparison(arms, split)
    write_json(out / "comparison.json", found)
    comparison_figures(arms, split, out / "figures")
    return found


def _check_same_question(path: Path, config: TrainConfig) -> None:
    """A run that is there already must be the run asked for, or its figures would answer another question."""
    if not (path / "config.json").exists():
        return
    run = VisionRun.open(path)
    own = run.config
    # what was left open (None) or to a budget was decided by the run itself
    decided = BY_BUDGET if config.budget else set()
    asked = {name: value for name, value in config.asdict().items() if value is not None and name not in decided}
    check_same(run, asked, PLACES, "choose another --out")
    if any(asked.get(name, own.get(name)) != own.get(name) for name in ("data", "data_root")):
        moved_to(run, config)  # raises if the images are others
