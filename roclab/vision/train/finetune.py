"""Full fine-tuning: every parameter is trained, the early layers at the lowest rates.

An epoch is a function of the seed, the epoch's number and the state at its start, and the whole state is saved at its
end. So a run that was killed and resumed has the bits of one that was never interrupted (on a CPU, with the same number
of threads).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roclab.core.exceptions import RocLabError
from roclab.core.progress import heading, track
from roclab.core.provenance import derived_seed
from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors, restore_state, save_state
from roclab.core.training.distributed import World, synced_batch_norm, wrap
from roclab.core.training.memory import release_freed_memory
from roclab.core.training.optimizer import autocast, make_optimizer, optimizer_step, warmup_cosine, weight_average
from roclab.vision.config import TrainConfig
from roclab.vision.data.dataset import Dataset, LabelledImage, labels_of, targets_of
from roclab.vision.data.loader import TrainImages, batches, epoch_batches
from roclab.vision.data.transforms import train_transform
from roclab.vision.evaluate.metrics import loss_and_accuracy
from roclab.vision.models.classifier import Classifier, save_model
from roclab.vision.models.inference import dataset_features, predict_probs
from roclab.vision.train.head import balanced_weights, choose_head, put_head
from roclab.vision.train.mixing import mix, mixed_cross_entropy

logger = logging.getLogger(__name__)


def finetune(run: Run, config: TrainConfig, model: Classifier, dataset: Dataset, world: World) -> dict[str, Any]:
    """Train all parameters; leaves `last` and `best` in the run and returns the timing for training.json."""
    last, epochs = run.checkpoints / "last.safetensors", config.epochs or 0

    def save_best(state: dict[str, Tensor]) -> None:
        save_model(run.checkpoints / "best.safetensors", model, dataset.classes, config.image_size, state)

    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"epoch": 0, "step": 0, "rows": []}
    if last.exists():
        tensors, about = load_tensors(last)
        logger.info(f"resuming after epoch {about['epoch']}")
    elif config.lp_ft:
        start = start_from_trained_head(config, model, dataset) if world.main else None
        about["rows"] = [world.from_main(start)]
        if world.main:
            save_best(model.module.state_dict())
        model.module.load_state_dict(world.from_main(model.module.state_dict()))
    trainer = Trainer(config, model, dataset, world, about["step"])
    if tensors:
        restore_state(tensors, model.module, trainer.ema, trainer.optimizer)
    rows: list[dict[str, Any]] = [{"step": row["epoch"] * trainer.steps_each, **row} for row in about["rows"]]
    if world.main:
        rewrite_metrics(run, rows)

    planned, begin = range(about["epoch"], epochs), time.perf_counter()
    work = [size_at(epoch, epochs, config.image_size, config.progressive) ** 2 for epoch in planned]
    for number, epoch in enumerate(planned, start=1):
        if config.patience and rows and rows[-1]["epoch"] - best_epoch(rows) >= config.patience:
            break
        row = trainer.train_epoch(epoch) | trainer.validate()
        rows.append(row)
        if world.main:
            if best_epoch(rows) == row["epoch"]:
                save_best(trainer.evaluated.state_dict())
            about |= {"epoch": row["epoch"], "step": row["step"], "rows": rows}
            save_state(last, model.module, trainer.ema, trainer.optimizer, about)
            run.log_metrics(row)
            left = (time.perf_counter() - begin) * sum(work[number:]) / sum(work[:number])
            logger.info(
                f"{heading(left)}epoch {epoch + 1}/{epochs} at {row['image_size']} px: train loss "
                f"{row['train_loss']:.4f}, val loss {row['val_loss']:.4f}, val top-1 {row['val_top1']:.4f}, "
                f"{row['train_seconds']:.0f} s"
            )
    trained = [row for row in rows if row["epoch"]]
    return {
        "best_epoch": best_epoch(rows),  # 0: no epoch was better than the trained head it began with
        "head_seconds": sum(row.get("head_seconds", 0.0) for row in rows),
        "mean_train_seconds_per_epoch": float(np.mean([row["train_seconds"] for row in trained])),
        "images_per_second": float(np.mean([row["images_per_second"] for row in trained])),
    }


class Trainer:
    """What training changes (network, optimizer, weight average, number of steps), and what it needs for that."""

    def __init__(self, config: TrainConfig, model: Classifier, dataset: Dataset, world: World, step: int = 0):
        self.config, self.model, self.world, self.step = config, model, world, step
        self.epochs = config.epochs or 0
        if world.size > 1 and config.batch_norm == "train":
            synced_batch_norm(model.module)
        self.network = wrap(model.module, model.device) if world.size > 1 else model.module
        groups = parameter_groups(model, config.layer_decay, config.weight_decay)
        self.optimizer = make_optimizer(groups, config.optimizer)
        self.ema = weight_average(model.module, config.ema, step) if config.ema else None
        self.val = dataset.split("val")
        train, classes = dataset.split("train"), len(dataset.classes)
        self.class_weights = balanced_weights(config.class_weights, labels_of(train), classes)  # (C,)
        options: dict[str, Any] = {"randaugment": config.randaugment, "min_area": config.min_area}
        transform = partial(train_transform, model.preprocessing, flips=dataset.flips, **options)
        targets = targets_of(train, classes, config.soft_labels)
        self.images = TrainImages(train, targets, round(1.5 * config.image_size), transform, config.seed)
        self.steps_each = -(-len(self._order(0)) // config.accumulate)  # of an epoch
        self.steps = self.steps_each * self.epochs

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the weights, where there is one."""
        return self.ema.module if self.ema else self.model.module

    def _order(self, epoch: int) -> list[list[int]]:
        return epoch_batches(len(self.images), self.config.batch_size, self.config.seed, epoch, self.world.size)

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch; returns its row of metrics."""
        config, world, model = self.config, self.world, self.model
        torch.manual_seed(derived_seed(config.seed, "epoch", epoch))  # dropout and stochastic depth
        size = size_at(epoch, self.epochs, config.image_size, config.progressive)
        frozen = epoch < round(config.gradual * self.epochs)
        if freeze_early_layers(model, frozen) and world.size > 1:
            self.network = wrap(model.module, model.device)  # its buckets hold the gradients of what is trained
        order = self._order(epoch)
        loader = batches(self.images, [world.share(batch) for batch in order], epoch, size, config.workers)
        shown = track(loader, f"epoch {epoch + 1}/{self.epochs}", len(order)) if world.main else loader
        begin = time.perf_counter()
        try:
            summed = self._train_batches(shown, len(order), epoch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RocLabError(
                f"BatchNorm has one value per channel in a batch of {len(order[0])} at {size} px: use a larger "
                "--batch-size or --image-size, or --batch-norm frozen"
            ) from None
        seconds = time.perf_counter() - begin
        release_freed_memory()
        loss, seen = np.sum(world.gather(summed), axis=0)
        if not math.isfinite(loss):
            raise RocLabError(f"training diverged in epoch {epoch + 1} (its loss is {loss}): use a lower --lr")
        return {
            "step": self.step,
            "epoch": epoch + 1,
            "train_loss": loss / seen,
            "lr": warmup_cosine(self.step - 1, self.steps, config.lr, config.warmup),
            "image_size": size,
            "train_seconds": seconds,
            "images_per_second": seen / seconds,
        }

    def _train_batches(self, loader: Iterable[tuple[Tensor, Tensor]], length: int, epoch: int) -> list[float]:
        """Train on `length` batches; returns the summed cross-entropy (no smoothing) and the number of images."""
        config, device, module = self.config, self.model.device, self.model.module
        balance = self.class_weights
        weights = None if balance is None else torch.tensor(balance, dtype=torch.float32, device=device)
        module.train()
        if config.batch_norm == "frozen":
            freeze_statistics(module)
        total, seen = 0.0, 0
        for number, (images, labels) in enumerate(loader):
            images, labels = images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)
            images, own = mix(images, config.mixup, config.cutmix, derived_seed(config.seed, "mix", epoch, number))
            last_of_step = (number + 1) % config.accumulate == 0 or number + 1 == length
            begun = number - number % config.accumulate
            share = 1 / min(config.accumulate, length - begun)  # the last step of an epoch may have fewer batches
            alone = last_of_step or self.world.size == 1
            with nullcontext() if alone else self.network.no_sync():  # type: ignore[operator]
                with autocast(device, config.amp):
                    logits = self.network(images).float()
                    loss = mixed_cross_entropy(logits, labels, own, config.label_smoothing, weights)
                (loss * share).backward()
            total += cross_entropy(logits.detach(), labels).item() * len(labels)
            seen += len(labels)
            if last_of_step:
                rate = warmup_cosine(self.step, self.steps, config.lr, config.warmup)
                optimizer_step(module, self.optimizer, rate, config.clip, self.ema)
                self.step += 1
        return [total, seen]

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation images, each process evaluating its share of them."""
        evaluated = copy.copy(self.model)
        evaluated.module = self.evaluated
        mine: Sequence[LabelledImage] = self.world.share(self.val)
        paths, size = [image.path for image in mine], self.config.image_size
        probs = predict_probs(evaluated, paths, size, "torch") if mine else None  # weights that are used once
        parts = [part for part in self.world.gather(probs) if part is not None]
        return validation_scores(np.concatenate(parts), labels_of(self.val), self.class_weights)


def validation_scores(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    """Loss and accuracy of probabilities (N, C). With `weights` (C,) of the classes the weighted accuracy too, by which
    the best epoch is then chosen."""
    loss, top1 = loss_and_accuracy(probs, labels)
    found = {"val_loss": loss, "val_top1": top1}
    return found if weights is None else found | {"val_weighted_top1": loss_and_accuracy(probs, labels, weights)[1]}


def start_from_trained_head(config: TrainConfig, model: Classifier, dataset: Dataset) -> dict[str, Any]:
    """LP-FT (Kumar et al. 2022): with a random head, the first steps would distort the features it is given.

    Returns the metrics of this start, as epoch 0.
    """
    # the seconds of the extraction, where it was remembered too
    x, seconds = dataset_features(model, dataset, config.image_size, backend=config.backend)
    begin = time.perf_counter()
    train, classes = dataset.split("train"), len(dataset.classes)
    targets, val = targets_of(train, classes, config.soft_labels), (x["val"], labels_of(dataset.split("val")))
    weights = balanced_weights(config.class_weights, labels_of(train), classes)
    head = choose_head((x["train"], targets, *val), classes, weights=weights)
    put_head(model, head)
    row: dict[str, Any] = {"step": 0, "epoch": 0, **head.scores(train=(x["train"], targets), val=val)}
    row |= validation_scores(head.probs(val[0]), val[1], weights)
    row["head_seconds"] = seconds + time.perf_counter() - begin
    logger.info(
        f"epoch 0, the head trained on frozen features: val loss {row['val_loss']:.4f}, val top-1 {row['val_top1']:.4f}"
    )
    return row


def parameter_groups(model: Classifier, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups. Layer group i of n from the stem is trained at layer_decay^(n-1-i) of the learning rate.
    Weight decay leaves out norms, biases and position tables: for scales and offsets zero is no aim.

    (`timm.optim.param_groups_layer_decay` makes other groups: torchvision's networks have no `group_matcher`.)
    """
    names = {id(p): name for name, p in model.module.named_parameters()}
    layers = model.layer_groups()
    groups = []
    for i, layer in enumerate(layers):
        scale = layer_decay ** (len(layers) - 1 - i)
        for decays in (True, False):
            if parameters := [p for p in layer if model.decayed(names[id(p)], p) == decays]:
                decay = weight_decay if decays else 0.0
                groups.append({"params": parameters, "weight_decay": decay, "scale": scale})
    return groups


def size_at(epoch: int, epochs: int, image_size: int, progressive: bool) -> int:
    """Image size (px) that an epoch trains at: with `progressive` 0.6, 0.75 and in the last 40 % of the epochs 0.875 of
    `image_size`, the size of evaluation.

    Small images train the early epochs as well at a third of the cost (EfficientNetV2, Tan and Le 2021). Random crops
    show things larger than the whole image does, so evaluation needs more pixels (Touvron et al. 2019).
    """
    if not progressive:
        return image_size
    share = epoch / epochs
    last = epoch + 1 == epochs  # where there are few
    factor = 0.875 if last or share >= 0.6 else 0.75 if share >= 0.3 else 0.6
    return min(image_size, max(32, round(image_size * factor / 32) * 32))


def freeze_early_layers(model: Classifier, frozen: bool) -> bool:
    """Freeze or unfreeze the half of the layer groups next to the image (gradual unfreezing, Howard and Ruder 2018).
    Frozen, they need no backward pass, which is most of the work at high resolution.

    Returns whether this changed anything.
    """
    layers = model.layer_groups()
    changed = False
    for i, layer in enumerate(layers):
        for parameter in layer:
            trained = not (frozen and i < len(layers) // 2)
            changed |= parameter.requires_grad != trained
            parameter.requires_grad_(trained)
    return changed


def freeze_statistics(module: nn.Module) -> None:
    """Put every BatchNorm into evaluation mode: it normalises by the statistics that came with its weights."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def best_epoch(rows: Sequence[dict[str, Any]]) -> int:
    """Number of the epoch with the highest validation accuracy (weighted, where classes have weights); of several, the
    one with the lowest loss."""
    return min(rows, key=lambda row: (-row.get("val_weighted_top1", row["val_top1"]), row["val_loss"], row["epoch"]))[
        "epoch"
    ]


def rewrite_metrics(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Make metrics.jsonl agree with the checkpoint: a kill between the two may have left a row too few or too many."""
    run.truncate_metrics(-1)  # all: step 0 is the trained head
    for row in rows:
        run.log_metrics(row)
