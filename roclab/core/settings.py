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
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

from roclab.core.exceptions import RocLabError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: str | os.PathLike, option: str) -> dict[str, Any]:
    """The values of a TOML file that `option` names; raises `RocLabError` where there is none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return tomllib.loads(file.read())
    except OSError as error:
        raise RocLabError(f"{option} {path}: {error.strerror}") from None
    except ValueError as error:  # TOML's and UTF-8's
        raise RocLabError(f"{option} {path} is not valid TOML: {error}") from None


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


def check_settings(settings: Any) -> None:
    """Raises RocLabError that names the first field whose value lies outside its bounds or choices."""
    for f in fields(settings):
        value, about = getattr(settings, f.name), f.metadata
        if value is None or "low" not in about:
            continue
        own = (flag.split("/")[0] for flag in about["flags"] if flag.startswith("--"))
        name = next(own, f"--{f.name.replace('_', '-')}")
        if about["choices"] and value not in about["choices"]:
            raise RocLabError(f"{name} {value}: choose one of {', '.join(about['choices'])}")
        low, high = about["low"], about["high"]
        if isinstance(value, (int, float)) and not (low <= value <= high and abs(value) < math.inf):
            allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise RocLabError(f"{name} {value}: must be {allowed}")


def settings_from(kind: type[T], values: Mapping[str, Any], path: str | os.PathLike, required: Collection[str]) -> T:
    """An instance of the dataclass `kind` from the JSON object in the file `path`.

    Fields outside `required` may be missing: the file may be of an older version. Raises RocLabError that names the
    first key that is unknown, missing or of another type. (kind's module must have postponed annotations.)
    """
    kinds = {f.name: str(f.type).split(" | ") for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - kinds.keys()):
        raise RocLabError(f"{path} has keys this version does not know: {', '.join(unknown)}")
    if missing := [name for name in required if name not in values]:
        raise RocLabError(f"{path} has no {', '.join(missing)}: restore the file, or train again")
    for name, value in values.items():
        found = "None" if value is None else type(value).__name__
        if found not in kinds[name] and not (found == "int" and "float" in kinds[name]):  # JSON may write 1.0 as 1
            wanted = " or ".join(kinds[name])
            raise RocLabError(
                f"{path}: {name} is {value!r}, which should be {wanted}: restore the file, or train again"
            )
    return kind(**values)
