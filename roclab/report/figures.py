"""The report's figures, drawn in `STYLE` for a page of A4 from run folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.vision.evaluate.figures import dot_of, epoch_axis, loss_lines, new_figure, save_figure
from roclab.vision.evaluate.run_reader import VisionRun

WIDTH = 6.5  # inches: the text's width
COLOURS = ["#1b5e9e", "#c8501e", "#2f7d4f", "#8a4fa3", "#b0912b", "#4d4d4d", "#c2477f", "#2aa1a8"]
STYLE: Any = {  # of matplotlib; names are shown letter for letter: between two dollars it would set mathematics
    "text.parse_math": False,
    "axes.prop_cycle": f"cycler(color={COLOURS})",
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def _page_figure(height: float, width: float = WIDTH) -> tuple[Any, Any]:
    """A figure for print, and its axes."""
    figure = new_figure(width, height)
    figure.set_dpi(200)
    return figure, figure.subplots()


def _style(axes: Any, xlabel: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(xlabel, fontsize=9)


def curves(runs: Sequence[VisionRun], arms: Mapping[str, Sequence[VisionRun]], path: Path) -> None:
    """Training (dashed) and validation loss (solid) of all runs over epochs in one plot, a colour for each arm.

    A cut run is drawn in its own model's and strategy's colour and ends in a cross. A frozen backbone's epochs are
    steps of L-BFGS: with them the axis is logarithmic.
    """
    from matplotlib.lines import Line2D

    figure, axes = _page_figure(4.0)
    labels = list(dict.fromkeys([*arms, *(run.label for run in runs if not run.finished)]))
    arm_of = {run.ref: name for name, members in arms.items() for run in members}
    longest = 1
    for run in runs:
        colour = f"C{labels.index(arm_of.get(run.ref, run.label))}"
        (epochs, losses), training = loss_lines(run.metrics())
        longest = max([longest, *epochs])
        dots = dot_of(training)
        axes.plot(*training, "--", marker=dots, color=colour, lw=0.9, ms=2.5, alpha=0.75)
        axes.plot(epochs, losses, "-", marker=dots, color=colour, lw=1.3, ms=2.5)
        if epochs and not run.finished:
            axes.plot(epochs[-1], losses[-1], "x", color=colour, ms=7)
    _style(axes, "epoch (frozen backbone: step of L-BFGS)")
    epoch_axis(axes, longest)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("cross-entropy (nats)", fontsize=9)
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(labels)]
    handles += [Line2D([], [], color="k", label="validation"), Line2D([], [], color="k", ls="--", label="training")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def accuracy(arms: Mapping[str, dict[str, Any]], split: str, path: Path) -> None:
    """Top-1 of each arm: every run a dot, the mean a bar, the 95 % interval a line."""
    figure, axes = _page_figure(0.42 * len(arms) + 0.9)
    for row, arm in enumerate(arms.values()):
        axes.plot(100 * np.array(arm["top1_ci95"]), [row, row], color=f"C{row}", lw=1.6)
        dots = 100 * np.array(arm["top1"])
        axes.plot(dots, [row] * len(dots), "o", color=f"C{row}", alpha=0.4, ms=5)
        axes.plot(100 * arm["top1_mean"], row, "|", color=f"C{row}", ms=16, mew=2.5)
    axes.set_yticks(range(len(arms)), list(arms), fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    _style(axes, f"top-1 on {split} (%)")
    save_figure(figure, path)


def f1_by_class(scores: Mapping[str, Mapping[str, dict[str, Any]]], path: Path) -> None:
    """F1 of each class (rows, hardest above) under each arm (colours)."""
    classes = next(iter(scores.values()))
    known = {c: [s[c]["f1"] for s in scores.values() if s[c]["f1"] is not None] for c in classes}
    shown = sorted((c for c in classes if known[c]), key=lambda c: (np.mean(known[c]), c))
    figure, axes = _page_figure(min(8.6, 0.2 * len(shown) + 1.2))
    offsets = np.linspace(-0.22, 0.22, len(scores)) if len(scores) > 1 else [0.0]
    for number, (name, rows) in enumerate(scores.items()):
        at = np.arange(len(shown)) + offsets[number]
        axes.plot([rows[c]["f1"] for c in shown], at, "o", ms=4, color=f"C{number}", label=name)
    for row, c in enumerate(shown):
        axes.plot([min(known[c]), max(known[c])], [row, row], color="#999999", lw=0.6, zorder=0)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _style(axes, "F1, mean over the runs")
    axes.tick_params(axis="y", labelsize=7 if len(shown) > 20 else 8)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Share of each true class (row) that was predicted as each class (column); counts where they can be read."""
    many = len(classes) > 12
    side = (1.0 if many else 0.65) * WIDTH  # two of the small ones fill a page
    figure, axes = _page_figure(side * (0.98 if many else 0.92), side)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0) if len(classes) <= 40 else ():
        colour = "white" if share[i, j] > 0.5 else "black"
        size = 5.5 if many else 8
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=90 if many else 45, ha="center" if many else "right")
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(labelsize=max(2.5, min(7, 260 / len(classes))) if many else 8, length=1.5)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    save_figure(figure, path)
