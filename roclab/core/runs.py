"""A run is a folder. Commands exchange data only through it:

    config.json       enough to repeat the run
    provenance.json   versions, git revision, hashes of data and weights, machine, threads, seed
    log.txt           the messages, with their times
    progress.json     how far the work is, while it goes on (`roclab.core.progress.track`)
    metrics.jsonl     one JSON object a step
    tensorboard/      the same numbers for TensorBoard
    results.json …    what was measured
    checkpoints/      safetensors

Every file but the two logs is written atomically (`atomic_write`).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, ClassVar

from roclab.core.exceptions import RocLabError
from roclab.core.files import append_json_line, read_json, read_json_lines, write_json, write_json_lines
from roclab.core.log import ROOT, log_file
from roclab.core.progress import report_to
from roclab.core.provenance import provenance

logger = logging.getLogger(__name__)


class Run:
    """One run's folder. `Run.create` makes one, `Run.open` opens an existing one.

    From `with run:`, or the first `log`, until `close` the run is active: every message also goes to its log.txt, and
    progress to its progress.json. One run of a process is active, the last that began.
    """

    _active: ClassVar[Run | None] = None

    def __init__(self, path: str | os.PathLike, config: dict[str, Any]):
        self.path, self.config = Path(path), config
        self.checkpoints = self.path / "checkpoints"
        self._board: Any = None  # TensorBoard's writer; False where TensorBoard is not installed
        self._log: logging.Handler | None = None

    @classmethod
    def create(cls, path: str | os.PathLike, config: dict[str, Any], **hashes: Any) -> Run:
        """Make the folder with config.json and provenance.json (`hashes` go into the latter).

        Raises `RocLabError` if the folder already holds a run.
        """
        path = Path(path)
        if (path / "config.json").exists():
            raise RocLabError(f"{path} already holds a run: go on with --resume {path}, or choose another folder")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_json(path / "provenance.json", provenance(config.get("seed", 0), **hashes))
            write_json(path / "config.json", config)  # last: a folder with a config is a run
        except OSError as error:
            raise RocLabError(f"cannot write the run folder {path}: {error.strerror}") from None
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        """Raises `RocLabError` that says what is missing."""
        path = Path(path)
        if not (path / "config.json").exists():
            missing = "it has no config.json" if path.is_dir() else "there is no such folder"
            raise RocLabError(f"{path} is not a run folder: {missing}")
        config = read_json(path / "config.json")
        if not isinstance(config, dict):
            raise RocLabError(f"{path / 'config.json'} is damaged: it does not hold a JSON object")
        return cls(path, config)

    def __enter__(self) -> Run:
        if Run._active is not self:
            if Run._active:
                Run._active._end()
            Run._active, self._log = self, log_file(self.path / "log.txt")
            report_to(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, message: str) -> None:
        """Log a message; it makes the run active, so that log.txt keeps it."""
        self.__enter__()
        logger.info(message)

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl (flushed to the disk) and to TensorBoard.

        `row["step"]`, the optimizer steps so far, numbers the row; `row["epoch"]` does where there are no steps. A
        number that is not finite is kept as it is: NaN in a log is a finding.
        """
        append_json_line(self.path / "metrics.jsonl", row)
        step = _step(row)
        if board := self._tensorboard(step):
            for name, value in row.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    board.add_scalar(name, value, step)
            board.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. A last line cut by a crash does not count; a damaged line elsewhere raises."""
        return read_json_lines(self.path / "metrics.jsonl", "restore it, or train again")

    def truncate_metrics(self, step: int) -> None:
        """Keep the rows up to and including `step`: what a resumed run does before it goes on."""
        kept = [row for row in self.metrics() if _step(row) <= step]
        self._close_board()
        write_json_lines(self.path / "metrics.jsonl", kept)

    def close(self) -> None:
        """End the run's activity: log.txt and TensorBoard's file are closed, progress.json is removed."""
        self._end()
        self._close_board()

    def _end(self) -> None:
        if self._log:
            ROOT.removeHandler(self._log)
            self._log.close()
        if Run._active is self:
            Run._active = None
            report_to(None)

    def _tensorboard(self, step: int) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                # purge_step hides what an interrupted run had written past the step it resumes from
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            except ImportError:
                self._board = False
        return self._board

    def _close_board(self) -> None:
        if self._board:
            self._board.close()
        self._board = None


def _step(row: dict[str, Any]) -> int:
    return row["step"] if "step" in row else row["epoch"]
