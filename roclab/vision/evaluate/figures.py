"""The pictures of a run and of a comparison, each drawn from run folders alone. The report draws curves, accuracy and
confusion with the same functions, in its own style."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.core.files import atomic_file, read_json
from roclab.core.runs import Run
from roclab.vision.evaluate.metrics import epoch_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 30  # epochs or steps; steps of L-BFGS are more, epochs of fine-tuning seldom
COUNTED = {"features": "step of the head's solver (frozen backbone)", "finetune": "epoch (fine-tuning)"}
FEW = 12  # classes whose names stand aslant; those of more stand upright


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, free of pyplot's global state (and of any display)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Draw a figure; names in any script, in fonts of this machine that have their characters, or else escaped."""
    from matplotlib.text import Text

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        labels = [label.get_text() for label in axis.get_majorticklabels()]
        _, missing = _fonts_for(frozenset("".join(labels)))
        if missing:  # the texts at ticks are drawn anew from these
            axis.set_ticklabels([_escaped(label, missing) for label in labels])
    written: list[Any] = figure.findobj(Text)
    fonts, missing = _fonts_for(frozenset("".join(text.get_text() for text in written)))
    for text in written:
        text.set_parse_math(False)  # names are shown letter for letter
        text.set_text(_escaped(text.get_text(), missing))
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    kind = path.suffix[1:]  # png, or what keeps lines and letters sharp at any size: svg, pdf
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=undated)
    return path


def _escaped(text: str, characters: Collection[str]) -> str:
    """With \\u732b in the place of a character that cannot be drawn."""
    return "".join(c.encode("unicode_escape").decode() if c in characters else c for c in text)


@cache
def _fonts_for(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """The families to draw characters with that matplotlib's own font lacks, and the characters that no font has."""
    from matplotlib import font_manager

    fonts: list[str] = []
    own = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    missing = {c for c in characters if c != "\n" and ord(c) not in own}
    for entry in font_manager.fontManager.ttflist if missing else ():
        with suppress(Exception):  # of a damaged font
            font = font_manager.get_font(entry.fname)
            found = {chr(code) for code in font.get_charmap()} & missing
            if found and font.scalable and not entry.name.startswith(("Last Resort", "STIXNon")):  # boxes, and symbols
                fonts.append(entry.name)
                missing -= found
    return fonts, frozenset(missing)


def run_figure(run: Run, split: str = "val") -> Path:
    """Loss curves, confusion matrix and per-class F1 of one run in one picture: RUN/figures/SPLIT.png."""
    results = read_json(run.path / f"results-{split}.json")
    side = _matrix_side(len(results["per_class"]))
    if len(results["per_class"]) <= FEW:
        figure = new_figure(13, side)
        losses, matrix, bars = figure.subplots(1, 3)
    else:  # the matrix needs the whole height
        figure = new_figure(side + 6.5, side)
        axes = figure.subplot_mosaic([["matrix", "losses"], ["matrix", "bars"]], width_ratios=[side, 6.5])
        losses, matrix, bars = (axes[name] for name in ("losses", "matrix", "bars"))
    curves(losses, {"validation": [run]}, run.config["strategy"])
    losses.set_title("loss, training dashed")
    losses.set_ylim(bottom=0)
    losses.grid(alpha=0.3)
    confusion(matrix, np.array(results["confusion"]), list(results["per_class"]))
    matrix.set_title(f"{split}: top-1 {100 * results['top1']:.1f} % of {results['n']} images")
    _f1(bars, {"F1": {name: row["f1"] for name, row in results["per_class"].items()}})
    return save_figure(figure, run.path / "figures" / f"{split}.png")


def comparison_figures(arms: Mapping[str, Sequence[Run]], split: str, folder: Path) -> list[Path]:
    """Loss curves of all runs, accuracy with intervals, confusion matrices, per-class F1 side by side."""
    results = {name: [read_json(r.path / f"results-{split}.json") for r in runs] for name, runs in arms.items()}
    classes = list(next(iter(results.values()))[0]["per_class"])
    made = []

    figure = loss_figure(8, 5, arms)
    for axes in figure.axes:
        axes.set_title("training dashed", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    made.append(save_figure(figure, folder / "loss.png"))

    figure = new_figure(7, 0.6 * len(arms) + 1.5)
    axes = figure.subplots()
    ci95 = {name: np.mean([r["ci95"]["top1"] for r in runs], axis=0) for name, runs in results.items()}
    accuracy(axes, {name: {"top1": [r["top1"] for r in results[name]], "top1_ci95": ci95[name]} for name in results})
    axes.set_xlabel(f"top-1 on {split} (%): bar mean, dots seeds, line 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    made.append(save_figure(figure, folder / "accuracy.png"))

    columns, side = min(2, len(arms)), _matrix_side(len(classes))
    lines = -(-len(arms) // columns)
    figure = new_figure(side * columns, side * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, runs) in zip(grid, results.items(), strict=False):
        confusion(axes, np.sum([r["confusion"] for r in runs], axis=0), classes)
        axes.set_title(f"{name}\n{len(runs)} seed{'s' * (len(runs) > 1)} added", fontsize=10)
    for axes in grid[len(arms) :]:
        axes.set_visible(False)
    made.append(save_figure(figure, folder / "confusion.png"))

    figure = new_figure(max(6, (0.12 + 0.09 * len(arms)) * len(classes)), 4 + 0.2 * len(arms))
    scores = {
        name: {c: float(np.mean([r["per_class"][c]["f1"] for r in runs])) for c in classes}
        for name, runs in results.items()
    }
    _f1(figure.subplots(), scores)
    made.append(save_figure(figure, folder / "f1.png"))
    return made


def loss_lines(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[list, list], tuple[list, list]]:
    """The lines of the validation and of the training loss over the epochs, each as (epochs, losses).

    Epoch 0 is the trained head that fine-tuning begins with. What it is worth on validation images belongs to that
    line; its training loss, of a finished head on images that nothing was done to, tells nothing of how the net learnt.
    """
    trained = [row for row in rows if epoch_of(row) >= 1]
    return (
        ([epoch_of(row) for row in rows], [row["val_loss"] for row in rows]),
        ([epoch_of(row) for row in trained], [row["train_loss"] for row in trained]),
    )


def loss_figure(width: float, height: float, arms: Mapping[str, Sequence[Run]], cut: Collection[Run] = ()) -> Figure:
    """The losses of all runs. Steps of a solver and epochs are different things: each has axes of its own."""
    shown = [kind for kind in COUNTED if any(run.config["strategy"] == kind for runs in arms.values() for run in runs)]
    figure = new_figure(width, height)
    for axes, strategy in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        curves(axes, arms, strategy, cut)
        axes.label_outer()
    figure.axes[0].set_ylim(bottom=0)  # now that all lines are there: the axes share it
    return figure


def curves(axes: Any, arms: Mapping[str, Sequence[Run]], strategy: str, cut: Collection[Run] = ()) -> None:
    """Training loss dashed, validation loss solid, of the runs under one strategy: one colour an arm, all seeds; a run
    of `cut` ends in a cross."""
    longest = 1
    for number, (name, members) in enumerate(arms.items()):
        colour = f"C{number}"
        runs = [run for run in members if run.config["strategy"] == strategy]
        for run in runs:
            val, training = loss_lines(run.metrics())
            longest = max([longest, *val[0]])
            dots = "o" if len(training[0]) <= LONG else ""  # without, a line of one epoch would not be seen
            axes.plot(*val, "-", marker=dots, ms=3, color=colour, label=name if run is runs[0] else None)
            axes.plot(*training, "--", marker=dots, ms=3, color=colour, alpha=0.7)
            if val[0] and run in cut:
                axes.plot(val[0][-1], val[1][-1], "x", color=colour, ms=7)
    _epoch_axis(axes, longest)
    axes.set(xlabel=COUNTED[strategy], ylabel="cross-entropy (nats)")


def _epoch_axis(axes: Any, longest: int) -> None:
    """Whole numbers only; many on a logarithmic axis that has a place for epoch 0."""
    from matplotlib.ticker import MaxNLocator

    if longest > LONG:
        axes.set_xscale("symlog", linthresh=1)
        ticks = [0, *(step * 10**power for power in range(6) for step in (1, 2, 5) if step * 10**power <= longest)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(left=-0.05)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def accuracy(axes: Any, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Top-1 of each arm in per cent: every run a dot, the mean a bar, the 95 % interval a line."""
    for row, arm in enumerate(arms.values()):
        dots, colour = 100 * np.array(arm["top1"]), f"C{row}"
        axes.plot(100 * np.array(arm["top1_ci95"]), [row, row], color=colour, lw=1.6)
        axes.plot(dots, [row] * len(dots), "o", color=colour, alpha=0.4, ms=5)
        axes.plot(dots.mean(), row, "|", color=colour, ms=16, mew=2.5)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.margins(y=0.2)


def _matrix_side(classes: int) -> float:
    """Inches that a confusion matrix and its names take: so much a class that names of 7 points stand apart."""
    return max(4.5, 2.2 + 0.2 * classes)


def confusion(axes: Any, counts: np.ndarray, classes: Sequence[str], points: float | None = None) -> None:
    """Share of each true class (row) that was predicted as each class (column), and the counts where they can be read.
    `points`: the size of the classes' names."""
    few = len(classes) <= FEW
    points = points or _name_points(classes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts + few) if points >= 6.5 else ():
        axes.text(
            j, i, str(counts[i, j]), ha="center", va="center", fontsize=points if few else 0.8 * points,
            color="white" if share[i, j] > 0.5 else "black",
        )  # fmt: skip
    _class_ticks(axes, classes, points)
    axes.set_yticks(range(len(classes)), classes, fontsize=points)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)


def _name_points(classes: Sequence[str]) -> float:
    return 9 if len(classes) <= FEW else 7


def _class_ticks(axes: Any, classes: Sequence[str], points: float) -> None:
    aslant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(classes) <= FEW else {"rotation": 90}
    axes.set_xticks(range(len(classes)), classes, fontsize=points, **aslant)


def _f1(axes: Any, scores: Mapping[str, Mapping[str, float]]) -> None:
    """F1 of each class, the arms side by side."""
    classes = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    for number, (name, row) in enumerate(scores.items()):
        at = np.arange(len(classes)) + (number - (len(scores) - 1) / 2) * width
        axes.bar(at, [row[c] for c in classes], width, label=name)
    _class_ticks(axes, classes, _name_points(classes))
    axes.margins(x=0.01)
    axes.set(ylabel="F1", ylim=(0, 1))
    if len(scores) > 1:  # above the axes: bars fill them
        axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
