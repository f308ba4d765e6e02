"""Progress: a bar for a person at a terminal, lines for a log, a file for another process."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from roclab.core.files import write_json

T = TypeVar("T")
logger = logging.getLogger(__name__)

BAR_AFTER, FILE_EVERY, LINE_EVERY = 2.0, 1.0, 30.0  # seconds

_folder: Path | None = None  # the active run's folder, which takes progress.json
_loops: list[Path | None] = []  # at work, outermost first: the folder that each writes to
_stage: tuple[str, float] | None = None  # what the loops of now are part of, and the seconds that follow it


def duration(seconds: float) -> str:
    """45 s, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def stage(name: str, after: float) -> Iterator[None]:
    """While it lasts, the loops are part of a longer work of which `after` seconds follow: bars are headed by `name`,
    and `heading` says how far the whole is. Loops log no lines of their own. A stage may be part of another one."""
    global _stage
    outer, _stage = _stage, (f"{_stage[0]}, {name}" if _stage else name, after + (_stage[1] if _stage else 0))
    try:
        yield
    finally:
        _stage = outer


def heading(left: float) -> str:
    """ "run 2 of 4, 35 min left: " in a stage that itself takes `left` more seconds; elsewhere nothing."""
    return f"{_stage[0]}, {duration(left + _stage[1])} left: " if _stage else ""


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
    done: int = 0,
    left: Callable[[], float | None] | None = None,
) -> Iterator[T]:
    """Iterate and show how far it is: the one progress hook.

    `total` is len(iterable) if not given; `done` of it were there before. `left` says how many seconds are left (None:
    unknown) where items tell it badly; else those to come take as long as those so far.

    On a terminal, a bar with the time left once two seconds have passed, also before the first item; elsewhere a
    message at most every 30 seconds, and none within a `stage`.
    While a run is active, its folder's progress.json holds description, done, total, seconds (so far), left (seconds;
    null if unknown) and updated (Unix time), written at most once a second. Of loops inside one another the outermost
    is shown.
    """
    if total is None and isinstance(iterable, Sized):
        total = done + len(iterable)
    folder = None if _folder in _loops else _folder
    outermost, before = not _loops, done
    shown = f"{_stage[0]}: {description}" if _stage else description
    begin = written = logged = time.monotonic()

    def seconds_left() -> float | None:
        if left:
            return left()
        return (time.monotonic() - begin) * (total - done) / (done - before) if total and done > before else None

    bar = _bar(shown, total, done, seconds_left) if outermost and sys.stderr.isatty() else None
    starts = threading.Timer(BAR_AFTER, bar.start) if bar else None
    _loops.append(folder)
    try:
        if starts:
            starts.daemon = True
            starts.start()
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if bar:
                bar.advance(bar.task_ids[0])
            elif outermost and not _stage and now - logged > LINE_EVERY:
                logged, seconds = now, seconds_left()
                logger.info(
                    f"{description}: "
                    + (f"{done} of {total}, {seconds:.0f} s left" if seconds is not None else str(done))
                )
            if folder and (now - written > FILE_EVERY or (done == total and written > begin)):
                written = now
                about = {"description": description, "done": done, "total": total}
                times = {"seconds": now - begin, "left": seconds_left(), "updated": time.time()}
                with suppress(OSError):  # the work goes on without it
                    write_json(folder / "progress.json", about | times)
    finally:
        _loops.remove(folder)
        if bar and starts:
            starts.cancel()
            starts.join()  # it may be starting the bar just now
            bar.stop()


def _bar(description: str, total: int | None, done: int, left: Callable[[], float | None]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Left(ProgressColumn):
        """Asked at every refresh, also between two items."""

        def render(self, task: Task) -> Text:
            seconds = None if task.finished else left()
            return Text("" if seconds is None else f"{duration(seconds)} left")

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Left())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(description, total=total, completed=done)
    return bar
