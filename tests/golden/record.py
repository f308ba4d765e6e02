"""Writes the records anew: `python -m tests.golden.record [NAME…]`. Look at the difference before you commit it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tests.golden.common import add_machine, write_record

NAMES = ("commands", "logits", "lm", "tools", "vision")


def main(wanted: Sequence[str]) -> None:
    if unknown := sorted(set(wanted) - set(NAMES)):
        sys.exit(f"no record is called {', '.join(unknown)}: choose among {', '.join(NAMES)}")
    for name in wanted or NAMES:
        found = importlib.import_module(f"tests.golden.test_{name}").now()
        write_record(name, add_machine(name, found) if "machines" in found else found)
        print(f"tests/golden/{name}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
