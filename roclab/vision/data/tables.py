"""Tables of text as spreadsheets save them: any of their encodings and separators, read as rows of named cells."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
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

    The first line, or the second after Excel's `sep=;`, names the columns. It must name `columns`, in capitals or not
    and with others or not. Cells are stripped of blanks; rows of blanks do not count. Raises `DataError` that names
    the line of a fault.
    """
    text, notes = _decode(table)
    # blanks behind a closing quote are no fault, though the csv module's strict reading, which finds quotes that are
    # never closed, would say so
    lines = io.StringIO(re.sub(r'(?<=") +(?=[,;|\t\r\n])', "", text), newline="")
    first, before = lines.readline(), 1
    separators: str | list[str] = SEPARATORS
    if given := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        separators, first, before = given[1], lines.readline(), 2
    for separator in separators:
        names = [
            name.strip().lower() for name in next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        ]
        if set(columns) <= set(names):
            break
    else:
        raise DataError(f"{table}: the first line must name the columns path,label[,split], not {first[:60].strip()!r}")
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataError(f"{table}, line {before}: it names the column {twice} twice: remove one")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    while True:
        line = before + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return rows, notes
        except csv.Error as error:
            raise DataError(f"{table}, line {line}: {_cause(str(error))}") from None
        if any(cell.strip() for cell in row):
            cells = _cells(row, names, f"{table}, line {line}", separator)
            if wide := next((name for name in columns if "\n" in cells[name] or "\r" in cells[name]), ""):
                raise DataError(f"{table}, line {line}: {wide} goes on in the next line: is a quote not closed?")
            rows.append((line, cells))


def _cells(row: list[str], names: list[str], where: str, separator: str) -> dict[str, str]:
    """A row's cells by the names of their columns."""
    if any(cell.strip() for cell in row[len(names) :]):
        many = f"{len(row)} cells, but the first line names {len(names)}"
        raise DataError(f"{where}: it has {many}: remove one, or put quotes around a cell that holds {separator!r}")
    cells = dict(zip(names, row, strict=False))
    for name in cells:
        if fault := _fault(cells[name]):
            raise DataError(f"{where}: {name or 'a cell'} {fault}")
    return {name: cells.get(name, "").strip() for name in names}


def _fault(cell: str) -> str:
    if "\0" in cell:
        return f"holds a NUL byte: the file is damaged; {SAVE_AS} again"
    if len(cell) > LONGEST:
        return f"has {len(cell)} characters: is a quote not closed?"
    return ""


def _cause(error: str) -> str:
    """The csv module's error, with what to do."""
    if "end of data" in error:
        return "a quote opens here and is never closed: close it, or remove it"
    if "NUL" in error:
        return f"it {_fault(chr(0))}"
    return f"not a row of a table ({error}): is a quote not closed?"


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
    for encoding in [known] if known else ["utf-8", "cp1252"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        read = f"{table} is not UTF-8: it was read as Windows-1252; if letters are wrong, {SAVE_AS}"
        return text, [read] if encoding == "cp1252" else []
    raise DataError(f"{table} is not text in UTF-8, UTF-16 or Windows-1252: {SAVE_AS}")
