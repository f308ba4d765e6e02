"""Progress: a bar for a person at a terminal, lines for a log, a file for another process."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
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


def track(iterable: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Iterate and show how far it is: the one progress hook.

    `total` is len(iterable) if not given; `done` of it were there before.

    On a terminal, a bar with the time left once two seconds have passed; elsewhere a message at most every 30 seconds.
    While a run is active, its folder's progress.json holds description, done, total, seconds (so far), left (seconds;
    null if unknown) and updated (Unix time), written at most once a second. Of loops inside one another the outermost
    is shown.
    """
    if total is None and isinstance(iterable, Sized):
        total = done + len(iterable)
    loop = _Loop(description, total, done)
    _loops.append(loop)
    try:
        for item in iterable:
            yield item
            loop.advance()
    finally:
        _loops.remove(loop)
        if loop.bar:
            loop.bar.stop()


class _Loop:
    def __init__(self, description: str, total: int | None, done: int):
        self.description, self.total, self.done, self.before = description, total, done, done
        self.begin = self.written = self.logged = time.monotonic()
        self.folder: Path | None = None if any(loop.folder == _folder for loop in _loops) else _folder
        self.outermost = not _loops
        self.bar: Any = _bar(description, total, done) if self.outermost and sys.stderr.isatty() else None

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        left = (now - self.begin) * (self.total - self.done) / (self.done - self.before) if self.total else None
        if self.bar:
            self.bar.advance(self.bar.task_ids[0])
            if not self.bar.live.is_started and now - self.begin > BAR_AFTER:
                self.bar.start()
        elif self.outermost and now - self.logged > LINE_EVERY:
            self.logged = now
            amount = f"{self.done} of {self.total}, {left:.0f} s left" if left is not None else str(self.done)
            logger.info(f"{self.description}: {amount}")
        if self.folder and (now - self.written > FILE_EVERY or (self.done == self.total and self.written > self.begin)):
            self.written = now
            about = {"description": self.description, "done": self.done, "total": self.total}
            times = {"seconds": now - self.begin, "left": left, "updated": time.time()}
            with suppress(OSError):  # the work goes on without it
                write_json(self.folder / "progress.json", about | times)


def _bar(description: str, total: int | None, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(description, total=total, completed=done)
    return bar
