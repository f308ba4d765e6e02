"""Drawings of ResNet and Swin Transformer from the numbers of the real module (`networks.describe_network`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roclab.report.figures import COLOURS, WIDTH, save
from roclab.vision.evaluate.figures import new_figure

PALE = ("#dbe8f5", "#fbe3d6", "#dcefe2", "#ece0f2", "#f4ecd0", "#e6e6e6")


def draw_network(network: Mapping[str, Any], path: Path) -> None:
    """The stages above; below, the block of which they are built."""
    figure = new_figure(WIDTH, 3.3)
    above, below = figure.subplots(2, 1, height_ratios=[1, 1.2])
    for axes in (above, below):
        axes.set_axis_off()
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 40)
    (_resnet if network["kind"] == "resnet" else _swin)(network, above, below)
    save(figure, path)


def _row(axes: Any, boxes: Sequence[str], y: float = 8, height: float = 24) -> None:
    """Boxes from left to right with arrows between them."""
    width = 100 / len(boxes)
    for i, text in enumerate(boxes):
        _box(axes, i * width + 0.2, y, width - 2.2, height, text, PALE[i % len(PALE)])
        if i:
            _arrow(axes, (i * width - 2.2, y + height / 2), (i * width + 0.4, y + height / 2))


def _box(axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str = "#ffffff") -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=colour, ec="#444444", lw=0.8))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=6.2, linespacing=1.35)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = "#444444") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})


def _resnet(network: Mapping[str, Any], above: Any, below: Any) -> None:
    stages = [
        f"stage {i}\n{row['blocks']} bottlenecks\n{row['channels']} channels\n{row['side']} × {row['side']}"
        for i, row in enumerate(network["stages"], start=1)
    ]
    size = network["image_size"]
    _row(above, [f"image\n{size} × {size}\n× 3", network["stem"], *stages, _head(network)])
    inner, outer = network["stages"][0]["inner"], network["stages"][0]["channels"]
    steps = (f"1 × 1 conv\n{outer} → {inner}", f"3 × 3 conv\n{inner} → {inner}", f"1 × 1 conv\n{inner} → {outer}")
    for i, text in enumerate(steps):
        _box(below, 16 + 20 * i, 8, 15, 12, text, PALE[0])
        _arrow(below, (11 + 20 * i, 14), (16 + 20 * i, 14))
    _arrow(below, (71, 14), (76, 14))
    below.text(78, 14, "+", ha="center", va="center", fontsize=13)
    _arrow(below, (80, 14), (90, 14))
    below.text(91, 14, "ReLU", va="center", fontsize=7)
    below.plot([12, 12, 78, 78], [14, 31, 31, 19], color=COLOURS[1], lw=1.4)
    _arrow(below, (78, 20), (78, 16.5), COLOURS[1])
    below.text(45, 32, "skip: the input is added to the output", ha="center", fontsize=7, color=COLOURS[1])
    below.text(45, 1, "A bottleneck of stage 1; BatchNorm after each convolution.", ha="center", fontsize=7)


def _swin(network: Mapping[str, Any], above: Any, below: Any) -> None:
    stages = [
        f"stage {i}\n{row['blocks']} blocks\n{row['channels']} channels\n{row['heads']} heads\n"
        f"{row['side']} × {row['side']}"
        for i, row in enumerate(network["stages"], start=1)
    ]
    size = network["image_size"]
    _row(above, [f"image\n{size} × {size}\n× 3", network["stem"], *stages, _head(network)])
    window, shift = network["stages"][0]["window"], network["stages"][0]["shift"]
    _windows(below, 6, window, 0, f"a block: attention within\nwindows of {window} × {window} patches")
    _windows(below, 54, window, shift, f"the next block: the windows\nshifted by {shift} patches")
    _arrow(below, (38, 22), (52, 22))
    below.text(45, 25, "then", ha="center", fontsize=7)


def _windows(axes: Any, left: float, window: int, shift: int, text: str) -> None:
    """Two by two windows of patches, shifted to the right and down by `shift` patches."""
    from matplotlib.patches import Rectangle

    cells, width, height, bottom = 2 * window, 30.0, 28.0, 10.0
    for i in range(cells):
        for j in range(cells):
            part = (
                ((i + shift) // window + (j + shift) // window * 3) % len(PALE)
                if shift
                else i // window + j // window * 2
            )
            x, y = left + width * j / cells, bottom + height * (cells - 1 - i) / cells
            axes.add_patch(Rectangle((x, y), width / cells, height / cells, fc=PALE[part], ec="#bbbbbb", lw=0.3))
    for edge in (0, window - shift if shift else window, 2 * window - shift if shift else 2 * window, cells):
        x, y = left + width * edge / cells, bottom + height * (cells - edge) / cells
        axes.plot([x, x], [bottom, bottom + height], color="#333333", lw=1.1)
        axes.plot([left, left + width], [y, y], color="#333333", lw=1.1)
    axes.text(left + width / 2, 0, text, ha="center", va="bottom", fontsize=7)


def _head(network: Mapping[str, Any]) -> str:
    return f"mean over\nplaces, then\nlinear head\n{network['features']} → classes"
