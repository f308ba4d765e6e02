"""Pandoc's Markdown, piece by piece: escaped text, and tables and figures with a number and a source."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# What the Markdown is read as. Text is taken as it stands: no clever quotes, citations, raw HTML or TeX.
FORMAT = "markdown-smart-citations-raw_html-raw_tex-latex_macros-example_lists-emoji-native_divs-native_spans"


def esc(text: Any) -> str:
    """Foreign text as Markdown that shows just that text, on one line."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    flat = re.sub(r"([\\`*_{}\[\]<>#|~^$@&\"'!])", r"\\\1", flat)
    return re.sub(r"^([-+:%=]|\d+(?=[.)]))", lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], flat)


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def interval(ci: Sequence[float] | None, digits: int = 1) -> str:
    return "–" if ci is None else f"{percent(ci[0], digits)}–{percent(ci[1], digits)}"


def refs(names: Iterable[str]) -> str:
    """R1, R2, R3, R7 → R1–R3, R7."""
    numbers = sorted({int(name[1:]) for name in names})
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"R{a}" if a == b else f"R{a}, R{b}" if b == a + 1 else f"R{a}–R{b}" for a, b in spans)


@dataclass
class Page:
    """The report as it grows. `sources` keeps, for every figure and table, what it was made from."""

    blocks: list[str] = field(default_factory=list)
    sources: list[tuple[str, str, str]] = field(default_factory=list)  # Figure 1, what it shows, R1–R4: metrics.jsonl
    figures: int = 0
    tables: int = 0

    def heading(self, title: str, level: int = 1) -> None:
        self.blocks.append(f"{'#' * level} {title}")

    def say(self, *paragraphs: str) -> None:
        self.blocks += paragraphs

    def bullets(self, lines: Iterable[str]) -> None:
        if lines := list(lines):
            self.blocks.append("\n".join(f"- {line}" for line in lines))

    def figure(self, file: str, caption: str, source: str, width: int = 100) -> None:
        """`file` is relative to the report; `caption` is Markdown, `source` plain text."""
        self.figures += 1
        name = f"Figure {self.figures}"
        self.sources.append((name, caption, source))
        self.blocks.append(f"![{name}. {caption} *{esc(source)}.*]({file}){{width={width}%}}")

    def table(
        self,
        head: Sequence[str],
        align: str,
        rows: Sequence[Sequence[str]],
        caption: str,
        source: str,
        even: bool = False,
    ) -> None:
        """A pipe table; `align` has l, r or c for each column. Columns are as wide as their longest cell asks for, long
        ones less than that; with `even` the centred ones are all alike."""
        self.tables += 1
        name = f"Table {self.tables}"
        self.sources.append((name, caption, source))
        lengths = [
            max(len(re.sub(r"\\(.)", r"\1", cell)) for cell in column) for column in zip(head, *rows, strict=True)
        ]
        widths = [round(min(n, 24) + min(max(n - 24, 0) / 4, 40)) + 2 for n in lengths]
        if even and "c" in align:
            middle = min(20, max(w for w, a in zip(widths, align, strict=True) if a == "c"))
            widths = [middle if a == "c" else w for w, a in zip(widths, align, strict=True)]
        rule = {"l": ":{}-", "r": "-{}:", "c": ":{}:"}
        rules = [rule[a].format("-" * (w - 2)) for w, a in zip(widths, align, strict=True)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
        lines.insert(1, "|" + "|".join(rules) + "|")
        self.blocks.append("\n".join([*lines, "", f": {name}. {caption} *{esc(source)}.*"]))

    @property
    def next_figure(self) -> str:
        return f"Figure {self.figures + 1}"

    def code(self, lines: Iterable[str]) -> None:
        text = "\n".join(lines)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        self.blocks.append(f"{fence}\n{text}\n{fence}")

    def text(self) -> str:
        return "\n\n".join(self.blocks) + "\n"


def command_lines(command: Sequence[str], width: int = 88) -> list[str]:
    """A command as a shell takes it, broken into lines that fit a page."""
    lines = [""]
    for word in map(shlex.quote, command):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines
