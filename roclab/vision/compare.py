"""A fair comparison: every model under every strategy on the same images, the same split and the same seeds.

`compare` trains what is missing, goes on with what was cut, evaluates each run once, and says which is better, by how
much, and how sure that is. Everything it says comes from the run folders; settings.json keeps what all of them share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from roclab.core.cluster import check_engine, map_over_cluster
from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json, write_json
from roclab.core.progress import duration, stage
from roclab.vision.config import MOVABLE, TrainConfig, check_same
from roclab.vision.evaluate.evaluate import evaluate
from roclab.vision.evaluate.figures import comparison_figures
from roclab.vision.evaluate.pairs import comparison
from roclab.vision.evaluate.run_reader import BY_BUDGET, VisionRun, group_arms
from roclab.vision.models.classifier import check_name
from roclab.vision.train.train import expected_seconds, finish, moved_to

logger = logging.getLogger(__name__)

PLACES = MOVABLE - {"weights"} | {"data"}  # what may differ where the images are the same
OF_A_RUN = {"model", "strategy", "seed", "weights", "refit"}  # what the runs of a comparison do not share
ELSEWHERE = "choose another --out"


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
    `out` that are finished are used as they are, and those of earlier calls take part in the comparison: it grows, and
    loses nothing. Raises `RocLabError`, before anything is trained, if `out` holds runs with other settings. `engine`
    "ray" trains the runs as tasks of a Ray cluster.
    """
    check_engine(engine)
    for name in models:  # all of them, before hours go into the first
        check_name(name)
    tunes, out = "finetune" in strategies, Path(out)
    base = base if tunes else replace(base, epochs=None)  # of no concern to those who ask for frozen runs alone
    asked = {
        _folder(out, config): config
        for model in models
        for strategy in strategies
        for seed in seeds
        for config in [_config(base, model, strategy, seed, (weights or {}).get(model, base.weights))]
    }
    if out.is_dir() and any(out.iterdir()) and not [*out.glob("settings.json"), *out.glob("*/config.json")]:
        raise RocLabError(f"{out} holds other files and no comparison: choose a new or empty --out")
    configs = asked | _earlier(out, base, asked)
    for path, config in configs.items():
        _check_same_question(path, config)
    _check_same_settings(out, base, OF_A_RUN if tunes else OF_A_RUN | {"epochs"})
    _train({path: config for path, config in asked.items() if not (path / "training.json").exists()}, engine)

    configs = {path: config for path, config in configs.items() if (path / "training.json").exists()}
    runs = [VisionRun.open(path) for path in configs]
    split = split_to_compare(runs[0])
    for run, config in zip(runs, configs.values(), strict=True):
        evaluate_once(run, split, config)
    arms = group_arms(runs)
    found = comparison(arms, split)
    write_json(out / "comparison.json", found)
    comparison_figures(arms, split, out / "figures")
    return found


def split_to_compare(run: VisionRun) -> str:
    """Test, where the images have one."""
    return "test" if run.images("test") else "val"


def evaluate_once(run: VisionRun, split: str, config: TrainConfig) -> None:
    """Evaluate a finished run, unless it was; `config` says where its images are now."""
    if not run.has_results(split):
        evaluate(run, split, data_root=moved_to(run, config))


def own_weights(weights: str, models: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The weights of all models, and those of single ones, in "default", "FILE" or "resnet50=FILE,swin_t=none".

    Raises `RocLabError` for a model that is none of `models`."""
    own: dict[str, str] = {}
    for part in weights.split(",") if "=" in weights else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and value and name in models):
            known = ",".join(models)
            raise RocLabError(f"--weights {part}: write MODEL=WEIGHTS for each, with a MODEL of --models ({known})")
        own[name] = value
    return "default" if own else weights, own


def _config(base: TrainConfig, model: str, strategy: str, seed: int, weights: str) -> TrainConfig:
    # no refit: fine-tuning is not trained on validation images, so a frozen backbone's head may not be either
    epochs = base.epochs if strategy == "finetune" else None
    return replace(base, model=model, strategy=strategy, seed=seed, weights=weights, epochs=epochs, refit=False)


def _folder(out: Path, config: TrainConfig) -> Path:
    return out / f"{config.model.replace('/', '-')}-{config.strategy}-seed{config.seed}"


def _earlier(out: Path, base: TrainConfig, asked: dict[Path, TrainConfig]) -> dict[Path, TrainConfig]:
    """The runs that earlier calls left in `out` and that are not asked for now."""
    found = {}
    for path in sorted(file.parent for file in out.glob("*/config.json")):
        own = VisionRun.open(path).config
        config = _config(base, own["model"], own["strategy"], own["seed"], own.get("weights", "default"))
        if path == _folder(out, config) and path not in asked:  # other folders are not ours
            found[path] = config
            if not (path / "training.json").exists():
                logger.warning(f"{path} is not finished: it takes no part; go on with --resume {path}")
    return found


def _train(unfinished: dict[Path, TrainConfig], engine: str) -> None:
    if engine == "ray":
        map_over_cluster(lambda job: finish(job[0].resolve(), job[1]), list(unfinished.items()))
        return
    expected = _expected(unfinished)
    for number, (path, config) in enumerate(unfinished.items(), start=1):
        about, begin = expected.pop(path), time.perf_counter()
        name, after = f"run {number} of {len(unfinished)}", sum(expected.values())
        logger.info(f"{name}: {path.name}, {duration(about + after)} left in all")
        with stage(name, after):
            finish(path, config)
        took = time.perf_counter() - begin
        like = [path for path in expected if unfinished[path] == replace(config, seed=unfinished[path].seed)]
        expected |= dict.fromkeys(like, took)  # another seed takes as long


def _expected(configs: dict[Path, TrainConfig]) -> dict[Path, float]:
    """About how many seconds each run will take. The features of a model are extracted once."""
    parts: dict[tuple[str, str], tuple[float, float]] = {}
    extracted: set[str] = set()
    found = {}
    for path, config in configs.items():
        kind = (config.model, config.strategy)
        cut = (path / "config.json").exists()  # it goes on without its weights' file; a new run is refused here
        with suppress(RocLabError) if cut else nullcontext():
            parts[kind] = parts.get(kind) or expected_seconds(config)
        extraction, rest = parts.get(kind, (0.0, 0.0))
        found[path] = rest + (0 if config.model in extracted else extraction)
        extracted.add(config.model)
    return found


def _check_same_settings(out: Path, base: TrainConfig, own_to_each: set[str]) -> None:
    """What all runs share must be what they shared before, what is left to its default too."""
    path = out / "settings.json"
    asked = {name: value for name, value in base.asdict().items() if name not in PLACES | own_to_each}
    own = read_json(path) if path.exists() and any(out.glob("*/config.json")) else {}
    check_same(out, own, asked, asked.keys() - own.keys(), ELSEWHERE)  # an older version had fewer settings
    write_json(path, own | asked)


def _check_same_question(path: Path, config: TrainConfig) -> None:
    """A run that is there already must be the run asked for, or its figures would answer another question."""
    if not (path / "config.json").exists():
        return
    run = VisionRun.open(path)
    own = run.config
    # what was left open (None) or to a budget was decided by the run itself
    decided = BY_BUDGET if config.budget else set()
    asked = {name: value for name, value in config.asdict().items() if value is not None and name not in decided}
    check_same(path, own, asked, PLACES, ELSEWHERE)
    if any(asked.get(name, own.get(name)) != own.get(name) for name in ("data", "data_root")):
        moved_to(run, config)  # raises if the images are others
