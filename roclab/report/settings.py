"""What only the author can say: who wrote the report, who was asked, which AI tools were used."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Settings:
    """What the author states; whatever is None stands in the report as not filled in."""

    author: str | None = None
    student_id: str | None = None
    title: str | None = None
    course: str | None = None
    date: str | None = None
    consulted: tuple[str, ...] | None = field(default=None)  # people; empty: nobody, and that is a statement
    ai_tools: tuple[str, ...] | None = field(default=None)  # likewise

    @classmethod
    def read(cls, path: Path | None) -> Settings:
        """Settings from a TOML file with the keys above; raises `RocLabError` for a key or a value that is not one."""
        if path is None:
            return cls()
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RocLabError(f"--settings {path}: {error.strerror}") from None
        except ValueError as error:  # TOML's and UTF-8's
            raise RocLabError(f"--settings {path} is not valid TOML: {error}") from None
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise RocLabError(f"--settings {path} has unknown keys: {', '.join(unknown)} (known: {', '.join(known)})")
        return cls(**{name: _typed(path, name, value) for name, value in values.items()})

    def with_given(self, **given: Any) -> Settings:
        """A copy in which what was given on the command line replaces what the file says."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def unfilled(self) -> list[str]:
        """Names of what the report has to say and nobody has filled in."""
        return [name for name in ("author", "student_id", "consulted", "ai_tools") if getattr(self, name) is None]


def _typed(path: Path, name: str, value: Any) -> Any:
    if name in ("consulted", "ai_tools"):
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(line for line in lines if line.strip())
        raise RocLabError(f"--settings {path}: {name} must be a text or a list of texts")
    if isinstance(value, (dict, list, bool)):
        raise RocLabError(f"--settings {path}: {name} must be a text")
    return str(value)  # a student ID typed as a number, a TOML date
