"""The report's figures, drawn for a page of A4 from run folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.vision.evaluate.figures import dot_of, epoch_axis, loss_lines, new_figure, save_figure
from roclab.vision.evaluate.run_reader import VisionRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6.5  # inches: the text's width
COLOURS = ("#1b5e9e", "#c8501e", "#2f7d4f", "#8a4fa3", "#b0912b", "#4d4d4d", "#c2477f", "#2aa1a8")


def _page_figure(height: float, width: float = WIDTH) -> Figure:
    figure = new_figure(width, height)
    figure.set_dpi(200)  # for print
    return figure


def plain(name: str) -> str:
    """A name as matplotlib shows it letter for letter: between two dollars it would set mathematics."""
    return name.replace("$", r"\$")


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
    axes.tick_params(labelsize=8)


def curves(runs: Sequence[VisionRun], arms: Mapping[str, Sequence[VisionRun]], path: Path) -> None:
    """Training (dashed) and validation loss (solid) of all runs over epochs in one plot, a colour for each arm.

    A cut run is drawn in its own model's and strategy's colour and ends in a cross. A frozen backbone's epochs are
    steps of L-BFGS: with them the axis is logarithmic.
    """
    from matplotlib.lines import Line2D

    figure = _page_figure(4.0)
    axes = figure.subplots()
    labels = list(dict.fromkeys([*arms, *(run.label for run in runs if not run.finished)]))
    arm_of = {run.ref: name for name, members in arms.items() for run in members}
    longest = 1
    for run in runs:
        name = arm_of.get(run.ref, run.label)
        colour = COLOURS[labels.index(name) % len(COLOURS)]
        (epochs, losses), training = loss_lines(run.metrics())
        longest = max([longest, *epochs])
        dots = dot_of(training)
        axes.plot(*training, "--", marker=dots, color=colour, lw=0.9, ms=2.5, alpha=0.75)
        axes.plot(epochs, losses, "-", marker=dots, color=colour, lw=1.3, ms=2.5)
        if epochs and not run.finished:
            axes.plot(epochs[-1], losses[-1], "x", color=colour, ms=7)
    _style(axes)
    epoch_axis(axes, longest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch (frozen backbone: step of L-BFGS)", fontsize=9)
    axes.set_ylabel("cross-entropy (nats)", fontsize=9)
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=plain(name)) for i, name in enumerate(labels)]
    handles += [Line2D([], [], color="k", label="validation"), Line2D([], [], color="k", ls="--", label="training")]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def accuracy(arms: Mapping[str, dict[str, Any]], split: str, path: Path) -> None:
    """Top-1 of each arm: every run a dot, the mean a bar, the 95 % interval a line."""
    figure = _page_figure(0.42 * len(arms) + 0.9)
    axes = figure.subplots()
    for row, (_, arm) in enumerate(arms.items()):
        low, high = (100 * side for side in arm["top1_ci95"])
        colour = COLOURS[row % len(COLOURS)]
        axes.plot([low, high], [row, row], color=colour, lw=1.6)
        axes.plot([100 * value for value in arm["top1"]], [row] * len(arm["top1"]), "o", color=colour, alpha=0.4, ms=5)
        axes.plot(100 * arm["top1_mean"], row, "|", color=colour, ms=16, mew=2.5)
    axes.set_yticks(range(len(arms)), [plain(name) for name in arms], fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    _style(axes)
    axes.set_xlabel(f"top-1 on {split} (%)", fontsize=9)
    save_figure(figure, path)


def f1_by_class(scores: Mapping[str, Mapping[str, dict[str, Any]]], path: Path) -> None:
    """F1 of each class (rows, hardest above) under each arm (colours)."""
    classes = list(next(iter(scores.values())))
    known = {c: [s[c]["f1"] for s in scores.values() if s[c]["f1"] is not None] for c in classes}
    shown = sorted((c for c in classes if known[c]), key=lambda c: (np.mean(known[c]), c))
    figure = _page_figure(min(8.6, 0.2 * len(shown) + 1.2))
    axes = figure.subplots()
    offsets = np.linspace(-0.22, 0.22, len(scores)) if len(scores) > 1 else [0.0]
    for number, (name, rows) in enumerate(scores.items()):
        values = [rows[c]["f1"] for c in shown]
        axes.plot(
            values,
            np.arange(len(shown)) + offsets[number],
            "o",
            ms=4,
            color=COLOURS[number % len(COLOURS)],
            label=plain(name),
        )
    for row, c in enumerate(shown):
        axes.plot([min(known[c]), max(known[c])], [row, row], color="#999999", lw=0.6, zorder=0)
    axes.set_yticks(range(len(shown)), [plain(c) for c in shown])
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _style(axes)
    axes.tick_params(axis="y", labelsize=7 if len(shown) > 20 else 8)
    axes.set_xlabel("F1, mean over the runs", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Share of each true class (row) that was called each class (column); counts where they can be read."""
    many = len(classes) > 12
    side = (1.0 if many else 0.65) * WIDTH  # two of the small ones fill a page
    figure = _page_figure(side * (0.98 if many else 0.92), side)
    axes = figure.subplots()
    totals = counts.sum(1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0):
        if not many or len(classes) <= 40:
            axes.text(
                j, i, str(counts[i, j]), ha="center", va="center", fontsize=5.5 if many else 8,
                color="white" if share[i, j] > 0.5 else "black",
            )  # fmt: skip
    names = [plain(c) for c in classes]
    small = 8 if not many else max(2.5, min(7, 260 / len(classes)))
    axes.set_xticks(range(len(classes)), names, rotation=90 if many else 45, ha="center" if many else "right")
    axes.set_yticks(range(len(classes)), names)
    axes.tick_params(labelsize=small, length=1.5)
    axes.set_xlabel("called", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    save_figure(figure, path)
