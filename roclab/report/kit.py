"""Templates filled with facts: Markdown and HTML pages in which nothing that comes from outside acts as markup.

A page is a Jinja template (.md or .html). Every value is escaped for the template's format; only what `table`, `code`,
`literal`, `Document` or a macro made goes in as it is. Plain text (.txt: sentences, what a command prints) is not
escaped. All words and numbers of `roclab.core.sentences` are filters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from roclab.core.sentences import environment, escape, written

TEMPLATES = Path(__file__).parent / "templates"
NUMBERS = ("percent", "number", "interval", "p_value", "amount")
CELL_END = re.compile(r"(?<!\\)\|")
CODE_TABLE_OR_GAP = re.compile(
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)$|^\|[^\n]+\|\n\|[-:| ]+\|\n(?:\|[^\n]+\|\n)*|\n{3,}",
    re.MULTILINE | re.DOTALL,
)


def render(template: str | Path, **values: Any) -> str:
    """The text of a template: a name in this package's folder `templates`, or a path."""
    path = TEMPLATES / template  # of an absolute path, that path
    if path.suffix == ".txt":
        return written(path, **values)
    markdown = path.suffix == ".md"
    text = _environment(path.parent, markdown).get_template(path.name).render(values)
    return tidy(text) if markdown else text


@cache
def _environment(folder: Path, markdown: bool) -> Environment:
    made = environment(folder, TEMPLATES, autoescape=True, finalize=escape if markdown else None)
    if markdown:
        made.filters |= {name: _marked(made.filters[name]) for name in NUMBERS}
    made.filters["file_name"] = lambda path: Path(path).name
    made.globals |= {"code": code, "literal": literal, "quoted": quoted, "table": table}
    return made


def _marked(write: Callable[..., str]) -> Callable[..., Markup]:
    """A filter whose numbers go in as they are: they hold nothing that acts as Markdown."""
    return lambda *values, **options: Markup(write(*values, **options))


def table(head: Sequence[Any], align: str, rows: Iterable[Sequence[Any]]) -> Markup:
    """A pipe table; `align` has l, r or c for each column."""
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join({"l": ":-", "r": "-:", "c": ":-:"}[a] for a in align) + "|")
    return Markup("\n".join(lines))


def tidy(markdown: str) -> str:
    """Gives pipe tables a rule whose dashes say how wide each column is, which is where pandoc takes it from: as wide
    as its longest cell asks for, long ones less than that; centred columns are all alike. Of several empty lines, which
    loops leave behind, one stays. Code blocks are left as they are."""

    def widened(match: re.Match[str]) -> str:
        if match["fence"] or match[0].isspace():
            return match[0] if match["fence"] else "\n\n"
        head, _, rest = match[0].split("\n", 2)
        return "\n".join([head, _rule(match[0].strip().split("\n")), rest])

    return CODE_TABLE_OR_GAP.sub(widened, markdown + "\n").removesuffix("\n")


def _rule(lines: list[str]) -> str:
    head, rule, *rows = ([cell.strip() for cell in CELL_END.split(line)[1:-1]] for line in lines)
    lengths = [max(len(plain(cell)) for cell in column) for column in zip(head, *rows, strict=True)]
    widths = [max(1, round(min(n, 24) + min(max(n - 24, 0) / 4, 40))) for n in lengths]
    centred = [cell.startswith(":") and cell.endswith(":") for cell in rule]
    alike = min(18, max((w for w, c in zip(widths, centred, strict=True) if c), default=0))
    widths = [alike if c else w for w, c in zip(widths, centred, strict=True)]
    return "|" + "|".join(f"{r[0]}{'-' * w}{r[-1]}" for r, w in zip(rule, widths, strict=True)) + "|"


def plain(markdown: str) -> str:
    """Markdown for a terminal: without the backslashes of `escape`."""
    return re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", markdown)


def code(text: str) -> Markup:
    """Text as a code block, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{text}\n{fence}")


def quoted(text: str) -> Markup:
    """Text as somebody said it, set in: a line block, which keeps its lines and the blanks before them, and wraps."""
    lines = [line.expandtabs(4).rstrip() for line in text.splitlines()]
    blanks = [len(line) - len(line.lstrip(" ")) for line in lines]
    return Markup("\n".join(f"> | {' ' * n}{escape(line)}" for n, line in zip(blanks, lines, strict=True)))


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
    """Numbers the figures and tables of a Markdown page; `sources` keeps what each was made from.

    In a template: `![{{ doc.next("Figure", "R1: metrics.jsonl") }} What it shows. {{ doc.source }}](figures/loss.png)`.
    """

    sources: list[tuple[str, str]] = field(default_factory=list)  # Figure 1, R1–R4: metrics.jsonl

    def next(self, kind: str, source: str) -> Markup:
        """The name of the next figure or table."""
        self.sources.append((f"{kind} {self.count(kind) + 1}", source))
        return Markup(f"{self.sources[-1][0]}.")

    def count(self, kind: str) -> int:
        """How many there are so far, of "Figure" or "Table"."""
        return sum(name.startswith(kind) for name, _ in self.sources)

    @property
    def source(self) -> Markup:
        """The last one's source, as it stands at the end of a caption."""
        return Markup(f"*{escape(self.sources[-1][1])}.*")
