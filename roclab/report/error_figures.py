"""The figures of the error analysis, each drawn from the facts alone, with its caption: what, n and which interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.sentences import interval
from roclab.vision.evaluate.figures import new_figure, save_figure

CLASSES = 20  # the hardest that are drawn
PAIRS = 12
ARMS = 6  # calibration diagrams
COLOURS = {"cat": "C1", "dog": "C0"}
Drawn = tuple[Any, str, str]  # figure, caption, text for those who do not see it
Facts = dict[str, Any]


def draw(facts: Facts, folder: Path) -> dict[str, dict[str, str]]:
    """Draw what the facts allow into `folder`; returns name -> {"file", "caption", "alt"}."""
    made = {}
    for name, make in FIGURES.items():
        if drawn := make(facts):
            figure, caption, alt = drawn
            save_figure(figure, folder / f"{name}.png")
            made[name] = {"file": f"{name}.png", "caption": caption, "alt": alt}
    return made


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


def _mean_of(facts: Facts) -> str:
    runs = len(facts["runs"])
    return f"mean of {runs} runs" if runs > 1 else "one run"


def _hardest(facts: Facts) -> Drawn:
    seen = [row for row in facts["hardest"] if row["n"]]
    rows = seen[:CLASSES]
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
    which = f"The {len(rows)} hardest of {len(seen)} classes" if len(rows) < len(seen) else "The classes"
    caption = (
        f"{which} with images: share predicted correctly ({_mean_of(facts)}), number of {facts['split']} images in "
        f"brackets, Wilson's 95 % interval; dashed: all {facts['n']} images ({overall:.1f} %). Intervals that overlap "
        "do not say which class is harder."
    )
    return figure, caption, f"accuracy of the {len(rows)} hardest classes with intervals"


def _confused(facts: Facts) -> Drawn | None:
    rows, pairs = facts["confused"][:PAIRS], len(facts["confused"])
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
    axes.set_xlabel(f"images ({_mean_of(facts)})")
    axes.grid(axis="x", alpha=0.3)
    # the legend above: bars fill the axes
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    which = f"The {len(rows)} most confused of {pairs}" if len(rows) < pairs else "The"
    caption = (
        f"{which} pairs of classes that were confused at all: images a run, {_mean_of(facts)}; number of "
        f"{facts['split']} images of both classes in brackets. The table has the intervals."
    )
    return figure, caption, "images of the most confused pairs of classes"


def _shared(facts: Facts) -> Drawn | None:
    counts, units = facts["shared"]["wrong_by"], facts["shared"]["units"]
    if len(units) < 3:  # of two, the headings of the galleries say it all
        return None
    figure = new_figure(min(10, 3 + 0.6 * len(counts)), 3.2)
    axes = figure.subplots()
    axes.bar_label(axes.bar(range(1, len(counts)), counts[1:], color="C3"))
    axes.set(xticks=range(1, len(counts)), xlabel=f"of {len(units)} wrong", ylabel="images")
    axes.margins(y=0.15)
    caption = (
        f"How many of the {len(units)} ({'; '.join(units[:4])}{'; …' if len(units) > 4 else ''}) are wrong on the same "
        f"image; {counts[0]} of {facts['n']} images are right with all."
    )
    return figure, caption, "number of images by how many are wrong on them"


def _calibration(facts: Facts) -> Drawn:
    arms = list(facts["calibration"].items())[:ARMS]
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
    more = f" The first {ARMS} of {len(facts['calibration'])} are drawn." if len(facts["calibration"]) > ARMS else ""
    caption = (
        f"Calibration on {facts['n']} {facts['split']} images: share predicted correctly against the confidence of the "
        "prediction in 15 bins, Wilson's 95 % interval; pale bars show how many images are in a bin. Below the dashed "
        f"line the network is overconfident. ECE with its bootstrap interval over the images.{more}"
    )
    return figure, caption, "reliability diagrams"


def _covariates(facts: Facts) -> Drawn | None:
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
    n, gone = facts["n"], len(facts["covariates"]["missing"])
    which = f"{n - gone} {facts['split']} images"
    if gone:
        which += f" that are where the runs had them ({gone} of {n} are not)"
    caption = (
        f"Accuracy ({_mean_of(facts)}) in quarters of the {which}, from the lowest values to the highest; number of "
        "images in brackets, Wilson's 95 % interval."
    )
    return figure, caption, "accuracy by properties of the image"


FIGURES = {
    "hardest": _hardest,
    "confused": _confused,
    "shared": _shared,
    "calibration": _calibration,
    "covariates": _covariates,
}
