"""Notebooks, points, the table of many files and Gradescope's result file."""

from __future__ import annotations

import csv
import json

import pytest

from roclab.core.exceptions import RocLabError
from roclab.course.verify.checker import all_checks
from roclab.course.verify.grades import a_point_a_check, read_points, with_points, write_gradescope, write_table
from tests.course.verify.conftest import failed
from tests.course.verify.variants import PLAIN as GOOD
from tests.lm.build import assert_one_line, roclab

# ---- notebooks


def notebook(*cells: str) -> str:
    """As Jupyter writes an executed one: sources as lists of lines, outputs and markdown between."""
    code = [
        {"cell_type": "code", "execution_count": n, "metadata": {}, "source": cell.splitlines(keepends=True),
         "outputs": [{"output_type": "stream", "name": "stdout", "text": ["def broken(:\n"]}]}
        for n, cell in enumerate(cells)
    ]  # fmt: skip
    text = {"cell_type": "markdown", "metadata": {}, "source": ["# not code ("]}
    return json.dumps({"cells": [text, *code], "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


def test_a_notebook_is_taken_as_it_is(check):
    middle = GOOD.index("class RocLMMLP")
    magics = "%matplotlib inline\n!pip install torch\nfiles = !ls\nif True:\n    %time x = 1\nhelp?\ny = (5\n  % 3)"
    first = f"%%capture\n{GOOD[:middle]}"
    report = check(
        notebook(
            "%%bash\nls (", first, magics, f"from __future__ import annotations\n{GOOD[middle:]}", "print('done')"
        ),
        "model.ipynb",
    )
    assert report["passed"], failed(report)
    assert report["notes"][:4] == [
        "a notebook: its 5 code cells in order; lines are counted over all of them",
        "8 lines with magics or shell commands (%, !) were left out",
        "its __future__ imports stand in front, in 1 lines of their own",
        "it prints 1 lines, as a notebook may",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('{"cells": [null]}', "not a notebook of today's format"),
        ("no json", "not a notebook of today's format"),
        ('{"cells": []}', "without code cells"),
        (notebook("x = 1", "raise ValueError('here')"), "ValueError: here (line 2)"),
    ],
)
def test_a_notebook_that_cannot_be_used_says_what_to_do(check, source, words):
    report = check(source, "model.ipynb")
    assert words in report["diagnosis"]["hint"]
    assert "not run" in failed(report)["RMSNorm: the formula"]["hint"]


# ---- points


@pytest.fixture
def points_file(tmp_path):
    def write(text: str, name: str = "points.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_points_are_those_of_parts_and_checks(points_file):
    toml = points_file('RMSNorm = 10\n"RMSNorm: the formula" = 2.5\n')
    table = points_file("Name,Points\nRMSNorm,10\nRMSNorm: the formula,2.5\n", "points.csv")
    points = read_points(toml)
    assert points == read_points(table) == {"RMSNorm": 10, "RMSNorm: the formula": 2.5}
    names = [c.name for c in all_checks() if c.component == "RMSNorm"]
    checks = [{"name": name, "passed": name != names[-1]} for name in (c.name for c in all_checks())]
    found = with_points({"checks": checks}, points)["points"]
    share = round(10 * (len(names) - 2) / (len(names) - 1), 4)  # one has points of its own, one of the others failed
    assert [row["score"] for row in found["rows"]] == [share, 2.5]
    assert (found["score"], found["max"]) == (share + 2.5, 12.5)


def test_without_a_file_each_check_is_a_point():
    assert sum(a_point_a_check().values()) == len(all_checks())


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("Norm = 3", "points.toml", "no part or check is named 'Norm' (parts: file, RMSNorm"),
        ("RMSNorm = -1", "points.toml", "RMSNorm: -1 must be a number, 0 or more"),
        ("RMSNorm = nan", "points.toml", "must be a number"),
        ("RMSNorm = true", "points.toml", "must be a number"),
        ("RMSNorm = ", "points.toml", "points.toml is not valid TOML"),
        ("", "points.toml", "holds no points"),
        ("RMSNorm,3", "points.csv", "the first line must be name,points"),
        ("name,points\nRMSNorm", "points.csv", "a row needs a name and points"),
        ("name,points\nRMSNorm,many", "points.csv", "is no table of points"),
        ("name,points\nRMSNorm,1\nRMSNorm,2", "points.csv", "a name stands there twice"),
        ('SwiGLU = 1\n"SwiGLU: own implementation" = 1\n"SwiGLU: the formula" = 1\n"SwiGLU: no bias" = 1',
         "points.toml", "SwiGLU: all of its checks have points of their own"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_points_is_one_line(points_file, text, name, words):
    with pytest.raises(RocLabError) as error:
        read_points(points_file(text, name))
    assert words in str(error.value)
    assert name in str(error.value)


# ---- files


def report_of(file: str, wrong: str = "") -> dict:
    checks = [{"name": c.name, "passed": c.component != wrong, "hint": c.component} for c in all_checks()]
    told = {"component": wrong, "check": "", "hint": "-x"} if wrong else None
    passed = sum(check["passed"] for check in checks)
    report = {"file": file, "passed": not wrong, "checks": checks, "diagnosis": told, "notes": ["a note"]}
    counts = {"checks_passed": passed, "checks_total": len(checks), "seconds": 1.5}
    return with_points(report | counts, a_point_a_check())


def test_the_table_has_a_row_a_file_and_no_formulas(tmp_path):
    write_table([report_of("a.py"), report_of("=b.py", "SwiGLU")], tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows] == ["a.py", "'=b.py"]
    assert [row["passed"] for row in rows] == ["True", "False"]
    assert float(rows[0]["points"]) == float(rows[0]["max_points"]) == len(all_checks())
    assert float(rows[1]["points: SwiGLU"]) == 0
    assert (rows[1]["part"], rows[1]["most_likely"], rows[1]["notes"]) == ("SwiGLU", "'-x", "a note")


def test_gradescope_s_file_has_its_documented_layout(tmp_path):
    write_gradescope(report_of("b.py", "SwiGLU"), tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(found) == {"score", "execution_time", "output", "output_format", "tests"}
    assert found["score"] == sum(test["score"] for test in found["tests"])
    assert all(0 <= test["score"] <= test["max_score"] for test in found["tests"])
    swiglu = next(test for test in found["tests"] if test["name"] == "SwiGLU")
    assert (swiglu["status"], swiglu["score"]) == ("failed", 0)
    assert swiglu["output"].startswith("SwiGLU: own implementation; SwiGLU: the formula; ")
    assert {test["status"] for test in found["tests"] if test["name"] != "SwiGLU"} == {"passed"}


def test_many_files_become_one_table(tmp_path):
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad.py").write_text("import os, signal, ctypes\nctypes.CDLL(None).kill(os.getppid(), 9)\n")
    (tmp_path / "points.toml").write_text("RMSNorm = 4\n")
    options = ("--csv", "t.csv", "--points", "points.toml")
    done = roclab("lm", "verify", "bad.py", "good.py", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["file"], row["passed"], row["points"]) for row in rows] == [
        ("bad.py", "False", "0.0"), ("good.py", "True", "4.0")  # a file that ends the checker costs no other
    ]  # fmt: skip
    assert "good.py: 68 of 68 checks passed, 4 of 4 points" in done.stdout


def test_options_that_do_not_fit_are_one_line(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    done = roclab("lm", "verify", "a.py", "a.py", "--gradescope", "r.json", cwd=tmp_path)
    assert_one_line(done, "--gradescope takes one file, these are 2")
    assert_one_line(roclab("lm", "verify", "a.py", "none.py", "--csv", "t.csv", cwd=tmp_path), "none.py: no such file")
    assert not (tmp_path / "t.csv").exists()
    assert_one_line(roclab("lm", "verify", "--points", "none.toml", cwd=tmp_path), "--points none.toml: No such file")
