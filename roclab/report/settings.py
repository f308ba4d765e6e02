"""What only the author can say: who wrote the report, who was asked, which AI tools were used."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.settings import read_toml, setting

LISTS = ("consulted", "ai_tools")
OBSERVATIONS = (  # the chapters that have a place for the author's own words
    "training", "accuracy", "classes", "errors", "architectures", "strategies", "roclm", "tokenizer_lab", "demo"
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the author states. None stands in the report as not filled in; an empty list says nobody, or none."""

    author: str | None = setting(None, "Your name.")
    student_id: str | None = setting(None, "Your student ID.")
    title: str | None = setting(None, "Title of the report.")
    course: str | None = None
    date: str | None = None
    consulted: list[str] | None = setting(None, 'A person consulted; may be repeated. "" says nobody.')
    ai_tools: list[str] | None = setting(None, 'An AI tool used and for what; may be repeated. "" says none.')
    observations: dict[str, str] | None = None  # the author's own words, by chapter

    @classmethod
    def read(cls, path: Path | None) -> Settings:
        """Settings from a TOML file with the keys above; raises `RocLabError` for a key or a value that is not one."""
        if path is None:
            return cls()
        values = read_toml(path, "--settings")
        known = [f.name for f in fields(cls)]
        _check_keys(f"--settings {path}", values, known)
        return cls(**{name: _typed(path, name, value) for name, value in values.items()})

    def with_given(self, given: Settings) -> Settings:
        """A copy in which what was given on the command line replaces what the file says."""
        values: dict[str, Any] = {name: value for name, value in vars(given).items() if value not in (None, [])}
        values |= {name: _stated(values[name]) for name in LISTS if name in values}
        return replace(self, **values)


def _check_keys(where: str, values: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(values) - set(known)):
        raise RocLabError(f"{where} has unknown keys: {', '.join(unknown)} (known: {', '.join(known)})")


def _stated(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def _typed(path: Path, name: str, value: Any) -> Any:
    if name in LISTS:
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return _stated(lines)
        raise RocLabError(f"--settings {path}: {name} must be a text or a list of texts")
    if name == "observations":
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise RocLabError(f"--settings {path}: [observations] must have a text for each key")
        _check_keys(f"--settings {path}: [observations]", value, OBSERVATIONS)
        return {key: text for key, text in value.items() if text.strip()}
    if isinstance(value, (dict, list, bool)):
        raise RocLabError(f"--settings {path}: {name} must be a text")
    return str(value)  # a student ID typed as a number, a TOML date
