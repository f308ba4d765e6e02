"""Files: atomic writes, JSON, hashes, and the folder for what can be computed again."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from roclab.core.exceptions import RocLabError

logger = logging.getLogger(__name__)
# What lies in place of a file when its download was not whole.
NOT_DOWNLOADED = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page, not the file itself: download it again",
    b"<html": "a web page, not the file itself: download it again",
}
DAY = 86400.0  # seconds: what a writer has left alone for so long, it has left behind


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name in the same folder to write to; at the end it is flushed to the disk and renamed to `path`, and
    after an error removed."""
    with _renamed(path) as temporary:
        temporary.touch()  # a folder that cannot be written to is noticed before the work
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors puts in place a file for its owner alone
            temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; at the end it is renamed to `path`, which must not exist or be empty,
    and after an error removed."""
    with _renamed(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def _renamed(path: str | os.PathLike) -> Iterator[Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.part"
    try:
        with _naming(path, temporary):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An error about a full disk names no file, or the temporary one: let it name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise


def sweep(folder: Path, name: str | None = None, age: float = DAY) -> None:
    """Remove the temporary files and folders (those of `name`, if given) that killed writers have left in `folder`:
    such as have not changed for `age` seconds."""
    for left in folder.glob(f".{glob.escape(name) if name else '*'}.????????.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime >= age:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def link_or_copy(path: Path, name: str) -> None:
    """Make `path` a link to the file `name` beside it, or a copy where there are no links (FAT, some network disks)."""
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(name)
    except OSError:
        with atomic_file(path) as temporary:
            shutil.copyfile(path.parent / name, temporary)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as indented JSON, whole or not at all."""
    atomic_write(path, json.dumps(obj, indent=2, ensure_ascii=False, default=plain_json) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a missing or damaged one raises `RocLabError` in one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors write a BOM
    except FileNotFoundError:
        raise RocLabError(f"{path} is missing") from None
    except OSError as error:
        raise RocLabError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        damaged = f"damaged, not valid JSON ({error}): restore it, or run again"
        raise RocLabError(f"{path} is {not_downloaded(path) or damaged}") from None


def not_downloaded(path: str | os.PathLike) -> str:
    """What a file is instead of itself, and what to do, if its download was not whole; else ""."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(100).lstrip().lower()
        return next((what for sign, what in NOT_DOWNLOADED.items() if start.startswith(sign)), "")
    return ""


def write_json_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write a JSON object a line, atomically."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, default=plain_json) + "\n" for row in rows))


def append_json_line(path: str | os.PathLike, obj: Any) -> None:
    """Append `obj` as one line of JSON, flushed to the disk."""
    with _naming(Path(path)), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(obj, ensure_ascii=False, default=plain_json) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: str | os.PathLike, remedy: str) -> list[Any]:
    """What `append_json_line` wrote; [] where there is no file. A last line that was not finished does not count; a
    damaged line elsewhere raises `RocLabError`, which ends in the `remedy`."""
    if not Path(path).exists():
        return []
    rows = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RocLabError(f"{path} is damaged in line {number}: {remedy}") from None
    return rows


def plain_json(value: Any) -> Any:
    """What JSON has no word for: paths, and numpy's or torch's scalars and arrays."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def file_sha256(path: str | os.PathLike) -> str:
    return file_digest(path, "sha256")


def file_digest(path: str | os.PathLike, algorithm: str) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def cache_folder(name: str) -> Path:
    """Where things that can be computed again are kept: `ROCLAB_CACHE`, or `roclab` in the user's cache folder, or for
    a user without a home a folder of theirs among the temporary files."""
    if base := os.environ.get("ROCLAB_CACHE"):
        return Path(os.path.expanduser(base)) / name  # in a Dockerfile or a service's settings no shell does it
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "roclab" / name
    home = os.path.expanduser("~")
    return (Path(home) / ".cache" / "roclab" if os.path.isabs(home) else _own_temporary_folder()) / name


@cache
def _own_temporary_folder() -> Path:
    """A folder that only this user can write to, the same one each time if nobody else has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"roclab-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if ours else Path(tempfile.mkdtemp(prefix="roclab-"))


def write_cache(path: Path, data: bytes | str) -> None:
    """`atomic_write` of what can be computed again: a cache that is full or unusable costs time, nothing else."""
    try:
        atomic_write(path, data)
    except OSError as error:
        _say_once(f"the cache cannot be written ({error.filename}: {error.strerror}): computed anew next time")


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
