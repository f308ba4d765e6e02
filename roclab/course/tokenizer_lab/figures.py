"""The lab's pictures, each drawn from facts or a trace, each returned as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from roclab.course.tokenizer_lab.analysis import readable
from roclab.course.tokenizer_lab.bpe_trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc", "#fff2cc", "#d9d2e9")
LINE = "#555555"
STRIP_CELL = 0.21  # inches a character
MOST_ROWS_OF_MERGES = 40


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, free of pyplot's global state (and of any display)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})  # the same picture, the same bytes
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
    axes.text(x, y, drawable(text), family="DejaVu Sans", parse_math=False, **style)


def token_strips(title: str, rows: Sequence[tuple[str, Sequence[str], Sequence[int]]]) -> bytes:
    """Texts as strips of coloured tokens, ids below: rows of (label, readable tokens, ids)."""
    widths = [[max(len(drawable(t)), len(str(i)) * 0.75, 1.2) + 0.8 for t, i in zip(ts, ids, strict=True)]
              for _, ts, ids in rows]  # fmt: skip
    span = max((sum(row) for row in widths), default=1)
    margin = max((len(drawable(label)) for label, _, _ in rows), default=0) * 0.62 + 1
    figure = _figure((span + margin) * STRIP_CELL / 1.6 + 0.4, 0.62 * len(rows) + 0.5)
    axes = figure.subplots()
    for row, ((label, tokens, ids), row_widths) in enumerate(zip(rows, widths, strict=True)):
        _text(axes, -0.6, row, label, ha="right", va="center", fontsize=8, color=LINE)
        at = 0.0
        for number, (token, token_id, width) in enumerate(zip(tokens, ids, row_widths, strict=True)):
            axes.add_patch(_box(at, row - 0.36, width, 0.5, COLOURS[number % len(COLOURS)]))
            _text(axes, at + width / 2, row - 0.11, token, ha="center", va="center", fontsize=9)
            _text(axes, at + width / 2, row + 0.31, str(token_id), ha="center", va="center", fontsize=6, color=LINE)
            at += width
    axes.set(xlim=(-margin, span + 0.2), ylim=(len(rows) - 0.4, -0.6))
    axes.set_axis_off()
    axes.set_title(drawable(title), fontsize=10, loc="left", parse_math=False)
    return _png(figure)


def _box(x: float, y: float, width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=colour, edgecolor=LINE, linewidth=0.7)


def merge_tree(title: str, trace: Trace) -> bytes:
    """How a text's bytes grow together: the bytes below, each merge of a piece a row higher than the one before, its
    rank above it; dashed lines where the pre-tokenizer cut. A piece with very many merges shows the first ones."""
    merges = [
        (number, row, merge)
        for number, piece in enumerate(trace.pieces)
        for row, merge in enumerate(piece.merges, start=1)
    ]
    shown = [entry for entry in merges if entry[1] <= MOST_ROWS_OF_MERGES]
    rows = max((row for _, row, _ in shown), default=0)
    columns = sum(max(len(piece.symbols), 1) for piece in trace.pieces)
    figure = _figure(max(0.42 * columns + 1, 4.5), 0.4 * rows + 1.2)
    axes = figure.subplots()
    offsets, at = [], 0
    for number, piece in enumerate(trace.pieces):
        offsets.append(at)
        if number:
            axes.axvline(at - 0.5, color=LINE, linestyle="--", linewidth=0.8)
        for place, symbol in enumerate(piece.symbols):
            axes.add_patch(_box(at + place - 0.38, -0.3, 0.76, 0.6, "#f3f3f3"))
            _text(axes, at + place, 0, readable(symbol).strip("⟨⟩"), ha="center", va="center", fontsize=8)
        at += max(len(piece.symbols), 1)
    node: dict[tuple[int, int], tuple[float, float, int]] = {}  # (piece, first symbol) → x, y, bytes
    for number, row, merge in shown:
        parts = []
        place = merge.at
        for symbol in (merge.left, merge.right):
            parts.append(node.get((number, place), (offsets[number] + place, 0.0, 1)))
            place += len(symbol)  # a symbol's characters are bytes
        (x1, y1, _), (x2, y2, _) = parts
        x = (x1 + x2) / 2
        for px, py in ((x1, y1), (x2, y2)):
            axes.plot([px, px, x], [py + 0.3, row, row], color=LINE, linewidth=0.9, zorder=0)
        label = readable(merge.left + merge.right)
        width = max(0.26 * len(drawable(label)) + 0.3, 0.8)
        axes.add_patch(_box(x - width / 2, row - 0.3, width, 0.6, COLOURS[number % len(COLOURS)]))
        _text(axes, x, row, label, ha="center", va="center", fontsize=8)
        _text(axes, x + 0.07, row + 0.32, f"{merge.rank:,}", ha="left", va="bottom", fontsize=6, color=LINE)
        node[number, merge.at] = (x, float(row), len(merge.left + merge.right))
    more = f" (first {len(shown)} of {len(merges)} merges)" if len(merges) > len(shown) else ""
    axes.set(xlim=(-0.8, max(at, 1) + 0.4), ylim=(-0.6, rows + 0.8))
    axes.set_axis_off()
    axes.set_title(drawable(title + more), fontsize=10, loc="left", parse_math=False)
    return _png(figure)


def coverage_triangle(title: str, text: str, coverage: Mapping[str, Any]) -> bytes:
    """Every substring of the ID: column where it begins, row how long it is. Dark: one token; light: in the vocabulary,
    but no text of its own becomes it; empty: not in the vocabulary."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    n = max(len(text), 1)
    cell = 0.34 if n <= 24 else 0.16
    figure = _figure(max(cell * n + 1.4, 4.5), cell * n + 1.3)
    axes = figure.subplots()
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
        axes.add_patch(_box(-2, -2, 1, 1, colour)).set_label(label)
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    axes.set(xlim=(0, n), ylim=(0.5, n + 0.5), xlabel="begins at", ylabel="characters")
    axes.set_xticks([i + 0.5 for i in range(len(text))])
    axes.set_xticklabels(["␣" if c == " " else drawable(c) for c in text], fontsize=9 if n <= 24 else 5,
                         parse_math=False)  # fmt: skip
    axes.set_yticks(range(1, n + 1, 1 if n <= 24 else 4))
    axes.set_title(drawable(title), fontsize=10, loc="left", parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _png(figure)


def vocabulary_lengths(lengths: Mapping[str, Mapping[int, int]]) -> bytes:
    """How long the vocabularies' tokens are, in bytes: one line a tokenizer, logarithmic counts."""
    figure = _figure(7, 3)
    axes = figure.subplots()
    for name, counts in lengths.items():
        places = sorted(counts)
        axes.plot(places, [counts[p] for p in places], marker="o", markersize=3, linewidth=1, label=name)
    axes.set(xlabel="bytes a token stands for", ylabel="tokens", yscale="log", xscale="log")
    axes.set_title("How long the tokens of the vocabularies are", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)
