"""The pictures of the RocLM chapter, drawn from the facts of `roclab.report.roclm` alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.report.figures import WIDTH
from roclab.vision.evaluate.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Facts = Mapping[str, Any]
LINE = "#444444"
EMBEDDING, NORM, ATTENTION, MLP, PLAIN = "#fff2cc", "#eeeeee", "#cfe2f3", "#d9ead3", "#ffffff"


def draw(facts: Facts, folder: Path) -> None:
    """architecture.png, rope.png and mask.png."""
    architecture(facts, folder / "architecture.png")
    rope(facts["rope"], folder / "rope.png")
    mask(facts["attention"], folder / "mask.png")


def architecture(facts: Facts, path: Path) -> None:
    """The whole model, one layer and its attention, side by side, with the sizes of a configuration."""
    figure = new_figure(WIDTH, 5.6)
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.set_axis_off()
    c = facts["config"]
    _model(axes, c)
    _layer(axes, c)
    _attention(axes, c)
    for (x0, y0), (x1, y1) in (((27, 63), (36, 92)), ((27, 47), (36, 8)), ((62, 35), (69, 92)), ((62, 27), (69, 8))):
        axes.plot([x0, x1], [y0, y1], ":", color=LINE, lw=0.7)
    save_figure(figure, path)


def _model(axes: Axes, c: Facts) -> None:
    D, V, N = c["hidden_size"], c["vocab_size"], c["num_hidden_layers"]
    head = "the embedding, transposed" if c["tie_word_embeddings"] else "weights of its own"
    _column(axes, 14, 26, [
        (8, "token ids (B, T)", PLAIN),
        (24, f"token embedding\n{V:,} × {D:,}", EMBEDDING),
        (55, f"{N} layers\nas on the right\n(B, T, {D:,})", ATTENTION),
        (78, f"RMSNorm ({D:,})", NORM),
        (92, f"LM head → (B, T, {V:,})\n{head}", EMBEDDING),
    ])  # fmt: skip


def _layer(axes: Axes, c: Facts) -> None:
    D, F, heads, kv_heads = (
        c[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    _column(axes, 49, 26, [
        (5, f"x (B, T, {D:,})", PLAIN),
        (18, "RMSNorm", NORM),
        (31, f"attention\n{heads} query heads, {kv_heads} of k and v", ATTENTION),
        (44, "+", PLAIN),
        (57, "RMSNorm", NORM),
        (73, f"SwiGLU\n{D:,} → 2 × {F:,} → {D:,}", MLP),
        (86, "+", PLAIN),
        (96, "to the next layer", PLAIN),
    ])  # fmt: skip
    for low, high in ((11.5, 44), (50.5, 86)):  # what is added again
        axes.plot([49, 34.6, 34.6], [low, low, high], color=LINE, lw=0.9)
        axes.annotate("", (46.2, high), (34.6, high), arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 0.9})


def _attention(axes: Axes, c: Facts) -> None:
    D, C, H, K = (c[name] for name in ("hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads"))
    norms = ", RMSNorm over each head" if c["qk_norm"] else ""
    _column(axes, 84, 30, [
        (12, f"q: {D:,} → {H} × {C}\nk, v: {D:,} → {K} × {C} each{norms and chr(10) + 'q, k' + norms}", ATTENTION),
        (31, "RoPE turns q and k", PLAIN),
        (46, f"scores q·kᵀ / √{C}\n{H // K} query heads share a k and v", PLAIN),
        (61, "causal mask, softmax", PLAIN),
        (75, f"· v  →  {H} × {C}", PLAIN),
        (90, f"output projection\n{H * C:,} → {D:,}", ATTENTION),
    ])  # fmt: skip


def _column(axes: Axes, x: float, width: float, boxes: list[tuple[float, str, str]]) -> None:
    """Boxes (height of the middle, text, colour) from below to above, an arrow from each to the next."""
    from matplotlib.patches import FancyBboxPatch

    edges = []
    for y, text, colour in boxes:
        lines = text.count("\n") + 1
        across, height = (5, 4.5) if text == "+" else (width, 3.2 + 2.9 * lines)
        shape = "round,pad=0,rounding_size=0.8"
        box = (x - across / 2, y - height / 2)
        axes.add_patch(FancyBboxPatch(box, across, height, shape, fc=colour, ec=LINE, lw=0.8, zorder=2))
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5, zorder=3, linespacing=1.25)
        edges.append((y - height / 2, y + height / 2))
    for (_, top), (bottom, _) in pairwise(edges):
        axes.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 0.9})


def rope(facts: Facts, path: Path) -> None:
    """Left: scores of every query with every key position; right: the same by distance, from several beginnings."""
    figure = new_figure(WIDTH, 2.9)
    left, right = figure.subplots(1, 2)
    image = left.imshow(facts["square"], cmap="RdBu_r", vmin=-facts["largest"], vmax=facts["largest"])
    left.grid(visible=False)
    left.set(xlabel="position of the key", ylabel="position of the query")
    figure.colorbar(image, ax=left, shrink=0.85, label="score q·k")
    styles = ("-", "--", ":")
    for number, (begin, scores) in enumerate(facts["by_distance"].items()):
        style = styles[number % len(styles)]
        right.plot(scores, style, lw=1.2 + number, alpha=0.8, label=f"begins at {int(begin):,}", color=f"C{number}")
    right.set(xlabel="distance of query and key in tokens", ylabel="score q·k")
    right.legend(title="the text", title_fontsize=8)
    save_figure(figure, path)


def mask(facts: Facts, path: Path) -> None:
    """Attention weights of some layers, a mean over the heads; what is exactly zero is white."""
    layers, tokens = facts["layers"], facts["tokens"]
    figure = new_figure(WIDTH, WIDTH / len(layers) + 0.75)
    panels = np.atleast_1d(figure.subplots(1, len(layers)))
    for axes, (layer, weights) in zip(panels, layers.items(), strict=True):
        shown = np.ma.masked_equal(np.array(weights), 0)
        image = axes.imshow(shown, cmap="viridis_r", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.grid(visible=False)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
        axes.set_yticks(range(len(tokens)), tokens if axes is panels[0] else [], fontsize=6)
    panels[0].set_ylabel("the token that looks")
    panels[len(panels) // 2].set_xlabel("the token it looks at")
    figure.colorbar(image, ax=list(panels), shrink=0.7, label="weight", pad=0.01)
    save_figure(figure, path)
