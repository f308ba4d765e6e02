"""What a file may take while it is checked. Apart, so that the command line needs no numpy for its help."""

from __future__ import annotations

from dataclasses import dataclass

from roclab.core.settings import check_settings, setting


@dataclass(frozen=True)
class Limits:
    seconds: float = setting(20.0, "Time limit of each check, at least 1.", low=1)
    total_seconds: float = setting(180.0, "Time limit of the whole file, at least 1.", low=1)
    memory_mb: int = setting(2048, "Memory it may take beyond torch's own, at least 64.", low=64)

    def __post_init__(self) -> None:
        check_settings(self)
