"""One training run, from the images to a finished run folder.

images -> split.json -> model -> (features: cached features -> head) or (finetune: epochs) -> checkpoints/best
       -> predictions.csv (val) -> results-val.json; training.json is written last and says the run is finished
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json, write_json
from roclab.core.provenance import seed_everything
from roclab.core.runs import Run
from roclab.core.training.distributed import World, join
from roclab.core.training.memory import forget_peak_memory, peak_memory_mb
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.checkpoint import save_model, save_tensors
from roclab.vision.train.config import FullConfig, TrainConfig

if TYPE_CHECKING:
    from roclab.vision.data.dataset import Dataset
    from roclab.vision.models.classifier import Classifier


def train(config: TrainConfig, out: str | Path) -> Run:
    """Begin a run in the folder `out` and carry it to its end."""
    from roclab.vision.data.dataset import load_data
    from roclab.vision.evaluate.evaluate import pick_device
    from roclab.vision.models.classifier import build_model
    from roclab.vision.train.budget import fit_to_budget

    world = join()
    path = Path(out)
    pick_device(config.device)  # before a run is there that cannot go on
    if (path / "config.json").exists():
        raise RocLabError(f"{path} already holds a run: go on with --resume {path}, or choose another folder")

    def prepare() -> tuple[Dataset, Classifier]:
        dataset = load_data(
            config.data, config.data_root, config.seed, config.val_fraction, config.skip_bad, config.mirror
        )
        seed_everything(config.seed)  # a head without trained weights is drawn from it
        return dataset, build_model(config.model, config.weights, len(dataset.classes), config.image_size)

    dataset, model = world.main_first(prepare)
    full = config.with_defaults(model.image_size or model.recipe.crop, model.any_size)
    notes = list(dataset.notes)
    if full.budget:
        full, note = world.from_main(fit_to_budget(full, model, dataset) if world.main else None)
        notes.append(note)
    if world.main:
        # the manifest first: a folder with a config.json is a run, and every run has its split
        write_json(path / "split.json", dataset.manifest())
        run = Run.create(path, full.asdict(), weights=model.weights_id, data=dataset.fingerprint())
        for note in notes:
            run.log(note)
    world.from_main(None)  # nobody looks into the folder before it is there
    return _carry_on(Run.open(path), full, model, dataset, world)


def resume(path: str | Path, data_root: str | None = None) -> Run:
    """Carry an interrupted run to its end; a finished one is left as it is. `data_root`: where its images are now."""
    from roclab.vision.models.classifier import build_model

    world = join()
    run = Run.open(path)
    config = FullConfig.fromdict(run.config, run.path / "config.json")
    if (run.path / "training.json").exists():
        run.log("this run is finished already")
        return run
    dataset = VisionRun(run.path, run.config).dataset(data_root)
    seed_everything(config.seed)
    model = build_model(config.model, config.weights, len(dataset.classes), config.image_size)
    recorded = read_json(run.path / "provenance.json").get("hashes", {}).get("weights")
    if recorded != model.weights_id:
        raise RocLabError(f"{run.path} began from the weights {recorded}, now {config.weights} is {model.weights_id}")
    return _carry_on(run, config, model, dataset, world)


def finish(path: Path, config: TrainConfig) -> None:
    """Train the run in `path`, from the start or from where it was cut."""
    if (path / "config.json").exists():
        resume(path)
    else:
        train(config, path)


def _carry_on(run: Run, config: FullConfig, model: Classifier, dataset: Dataset, world: World) -> Run:
    from roclab.vision.evaluate.evaluate import evaluate, to_device
    from roclab.vision.train.budget import expected_seconds, spoken
    from roclab.vision.train.finetune import finetune

    if config.full_frame:
        model.recipe = replace(model.recipe, resize=model.recipe.crop)
    forget_peak_memory()
    to_device(model, config.device)
    if world.main:
        counts = dataset.counts()
        run.log(
            f"{config.model}, {config.strategy}, {config.image_size} px, seed {config.seed}: "
            f"{counts['train']} training and {counts['val']} validation images of {len(dataset.classes)} classes"
        )
        run.log(f"expected to take about {spoken(expected_seconds(config, model, dataset))}")
    begin = time.perf_counter()
    if config.strategy == "finetune":
        timing = finetune(run, config, model, dataset, world)
    else:
        timing = train_features(run, config, model, dataset) if world.main else {}
    if world.main:
        memory = peak_memory_mb()
        timing |= {"peak_memory_mb": memory, "train_wall_seconds": time.perf_counter() - begin}
        found = evaluate(run, "val", timing)
        write_json(run.path / "training.json", timing)
        run.log(f"finished: val top-1 {found['top1']:.4f} ({config.strategy}, {config.model}) in {run.path}")
        run.close()
    world.from_main(None)
    return run


def train_features(run: Run, config: FullConfig, model: Classifier, dataset: Dataset) -> dict[str, Any]:
    """Train the head on the frozen backbone's features; leaves the whole model in the run."""
    from roclab.vision.train.features import (
        FEW,
        choose_head,
        dataset_features,
        fit_head,
        further_cuts,
        labels_of,
        put_head,
    )
    from roclab.vision.train.finetune import rewrite_metrics

    found = [dataset_features(model, dataset, config.image_size, view, run.log) for view in range(config.views)]
    views, seconds = [features for features, _ in found], sum(took for _, took in found)
    y_train, y_val = labels_of(dataset.split("train")), labels_of(dataset.split("val"))
    everything = [np.concatenate([view["train"], view["val"]]) for view in views]
    labels = np.concatenate([y_train, y_val])
    cut = (np.concatenate([view["train"] for view in views]), np.tile(y_train, len(views)), views[0]["val"], y_val)
    # the final head learns from the validation images too, so all of them may help to choose its C
    crossed = config.refit and len(y_val) < FEW
    more = further_cuts(everything, labels, config.seed) if crossed else []

    begin = time.perf_counter()
    head = choose_head(cut, len(dataset.classes), config.epochs, more)
    tried, epochs = head.tried, len(head.history)
    head_seconds = time.perf_counter() - begin
    for row in tried:
        run.log(f"C = {row['c']:g}: val loss {row['val_loss']:.4f}, val top-1 {row['val_top1']:.4f}")
    run.log(f"chosen on {'cross-' if more else ''}validation: C = {head.c:g}")
    rewrite_metrics(run, [{"epoch": i, **row} for i, row in enumerate(head.history, start=1)])
    if config.refit:
        selected = {"weight": head.weight, "bias": head.bias}
        save_tensors(run.checkpoints / "head-before-refit.safetensors", _tensors(selected), {"c": head.c})
        head = fit_head(
            np.concatenate(everything), np.tile(labels, len(views)), len(dataset.classes), head.c, config.epochs
        )
        run.log("the head was trained again on train + val with the C chosen; val figures are of the head before that")
    put_head(model, head)
    save_model(run.checkpoints / "best.safetensors", model, dataset.classes, config.image_size)
    last = run.checkpoints / "last.safetensors"
    last.unlink(missing_ok=True)
    last.symlink_to("best.safetensors")  # a convex problem: its last step is its best
    return {
        "c": head.c,
        "regularisation": tried,
        "feature_seconds": seconds,
        "head_seconds": head_seconds,
        "mean_train_seconds_per_epoch": (seconds + head_seconds) / max(1, epochs),
        "images_per_second": (len(y_train) + len(y_val)) * config.views / seconds if seconds else None,
    }


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
