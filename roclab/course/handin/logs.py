"""The TensorBoard logs of the runs as a picture, drawn from the scalars in the event files themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence

from roclab.vision.evaluate.run_reader import VisionRun

Scalars = dict[str, tuple[list[int], list[float]]]  # name -> steps, values


def scalars(run: VisionRun) -> Scalars:
    """Every scalar in the run's TensorBoard logs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    events = {name: read.Scalars(name) for name in read.Tags()["scalars"]}
    return {name: ([e.step for e in listed], [e.value for e in listed]) for name, listed in events.items()}


def picture(runs: Sequence[VisionRun], shown: Sequence[str] = ("train_loss", "val_loss", "val_top1")) -> bytes:
    """A PNG with a row for each scalar that is `shown`: fine-tuning's runs and the frozen ones' apart, which have other
    steps."""
    from matplotlib.figure import Figure

    logged = {run.name: (run.finetuned, scalars(run)) for run in runs if run.finished}
    kinds = sorted({finetuned for finetuned, _ in logged.values()})
    figure = Figure(figsize=(5 * len(kinds), 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(kinds), squeeze=False)
    for row, scalar in zip(axes, shown, strict=True):
        for cell, kind in zip(row, kinds, strict=True):
            for name, (finetuned, found) in logged.items():
                if finetuned == kind and scalar in found:
                    cell.plot(*found[scalar], marker=".", label=name, linewidth=1)
            cell.set(xlabel="optimizer steps" if kind else "steps of the head's solver", ylabel=scalar)
            cell.grid(alpha=0.3)
            if cell.lines:
                cell.legend(fontsize=7)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    return data.getvalue()
