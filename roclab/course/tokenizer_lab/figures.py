"""The lab's figures, each drawn from facts or a trace, each returned as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from roclab.course.tokenizer_lab.analysis import readable
from roclab.course.tokenizer_lab.bpe_trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc", "#fff2cc", "#d9d2e9")
LINE = "#555555"
STRIP_CELL = 0.21  # inches a character
MOST_ROWS_OF_MERGES = 40


def _axes(title: str, width: float, height: float) -> Axes:
    """Axes on a figure of their own, without pyplot's global state."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), dpi=110, layout="constrained").subplots()
    axes.set_title(drawable(title), fontsize=10, loc="left", parse_math=False)
    return axes


def _png(axes: Axes) -> bytes:
    figure: Any = axes.figure
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})  # the same figure, the same bytes
    return out.getvalue()


@cache
def _glyphs() -> frozenset[int]:
    """The characters that matplotlib's own font can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def drawable(text: str) -> str:
    """The text with characters that the font lacks written as U+XXXX."""
    return "".join(c if ord(c) in _glyphs() else f"U+{ord(c):X}" for c in text)


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    # parse_math: a $ in an ID is a $, not the beginning of a formula.
    usual: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": 8,
        "family": "DejaVu Sans",
        "parse_math": False,
    }
    axes.text(x, y, drawable(text), **(usual | style))


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, **more: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=LINE, linewidth=0.7, **more))


def token_strips(title: str, rows: Sequence[tuple[str, Sequence[str], Sequence[int]]]) -> bytes:
    """Texts as strips of coloured tokens, ids below: rows of (label, readable tokens, ids)."""
    widths = [
        [max(len(drawable(token)), len(str(i)) * 0.75, 1.2) + 0.8 for token, i in zip(tokens, ids, strict=True)]
        for _, tokens, ids in rows
    ]
    span = max(map(sum, widths), default=1)
    margin = max((len(drawable(label)) for label, _, _ in rows), default=0) * 0.62 + 1
    axes = _axes(title, (span + margin) * STRIP_CELL / 1.6 + 0.4, 0.62 * len(rows) + 0.5)
    for row, ((label, tokens, ids), row_widths) in enumerate(zip(rows, widths, strict=True)):
        _text(axes, -0.6, row, label, ha="right", color=LINE)
        at = 0.0
        for number, (token, token_id, width) in enumerate(zip(tokens, ids, row_widths, strict=True)):
            _box(axes, at, row - 0.36, width, 0.5, COLOURS[number % len(COLOURS)])
            _text(axes, at + width / 2, row - 0.11, token, fontsize=9)
            _text(axes, at + width / 2, row + 0.31, str(token_id), fontsize=6, color=LINE)
            at += width
    axes.set(xlim=(-margin, span + 0.2), ylim=(len(rows) - 0.4, -0.6))
    axes.set_axis_off()
    return _png(axes)


def merge_tree(title: str, trace: Trace) -> bytes:
    """How a text's bytes grow together: the bytes below, each merge of a piece a row above the one before, its rank
    above it; dashed lines where the pre-tokenizer cut. A piece with very many merges shows the first ones."""
    shown = [piece.merges[:MOST_ROWS_OF_MERGES] for piece in trace.pieces]
    count, total = sum(map(len, shown)), sum(len(piece.merges) for piece in trace.pieces)
    rows = max(map(len, shown), default=0)
    columns = sum(max(len(piece.symbols), 1) for piece in trace.pieces)
    more = f" (first {count} of {total} merges)" if total > count else ""
    axes = _axes(title + more, max(0.42 * columns + 1, 4.5), 0.4 * rows + 1.2)
    left_edge = 0
    for number, (piece, merges) in enumerate(zip(trace.pieces, shown, strict=True)):
        if number:
            axes.axvline(left_edge - 0.5, color=LINE, linestyle="--", linewidth=0.8)
        nodes: dict[int, tuple[float, float]] = {}  # first symbol's place → x and y of what it has grown into
        for place, symbol in enumerate(piece.symbols):
            nodes[place] = (left_edge + place, 0)
            _box(axes, left_edge + place - 0.38, -0.3, 0.76, 0.6, "#f3f3f3")
            _text(axes, left_edge + place, 0, readable(symbol).strip("⟨⟩"))
        for row, merge in enumerate(merges, start=1):
            parts = nodes[merge.at], nodes[merge.at + len(merge.left)]  # a symbol's characters are bytes
            x = (parts[0][0] + parts[1][0]) / 2
            for part_x, part_y in parts:
                axes.plot([part_x, part_x, x], [part_y + 0.3, row, row], color=LINE, linewidth=0.9, zorder=0)
            label = readable(merge.left + merge.right)
            width = max(0.26 * len(drawable(label)) + 0.3, 0.8)
            _box(axes, x - width / 2, row - 0.3, width, 0.6, COLOURS[number % len(COLOURS)])
            _text(axes, x, row, label)
            _text(axes, x + 0.07, row + 0.32, f"{merge.rank:,}", ha="left", va="bottom", fontsize=6, color=LINE)
            nodes[merge.at] = (x, row)
        left_edge += max(len(piece.symbols), 1)
    axes.set(xlim=(-0.8, max(left_edge, 1) + 0.4), ylim=(-0.6, rows + 0.8))
    axes.set_axis_off()
    return _png(axes)


def coverage_triangle(title: str, text: str, coverage: Mapping[str, Any]) -> bytes:
    """Every substring of the ID: column where it begins, row how long it is. Dark: one token; light: in the vocabulary,
    but no text of its own becomes it; empty: not in the vocabulary."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    n = max(len(text), 1)
    short = n <= 24
    cell = 0.34 if short else 0.16
    axes = _axes(title, max(cell * n + 1.4, 4.5), cell * n + 1.3)
    known = np.full((n, n), np.nan)  # [length - 1, start]; what is no substring stays empty
    for start in range(len(text)):
        known[: len(text) - start, start] = 0
    for kind, places in enumerate((coverage["listed"], coverage["single"]), start=1):
        for start, length in places:
            known[length - 1, start] = kind
    edges = np.arange(n + 1)
    colours = ListedColormap(["white", "#f9cb9c", "#3d85c6"])
    axes.pcolormesh(edges, edges + 0.5, known, cmap=colours, vmin=0, vmax=2, edgecolors=LINE, linewidth=0.5)
    for colour, label in (("#3d85c6", "becomes one token"), ("#f9cb9c", "only in the vocabulary")):
        _box(axes, -2, -2, 1, 1, colour, label=label)
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    axes.set(xlim=(0, n), ylim=(0.5, n + 0.5), xlabel="begins at", ylabel="characters")
    labels = ["␣" if c == " " else drawable(c) for c in text]
    axes.set_xticks([i + 0.5 for i in range(len(text))], labels, fontsize=9 if short else 5, parse_math=False)
    axes.set_yticks(range(1, n + 1, 1 if short else 4))
    axes.spines[["top", "right"]].set_visible(False)
    return _png(axes)


def vocabulary_lengths(lengths: Mapping[str, Mapping[int, int]]) -> bytes:
    """How long the vocabularies' tokens are, in bytes: one line a tokenizer, logarithmic counts."""
    axes = _axes("How long the tokens of the vocabularies are", 7, 3)
    for name, counts in lengths.items():
        axes.plot(*zip(*sorted(counts.items()), strict=True), marker="o", markersize=3, linewidth=1, label=name)
    axes.set(xlabel="bytes a token stands for", ylabel="tokens", yscale="log", xscale="log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(axes)
