"""One training run, from the images to a finished run folder.

images -> split.json -> model -> (features: cached features -> head) or (finetune: epochs) -> checkpoints/best
       -> predictions.csv (val) -> results-val.json; training.json is written last and marks the run as finished
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.devices import pick_device
from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import link_or_copy, read_json, sweep, write_json
from roclab.core.progress import duration
from roclab.core.provenance import seed_everything
from roclab.core.runs import Run
from roclab.core.sentences import counted, listed
from roclab.core.training.checkpointing import save_tensors
from roclab.core.training.distributed import World, join
from roclab.core.training.memory import peak_memory_mb, reset_peak_memory
from roclab.core.training.optimizer import emulated
from roclab.vision.config import COMMON, MOVABLE, TrainConfig, check_same, fill, run_config, with_defaults
from roclab.vision.data.dataset import Dataset, LabelledImage, labels_of, load_data, targets_of
from roclab.vision.data.files import inspect_files, printable
from roclab.vision.evaluate.evaluate import evaluate, find_images
from roclab.vision.evaluate.run_reader import KEPT_START, VisionRun
from roclab.vision.models.backend import pick_backend
from roclab.vision.models.classifier import BEFORE_REFIT, Classifier, build_model, load_model, save_model
from roclab.vision.models.imagenet import imagenet_rows
from roclab.vision.models.inference import cached_features, dataset_features
from roclab.vision.train.budget import Costs, fit_to_budget, parse_duration
from roclab.vision.train.finetune import finetune, rewrite_metrics
from roclab.vision.train.head import (
    FEW,
    Head,
    balanced_weights,
    choose_head,
    fit_head,
    further_cuts,
    put_head,
    self_train,
    tiled,
)

logger = logging.getLogger(__name__)
UNLIKE = 10  # times the images of the rarest class
BEGUN = ("split.json", "checkpoints", "provenance.json")  # there before config.json: left by a killed process


def train(config: TrainConfig, out: str | Path) -> Run:
    """Begin a run in the folder `out` and finish it."""
    world = join()
    path = Path(out)
    pick_device(config.device)  # raises before there is a run
    if (path / "config.json").exists():
        raise RocLabError(f"{path} already holds a run: go on with --resume {path}, or choose another folder")
    if path.exists() and not path.is_dir():
        raise RocLabError(f"{path} is a file, and a run is a folder: choose a new or empty --out")
    if path.is_dir() and any(item.name not in BEGUN and item.suffix != ".part" for item in path.iterdir()):
        raise RocLabError(f"{path} holds other files, which a run could overwrite: choose a new or empty --out")

    dataset, model, config, more = world.main_first(lambda: _prepare(config))
    notes = [*dataset.notes, *more.notes]
    if config.budget:
        model.to(pick_device(config.device))
        config, note = world.from_main(fit_to_budget(config, model, dataset) if world.main else None)
        notes.append(note)
    if world.main:
        # the manifest first: a folder with a config.json is a run, and every run has its split
        write_json(path / "split.json", dataset.manifest())
        run = Run.create(path, config.asdict(), weights=model.weights_id, data=dataset.fingerprint())
        for note in notes:
            run.log(note)
        device = pick_device(config.device)
        for note in (
            "" if config.class_weights else imbalance(dataset),
            "--soft-labels changes nothing: all labels of these images are certain"
            if config.soft_labels and not dataset.has_doubts()
            else "",
            emulated(device, config.amp) if config.strategy == "finetune" else "",
        ):
            if note:
                logger.warning(note)
    world.from_main(None)  # the other processes open the folder once it is there
    return _finish(Run.open(path), config, model, dataset, more, world)


def imbalance(dataset: Dataset) -> str:
    """A line where the commonest class has `UNLIKE` times the training images of the rarest; else ""."""
    counts = Counter(dataset.classes[image.label] for image in dataset.split("train"))
    (common, most), (rare, least) = counts.most_common()[0], counts.most_common()[-1]
    numbers = f"{most} training images of class {common!r}, {least} of {rare!r}"
    return (
        f"{numbers}: the rare ones count for little; --class-weights balanced weighs them"
        if most >= UNLIKE * least
        else ""
    )


@dataclass
class MoreKnowledge:
    """What a frozen backbone's head is trained on besides images with labels, with `notes` for the user."""

    prior: Head | None  # on raw features, to begin from
    spare: list[LabelledImage]  # without labels
    notes: list[str]


def more_knowledge(config: TrainConfig, dataset: Dataset) -> MoreKnowledge:
    """What `--imagenet-prior` and `--unlabelled` name. Raises `RocLabError` where that is nothing."""
    prior: Head | None = None
    spare: list[LabelledImage] = []
    notes: list[str] = []
    if config.imagenet_prior:
        weight, bias, named = imagenet_rows(config.model, config.weights, dataset.classes)
        prior = Head(weight, bias, c=0.0)
        notes.append(f"ImageNet knows {len(named)} of {len(dataset.classes)} classes: {listed(named, 6)}")
    if config.unlabelled:
        spare, note = unlabelled_images(Path(config.unlabelled), dataset, config.skip_bad)
        notes.append(note)
    return MoreKnowledge(prior, spare, notes)


def _prepare(config: TrainConfig) -> tuple[Dataset, Classifier, TrainConfig, MoreKnowledge]:
    """The images, the network, the settings with nothing open but what the budget decides, and what else is known."""
    if config.strategy == "finetune" and (config.imagenet_prior or config.unlabelled):
        name = "--imagenet-prior" if config.imagenet_prior else "--unlabelled"
        raise RocLabError(f"{name} is for the head of a frozen backbone: use --strategy features, or leave it out")
    dataset = load_config_data(config, config.data_root)
    seed_everything(config.seed)  # random weights are drawn from it
    model = build_model(config.model, config.weights, len(dataset.classes), config.image_size)
    own_size = model.image_size or model.preprocessing.crop
    more = more_knowledge(config, dataset)
    return dataset, model, with_defaults(config, own_size, any_size=model.image_size is None), more


def load_config_data(config: TrainConfig, data_root: str | None) -> Dataset:
    """The images of a run, as its settings say."""
    how = (config.seed, config.val_fraction, config.skip_bad, config.mirror, config.per_class)
    return load_data(config.data, data_root, *how)


def expected_seconds(config: TrainConfig) -> tuple[float, float]:
    """About how long a run takes on this machine: extraction of its features, which later runs find in the cache, and
    all the rest."""
    dataset, model, config, _ = _prepare(config)
    model.to(pick_device(config.device))
    extraction, rest = Costs(config, model, dataset, 0.3).parts(config)
    return (0.0, min(extraction + rest, parse_duration(config.budget))) if config.budget else (extraction, rest)


def resume(path: str | Path, **asked: Any) -> Run:
    """Finish an interrupted run; a finished one is left as it is.

    `asked` are settings of now: where images and weights are and what trains the run (`MOVABLE`). Raises `RocLabError`
    for another one that is not the run's own.
    """
    world = join()
    run = Run.open(path)
    config = fill(run_config(run), COMMON)  # an older version did not have every setting
    if config.strategy == "features":
        asked.pop("epochs", None)  # as in a new run: they are fine-tuning's
    hint = "a resumed run keeps its settings (--data-root says where its images are now); a new one begins with --out"
    check_same(run.path, run.config, asked, MOVABLE, hint)
    if (run.path / "training.json").exists():
        run.log("this run is finished already")
        return run
    config = replace(config, **asked)
    pick_device(config.device)  # one that is not here is said at once
    run.config |= asked
    dataset = VisionRun(run.path, run.config).dataset(asked.get("data_root"))
    seed_everything(config.seed)
    if (run.checkpoints / "last.safetensors").exists():  # all of the model is there: its weights' file may be gone
        model = load_model(run)[0]
    else:
        model = build_model(config.model, config.weights, len(dataset.classes), config.image_size)
    recorded = read_json(run.path / "provenance.json").get("hashes", {}).get("weights")
    if recorded != model.weights_id:
        raise RocLabError(f"{run.path} began from the weights {recorded}, now {config.weights} is {model.weights_id}")
    return _finish(run, config, model, dataset, more_knowledge(config, dataset), world)


def finish(path: Path, config: TrainConfig) -> None:
    """Train the run in `path`, from the start or from where it was interrupted."""
    if (path / "config.json").exists():
        resume(path, data_root=moved_to(VisionRun.open(path), config))
    else:
        train(config, path)


def moved_to(run: VisionRun, config: TrainConfig) -> str | None:
    """Where `config` finds the run's images, if not where they were; raises `RocLabError` if those are other images."""
    data_root = config.data_root or run.config.get("data_root")
    same = (config.data, data_root) == (run.config.get("data"), run.config.get("data_root"))
    if same and Path(run.manifest["root"]).is_dir():
        return None
    try:
        now = load_config_data(config, data_root)
    except DataError as error:
        own = run.config.get("data")
        if config.data == own:
            raise
        raise RocLabError(
            f"{run.path} was made with {own}, not {config.data}: choose another --out ({error})"
        ) from None
    if not now.has_images_of(run.manifest):
        raise RocLabError(f"{run.path} was made with other images than {config.data} has now: choose another --out")
    return str(now.root)


def _finish(
    run: Run, config: TrainConfig, model: Classifier, dataset: Dataset, more: MoreKnowledge, world: World
) -> Run:
    if config.full_frame:
        model.preprocessing = replace(model.preprocessing, resize=model.preprocessing.crop)
    reset_peak_memory()
    model.to(pick_device(config.device))
    if world.main:
        for folder in (run.path, run.checkpoints):
            sweep(folder, age=0)  # nobody else writes to it
        counts = dataset.counts()
        run.log(
            f"{config.model}, {config.strategy}, {config.image_size} px, seed {config.seed}: "
            f"{counts['train']} training and {counts['val']} validation images of {len(dataset.classes)} classes"
        )
        run.log(f"expected to take about {duration(Costs(config, model, dataset, 0.3).seconds(config))}")
    begin = time.perf_counter()
    if config.strategy == "finetune":
        timing = finetune(run, config, model, dataset, world)
    elif world.main:
        timing = train_features(run, config, model, dataset, more.prior, more.spare)
    if world.main:
        timing |= {"peak_memory_mb": peak_memory_mb(), "train_wall_seconds": time.perf_counter() - begin}
        found = evaluate(run, "val", timing, str(dataset.root.resolve()))
        write_json(run.path / "training.json", timing)
        run.log(f"finished: val top-1 {found['top1']:.4f} ({config.strategy}, {config.model}) in {run.path}")
        if timing.get("best_epoch") == 0:
            run.log(f"it {KEPT_START}: no epoch of fine-tuning was better on validation")
        run.close()
    world.from_main(None)
    return run


def unlabelled_images(folder: Path, dataset: Dataset, skip_bad: bool) -> tuple[list[LabelledImage], str]:
    """The images of a folder that are not the dataset's own, and a line for the user. Raises `DataError` where there is
    none, and for one that cannot be read."""
    checks = inspect_files(find_images([folder], skip_bad))
    if bad := next((check for check in checks if check.error), None):
        remedy = "repair or remove it, or leave it out with --skip-bad"
        raise DataError(f"--unlabelled: {printable(bad.path)}: {bad.error}; {remedy}")
    found = [LabelledImage(check.path, -1, "", check.sha256) for check in checks]
    spare = dataset.without_known(found)
    if not spare:
        raise DataError(
            f"--unlabelled {folder}: all of its {counted(len(found), 'image')} are images of {dataset.name}"
        )
    known = f"; left out, as {dataset.name} has them too: {len(found) - len(spare)}" if len(spare) < len(found) else ""
    return spare, f"{counted(len(spare), 'image')} without labels in {folder}{known}"


def train_features(
    run: Run,
    config: TrainConfig,
    model: Classifier,
    dataset: Dataset,
    prior: Head | None = None,
    spare: Sequence[LabelledImage] = (),
) -> dict[str, Any]:
    """Train the head on the frozen backbone's features; leaves the whole model in the run and returns the timing for
    training.json. `prior`: a head on raw features to begin from; `spare`: images without labels, which it is trained on
    too."""
    image_size, backend, views, refit = config.image_size, config.backend, config.views, config.refit
    extracted = [dataset_features(model, dataset, image_size, view, backend) for view in range(views)]
    x, seconds = [features for features, _ in extracted], sum(took for _, took in extracted)
    train, val, classes = dataset.split("train"), dataset.split("val"), len(dataset.classes)
    y_all, y_val = targets_of([*train, *val], classes, config.soft_labels), labels_of(val)
    x_all = [np.concatenate([view["train"], view["val"]]) for view in x]
    cut = (np.concatenate([view["train"] for view in x]), tiled(y_all[: len(train)], views), x[0]["val"], y_val)
    # the final head is trained on the validation images too, so all of them may help to choose its C
    more = further_cuts(x_all, y_all, config.seed) if refit and len(y_val) < FEW else []
    weights = balanced_weights(config.class_weights, labels_of(train), classes)
    unlabelled, more_seconds = cached_features(model, spare, image_size, backend=backend) if spare else (None, 0.0)
    seconds += more_seconds

    def with_unlabelled(head: Head, x: np.ndarray, y: np.ndarray) -> Head:
        return head if unlabelled is None else self_train(head, x, y, unlabelled, weights, prior)

    begin = time.perf_counter()
    chosen = choose_head(cut, classes, more, weights, prior)
    head = with_unlabelled(chosen, *cut[:2])
    head_seconds = time.perf_counter() - begin
    best, ends = next(row for row in head.tried if row["c"] == head.c), (head.tried[0]["c"], head.tried[-1]["c"])
    run.log(
        f"chosen on {'cross-' if more else ''}validation: C = {head.c:g} of {ends[0]:g} to {ends[1]:g}, "
        f"val loss {best['val_loss']:.4f}, val top-1 {best['val_top1']:.4f}; {len(head.history)} steps of its solver"
    )
    if spare:
        (loss, top1), (loss_with, top1_with) = (trained.scores(val=cut[2:]).values() for trained in (chosen, head))
        run.log(
            f"with the images without labels: val loss {loss:.4f} -> {loss_with:.4f}, val top-1 {top1:.4f} -> "
            f"{top1_with:.4f} on the {counted(len(val), 'validation image')}"
        )
    rewrite_metrics(run, head.history)
    timing = {
        "c": head.c,
        "regularisation": head.tried,
        "backend": pick_backend(model, len(y_all), backend),
        "feature_seconds": seconds,
        "head_seconds": head_seconds,
        "solver_steps": len(head.history),
        "images_per_second": (len(y_all) * views + len(spare)) / seconds if seconds else None,
    }
    put_head(model, head)
    if refit:
        save_tensors(run.checkpoints / BEFORE_REFIT, model.head.state_dict(), {"c": head.c})
        everyone = (np.concatenate(x_all), tiled(y_all, views))
        put_head(model, with_unlabelled(fit_head(*everyone, classes, head.c, weights=weights, prior=prior), *everyone))
        run.log("the head was trained again on train + val with the C chosen; val figures are of the head before that")
    save_model(run.checkpoints / "best.safetensors", model, dataset.classes, image_size)
    # a convex problem: its last iterate is its best
    link_or_copy(run.checkpoints / "last.safetensors", "best.safetensors")
    return timing
