"""The report's figures, drawn in `STYLE` for a page of A4 from run folders and facts alone.

Each is saved twice: as SVG for HTML and the PDF, as PDF for LaTeX. The report names it without an ending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from roclab.vision.evaluate import figures
from roclab.vision.evaluate.figures import new_figure, save_figure
from roclab.vision.evaluate.run_reader import VisionRun

WIDTH = 6.5  # inches: the text's width
MATRICES = 4  # on a page
COLOURS = ["#1b5e9e", "#c8501e", "#2f7d4f", "#8a4fa3", "#b0912b", "#4d4d4d", "#c2477f", "#2aa1a8"]
STYLE: Any = {  # of matplotlib; names are shown letter for letter: between two dollars it would set mathematics
    "text.parse_math": False,
    "svg.hashsalt": "roclab",  # the same figure is the same file
    "pdf.fonttype": 42,
    "axes.prop_cycle": f"cycler(color={COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
PANELS = {"features": "frozen backbones: the head’s solver", "finetune": "fine-tuned networks"}


def save(figure: Any, path: Path) -> None:
    """Save a figure as `path` with the endings .svg and .pdf."""
    for ending in (".svg", ".pdf"):
        save_figure(figure, path.with_name(path.name + ending))


def curves(
    runs: Sequence[VisionRun], arms: Mapping[str, Sequence[VisionRun]], training: Mapping[str, Any], path: Path
) -> None:
    """Training (dashed) and validation loss (solid) of all runs, a colour for each arm, a panel for each strategy: a
    ring marks the epoch that was kept, a dotted line the epochs from which images are of another size.

    A cut run is drawn in its own model's and strategy's colour and ends in a cross.
    """
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys([*arms, *(run.label for run in runs if not run.finished)]))
    arm_of = {run.ref: name for name, members in arms.items() for run in members}
    shown = {name: [run for run in runs if arm_of.get(run.ref, run.label) == name] for name in labels}
    figure = figures.loss_figure(WIDTH, 3.9, shown, cut=[run for run in runs if not run.finished])
    there = [kind for kind in PANELS if any(run.config["strategy"] == kind for run in runs)]
    for axes, kind in zip(figure.axes, there, strict=True):
        axes.set_title(PANELS[kind])
        for number, members in enumerate(shown.values()):
            for run in (run for run in members if run.finetuned and kind == "finetune" and run.ref in training):
                _mark(axes, run, training[run.ref], f"C{number}")
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(labels)]
    handles += [Line2D([], [], color="k", label="validation"), Line2D([], [], color="k", ls="--", label="training")]
    if "finetune" in there:
        handles.append(Line2D([], [], color="k", ls="", marker="o", mfc="none", ms=9, label="epoch kept"))
    if any(len(row["sizes"]) > 1 for row in training.values()):
        handles.append(Line2D([], [], color="0.4", ls=":", label="images of another size from here"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    save(figure, path)


def _mark(axes: Any, run: VisionRun, course: Mapping[str, Any], colour: str) -> None:
    epochs, losses = figures.loss_lines(run.metrics())[0]
    if course["kept"] in epochs:
        at = epochs.index(course["kept"])
        axes.plot(epochs[at], losses[at], "o", ms=9, mfc="none", mew=1.5, color=colour)
    for epoch, size in course["sizes"][1:]:
        axes.axvline(epoch - 0.5, color=colour, ls=":", lw=1)
        axes.annotate(f" {size} px", (epoch - 0.5, 1), xycoords=("data", "axes fraction"), va="top", fontsize=7)


def accuracy(arms: Mapping[str, dict[str, Any]], chance: float, split: str, path: Path) -> None:
    figure = new_figure(WIDTH, 0.42 * len(arms) + 0.9)
    axes = figure.subplots()
    figures.accuracy(axes, arms)
    axes.axvline(100 * chance, color="0.5", ls="--", lw=1)
    axes.annotate(
        " chance", (100 * chance, 0), xycoords=("data", "axes fraction"), va="bottom", fontsize=7, color="0.4"
    )
    axes.set_xlabel(f"top-1 on {split} (%)")
    save(figure, path)


def f1_by_class(scores: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """F1 of each class (rows, hardest above) under each arm (colours)."""
    rows_of = {name: score["classes"] for name, score in scores.items()}
    classes = next(iter(rows_of.values()))
    known = {c: [s[c]["f1"] for s in rows_of.values() if s[c]["f1"] is not None] for c in classes}
    shown = sorted((c for c in classes if known[c]), key=lambda c: (np.mean(known[c]), c))
    figure = new_figure(WIDTH, min(8.6, 0.2 * len(shown) + 1.2))
    axes = figure.subplots()
    offsets = np.linspace(-0.22, 0.22, len(rows_of)) if len(rows_of) > 1 else [0.0]
    for number, (name, rows) in enumerate(rows_of.items()):
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
    save(figure, path)


def matrices(
    counts: Mapping[str, np.ndarray], classes: Sequence[str], order: Sequence[str], path: Path, side: float = 4.0
) -> None:
    """Up to `MATRICES` confusion matrices on a page, their classes in the `order` given (cats, then dogs)."""
    at = [classes.index(name) for name in order]
    columns = 1 if len(counts) == 1 else 2
    lines = -(-len(counts) // columns)
    figure = new_figure(WIDTH if columns == 2 else 0.75 * WIDTH, side * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    points = min(8.0, 2.6 * 72 / len(order) * 0.85)
    for axes, (name, matrix) in zip(grid.ravel(), counts.items(), strict=False):
        figures.confusion(axes, matrix[np.ix_(at, at)], order, points)
        axes.set_title(fill(name, 36), fontsize=8)
        axes.tick_params(length=1.5)
        axes.label_outer()
    for axes in grid.ravel()[len(counts) :]:
        axes.set_visible(False)
    save(figure, path)


def learning_curve(points: Sequence[Mapping[str, Any]], split: str, path: Path) -> None:
    """Accuracy with its interval against images a class: frozen dashed, fine-tuned solid."""
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    models = list(dict.fromkeys(point["model"] for point in points))
    for label in dict.fromkeys(point["label"] for point in points):
        row = [point for point in points if point["label"] == label]
        colour, line = f"C{models.index(row[0]['model'])}", "-" if row[0]["strategy"] == "finetune" else "--"
        x, y = [point["images"] for point in row], [100 * point["top1"] for point in row]
        ends = 100 * np.array([point["ci95"] for point in row]).T
        spread = np.abs(ends - y)
        axes.errorbar(x, y, yerr=spread, fmt=f"o{line}", color=colour, ms=4, lw=1.4, capsize=2, label=label)
    axes.set(xscale="log", xlabel="images a class to train and validate on", ylabel=f"top-1 on {split} (%)")
    ticks = sorted({point["images"] for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, path)
