"""Run folders, seeds, provenance and progress: the ground both parts stand on.

A run is a folder. Commands speak to each other only through it:

    config.json       enough to repeat the run
    provenance.json   versions, git revision, hashes of data and weights, machine, threads, seed
    log.txt           what was said on stderr
    metrics.jsonl     one JSON object per epoch
    tensorboard/      the same numbers for TensorBoard
    results.json …    what was measured
    checkpoints/      safetensors

Every file but the two logs is written whole or not at all (`write_whole`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from roclab.errors import RocLabError

T = TypeVar("T")

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy", "safetensors", "tokenizers")


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name in the same folder to write to; at the end it is flushed to the disk and renamed to `path`, and
    after an error removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes files that only their owner reads; give the usual permissions
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(obj, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a missing or damaged one raises `RocLabError` in one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RocLabError(f"{path} is missing") from None
    except OSError as error:
        raise RocLabError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RocLabError(f"{path} is damaged, not valid JSON ({error}): restore it, or run again") from None


def _plain(value: Any) -> Any:
    """What JSON has no word for: paths, and numpy's or torch's scalars and arrays."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def cache_folder(name: str) -> Path:
    """Where things that can be computed again are kept: `ROCLAB_CACHE`, or `roclab` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("ROCLAB_CACHE") or os.path.join(base, "roclab")) / name


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's (CPU and GPU) generators."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def provenance(seed: int, **hashes: Any) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: versions, git revision, machine, threads, time, seed, hashes."""
    versions = {"python": platform.python_version(), "roclab": _version("roclab")}
    versions |= {name: found for name in PACKAGES if (found := _version(name))}
    torch = sys.modules.get("torch")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "hashes": hashes,
        "versions": versions,
        "git": _git_revision(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else [],
            "threads": torch.get_num_threads() if torch else None,
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package != "roclab":
            return None
        from roclab import __version__

        return __version__


def _git_revision() -> str | None:
    """Commit of the checkout this code runs from, `-dirty` if it was edited; None outside a checkout."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in here.parents[:2]):
        return None  # an installed package: a repository further up is somebody else's
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar and the time left on stderr, shown on a terminal once two seconds have passed."""
    if not sys.stderr.isatty():
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    begin = time.monotonic()
    try:
        for item in iterable:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - begin > 2:
                bar.start()
    finally:
        bar.stop()


class Run:
    """One run's folder. `Run.create` begins one, `Run.open` comes back to it."""

    def __init__(self, path: str | os.PathLike, config: dict[str, Any]):
        self.path = Path(path)
        self.config = config
        self._board: Any = None  # TensorBoard's writer; False where TensorBoard is not installed

    @classmethod
    def create(cls, path: str | os.PathLike, config: dict[str, Any], **hashes: Any) -> Run:
        """Begin a run: makes the folder with config.json and provenance.json (`hashes` go into the latter).

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
        return cls(path, json.loads((path / "config.json").read_text(encoding="utf-8")))

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        """Come back to a run; raises `RocLabError` saying what is missing."""
        path = Path(path)
        if not path.is_dir():
            raise RocLabError(f"{path} is not a run folder: there is no such folder")
        if not (path / "config.json").exists():
            raise RocLabError(f"{path} is not a run folder: it has no config.json")
        config = read_json(path / "config.json")
        if not isinstance(config, dict):
            raise RocLabError(f"{path / 'config.json'} is damaged: it does not hold a JSON object")
        return cls(path, config)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def log(self, message: str) -> None:
        """Say a line on stderr and keep it, with the time, in log.txt."""
        print(message, file=sys.stderr, flush=True)
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {message}\n")

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one epoch's numbers to metrics.jsonl (flushed to the disk) and to TensorBoard.

        `row["epoch"]` numbers the row. A number that is not finite is kept as it is: NaN in a log is a finding.
        """
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if board := self._tensorboard(row.get("epoch")):
            for name, value in row.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    board.add_scalar(name, value, row.get("epoch"))
            board.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. A last line cut by a crash does not count; a damaged line elsewhere raises."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise RocLabError(f"{path} is damaged in line {number}: restore it, or train again") from None
        return rows

    def truncate_metrics(self, epoch: int) -> None:
        """Keep the rows up to and including `epoch`: what a resumed run does before it goes on."""
        kept = [row for row in self.metrics() if row["epoch"] <= epoch]
        self.close()
        write_whole(self.path / "metrics.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def write_results(self, name: str, obj: Any) -> Path:
        """Write `obj` into the run as JSON under `name` (`.json` is added), whole or not at all."""
        path = self.path / (name if name.endswith(".json") else f"{name}.json")
        write_json(path, obj)
        return path

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board:
            self._board.close()
        self._board = None

    def _tensorboard(self, epoch: int | None) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                # purge_step hides what an interrupted run had written past the epoch it resumes from
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=epoch)
            except ImportError:
                self._board = False
        return self._board
