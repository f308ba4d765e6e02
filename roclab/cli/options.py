"""The fields of a settings dataclass (`roclab.core.settings`) as options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

THINKING = {"on": True, "off": False, "auto": None}  # what is typed for it

Command = TypeVar("Command", bound=Callable[..., Any])


def options_from(
    settings: type,
    parameter: str,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] = {},
) -> Callable[[Command], Command]:
    """Decorator: the command's keyword `parameter`, an instance of `settings`, is filled from one option a field.

    `only` and `without` choose the fields; the others keep their defaults. `defaults` are this command's own.
    """
    hints = get_type_hints(settings)
    chosen = [f for f in fields(settings) if f.metadata and (only is None or f.name in only) and f.name not in without]
    several = {f.name for f in chosen if hints[f.name] == Sequence[str]}  # the option may be repeated

    def option(f: Any) -> inspect.Parameter:
        kind, default = (list[str], None) if f.name in several else (hints[f.name], defaults.get(f.name, f.default))
        annotation: Any = Annotated[kind, typer.Option(*f.metadata["flags"], help=f.metadata["help"])]
        return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != parameter]
        own_hints = {n: h for n, h in get_type_hints(command, include_extras=True).items() if n != parameter}

        @wraps(command)
        def run(**values: Any) -> Any:
            given = {f.name: values.pop(f.name) for f in chosen}
            given |= {name: tuple(given[name] or ()) for name in several}
            return command(**values, **{parameter: settings(**given)})

        added = [option(f) for f in chosen]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        )
        run.__annotations__ = own_hints | {p.name: p.annotation for p in added}
        del run.__wrapped__  # typer would look through to the command's own signature
        return run  # type: ignore[return-value]

    return decorate
