"""The typical mistakes: each is the reference with one formula wrong.

An implementation that fails a check is compared with every one of them. If it answers as a mistake would, on this case
and on the others, the mistake has a name. The docstring is what the user reads; the base class says whose fault it is.
"""

from __future__ import annotations

from functools import lru_cache

from roclab.course.verify.reference import Reference


class Unpredictable(Exception):
    """This mistake's answer depends on rounding here: it can be anything but right."""


class Mistake(Reference):
    """The base of all mistakes: one class per component below it, the mistakes below those."""

    component = ""

    @classmethod
    def hint(cls) -> str:
        return " ".join((cls.__doc__ or "").split())


@lru_cache
def known() -> tuple[type[Mistake], ...]:
    """Every mistake, part by part."""
    from roclab.course.verify.mistakes import attention, generation, model, parts, positions

    modules = (parts, attention, positions, model, generation)
    found = [c for module in modules for c in vars(module).values() if isinstance(c, type) and issubclass(c, Mistake)]
    return tuple(c for c in found if c.component and c.__doc__)  # the components' base classes have no text
