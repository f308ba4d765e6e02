"""What commands print: lines for a reader, one line of JSON for scripts."""

from __future__ import annotations

import json
import math
from typing import Any

from roclab.core.files import plain_json


def show(found: Any, as_json: bool, text: str) -> None:
    """Print a command's answer: with --json `found`, else the `text` that says it in words."""
    if as_json:
        print_json(found)
    else:
        print(text.removesuffix("\n"))


def print_json(obj: Any) -> None:
    """Print one line of JSON on stdout, the format of every `--json`.

    Characters beyond ASCII are escaped, so that any terminal and pipe takes the line. A number that is not finite
    becomes null, because JSON has no word for it.
    """
    print(json.dumps(_finite(obj), default=lambda value: _finite(plain_json(value)), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
