"""Templates filled with facts: Markdown and HTML pages in which nothing that comes from outside acts as markup.

A page is a Jinja template (.md or .html) beside the code that fills it. Every value is escaped for the template's
format; only what was built by `table`, `Document` or a macro goes in as it is. All words and numbers of
`roclab.core.sentences` are filters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from roclab.core import sentences

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("percent", "number", "interval", "p_value", "amount", "counted", "listed")
RULES = {"l": ":{}-", "r": "-{}:", "c": ":{}:"}


def render(template: str | Path, **values: Any) -> str:
    """The text of a template: a name in this package's folder `templates`, or a path."""
    path = TEMPLATES / template  # of an absolute path, that path
    return _environment(path.parent, path.suffix).get_template(path.name).render(values)


@cache
def _environment(folder: Path, suffix: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        finalize=escape if suffix == ".md" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(sentences, name) for name in FILTERS}
    environment.globals |= {"table": table, "code": code}
    return environment


def escape(text: Any) -> Markup:
    """Any text as Markdown that shows just that text, on one line."""
    if isinstance(text, Markup):
        return text
    if isinstance(text, (int, float)):
        return Markup(text)
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    flat = re.sub(r"([\\`*_{}\[\]<>#|~^$@&!])", r"\\\1", flat)
    return Markup(re.sub(r"^([-+:%=]|\d+(?=[.)]))", lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], flat))


def table(head: Sequence[Any], align: str, rows: Iterable[Sequence[Any]], even: bool = False) -> Markup:
    """A pipe table; `align` has l, r or c for each column. Columns are as wide as their longest cell asks for, long
    ones less than that (pandoc takes the widths from the rule); with `even` the centred ones are all alike."""
    lines = [[escape(cell) for cell in row] for row in (head, *rows)]
    lengths = [max(len(re.sub(r"\\(.)", r"\1", cell)) for cell in column) for column in zip(*lines, strict=True)]
    widths = [round(min(n, 24) + min(max(n - 24, 0) / 4, 40)) + 2 for n in lengths]
    if even and "c" in align:
        middle = min(20, max(w for w, a in zip(widths, align, strict=True) if a == "c"))
        widths = [middle if a == "c" else w for w, a in zip(widths, align, strict=True)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "|".join(RULES[a].format("-" * (w - 2)) for w, a in zip(widths, align, strict=True)) + "|")
    return Markup("\n".join(text))


def code(text: str) -> Markup:
    """Text as a code block, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{text}\n{fence}")


def literal(text: str) -> Markup:
    """Text as a code span on one line."""
    text = " ".join(text.split())
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}")


def command_lines(command: Sequence[str], width: int = 88) -> list[str]:
    """A command as a shell takes it, broken into lines that fit a page."""
    lines = [""]
    for word in map(shlex.quote, command):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


@dataclass
class Document:
    """Numbers the figures and tables of a Markdown page. `sources` keeps what each was made from."""

    sources: list[tuple[str, str]] = field(default_factory=list)  # Figure 1, R1–R4: metrics.jsonl
    figures: int = 0
    tables: int = 0

    def figure(self, file: str, caption: Any, source: str, width: int = 100) -> Markup:
        """`file` is relative to the page, `width` in percent of the text's."""
        self.figures += 1
        return Markup(f"![{self._caption(f'Figure {self.figures}', caption, source)}]({file}){{width={width}%}}")

    def table(
        self, head: Sequence[Any], align: str, rows: Iterable[Sequence[Any]], caption: Any, source: str,
        even: bool = False,
    ) -> Markup:  # fmt: skip
        self.tables += 1
        about = self._caption(f"Table {self.tables}", caption, source)
        return Markup(f"{table(head, align, rows, even)}\n\n: {about}")

    def _caption(self, name: str, caption: Any, source: str) -> str:
        self.sources.append((name, source))
        return f"{name}. {escape(caption)} *{escape(source)}.*"

    @property
    def next_figure(self) -> str:
        return f"Figure {self.figures + 1}"
