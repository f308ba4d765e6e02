"""Points for what was found, a table of many files, and the result file of Gradescope."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, write_json
from roclab.core.settings import read_toml
from roclab.course.verify.checker import all_checks, verify
from roclab.course.verify.limits import Limits
from roclab.course.verify.sandbox import Sandbox
from roclab.course.verify.source import read_source


def read_points(path: Path, training: bool = False) -> dict[str, float]:
    """Points by the name of a part or a check: TOML (`RMSNorm = 10`) or, from a file named .csv, rows of name and
    points below a line `name,points`. Raises RocLabError for what is neither, and for names that do not exist."""
    rows = of_csv(path) if path.suffix.lower() == ".csv" else list(read_toml(path, "--points").items())
    names = {name for check in all_checks(training) for name in (check.name, check.component)}
    for name, worth in rows:
        if name not in names:
            parts = ", ".join(dict.fromkeys(check.component for check in all_checks(training)))
            raise RocLabError(f"--points {path}: no part or check is named {name!r} (parts: {parts})")
        if isinstance(worth, bool) or not isinstance(worth, (int, float)) or not 0 <= worth < math.inf:
            raise RocLabError(f"--points {path}: {name}: {worth!r} must be a number, 0 or more")
    points = dict(rows)
    if len(points) < len(rows) or not points:
        raise RocLabError(f"--points {path}: " + ("a name stands there twice" if points else "it holds no points"))
    if empty := [name for name in points if not covered(name, points)]:
        raise RocLabError(f"--points {path}: {empty[0]}: all of its checks have points of their own, so it has none")
    return {name: float(worth) for name, worth in points.items()}


def of_csv(path: Path) -> list[tuple[str, Any]]:
    try:
        head, *rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if row] or [[]]
        if [cell.strip().lower() for cell in head] != ["name", "points"]:
            raise ValueError("the first line must be name,points")
        if wrong := [row for row in rows if len(row) != 2]:
            raise ValueError(f"a row needs a name and points, this one is {','.join(wrong[0])!r}")
        return [(name.strip(), float(worth)) for name, worth in rows]
    except OSError as error:
        raise RocLabError(f"--points {path}: {error.strerror}") from None
    except ValueError as error:  # UTF-8's and ours
        raise RocLabError(f"--points {path} is no table of points: {error}") from None


def covered(name: str, points: dict[str, float]) -> list[str]:
    """The checks that a name stands for: itself, or those of the part that have no points of their own."""
    return [
        c.name for c in all_checks(training=True) if c.name == name or (c.component == name and c.name not in points)
    ]


def a_point_a_check(training: bool = False) -> dict[str, float]:
    parts = [check.component for check in all_checks(training)]
    return {part: float(parts.count(part)) for part in dict.fromkeys(parts)}


def with_points(report: dict[str, Any], points: dict[str, float]) -> dict[str, Any]:
    """The report with `points`: `score`, `max` and `rows` with `name`, `score`, `max`, `failed` (checks). A name's
    points are shared by its checks, as many as passed count."""
    passed = {check["name"]: check["passed"] for check in report["checks"]}
    rows: list[dict[str, Any]] = []
    for name, worth in points.items():
        checks = covered(name, points)
        failed = [check for check in checks if not passed[check]]
        score = round(worth * (len(checks) - len(failed)) / len(checks), 4)
        rows.append({"name": name, "score": score, "max": worth, "failed": failed})
    total = {key: round(sum(row[key] for row in rows), 4) for key in ("score", "max")}
    return report | {"points": total | {"rows": rows}}


def verify_files(
    files: Sequence[Path], points: dict[str, float], limits: Limits, table: Path | None = None, training: bool = False
) -> Iterator[dict[str, Any]]:
    """The reports with points, one file after the other. The table is written after each file, so that an interrupted
    call keeps its rows. Raises RocLabError, before any is run, if one is no file or cannot be read."""
    for file in files:
        read_source(file)
    reports = []
    with Sandbox() as sandbox:  # it imports torch once
        for file in files:
            reports.append(with_points(verify(file, limits, sandbox=sandbox, training=training), points))
            if table:
                write_table(reports, table)
            yield reports[-1]


# ---- files


def write_table(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """A CSV with a row a file."""
    text = io.StringIO()
    names = [f"points: {row['name']}" for row in reports[0]["points"]["rows"]]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "passed", "checks_passed", "checks_total", "points", "max_points", *names, "part",
                    "most_likely", "notes"])  # fmt: skip
    for report in reports:
        told, points = report["diagnosis"] or {"component": "", "hint": ""}, report["points"]
        rows = [row["score"] for row in points["rows"]]
        counts = [report["passed"], report["checks_passed"], report["checks_total"], points["score"], points["max"]]
        said = [told["component"], told["hint"], "; ".join(report["notes"])]
        table.writerow([no_formula(report["file"]), *counts, *rows, *map(no_formula, said)])
    atomic_write(path, text.getvalue())


def no_formula(text: str) -> str:
    """The text as a spreadsheet shows it: one that begins so would be computed."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_gradescope(report: dict[str, Any], path: Path) -> None:
    """`results.json` as Gradescope's autograder specification has it: a test a row of points.

    Source: https://gradescope-autograders.readthedocs.io/en/latest/specs/ (output format).
    """
    hints = {check["name"]: check["hint"] for check in report["checks"]}
    tests = [
        {
            "name": row["name"], "score": row["score"], "max_score": row["max"], "output_format": "text",
            "status": "failed" if row["failed"] else "passed",
            "output": by_hint({name: hints[name] for name in row["failed"]}),
        }
        for row in report["points"]["rows"]
    ]  # fmt: skip
    first = [f"Most likely: {report['diagnosis']['hint']}"] if report["diagnosis"] else []
    said = [f"{report['checks_passed']} of {report['checks_total']} checks passed", *first, *report["notes"]]
    score, seconds = report["points"]["score"], report["seconds"]
    content = {"score": score, "execution_time": seconds, "output": "\n".join(said), "output_format": "text"}
    write_json(path, content | {"tests": tests})


def by_hint(hints: dict[str, str]) -> str:
    """A line a hint: the checks that have it, then the hint."""
    said: dict[str, list[str]] = {}
    for name, hint in hints.items():
        said.setdefault(hint, []).append(name)
    return "\n".join(f"{'; '.join(names)}: {hint}" for hint, names in said.items())
