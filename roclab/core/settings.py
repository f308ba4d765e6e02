"""A setting is declared once, as a field of a dataclass: its default, its bounds, its help.

    @dataclass(frozen=True)
    class SamplingParams:
        temperature: float = setting(0.0, "0 takes the most likely token.", low=0)

        def __post_init__(self) -> None:
            check_settings(self)

The command line's flags (`roclab.cli.options`), the check of a value and the table in the documentation follow from
it. A dataclass and thirty lines instead of pydantic, tyro or jsonargparse: typer and its help stay as they are, and
nothing else has to be installed or imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any

from roclab.core.exceptions import RocLabError


def setting(
    default: Any,
    help: str = "",
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Any:
    """A dataclass field. `low` and `high` are allowed themselves; None as a value is always allowed and means "not
    given". `flags` are the command line's names where they differ from the field's."""
    about = {"help": help, "low": low, "high": high, "choices": tuple(choices), "flags": tuple(flags)}
    return field(default=default, metadata=about)


def flag_of(name: str, flags: Sequence[str] = ()) -> str:
    """A field's name on the command line: image_size → --image-size."""
    return next((flag.split("/")[0] for flag in flags if flag.startswith("--")), f"--{name.replace('_', '-')}")


def check_settings(settings: Any) -> None:
    """Raises RocLabError that names the first field whose value lies outside its bounds or choices."""
    for f in fields(settings):
        value, about = getattr(settings, f.name), f.metadata
        if value is None or "low" not in about:
            continue
        name = flag_of(f.name, about["flags"])
        if about["choices"] and value not in about["choices"]:
            raise RocLabError(f"{name} {value}: choose one of {', '.join(about['choices'])}")
        low, high = about["low"], about["high"]
        if isinstance(value, (int, float)) and not (low <= value <= high and abs(value) < math.inf):
            allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise RocLabError(f"{name} {value}: must be {allowed}")
