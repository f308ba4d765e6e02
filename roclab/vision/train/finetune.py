"""Full fine-tuning: every parameter learns, the early layers least.

An epoch is a function of the seed, the epoch's number and the state at its start, and the whole state is written at
its end in one file. So a killed run that goes on has the bits of one that was never interrupted (on a CPU, with the
same number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.progress import track
from roclab.core.runs import Run
from roclab.core.training.distributed import World, synced_batch_norm, wrap
from roclab.core.training.memory import freed_memory_kept
from roclab.vision.data.loader import TrainImages, batches, derived_seed, epoch_batches
from roclab.vision.data.transforms import train_transform
from roclab.vision.evaluate.evaluate import predict_probs
from roclab.vision.models.checkpoint import load_tensors, save_model, save_tensors
from roclab.vision.train.config import FullConfig
from roclab.vision.train.features import choose_head, dataset_features, labels_of, loss_and_accuracy, put_head

if TYPE_CHECKING:
    import torch
    from torch import nn

    from roclab.vision.data.dataset import Dataset
    from roclab.vision.models.classifier import Classifier


class Ema:
    """Exponential moving average of the weights (Polyak and Juditsky 1992); BatchNorm's statistics are copied.

    The decay grows from 0 as (1 + t) / (10 + t), so the average forgets where it started.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay

    def update(self, module: nn.Module, step: int) -> None:
        import torch

        with torch.no_grad():
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
            for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
                mine.copy_(theirs)


def parameter_groups(model: Classifier, config: FullConfig) -> list[dict[str, Any]]:
    """The optimiser's groups: group i of n from the stem learns at lr * layer_decay^(n-1-i); norms, biases and position
    tables are not decayed (they set scales and offsets, and decay pulls them to a meaningless zero)."""
    names = {id(p): name for name, p in model.module.named_parameters()}
    layers = model.layer_groups()
    groups = []
    for i, layer in enumerate(layers):
        scale = config.layer_decay ** (len(layers) - 1 - i)
        decayed = [p for p in layer if model.decayed(names[id(p)], p)]
        plain = [p for p in layer if not model.decayed(names[id(p)], p)]
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "lr": config.lr * scale, "scale": scale})
    return groups


def make_optimizer(model: Classifier, config: FullConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov's momentum of 0.9, over `parameter_groups`."""
    import torch

    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def rate(step: int, steps: int, config: FullConfig) -> float:
    """The head's learning rate: linear warm-up over a share of the steps, then half a cosine down to zero."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def size_at(epoch: int, config: FullConfig) -> int:
    """Image size (px) an epoch learns at: with `progressive` 0.6, 0.75 and in the last 40 % of the epochs 0.875 of the
    size that images are judged at.

    A small picture teaches the early epochs as much and costs a third (EfficientNetV2, Tan and Le 2021), and random
    crops show things larger than the whole image does, so judging wants more pixels (Touvron et al. 2019).
    """
    if not config.progressive:
        return config.image_size
    share = epoch / config.epochs
    last = epoch + 1 == config.epochs  # where there are few
    factor = 0.875 if last or share >= 0.6 else 0.75 if share >= 0.3 else 0.6
    return min(config.image_size, max(32, round(config.image_size * factor / 32) * 32))


def rest_early_layers(model: Classifier, epoch: int, config: FullConfig) -> bool:
    """Gradual unfreezing (Howard and Ruder 2018): until `gradual` of the epochs, the half of the layer groups next to
    the image rests. They need no backward pass then, which is most of the work at high resolution.

    Returns whether this changed anything.
    """
    layers = model.layer_groups()
    resting = epoch < round(config.gradual * config.epochs)
    before = [p.requires_grad for layer in layers for p in layer]
    for i, layer in enumerate(layers):
        for parameter in layer:
            parameter.requires_grad_(not (resting and i < len(layers) // 2))
    return before != [p.requires_grad for layer in layers for p in layer]


def mix(images: torch.Tensor, config: FullConfig, seed: int) -> tuple[torch.Tensor, float]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image with its neighbour in the batch.

    Neighbours are pairs (0, 1), (2, 3) …: the batch is shuffled already, and a pair never spans two processes.
    Returns the images and the share of the image's own label.
    """
    kinds = [(name, alpha) for name, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)) if alpha]
    if not kinds:
        return images, 1.0
    draw = np.random.default_rng(seed)
    kind, alpha = kinds[int(draw.integers(len(kinds)))]
    lam = float(draw.beta(alpha, alpha))
    other = images[neighbours(len(images))]
    if kind == "mixup":
        return images.lerp(other, 1 - lam), lam
    height, width = images.shape[-2:]
    cut_h, cut_w = (round(side * math.sqrt(1 - lam)) for side in (height, width))
    top, left = int(draw.integers(0, height - cut_h + 1)), int(draw.integers(0, width - cut_w + 1))
    images = images.clone()
    images[..., top : top + cut_h, left : left + cut_w] = other[..., top : top + cut_h, left : left + cut_w]
    return images, 1 - cut_h * cut_w / (height * width)


def neighbours(n: int) -> list[int]:
    """1, 0, 3, 2, …: each one's partner; the last of an odd number stays alone."""
    return [i ^ 1 if i ^ 1 < n else i for i in range(n)]


def freeze_statistics(module: nn.Module) -> None:
    """Put every BatchNorm into evaluation mode: it normalises by the statistics its weights came with."""
    from torch import nn

    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def autocast(device: torch.device, config: FullConfig) -> Callable[[], AbstractContextManager]:
    """bf16 on GPUs that compute in it (compute capability 8 and later). Elsewhere it is emulated, and slower."""
    import torch

    if config.amp == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return lambda: torch.autocast("cuda", torch.bfloat16)
    return nullcontext


def start_from_trained_head(
    model: Classifier, dataset: Dataset, config: FullConfig, say: Callable[[str], None]
) -> dict[str, Any]:
    """LP-FT (Kumar et al. 2022): with a random head, the first steps would distort the features it is given.

    Returns the metrics of this start, as epoch 0.
    """
    begin = time.perf_counter()
    x, _ = dataset_features(model, dataset, config.image_size, say=say)
    y = {split: labels_of(dataset.split(split)) for split in ("train", "val")}
    head = choose_head((x["train"], y["train"], x["val"], y["val"]), len(dataset.classes), 100)
    put_head(model, head)
    row: dict[str, Any] = {"epoch": 0}
    for split in ("train", "val"):
        row[f"{split}_loss"], row[f"{split}_top1"] = loss_and_accuracy(head.probs(x[split]), y[split])
    row["head_seconds"] = time.perf_counter() - begin  # extraction of the features and training of the head
    say(
        f"epoch 0, the head trained on frozen features: val loss {row['val_loss']:.4f}, val top-1 {row['val_top1']:.4f}"
    )
    return row


@dataclass
class Trainer:
    """What one step of training changes, and what it needs for that."""

    config: FullConfig
    world: World
    module: nn.Module  # the network
    trained: nn.Module  # the network, or the network under DistributedDataParallel
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    steps: int  # of the whole training
    step: int = 0  # done

    @freed_memory_kept()
    def train_epoch(self, loader: Iterable[tuple[torch.Tensor, torch.Tensor]], length: int, epoch: int) -> list[float]:
        """Learn from `length` batches; returns the summed cross-entropy (no smoothing) and the number of images."""
        import torch
        from torch.nn.functional import cross_entropy

        config, accumulate = self.config, self.config.accumulate
        device = next(self.module.parameters()).device
        cast = autocast(device, config)
        self.module.train()
        if config.batch_norm == "frozen":
            freeze_statistics(self.module)
        total, seen = 0.0, 0
        for number, (images, labels) in enumerate(loader):
            images, labels = images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)
            images, lam = mix(images, config, derived_seed(config.seed, "mix", epoch, number))
            last_of_step = (number + 1) % accumulate == 0 or number + 1 == length
            begun = number - number % accumulate
            share = 1 / min(accumulate, length - begun)  # the last step of an epoch may have fewer batches
            alone = last_of_step or self.world.size == 1
            with nullcontext() if alone else self.trained.no_sync():  # type: ignore[operator]
                with cast():
                    logits = self.trained(images).float()
                    loss = cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                    if lam < 1:
                        partner = labels[neighbours(len(labels))]
                        other = cross_entropy(logits, partner, label_smoothing=config.label_smoothing)
                        loss = lam * loss + (1 - lam) * other
                (loss * share).backward()
            total += cross_entropy(logits.detach(), labels).item() * len(labels)
            seen += len(labels)
            if last_of_step:
                self.update()
        return [total, seen]

    def update(self) -> None:
        """One step of the optimiser, and of the average of the weights."""
        import torch

        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        now = rate(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = now * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.module, self.step)
        self.step += 1


def finetune(run: Run, config: FullConfig, model: Classifier, dataset: Dataset, world: World) -> dict[str, Any]:
    """Train all parameters; leaves `last` and `best` in the run and returns the timing for training.json."""
    import torch

    say = run.log if world.main else lambda message: None
    module = model.module
    device = next(module.parameters()).device
    train, val = dataset.split("train"), dataset.split("val")
    last = run.checkpoints / "last.safetensors"

    def keep_best(judged: nn.Module) -> None:
        best = run.checkpoints / "best.safetensors"
        save_model(best, model, dataset.classes, config.image_size, judged.state_dict())

    state: dict[str, torch.Tensor] = {}
    about: dict[str, Any] = {"epoch": 0, "rows": [], "step": 0}
    if last.exists():
        state, about = load_tensors(last)
    elif config.lp_ft:
        start = start_from_trained_head(model, dataset, config, say) if world.main else None
        about["rows"] = [world.from_main(start)]
        if world.main:
            keep_best(module)
        module.load_state_dict(world.from_main(module.state_dict()))

    if world.size > 1 and config.batch_norm == "train":
        synced_batch_norm(module)
    batches_each = len(epoch_batches(len(train), config.batch_size, config.seed, 0, world.size))
    trainer = Trainer(
        config,
        world,
        module,
        trained=wrap(module, device) if world.size > 1 else module,
        optimizer=make_optimizer(model, config),
        ema=Ema(module, config.ema) if config.ema else None,
        steps=-(-batches_each // config.accumulate) * config.epochs,
        step=about["step"],
    )
    rows: list[dict[str, Any]] = about["rows"]
    if state:
        restore(state, module, trainer.ema, trainer.optimizer)
        say(f"goes on after epoch {about['epoch']}")
    if world.main:
        rewrite_metrics(run, rows)
    images = TrainImages(
        train,
        side=round(1.5 * config.image_size),
        transform=lambda size: train_transform(model.recipe, size, config.randaugment, config.min_area, dataset.flips),
        seed=config.seed,
    )

    for epoch in range(about["epoch"], config.epochs):
        if stopped_early(rows, config):
            break
        torch.manual_seed(derived_seed(config.seed, "epoch", epoch))  # dropout and stochastic depth
        size = size_at(epoch, config)
        if rest_early_layers(model, epoch, config) and world.size > 1:
            trainer.trained = wrap(module, device)  # its buckets hold the gradients of what learns
        order = epoch_batches(len(train), config.batch_size, config.seed, epoch, world.size)
        loader = batches(images, [world.share(batch) for batch in order], epoch, size, config.workers)
        shown = track(loader, f"epoch {epoch + 1}/{config.epochs}", len(order)) if world.main else loader
        begin = time.perf_counter()
        summed = trainer.train_epoch(shown, len(order), epoch)
        seconds = time.perf_counter() - begin
        total, seen = np.sum(world.gather(summed), axis=0)
        if not math.isfinite(total):
            raise RocLabError(f"the training diverged in epoch {epoch + 1} (its loss is {total}): use a lower --lr")

        judged = trainer.ema.module if trainer.ema else module
        probs = shared_probs(model, judged, val, config.image_size, world)
        val_loss, val_top1 = loss_and_accuracy(probs, labels_of(val))
        row = {
            "epoch": epoch + 1,
            "train_loss": total / seen,
            "val_loss": val_loss,
            "val_top1": val_top1,
            "lr": rate(trainer.step - 1, trainer.steps, config),
            "image_size": size,
            "train_seconds": seconds,
            "images_per_second": seen / seconds,
        }
        rows.append(row)
        if world.main:
            if best_epoch(rows) == epoch + 1:
                keep_best(judged)
            about |= {"epoch": epoch + 1, "step": trainer.step, "rows": rows}
            save_state(last, module, trainer.ema, trainer.optimizer, about)
            run.log_metrics(row)
            say(
                f"epoch {epoch + 1}/{config.epochs} at {size} px: train loss {row['train_loss']:.4f}, "
                f"val loss {val_loss:.4f}, val top-1 {val_top1:.4f}, {seconds:.0f} s"
            )
    trained = [row for row in rows if row["epoch"]]
    return {
        "best_epoch": best_epoch(rows),  # 0: no epoch was better than the trained head it began with
        "head_seconds": sum(row.get("head_seconds", 0.0) for row in rows),
        "mean_train_seconds_per_epoch": float(np.mean([row["train_seconds"] for row in trained])),
        "images_per_second": float(np.mean([row["images_per_second"] for row in trained])),
    }


def best_epoch(rows: Sequence[dict[str, Any]]) -> int:
    """Number of the epoch with the highest validation accuracy; of several, the one with the lowest loss."""
    return min(rows, key=lambda row: (-row["val_top1"], row["val_loss"], row["epoch"]))["epoch"]


def stopped_early(rows: Sequence[dict[str, Any]], config: FullConfig) -> bool:
    """Whether `patience` epochs have gone by since the best one."""
    return bool(config.patience and rows and rows[-1]["epoch"] - best_epoch(rows) >= config.patience)


def shared_probs(
    model: Classifier, module: nn.Module, images: Sequence[Any], image_size: int, world: World
) -> np.ndarray:
    """Class probabilities (N, C) by `module`, each process judging its share of the images."""
    judge = copy.copy(model)
    judge.module = module
    mine = world.share(images)
    probs = predict_probs(judge, [image.path for image in mine], image_size) if len(mine) else None
    return np.concatenate([part for part in world.gather(probs) if part is not None])


def save_state(
    path: Any, module: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Everything that decides how training goes on, in one file that is written whole or not at all."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    if ema:
        tensors |= {f"ema.{name}": value for name, value in ema.module.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    save_tensors(path, tensors, about)


def restore(
    state: dict[str, torch.Tensor], module: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer
) -> None:
    """Put back what `save_state` wrote."""
    import torch

    def part(prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name[len(prefix) :], value) for name, value in state.items() if name.startswith(prefix))

    try:
        module.load_state_dict(dict(part("model.")))
        if ema:
            ema.module.load_state_dict(dict(part("ema.")))
    except RuntimeError as error:
        raise CheckpointError(f"last.safetensors does not fit this run's model: {str(error).splitlines()[0]}") from None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = optimizer.state_dict()
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in part("optimizer."):
        index, key = name.split(".", 1)
        # in the parameter's own memory layout (channels_last): the fused step walks both in storage order
        placed = value if value.ndim == 0 else torch.empty_like(parameters[int(index)]).copy_(value)
        entries.setdefault(int(index), {})[key] = placed
    saved["state"] = entries
    optimizer.load_state_dict(saved)


def rewrite_metrics(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Make metrics.jsonl agree with the checkpoint: a kill between the two may have left a row too few or too many."""
    run.truncate_metrics(-1)  # all: 0 is the trained head
    for row in rows:
        run.log_metrics(row)
