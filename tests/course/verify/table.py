"""Runs every variant and prints the tables of docs/verify.md: `python -m tests.course.verify.table`.

Stops with an AssertionError at a mistake that is not found or is said to be in another part, and at a right variant
that fails.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from roclab.course.verify.checker import verify
from roclab.course.verify.sandbox import Sandbox
from tests.course.verify.more_variants import COMPACT, RIGHT, UNLISTED
from tests.course.verify.variants import WRONG, edited


def variants() -> Iterator[tuple[str, str, str]]:
    """(part, name, text of the file); the part of a right one is empty."""
    for table in (WRONG, UNLISTED):
        for part, rows in table.items():
            yield from ((part, name, edited(edits)) for name, edits in rows.items())
    yield from (("", name, edited(edits)) for name, edits in RIGHT.items())
    yield "", "another style throughout", COMPACT


def rows(sandbox: Sandbox, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(part, name, what the checker says) of each variant."""
    file = folder / "roclm_model.py"
    for part, name, text in variants():
        print(f"{part or 'right'}: {name}", file=sys.stderr)
        file.write_text(text, encoding="utf-8")
        report = verify(file, sandbox=sandbox)
        told = report["diagnosis"] or {"component": "", "hint": ""}
        assert told["component"] == part, (name, told)
        failed = report["checks_total"] - report["checks_passed"]
        hint = told["hint"].removeprefix(f"{part}: ").replace("|", "\\|")
        yield part, name, f"| {failed} | {hint} |"


def main() -> None:
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        found = list(rows(sandbox, Path(folder)))
    for table in (WRONG, UNLISTED):
        print("| part | mistake | checks failed | what the checker says |\n|---|---|---|---|")
        print("\n".join(f"| {part} | {name} {said}" for part, name, said in found if name in table.get(part, {})))
        print()
    print("Right ones:", "; ".join(name for part, name, _ in found if not part) + ".")


if __name__ == "__main__":
    main()
