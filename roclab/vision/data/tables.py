"""Tables of text as spreadsheets save them: any of their encodings and separators, read as rows of named cells."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from roclab.core.exceptions import DataError

SAVE_AS = 'save it as "CSV UTF-8"'
BOMS = {  # UTF-32's first: UTF-16's is the beginning of it
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls
SEPARATORS = ",;\t|"
LONGEST = 4096  # characters of a cell: the longest path of Linux


def read_table(table: Path, columns: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The rows of a table, each with the number of its line, and notes for the user.

    The first line, or the second after Excel's `sep=;`, names the columns; `columns` must be among them. Cells are
    stripped of blanks; rows of blanks do not count. Raises `DataError` that names the line of a fault.
    """
    text, notes = _decode(table)
    # strict reading finds quotes that are never closed; only blanks behind a closing quote are no fault
    lines = io.StringIO(re.sub(r'(?<=") +(?=[,;|\t\r\n])', "", text), newline="")
    first, before = lines.readline(), 1
    if excel := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        first, before = lines.readline(), 2
    for separator in excel[1] if excel else SEPARATORS:
        head = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        names = [name.strip().lower() for name in head]
        if set(columns) <= set(names):
            break
    else:
        raise DataError(f"{table}: the first line must name the columns path,label[,split], not {first[:60].strip()!r}")
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataError(f"{table}, line {before}: it names the column {twice} twice: remove one")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    rows, line = [], before + 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                if fault := _fault(row, names, columns):
                    raise DataError(f"{table}, line {line}: {fault}")
                cells = [cell.strip() for cell in row] + [""] * len(names)
                rows.append((line, dict(zip(names, cells, strict=False))))
            line = before + 1 + reader.line_num
    except csv.Error as error:
        cause = "a quote opens here and is never closed" if "end of data" in str(error) else str(error)
        raise DataError(f"{table}, line {line}: not a row of a table ({cause}): look for a missing quote") from None
    return rows, notes


def _fault(row: list[str], names: list[str], columns: Sequence[str]) -> str:
    """What is wrong with a row, and what to do; "" if nothing is."""
    if any(cell.strip() for cell in row[len(names) :]):
        many = f"{len(row)} cells, but the first line names {len(names)}"
        return f"{many}: remove one, or put a cell that holds the separator in quotes"
    for name, cell in zip(names, row, strict=False):
        if "\0" in cell:
            return f"{name} holds a NUL byte, the file is damaged: {SAVE_AS} again"
        if len(cell) > LONGEST:
            return f"{name} has {len(cell)} characters: look for a missing quote"
        if name in columns and ("\n" in cell or "\r" in cell):
            return f"{name} goes on in the next line: look for a missing quote"
    return ""


def _decode(table: Path) -> tuple[str, list[str]]:
    """A table's text: as its first bytes say, else UTF-8, else Windows-1252, of which a note tells."""
    try:
        data = table.read_bytes()
    except OSError as error:
        raise DataError(f"{table} cannot be read: {error.strerror}") from None
    if data.startswith(WORKBOOKS):
        raise DataError(f"{table} is a spreadsheet's workbook, not a table of text: {SAVE_AS}")
    known = next((encoding for start, encoding in BOMS.items() if data.startswith(start)), None)
    if not known and b"\0\0" in (data[:4:2], data[1:4:2]):  # UTF-16 without its BOM: every other byte of ASCII is 0
        known = "utf-16-le" if data[0] else "utf-16-be"
    note = f"{table} is not UTF-8: it was read as Windows-1252; if letters are wrong, {SAVE_AS}"
    for encoding in [known] if known else ["utf-8", "cp1252"]:
        with suppress(UnicodeDecodeError):
            return data.decode(encoding), [note] if encoding == "cp1252" else []
    raise DataError(f"{table} is not text in UTF-8, UTF-16 or Windows-1252: {SAVE_AS}")
