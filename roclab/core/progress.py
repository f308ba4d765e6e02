"""Progress: a bar for a person at a terminal, lines for a log, a file for another process."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from roclab.core.files import write_json

T = TypeVar("T")
logger = logging.getLogger(__name__)

BAR_AFTER, FILE_EVERY, LINE_EVERY = 2.0, 1.0, 30.0  # seconds

_folder: Path | None = None  # the active run's folder, which takes progress.json
_loops: list[_Loop] = []  # at work, outermost first


def report_to(folder: Path | None) -> None:
    """From now on loops also write progress.json into `folder`; None ends that and removes the file."""
    global _folder
    if _folder and _folder != folder:
        with suppress(OSError):
            (_folder / "progress.json").unlink(missing_ok=True)
    _folder = folder


def track(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    size: Callable[[T], int] | None = None,
    done: int = 0,
) -> Iterator[T]:
    """Iterate and show how far it is: the one progress hook.

    On a terminal, a bar with the time left once two seconds have passed; elsewhere a message at most every 30 seconds.
    While a run is active, its folder's progress.json holds description, done, total, seconds (so far), left (seconds;
    null if unknown) and updated (Unix time), written at most once a second. Of loops inside one another the outermost
    is shown.

    `total` is len(iterable) if not given. `size` gives an item's bytes; `total`, and `done`, which is there before the
    first item, are then bytes.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    loop = _Loop(description, total, done, in_bytes=size is not None)
    _loops.append(loop)
    try:
        for item in iterable:
            yield item
            loop.advance(size(item) if size else 1)
    finally:
        _loops.remove(loop)
        loop.close()


class _Loop:
    def __init__(self, description: str, total: int | None, done: int, in_bytes: bool):
        self.description, self.total, self.done = description, total, done
        self.at_first, self.in_bytes = done, in_bytes
        self.begin = self.written = self.logged = time.monotonic()
        self.folder: Path | None = None if any(loop.folder == _folder for loop in _loops) else _folder
        self.shown = not _loops
        self.bar: Any = _bar(description, total, done, in_bytes) if self.shown and sys.stderr.isatty() else None

    def advance(self, by: int) -> None:
        self.done += by
        now = time.monotonic()
        if self.bar:
            self.bar.advance(self.bar.task_ids[0], by)
            if not self.bar.live.is_started and now - self.begin > BAR_AFTER:
                self.bar.start()
        elif self.shown and now - self.logged > LINE_EVERY:
            self.logged = now
            logger.info(self.line(now))
        if self.folder and (now - self.written > FILE_EVERY or (self.done == self.total and self.written > self.begin)):
            self.written = now
            self.write(self.folder / "progress.json", now)

    def left(self, now: float) -> float | None:
        """Seconds left, at the mean speed so far."""
        gained = self.done - self.at_first
        return (now - self.begin) * (self.total - self.done) / gained if self.total is not None and gained else None

    def line(self, now: float) -> str:
        unit, scale = (" MB", 1e6) if self.in_bytes else ("", 1)
        of = "" if self.total is None else f" of {self.total / scale:.0f}"
        left = "" if (seconds := self.left(now)) is None else f", {seconds:.0f} s left"
        return f"{self.description}: {self.done / scale:.0f}{of}{unit}{left}"

    def write(self, path: Path, now: float) -> None:
        left = self.left(now)
        state = {
            "description": self.description,
            "done": self.done,
            "total": self.total,
            "seconds": round(now - self.begin, 1),
            "left": None if left is None else round(left, 1),
            "updated": round(time.time(), 1),
        }
        with suppress(OSError):  # the work goes on without it
            write_json(path, state)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _bar(description: str, total: int | None, done: int, in_bytes: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(description, total=total, completed=done)
    return bar
