"""The text of a file under test: a Python file, or a notebook's code cells; and how much of its structure is that of
RocLab's own file."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError

NODES = 40  # smaller functions look alike where the formula is the same: they are not compared
SHARE = 0.75  # independent files have less than half of it (docs/verify.md)
MAGIC = re.compile(r"^(\s*)(?:[\w, ]+=\s*)?(?:%%?[A-Za-z].*|!.*|[^#'\"]*\w\?\s*)$")
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
CODE_FOLLOWS = ("time", "timeit", "capture", "prun", "python", "python3", "pypy")  # cell magics around Python


@dataclass(frozen=True)
class Source:
    """`text` is None where the file itself is run; `error` is why nothing can be."""

    text: str | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


def read_source(path: Path) -> Source:
    """Raises RocLabError if it is no file or cannot be read."""
    if not path.is_file():
        raise RocLabError(f"{path}: {'is a folder, not a Python file' if path.is_dir() else 'no such file'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RocLabError(f"{path}: cannot be read: {error.strerror}") from None
    return notebook(data) if path.suffix == ".ipynb" else Source()


def notebook(data: bytes) -> Source:
    """The code cells in order, without magics."""
    try:
        cells = [lines(cell["source"]) for cell in json.loads(data)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Source(
            "", error="it is not a notebook of today's format: open and save it in Jupyter, or export a script"
        )
    if not cells:
        return Source("", error="it is a notebook without code cells")
    texts, dropped = zip(*map(without_magics, cells), strict=True)
    notes = [f"a notebook: its {len(cells)} code cells in order; lines are counted over all of them"]
    if sum(dropped):
        notes.append(f"{sum(dropped)} lines with magics or shell commands (%, !) were left out")
    text = "\n".join(texts) + "\n"
    if future := list(dict.fromkeys(FUTURE.findall(text))):  # in a file they must stand in front
        text = "\n".join([*future, FUTURE.sub("", text)])
        notes.append(f"its __future__ imports stand in front, in {len(future)} lines of their own")
    return Source(text, tuple(notes))


def lines(source: Any) -> str:
    return source if isinstance(source, str) else "".join(source)


def without_magics(cell: str) -> tuple[str, int]:
    """The cell as Python with as many lines, and how many were left out."""
    try:
        ast.parse(cell)
    except (SyntaxError, ValueError):
        pass
    else:
        return cell, 0
    rows = cell.split("\n")
    first = next((row for row in rows if row.strip()), "")
    if first.startswith("%%") and first[2:].split(" ")[0] not in CODE_FOLLOWS:
        return "\n" * (len(rows) - 1), len(rows)
    found = [MAGIC.match(row) for row in rows]
    return "\n".join((m[1] and f"{m[1]}pass") if m else row for m, row in zip(found, rows, strict=True)), sum(
        map(bool, found)
    )


# ---- structure


def same_structure(text: str | bytes, ours: str) -> dict[str, int] | None:
    """How many functions and methods of the text have the structure of one of ours: {"same", "of"}. None where the
    text is not Python."""
    try:
        theirs = structures(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return {"same": (theirs & structures(ours)).total(), "of": theirs.total()}


def structures(text: str | bytes) -> Counter[str]:
    """Of each function of some size, its syntax without names, texts and annotations."""
    found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return Counter(dump for dump, nodes in map(structure, found) if nodes >= NODES)


def structure(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, int]:
    kinds: list[str] = []

    def walk(node: ast.AST) -> None:
        number = isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float))
        kinds.append(f"{type(node).__name__}{ast.unparse(node)}" if number else type(node).__name__)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment", "type_params", "decorator_list", "ctx"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not is_docstring(child):
                    walk(child)
        kinds.append(")")

    walk(function)
    return " ".join(kinds), len(kinds) // 2


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def note_on_structure(found: dict[str, int] | None) -> list[str]:
    if not found or not found["of"] or found["same"] / found["of"] < SHARE:
        return []
    return [f"{found['same']} of {found['of']} functions have the same structure as RocLab's own file"]
