"""What the losses of a run show: where it converged, which epoch was kept, and where it began to overfit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roclab.vision.evaluate.metrics import epoch_of
from roclab.vision.evaluate.run_reader import VisionRun

RISE = 0.02  # of the lowest validation loss: what lies within is no rise


def dynamics(run: VisionRun) -> dict[str, Any]:
    """The course of a finished run. A unit is an epoch of fine-tuning, or a step of the solver of a frozen backbone's
    head. `kept`: the epoch whose weights were kept (0: the head it began with)."""
    rows = run.metrics()
    lowest = min(rows, key=lambda row: (row["val_loss"], epoch_of(row)))
    return {
        "finetuned": run.finetuned,
        "length": max(epoch_of(row) for row in rows),
        "kept": run.training.get("best_epoch") if run.finetuned else None,
        "lowest": epoch_of(lowest),
        "val_loss": [rows[0]["val_loss"], lowest["val_loss"], rows[-1]["val_loss"]],  # first, lowest, last
        "overfits": overfitting(rows),
        "sizes": _sizes(rows),
        "seconds": sum(row.get("train_seconds", 0.0) for row in rows),
    }


def overfitting(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the validation loss rises while the training loss falls, if the rise is more than `RISE`: the first epoch
    after the lowest validation loss, and both losses and the validation accuracy there and at the end."""
    trained = [row for row in rows if epoch_of(row) >= 1]
    if not trained:
        return None
    best, last = min(trained, key=lambda row: (row["val_loss"], epoch_of(row))), trained[-1]
    if last["val_loss"] <= (1 + RISE) * best["val_loss"] or last["train_loss"] >= best["train_loss"]:
        return None
    both = ("val_loss", "train_loss", "val_top1")
    return {"from": epoch_of(best) + 1, **{name: [best[name], last[name]] for name in both}}


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """(epoch, pixels) of the first epoch and of each in which the training images are of another size."""
    sized = [(epoch_of(row), row["image_size"]) for row in rows if row.get("image_size") and epoch_of(row) >= 1]
    return [[epoch, size] for i, (epoch, size) in enumerate(sized) if i == 0 or size != sized[i - 1][1]]
