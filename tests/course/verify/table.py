"""Runs every variant and prints the tables of docs/verify.md: `python -m tests.course.verify.table`. With `training`
behind it only those of the training parts.

Stops with an AssertionError at a mistake that is not found or is said to be in another part, and at a right variant
that fails.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from roclab.course.verify.checker import verify
from roclab.course.verify.sandbox import Sandbox
from tests.course.verify.more_variants import COMPACT, RIGHT, UNLISTED
from tests.course.verify.training_variants import TRAINING, WRONG_TRAINING
from tests.course.verify.variants import WRONG, edited

Variant = tuple[str, str, str]  # part, name, text of the file; the part of a right one is empty


def variants() -> Iterator[Variant]:
    for table in (WRONG, UNLISTED):
        for part, rows in table.items():
            yield from ((part, name, edited(edits)) for name, edits in rows.items())
    yield from (("", name, edited(edits)) for name, edits in RIGHT.items())
    yield "", "another style throughout", COMPACT


def training_variants() -> Iterator[Variant]:
    for part, rows in WRONG_TRAINING.items():
        yield from ((part, name, edited(edits, TRAINING)) for name, edits in rows.items())
    yield "", "training parts", TRAINING


def rows(sandbox: Sandbox, folder: Path, some: Iterable[Variant], training: bool = False) -> Iterator[Variant]:
    """(part, name, what the checker says) of each variant."""
    file = folder / "roclm_model.py"
    for part, name, text in some:
        print(f"{part or 'right'}: {name}", file=sys.stderr)
        file.write_text(text, encoding="utf-8")
        report = verify(file, sandbox=sandbox, training=training)
        told = report["diagnosis"] or {"component": "", "hint": ""}
        assert told["component"] == part, (name, told)
        failed = report["checks_total"] - report["checks_passed"]
        hint = told["hint"].removeprefix(f"{part}: ").replace("|", "\\|")
        yield part, name, f"| {failed} | {hint} |"


def main() -> None:
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        model = list(rows(sandbox, Path(folder), [] if "training" in sys.argv else variants()))
        trained = list(rows(sandbox, Path(folder), training_variants(), training=True))
    listed = ((WRONG, model), (UNLISTED, model), (WRONG_TRAINING, trained))
    for table, found in (pair for pair in listed if pair[1]):
        print("| part | mistake | checks failed | what the checker says |\n|---|---|---|---|")
        print("\n".join(f"| {part} | {name} {said}" for part, name, said in found if name in table.get(part, {})))
        print()
    print("Right ones:", "; ".join(name for part, name, _ in model if not part) + ".")


if __name__ == "__main__":
    main()
