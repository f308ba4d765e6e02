"""The report's figures, drawn in `STYLE` for a page of A4 from run folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.vision.evaluate import figures
from roclab.vision.evaluate.figures import new_figure, save_figure
from roclab.vision.evaluate.run_reader import VisionRun

WIDTH = 6.5  # inches: the text's width
COLOURS = ["#1b5e9e", "#c8501e", "#2f7d4f", "#8a4fa3", "#b0912b", "#4d4d4d", "#c2477f", "#2aa1a8"]
STYLE: Any = {  # of matplotlib; names are shown letter for letter: between two dollars it would set mathematics
    "text.parse_math": False,
    "axes.prop_cycle": f"cycler(color={COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def curves(runs: Sequence[VisionRun], arms: Mapping[str, Sequence[VisionRun]], path: Path) -> None:
    """Training (dashed) and validation loss (solid) of all runs, a colour for each arm.

    A cut run is drawn in its own model's and strategy's colour and ends in a cross.
    """
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys([*arms, *(run.label for run in runs if not run.finished)]))
    arm_of = {run.ref: name for name, members in arms.items() for run in members}
    shown = {name: [run for run in runs if arm_of.get(run.ref, run.label) == name] for name in labels}
    figure = figures.loss_figure(WIDTH, 4.0, shown, cut=[run for run in runs if not run.finished])
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(labels)]
    handles += [Line2D([], [], color="k", label="validation"), Line2D([], [], color="k", ls="--", label="training")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def accuracy(arms: Mapping[str, dict[str, Any]], split: str, path: Path) -> None:
    figure = new_figure(WIDTH, 0.42 * len(arms) + 0.9)
    axes = figure.subplots()
    figures.accuracy(axes, arms)
    axes.set_xlabel(f"top-1 on {split} (%)")
    save_figure(figure, path)


def f1_by_class(scores: Mapping[str, Mapping[str, dict[str, Any]]], path: Path) -> None:
    """F1 of each class (rows, hardest above) under each arm (colours)."""
    classes = next(iter(scores.values()))
    known = {c: [s[c]["f1"] for s in scores.values() if s[c]["f1"] is not None] for c in classes}
    shown = sorted((c for c in classes if known[c]), key=lambda c: (np.mean(known[c]), c))
    figure = new_figure(WIDTH, min(8.6, 0.2 * len(shown) + 1.2))
    axes = figure.subplots()
    offsets = np.linspace(-0.22, 0.22, len(scores)) if len(scores) > 1 else [0.0]
    for number, (name, rows) in enumerate(scores.items()):
        at = np.arange(len(shown)) + offsets[number]
        axes.plot([rows[c]["f1"] for c in shown], at, "o", ms=4, color=f"C{number}", label=name)
    for row, c in enumerate(shown):
        axes.plot([min(known[c]), max(known[c])], [row, row], color="#999999", lw=0.6, zorder=0)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("F1, mean over the runs")
    axes.tick_params(axis="y", labelsize=7 if len(shown) > 20 else 8)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """As large as a page allows; of more than 40 classes without the counts."""
    many = len(classes) > figures.FEW
    side = (1.0 if many else 0.65) * WIDTH  # two of the small ones fill a page
    figure = new_figure(side, side * (0.98 if many else 0.92))
    axes = figure.subplots()
    figures.confusion(axes, counts, classes, max(2.5, min(7, 260 / len(classes))) if many else 8)
    axes.tick_params(length=1.5)
    save_figure(figure, path)
