"""Fetching Oxford-IIIT Pet: progress, resume, hash check, a mirror if one is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from roclab.core.exceptions import DataError


def fetch_archives(folder: Path, resources: tuple[tuple[str, str], ...], mirror: str | None = None) -> Path:
    """Fetch the (address, MD5) archives, unpack them beside `folder`, and rename the whole into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    archives = []
    for url, md5 in resources:
        if mirror:
            url = f"{mirror.rstrip('/')}/{url.rsplit('/', 1)[1]}"
        archives.append(fetch(url, folder.parent / url.rsplit("/", 1)[1], md5))
    unpacked = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for archive in archives:
            print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")  # refuses absolute paths, links out of the folder, devices
        os.chmod(unpacked, 0o755)
        os.replace(unpacked, folder)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be unpacked into {folder}: {error}") from None
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    for archive in archives:
        archive.unlink()
    return folder


def fetch(url: str, target: Path, md5: str) -> Path:
    """Download `url` to `target`, going on where an earlier attempt stopped; the file's MD5 must be `md5`.

    The bytes grow in `target.part`, which becomes `target` only when the hash is right. Raises `DataError` that
    says how to do it by hand.
    """
    if target.is_file() and _md5(target) == md5:
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
    if (found := _md5(part)) != md5:
        part.unlink()
        raise DataError(f"{url} is not the file it should be: its MD5 is {found}, not {md5}; {by_hand}")
    os.replace(part, target)
    return target


def _append(url: str, part: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        have = have if resumed else 0
        total = have + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as file, Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"fetching {url.rsplit('/', 1)[1]}", total=total, completed=have)
            while block := answer.read(1 << 16):
                file.write(block)
                progress.advance(task, len(block))
            written = file.tell()
    if total is not None and written < total:
        raise OSError(f"the connection ended after {written} of {total} bytes")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
