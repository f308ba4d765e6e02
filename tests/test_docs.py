"""The commands and programs in README and docs run as they are written there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from roclab.cli import app
from roclab.vision.data.sources import elpv_folder
from tests.golden.common import roclab
from tests.golden.small import roclm_folder

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# By a piece of the command: why the tests do not run it. Its options are checked all the same.
NOT_RUN = {
    "roclab project": "takes half an hour; tests/course/test_project.py makes a small one",
    "qwen3-": "needs Qwen3 from a Hub",
    "Qwen/Qwen3": "needs Qwen3 from a Hub",
    "--data pets": "needs Oxford-IIIT Pet from the network, and hours",
    "runs/pets": "needs runs on Oxford-IIIT Pet; tests/report makes reports of small runs",
    "--runs matrix": "needs runs on Oxford-IIIT Pet; tests/report makes reports of small runs",
    "matrix/": "needs runs on Oxford-IIIT Pet; tests/vision analyses errors of small runs",
    "curve/": "needs Oxford-IIIT Pet; tests/report draws a curve of small runs",
    "runs/resnet50": "needs runs on Oxford-IIIT Pet; tests/vision analyses errors of small runs",
    "runs/lite0": "needs runs on Oxford-IIIT Pet; tests/vision analyses errors of small runs",
    "--out runs/cells": "takes half an hour",
    "--peers llama.cpp": "needs llama-cpp-python",
    "lm verify training.py": "needs a student's file; tests/course/verify/test_training.py checks some",
    "lm serve": "serves until it is ended; tests/server asks servers",
    "curl ": "needs a server that runs; tests/server sends the same requests to one",
    "base_url=": "needs a server that runs; tests/server asks one so",
    "vllm ": "needs vLLM and a GPU",
    "pip install": "installs; tests/test_install.py does that",
    "source ": "changes the shell",
    "less ": "waits for a person",
    "make ": "README's two commands install everything from the start",
    "git ": "needs the network",
    "pre-commit": "changes the checkout",
}
SLOW = (
    "vision train", "vision evaluate", "vision predict", "vision audit", "lm evaluate", "lm study", "tokenizer lab",
    "roc_demo", "lm bench",
)  # fmt: skip


def blocks(language: str) -> list[tuple[str, str, str]]:
    """(file:line, text, what follows) of each fenced block in that language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```\n", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 2
            found.append((f"{page.relative_to(ROOT)}:{line}", match[1], text[match.end() :]))
    return found


def commands() -> dict[str, str]:
    """Command -> where it stands first, in the order of the pages."""
    found: dict[str, str] = {}
    for place, text, _ in blocks("sh"):
        text = re.sub(r"-d '\{.*?\n\}'", lambda body: body[0].replace("\n", " "), text, flags=re.DOTALL)
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.setdefault(re.sub(r"\s+#.*", "", line).strip(), place)
    return found


COMMANDS = commands()


def why_not(command: str) -> str | None:
    return next((reason for piece, reason in NOT_RUN.items() if piece in command), None)


def to_run(slow: bool) -> list[str]:
    return [c for c in COMMANDS if not why_not(c) and any(piece in c for piece in SLOW) == slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm_path) -> Path:
    """The folder that the pages suppose: a checkout, a model, a text, an implementation to check."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("README.md", "roclab"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "roclab" / "lm" / "model.py", folder / "roclm_model.py")
    shutil.copy(ROOT / "README.md", folder / "notes.txt")
    model = roclm_folder(folder / "FOLDER")
    template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (model / "tokenizer_config.json").write_text(json.dumps(template))
    return folder


def shell(command: str, folder: Path) -> str:
    (folder / "bin").mkdir(exist_ok=True)
    for name, program in (("roclab", "-m roclab"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", f"set -e -o pipefail; {command}"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("roclab ")])
def test_the_options_of_every_command_exist(command):
    words = shlex.split(command, comments=True)[1:]
    found = typer.main.get_command(app)
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    found.make_context("roclab", words)  # raises where an option is unknown, or one that is needed is missing


def test_quick_commands_run(folder):
    """All in one process: importing torch takes longer than most of them."""
    plain = [c for c in to_run(slow=False) if c.startswith("roclab ")]
    words = [shlex.split(c, comments=True)[1:] for c in plain]
    for command, answer in zip(plain, roclab(*words, cwd=folder), strict=True):
        assert answer.code == 0, f"{COMMANDS[command]}: {command}\n{answer.err[-2000:]}"


@pytest.mark.parametrize("command", [c for c in to_run(slow=False) if not c.startswith("roclab ")])
def test_other_quick_commands_run(command, folder):
    assert shell(command, folder).strip()


@pytest.mark.slow
def test_long_commands_run(folder):
    """One after the other: later ones need the folders of earlier ones."""
    shutil.copy(sorted(elpv_folder().rglob("*.png"))[0], folder / "cell.png")
    for command in to_run(slow=True):
        shell(command, folder)


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))) <= targets, page
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} <= targets


@pytest.mark.parametrize(("place", "program", "after"), [pytest.param(*b, id=b[0]) for b in blocks("python")])
def test_programs_run_and_print_what_is_shown(place, program, after, folder):
    if reason := why_not(program):
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", cwd=folder, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{place}:\n{done.stderr[-2000:]}"
    if shown := re.match(r"\s*prints\s+```\n(.*?)```", after, re.DOTALL):
        assert done.stdout == shown[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_files_are_right(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    if not page.name.startswith("log"):  # the notebooks tell of files of their time
        named += [ROOT / target for target in re.findall(r"`((?:roclab|tests|docs|bench)/[\w./-]*)`", text)]
    assert [str(path) for path in named if not path.exists()] == []


def test_every_test_that_the_table_of_real_files_names_is_there():
    named = re.findall(r"([\w/]+\.py)::(\w+)", (ROOT / "docs" / "real-files.md").read_text(encoding="utf-8"))
    assert len(named) > 100
    assert [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()
    ] == []
