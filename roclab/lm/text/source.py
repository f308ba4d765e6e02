"""Texts from files and pipes: the same words are the same text, whatever program wrote them."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import NamedTuple

from roclab.core.exceptions import DataError

UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins as UTF-16's


class Source(NamedTuple):
    """A text, and in words what was changed to read it."""

    text: str
    changes: list[str]


def read_text(path: Path, max_bytes: int | None = None) -> Source:
    """The text of a UTF-8 file, or of standard input for "-": Windows line ends become \\n, and a byte order mark is
    left out. A character that `max_bytes` would cut in half is left out too.

    Raises DataError for a file that cannot be read or is in another encoding.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    if wide := "UTF-32" if data.startswith(UTF_32) else "UTF-16" if _is_utf16(data) else "":
        raise DataError(f"{name}: {wide} text; save it as UTF-8 (iconv -f {wide} -t UTF-8)")
    if max_bytes is not None and max_bytes < len(data):
        while max_bytes > 0 and data[max_bytes] & 0xC0 == 0x80:  # inside a character
            max_bytes -= 1
        data = data[:max_bytes]
    changes = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None
    if data.startswith(codecs.BOM_UTF8):
        text = text[1:]
        changes.append("byte order mark left out")
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        changes.append("Windows line ends (CRLF) read as LF")
    return Source(text, changes)


def _is_utf16(data: bytes) -> bool:
    """By its byte order mark, or, without one, because every other byte is zero, as in plain English."""
    sample = data[:1000]
    halves = [sample[0::2], sample[1::2]]
    zeros = [half.count(0) for half in halves]
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
        len(sample) > 1 and min(zeros) == 0 and max(zeros) > 0.9 * len(sample) / 2
    )
