"""Predictions of a trained run on its validation or test images, and what they are worth.

The test split is opened here and nowhere else; the run then says so in `test_opened.json`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.core.devices import usable_device
from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, read_json, write_json
from roclab.core.progress import track
from roclab.core.runs import Run
from roclab.core.training.memory import freed_memory_kept
from roclab.vision.evaluate.metrics import classification_metrics, epochs_to_convergence
from roclab.vision.evaluate.run_reader import COLUMNS, VisionRun
from roclab.vision.models.checkpoint import load_model
from roclab.vision.train.config import FullConfig
from roclab.vision.train.features import cached_features, dataset_features, labels_of, read_ahead, softmax

if TYPE_CHECKING:
    import torch

    from roclab.vision.data.dataset import Dataset, LabelledImage
    from roclab.vision.models.classifier import Classifier


def evaluate(
    run: Run, split: str = "val", training: dict[str, Any] | None = None, data_root: str | None = None
) -> dict[str, Any]:
    """Evaluate a run on `split` ("val" or "test"): writes predictions.csv and results-SPLIT.json, returns the latter.

    `training` is what training.json will hold, given by `train` before it has written it; `data_root` says where the
    images are now if they have moved.

    Raises `RocLabError`, before anything is written, if the run is damaged, its training did not finish or the images
    are not where they were.
    """
    if split not in ("val", "test"):
        raise RocLabError(f"--split {split}: choose val or test (the training images tell nothing about new ones)")
    run = VisionRun(run.path, run.config)
    config = _config(run)
    training = training if training is not None else run.training
    run.prediction_rows()  # the other split's rows are kept: a damaged table is named before the test images are opened
    dataset = run.dataset(data_root)
    if split == "test":
        images = dataset.test(opened_by="evaluate")
        _record_opening(run, len(images))
    else:
        images = dataset.split("val")
    if not images:
        raise RocLabError(f"{run.path}: its data has no {split} images")
    probs = run_probs(run, dataset, images, split)
    write_predictions(run, split, images, probs, dataset.classes)
    labels = labels_of(images)
    found = {
        "split": split,
        **classification_metrics(labels, probs, dataset.classes),
        "epochs_to_convergence": epochs_to_convergence(run.metrics()),
        **{
            name: training.get(name) for name in ("mean_train_seconds_per_epoch", "images_per_second", "peak_memory_mb")
        },
        "model": config.model,
        "strategy": config.strategy,
        "seed": config.seed,
    }
    write_json(run.path / f"results-{split}.json", found)
    return found


def _config(run: Run) -> FullConfig:
    return FullConfig.fromdict(run.config, run.path / "config.json")


def run_probs(run: Run, dataset: Dataset, images: Sequence[LabelledImage], split: str) -> np.ndarray:
    """Class probabilities (N, C) of the run's model.

    A frozen backbone's features are looked up (or computed and kept), so five seeds read the test images once. If the
    head was trained again on train + val, the validation images are judged by the head that had not seen them.
    """
    config = _config(run)
    model, _, image_size = load_model(run)
    if config.strategy == "features":
        to_device(model, config.device)
        if split == "val":
            features = dataset_features(model, dataset, image_size)[0]["val"]
        else:
            features, _ = cached_features(model, images, image_size, say=run.log)
        weight, bias = (value.detach().cpu().numpy() for value in (model.head.weight, model.head.bias))
        if split == "val" and (run.checkpoints / "head-before-refit.safetensors").exists():
            from roclab.vision.models.checkpoint import load_tensors

            head, _ = load_tensors(run.checkpoints / "head-before-refit.safetensors")
            weight, bias = head["weight"].numpy(), head["bias"].numpy()
        return softmax(features @ weight.T + bias)
    return predict_probs(to_device(model, config.device), [image.path for image in images], image_size)


def to_device(model: Classifier, device: str = "auto") -> Classifier:
    """Move the model to the GPU if there is one (or to the device asked for), in channels_last layout."""
    import torch

    model.module.to(pick_device(device))
    model.module.to(memory_format=torch.channels_last)
    return model


def pick_device(device: str = "auto") -> torch.device:
    """The device named, or with "auto" a GPU where there is one. Raises `RocLabError` for one that cannot be used."""
    import torch

    if device != "auto":
        return usable_device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


@freed_memory_kept()
def predict_probs(model: Classifier, paths: Sequence[Path], image_size: int, batch: int = 16) -> np.ndarray:
    """Class probabilities (N, C) float64 of images under the evaluation transform, in the order given."""
    import torch

    from roclab.vision.data.dataset import open_image
    from roclab.vision.data.transforms import eval_transform

    transform, least = eval_transform(model.recipe, image_size), model.recipe.resize_for(image_size)
    device = next(model.module.parameters()).device
    model.module.eval()
    chunks = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    logits = []
    read = read_ahead(
        chunks, lambda chunk: torch.stack([transform(open_image(path, at_least=least)) for path in chunk])
    )
    for images in track(read, "images", len(chunks)):
        with torch.inference_mode():
            out = model.module(images.to(device).contiguous(memory_format=torch.channels_last))
        logits.append(out.float().cpu().numpy())
    return softmax(np.concatenate(logits))


def write_predictions(
    run: Run, split: str, images: Sequence[LabelledImage], probs: np.ndarray, classes: Sequence[str]
) -> None:
    """Put the split's rows into predictions.csv (split, path, true, predicted, one probability per class)."""
    path = run.path / "predictions.csv"
    kept = [row for row in VisionRun(run.path, run.config).prediction_rows() if row[0] != split]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"p({name})" for name in classes)])
    table.writerows(kept)
    for image, row in zip(images, probs, strict=True):
        values = (f"{p:.6g}" for p in row)
        table.writerow([split, str(image.path), classes[image.label], classes[int(row.argmax())], *values])
    atomic_write(path, out.getvalue())


def _record_opening(run: Run, n: int) -> None:
    path = run.path / "test_opened.json"
    openings = read_json(path) if path.exists() else []
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(path, [*openings, {"time": now, "by": "evaluate", "images": n}])
