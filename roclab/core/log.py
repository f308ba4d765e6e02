"""Messages go through the standard library's logging, under the logger "roclab".

    logger = logging.getLogger(__name__)
    logger.info("fetching the weights")

A program that imports RocLab decides itself what it shows; the command line calls `show_messages`. A run folder's
log.txt is one more handler (`roclab.core.runs`).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

ROOT = logging.getLogger("roclab")


class _Terminal(logging.Handler):
    """Plain lines on stderr, "warning: " before a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            # sys.stderr is looked up for each line: while a progress bar is shown, rich puts a file there that writes
            # the line above the bar.
            print(prefix + self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written (a full disk) is an error like any other, not a note on stderr."""
        if isinstance(error := sys.exc_info()[1], OSError):
            error.filename = self.baseFilename
        raise


def show_messages() -> None:
    """Show messages from INFO upwards on stderr. A second call changes nothing."""
    if not any(isinstance(handler, _Terminal) for handler in ROOT.handlers):
        ROOT.addHandler(_Terminal())
        ROOT.setLevel(logging.INFO)
        ROOT.propagate = False  # a library that gives the root logger a handler would show each line twice
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken EXIF and many pixels: what matters we log ourselves


def log_file(path: str | os.PathLike) -> logging.Handler:
    """A handler that appends every message, with its time, to `path` until it is removed from `ROOT` and closed."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    ROOT.addHandler(handler)
    if ROOT.level == logging.NOTSET:
        ROOT.setLevel(logging.INFO)
    return handler
