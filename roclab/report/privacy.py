"""Nothing of the author's machine leaves it: absolute paths become relative, and what is handed in is searched for
paths and secrets in texts, notebooks, pictures and PDFs alike."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

# Folders of the system, the same everywhere: a path that begins with one says nothing about its owner.
SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
PERSONAL = {"home", "Users", "root", "mnt", "media", "tmp", "private", "Volumes", "scratch", "workspace", "kaggle"}

_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\bhttps?://[^\s/:@\"'{}<>]+:[^\s/@\"'{}<>]+@",
    "a key": r"(?i)\b(?:api[_-]?key|(?:auth|access)[_-]?token|passw(?:or)?d)[\"']?\s*[=:]\s*"
    r"[\"'][^\"'\s{}<>$]{12,}[\"']",
}  # fmt: skip


@lru_cache(1)
def _absolute() -> re.Pattern[str]:
    """Absolute paths of a person's machine: POSIX ones below the usual or its own folders, Windows' homes."""
    here = {name for name in os.listdir(os.sep) if os.path.isdir(os.sep + name)} if os.sep == "/" else set()
    roots = "|".join(sorted(map(re.escape, (here | PERSONAL) - SYSTEM), key=len, reverse=True))
    return re.compile(
        rf"(?:(?<![\w./~-])|(?<=file://))/(?:{roots})/[^\s\"'`<>|:;,()\[\]{{}}*?$\\]+"
        r"|\b[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2}[^\s\"'`<>|:;,()\[\]{}*?$]+"
    )


def absolute_paths(text: str) -> list[str]:
    """The absolute paths of a person's machine that stand in a text, each once."""
    return sorted(set(_absolute().findall(text)))


class Relative:
    """Turns absolute paths into relative ones: `known` says what a folder is called in the hand-in; of any other path
    the last part stays."""

    def __init__(self, known: Mapping[Any, str] | None = None):
        names: dict[str, str] = {}
        for path, name in {tempfile.gettempdir(): "tmp", Path.home(): "~", Path.cwd(): ".", **(known or {})}.items():
            for written in (os.fspath(path), os.path.abspath(path), os.path.realpath(path)):
                if os.path.isabs(written) and len(Path(written).parts) > 1:
                    names[written] = name
        self.names = names
        longest_first = sorted(names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._known = re.compile(rf"(?<![\w.~-])(?:file://)?({pattern})(?=$|[\\/\s\"'`,:;.()\[\]{{}}<>|])")

    def text(self, text: str) -> str:
        text = self._known.sub(lambda match: self.names[match[1]], text)
        return _absolute().sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/."))[-1], text)

    def data(self, value: Any) -> Any:
        """The same inside JSON data; keys as well."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.data(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.data(item) for key, item in value.items()}
        return value

    def file(self, name: str, data: bytes) -> bytes:
        """The file's bytes with its paths made relative; what is no text, or holds no such path, stays as it is."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return data
        if name.endswith((".json", ".ipynb")):
            with suppress(ValueError):
                found = json.loads(text)
                changed, indent = self.data(found), 1 if name.endswith(".ipynb") else 2
                shown = json.dumps(changed, indent=indent, ensure_ascii=False) + "\n"
                return data if changed == found else shown.encode()
        return self.text(text).encode()


def find_private(name: str, data: bytes) -> list[str]:
    """What a file should not tell anyone, one line each: absolute paths, secrets, this machine's name."""
    found = []
    for text in _texts(name, data):
        found += [f"{name}: an absolute path, {path}" for path in absolute_paths(text)]
        # what matched is not repeated: this line is printed
        found += [f"{name}: what looks like {kind}" for kind, pattern in _SECRETS.items() if re.search(pattern, text)]
        found += [f"{name}: the value of {key}" for key, value in _environment().items() if value in text]
    host = socket.gethostname()
    if re.search(r"[\d-]", host) and len(host) > 5 and host.encode() in data:
        found.append(f"{name}: this machine's name, {host}")
    return sorted(set(found))


@lru_cache(1)
def _environment() -> dict[str, str]:
    """Values of environment variables that hold secrets, by their names."""
    secret = re.compile(r"(?i)(token|secret|passw|api_?key|credential)")
    return {key: value for key, value in os.environ.items() if secret.search(key) and len(value) >= 12}


def _texts(name: str, data: bytes) -> Iterator[str]:
    """Everything in a file that can be read: its text, a picture's or a PDF's metadata and streams, pictures inside."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        yield from _png_texts(data)
    elif data.startswith(b"%PDF"):
        yield data.decode("latin-1")
        for stream in re.finditer(rb"stream\r?\n(.*?)endstream", data, re.DOTALL):
            with suppress(zlib.error):  # a font, a JPEG
                yield zlib.decompressobj().decompress(stream[1]).decode("latin-1")
    elif name.endswith(".safetensors") and len(data) > 8:
        yield data[8 : 8 + struct.unpack("<Q", data[:8])[0]].decode("utf-8", "replace")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:  # runs of readable characters, as `strings` shows them
            yield "\n".join(run.decode("ascii") for run in re.findall(rb"[\x20-\x7e]{6,}", data))
            return
        yield re.sub(r"[A-Za-z0-9+/=]{400,}", "", text)  # not the letters of an encoded picture, which it is below
        for encoded in re.finditer(r"iVBORw0KGgo[A-Za-z0-9+/=\\n\s]+", text):
            letters = re.sub(r"\\n|\s", "", encoded[0])
            with suppress(ValueError, OSError):
                yield from _png_texts(base64.b64decode(letters + "=" * (-len(letters) % 4)))


def _png_texts(data: bytes) -> Iterator[str]:
    """The text chunks of a PNG file, the packed ones unpacked."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()  # some chunks come after the pixels
        yield from (str(text) for text in getattr(image, "text", {}).values())
        yield image.info.get("exif", b"").decode("latin-1")
