"""The figures of the error analysis, each drawn from the facts alone; templates/captions.txt has their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.sentences import interval, sentences_from
from roclab.report.kit import TEMPLATES
from roclab.vision.evaluate.figures import new_figure, save_figure

MOST = {"classes": 20, "pairs": 12, "arms": 6}  # that are drawn: the hardest, the most confused, the first
COLOURS = {"cat": "C1", "dog": "C0"}
Facts = dict[str, Any]


def draw(facts: Facts, folder: Path) -> dict[str, str]:
    """Draw what the facts allow into `folder`; returns the captions of the figures that were drawn, by name."""
    makers = (_hardest, _confused, _shared, _calibration, _covariates)
    figures = {make.__name__[1:]: make(facts) for make in makers}
    for name, figure in figures.items():
        if figure:
            save_figure(figure, folder / f"{name}.png")
    captions = sentences_from(TEMPLATES / "captions.txt", facts, most=MOST)
    return {name: caption.text for caption in captions if figures[name := caption.key[1:]]}


def _point(axes: Any, at: float, row: Facts, share: str = "share", colour: str = "C0", flat: bool = False) -> None:
    """A share with its interval in per cent; `flat` lies along the x axis."""
    (low, high), value = (100 * np.array(row["ci95"])), 100 * row[share]
    ends, middle = ([low, high], [at, at]), (value, at)
    axes.plot(*(ends if flat else ends[::-1]), color=colour, lw=2, alpha=0.6)
    axes.plot(*(middle if flat else middle[::-1]), "o", color=colour, ms=6)


def _panels(rows: Sequence[Any], columns: int, height: float) -> tuple[Any, Iterator[tuple[Any, Any]]]:
    """A figure with one panel for each row, and the pairs of axes and row."""
    lines = -(-len(rows) // columns)
    figure = new_figure(3.2 * columns + 0.6, height * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    return figure, zip(grid, rows, strict=False)


def _hardest(facts: Facts) -> Any:
    seen = [row for row in facts["hardest"] if row["n"]]
    rows = seen[: MOST["classes"]]
    figure = new_figure(7.5, 0.28 * len(rows) + 1.2)
    axes = figure.subplots()
    for at, row in enumerate(rows):
        _point(axes, at, row, colour=COLOURS.get(row["species"], "C0"), flat=True)
    overall = 100 * sum(row["count"] for row in seen) / sum(row["n"] for row in seen)
    axes.axvline(overall, color="0.5", ls="--", lw=1)
    axes.set_yticks(range(len(rows)), [f"{row['class']} ({row['n']})" for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(-2, 102), xlabel="predicted correctly (%)")
    axes.grid(axis="x", alpha=0.3)
    if facts["species"]:
        for kind in sorted(set(facts["species"].values())):
            axes.plot([], [], "o", color=COLOURS.get(kind, "C0"), label=kind)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above: rows fill the axes
    return figure


def _confused(facts: Facts) -> Any:
    rows = facts["confused"][: MOST["pairs"]]
    if not rows:
        return None
    figure = new_figure(7.5, 0.34 * len(rows) + 1.3)
    axes = figure.subplots()
    at = np.arange(len(rows))
    forth, back = (np.array([row[key] for row in rows]) for key in ("a_as_b", "b_as_a"))
    axes.barh(at, forth, color="C0", label="first predicted as second")
    axes.barh(at, back, left=forth, color="C1", label="second predicted as first")
    axes.set_yticks(at, [f"{row['a']} / {row['b']} ({row['n']})" for row in rows])
    axes.invert_yaxis()
    runs = facts["told_runs"]
    axes.set_xlabel(f"images (mean of {runs} runs)" if runs > 1 else "images (one run)")
    axes.grid(axis="x", alpha=0.3)
    # the legend above: bars fill the axes
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    return figure


def _shared(facts: Facts) -> Any:
    counts, units = facts["shared"]["wrong_by"], facts["shared"]["units"]
    if len(units) < 3:  # of two, the headings of the galleries say it all
        return None
    figure = new_figure(min(10, 3 + 0.6 * len(counts)), 3.2)
    axes = figure.subplots()
    axes.bar_label(axes.bar(range(1, len(counts)), counts[1:], color="C3"))
    axes.set(xticks=range(1, len(counts)), xlabel=f"of {len(units)} wrong", ylabel="images")
    axes.margins(y=0.15)
    return figure


def _calibration(facts: Facts) -> Any:
    arms = list(facts["calibration"].items())[: MOST["arms"]]
    figure, panels = _panels(arms, 2 if len(arms) == 4 else min(3, len(arms)), 3.7)
    for axes, (name, row) in panels:
        axes.plot([0, 100], [0, 100], "--", color="0.5", lw=1)
        for b in row["bins"]:
            _point(axes, 100 * b["confidence"], b, "accuracy")
        images = axes.twinx()
        middles = [50 * (b["from"] + b["to"]) for b in row["bins"]]
        width = 90 * (row["bins"][0]["to"] - row["bins"][0]["from"])
        images.bar(middles, [b["images"] for b in row["bins"]], width=width, color="C0", alpha=0.15)
        images.set(ylim=(0, 3 * max(b["images"] for b in row["bins"])), yticks=[])
        axes.set_title(f"{name}\nECE {row['ece']:.3f} {interval(row['ci95'], 3, 1)}", fontsize=9)
        axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="confidence (%)", ylabel="right (%)")
    return figure


def _covariates(facts: Facts) -> Any:
    measures = list(facts["covariates"]["measures"].values())
    if not measures:
        return None

    def short(x: float) -> str:
        return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"

    figure, panels = _panels(measures, min(3, len(measures)), 3.2)
    for axes, row in panels:
        for at, group in enumerate(row["groups"]):
            _point(axes, at, group)
        names = [f"{short(g['from'])} to\n{short(g['to'])}\n({g['n']})" for g in row["groups"]]
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(xlim=(-0.5, max(1, len(names)) - 0.5), ylim=(0, 103), ylabel="right (%)")
        axes.set_title(row["says"].replace(" (", "\n("), fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    return figure
