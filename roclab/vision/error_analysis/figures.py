"""The figures of the error analysis, each drawn from the facts alone, with its caption: what, n and which interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from roclab.vision.evaluate.figures import new_figure, save_figure

CLASSES = 20  # the hardest that are drawn
PAIRS = 12
ARMS = 6  # calibration diagrams
COLOURS = {"cat": "C1", "dog": "C0", None: "C0"}


def draw(facts: dict[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Draw what the facts allow into `folder`; returns name -> {"file", "caption", "alt"}."""
    made = {}
    for name, make in (
        ("hardest", _hardest),
        ("confused", _confused),
        ("shared", _shared),
        ("calibration", _calibration),
        ("covariates", _covariates),
    ):
        figure, caption, alt = make(facts)
        if figure is not None:
            save_figure(figure, folder / f"{name}.png")
            made[name] = {"file": f"{name}.png", "caption": caption, "alt": alt}
    return made


def _whiskers(axes: Any, at: Any, share: Any, ci: Any, colour: Any, horizontal: bool) -> None:
    """A point with its interval, in per cent."""
    low, high = 100 * ci[0], 100 * ci[1]
    if horizontal:
        axes.plot([low, high], [at, at], color=colour, lw=2, alpha=0.6)
        axes.plot(100 * share, at, "o", color=colour, ms=6)
    else:
        axes.plot([at, at], [low, high], color=colour, lw=2, alpha=0.6)
        axes.plot(at, 100 * share, "o", color=colour, ms=6)


def _mean_of(facts: dict[str, Any]) -> str:
    runs = len(facts["runs"])
    return f"mean of {runs} runs" if runs > 1 else "one run"


def _hardest(facts: dict[str, Any]) -> tuple[Any, str, str]:
    seen = [row for row in facts["hardest"] if row["n"]]
    rows = seen[:CLASSES]
    figure = new_figure(7.5, 0.28 * len(rows) + 1.2)
    axes = figure.subplots()
    for at, row in enumerate(rows):
        _whiskers(axes, at, row["share"], row["ci95"], COLOURS.get(row["species"], "C0"), True)
    overall = 100 * sum(row["count"] for row in seen) / sum(row["n"] for row in seen)
    axes.axvline(overall, color="0.5", ls="--", lw=1)
    axes.set_yticks(range(len(rows)), [f"{row['class']} ({row['n']})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("called rightly (%)")
    axes.grid(axis="x", alpha=0.3)
    if facts["species"]:
        for kind in sorted(set(facts["species"].values())):
            axes.plot([], [], "o", color=COLOURS.get(kind, "C0"), label=kind)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above: rows fill the axes
    which = f"The {len(rows)} hardest of {len(seen)} classes" if len(rows) < len(seen) else "The classes"
    caption = (
        f"{which} with images: share called rightly ({_mean_of(facts)}), number "
        f"of {facts['split']} images in brackets, Wilson's 95 % interval; dashed: all {facts['n']} images "
        f"({overall:.1f} %). Intervals that overlap do not say which class is harder."
    )
    return figure, caption, f"accuracy of the {len(rows)} hardest classes with intervals"


def _confused(facts: dict[str, Any]) -> tuple[Any, str, str]:
    rows = facts["confused"][:PAIRS]
    if not rows:
        return None, "", ""
    figure = new_figure(7.5, 0.34 * len(rows) + 1.3)
    axes = figure.subplots()
    at = np.arange(len(rows))
    forth, back = (np.array([row[key] for row in rows]) for key in ("a_called_b", "b_called_a"))
    axes.barh(at, forth, color="C0", label="first called second")
    axes.barh(at, back, left=forth, color="C1", label="second called first")
    axes.set_yticks(at, [f"{row['a']} / {row['b']} ({row['n']})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"images ({_mean_of(facts)})")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False
    )  # above: bars fill the axes
    pairs = len(facts["confused"])
    caption = (
        (f"The {len(rows)} most confused of {pairs}" if len(rows) < pairs else "The") + " pairs of classes that were "
        f"confused at all: images a run, {_mean_of(facts)}; number of {facts['split']} images of both classes in "
        "brackets. The table has the intervals."
    )
    return figure, caption, "images of the most confused pairs of classes"


def _shared(facts: dict[str, Any]) -> tuple[Any, str, str]:
    counts = facts["shared"]["wrong_by"]
    if len(counts) < 4:  # of two, the headings of the galleries say it all
        return None, "", ""
    figure = new_figure(min(10, 3 + 0.6 * len(counts)), 3.2)
    axes = figure.subplots()
    bars = axes.bar(range(1, len(counts)), counts[1:], color="C3")
    axes.bar_label(bars)
    axes.set_xticks(range(1, len(counts)))
    axes.set_xlabel(f"of {len(counts) - 1} wrong")
    axes.set_ylabel("images")
    axes.margins(y=0.15)
    caption = (
        f"How many of the {len(counts) - 1} ({', '.join(facts['shared']['units'][:4])}"
        f"{', …' if len(counts) > 5 else ''}) are wrong on the same image; {counts[0]} of {facts['n']} images are "
        "right with all."
    )
    return figure, caption, "number of images by how many are wrong on them"


def _short(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _calibration(facts: dict[str, Any]) -> tuple[Any, str, str]:
    arms = list(facts["calibration"].items())[:ARMS]
    columns = 2 if len(arms) == 4 else min(3, len(arms))
    lines = -(-len(arms) // columns)
    figure = new_figure(3.2 * columns + 0.6, 3.7 * lines)
    grid = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axes, (name, row) in zip(grid, arms, strict=False):
        axes.plot([0, 100], [0, 100], "--", color="0.5", lw=1)
        for b in row["bins"]:
            _whiskers(axes, 100 * b["confidence"], b["accuracy"], b["ci95"], "C0", False)
        shares = axes.twinx()
        shares.bar(
            [50 * (b["from"] + b["to"]) for b in row["bins"]],
            [b["images"] for b in row["bins"]],
            width=90 * (row["bins"][0]["to"] - row["bins"][0]["from"]),
            color="C0",
            alpha=0.15,
        )
        shares.set_ylim(0, 3 * max(b["images"] for b in row["bins"]))
        shares.set_yticks([])
        axes.set_title(f"{name}\nECE {row['ece']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]", fontsize=9)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("right (%)")
    for axes in grid[len(arms) :]:
        axes.set_visible(False)
    more = f" The first {ARMS} of {len(facts['calibration'])} are drawn." if len(facts["calibration"]) > ARMS else ""
    caption = (
        f"Calibration on {facts['n']} {facts['split']} images: share called rightly against the confidence of the call "
        "in 15 bins, Wilson's 95 % interval; pale bars show how many images are in a bin. Below the dashed line the "
        f"network is too sure. ECE with its bootstrap interval over the images.{more}"
    )
    return figure, caption, "reliability diagrams"


def _covariates(facts: dict[str, Any]) -> tuple[Any, str, str]:
    measures = facts["covariates"]["measures"]
    if not measures:
        return None, "", ""
    columns = min(3, len(measures))
    lines = -(-len(measures) // columns)
    figure = new_figure(3.2 * columns + 0.6, 3.2 * lines)
    grid = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axes, row in zip(grid, measures.values(), strict=False):
        for at, group in enumerate(row["groups"]):
            _whiskers(axes, at, group["share"], group["ci95"], "C0", False)
        names = [f"{_short(g['from'])} to\n{_short(g['to'])}\n({g['n']})" for g in row["groups"]]
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, max(1, len(names)) - 0.5)
        axes.set_ylim(0, 103)
        axes.set_ylabel("right (%)")
        axes.set_title(row["says"].replace(" (", "\n("), fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[len(measures) :]:
        axes.set_visible(False)
    n, gone = facts["n"], len(facts["covariates"]["missing"])
    which = f"{n - gone} {facts['split']} images"
    if gone:
        which += f" that are where the runs had them ({gone} of {n} are not)"
    caption = (
        f"Accuracy ({_mean_of(facts)}) in quarters of the {which}, from the lowest values to the "
        "highest; number of images in brackets, Wilson's 95 % interval."
    )
    return figure, caption, "accuracy by properties of the image"
