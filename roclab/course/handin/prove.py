"""A hand-in is proven, not believed: unzipped elsewhere, run without the installed RocLab, and searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.fetch import find_package
from roclab.course.handin.checklist import notebook_trouble
from roclab.course.tokenizer_lab.notebook import execute
from roclab.lm.weights.sources import SHORT_NAMES, Package
from roclab.report.privacy import find_private

# Runs a script as `python SCRIPT …` does, in an isolated interpreter that has the installed libraries but not the
# path files of editable installs: whatever roclab is imported must come from beside the script. Its place is told last.
LAUNCHER = """
import json, runpy, sys
script, libraries, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
sys.path[:0] = [script.rpartition("/")[0]]
sys.path += json.loads(libraries)
code = 0
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stop:
    code = stop.code or 0
print()
print("ROCLAB", getattr(sys.modules.get("roclab"), "__file__", None))
raise SystemExit(code)
"""

WHERE = """
import os, sys
found = getattr(sys.modules.get("roclab"), "__file__", None)
print(found and os.path.realpath(found))
"""
DEMO = SHORT_NAMES["smollm2-135m"]


def prove(zipped: Path, incomplete: bool = False) -> list[str]:
    """Unzip into a temporary folder and try everything; returns what was shown, a line each.

    `incomplete` leaves out what the hand-in is allowed to lack. Raises `RocLabError` with all that is private, else
    with all that failed.
    """
    with tempfile.TemporaryDirectory(prefix="handin-") as folder:
        root = Path(folder).resolve()
        with zipfile.ZipFile(zipped) as archive:
            archive.extractall(root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        private = [line for f in files for line in find_private(f.relative_to(root).as_posix(), _readable(f))]
        _refuse(private)  # at once: nothing of it is run
        shown, code = ["no absolute path and no secret in any file"], root / "Code"
        failed = []
        for script, arguments, alone in _programs(code):
            if incomplete and not (code / script).exists():
                continue
            if trouble := run_script(code, script, arguments, alone):
                failed.append(trouble)
            else:
                words = " ".join((script, *arguments)).replace(f"{root}/", "")
                shown.append(f"python {words} runs from the unzipped folder alone")
        notebook = code / "part2" / "Tokenizer_Lab.ipynb"
        trouble = notebook_trouble(notebook) or run_notebook(notebook, code)
        if trouble is None:
            shown.append("Tokenizer_Lab.ipynb is executed, without an error, and was executed again where it lies")
        elif not (incomplete and notebook_trouble(notebook)):  # else the list of what is missing says it
            failed.append(f"Tokenizer_Lab.ipynb: {trouble}")
    _refuse(failed)
    return shown


def _refuse(failed: Sequence[str]) -> None:
    if failed:
        raise RocLabError("the hand-in was not written, it does not stand alone: " + "; ".join(failed))


def _programs(code: Path) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Each program of the zip with arguments that show most in little time, and whether it needs no package roclab.

    The whole experiment runs on a few images of noise, one epoch from random weights; the demos, where the hand-in says
    what they printed and the weights are installed, say a few words."""
    yield "part2/roclm_model.py", (), True
    if json.loads((code / "part1" / "experiment.json").read_text("utf-8")):
        images = _noise(code / "noise")
        small = ("--weights", "none", "--image-size", "32", "--epochs", "1", "--seeds", "1")
        yield "part1/main.py", ("--data", str(images), *small, "--out", str(code / "again")), False
    else:
        yield "part1/main.py", ("train", "--help"), False
    said = (code.parent / "evaluation" / "demo.txt").exists()
    spoken = said and isinstance(DEMO, Package) and find_package(DEMO.module)
    yield "part2/roc_demo.py", ("--max-new-tokens", "8") if spoken else ("--help",), False


def _noise(folder: Path) -> Path:
    """Two classes of images of noise, six each."""
    from PIL import Image

    for name, seed in (("a", 0), ("b", 1)):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng([seed, number]).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def run_notebook(path: Path, code: Path) -> str | None:
    """Execute a notebook where it lies; None if every cell ends and whatever roclab it imports is beside it."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(WHERE))
    try:
        execute(notebook, path.parent, {"PYTHONPATH": ""})
    except RocLabError as error:
        return str(error)
    place = "".join(output.get("text", "") for output in notebook.cells[-1].outputs).strip()
    return None if place == "None" or place.startswith(str(code / "roclab")) else f"it imports roclab from {place}"


def _readable(path: Path) -> bytes:
    """The bytes to search: of a checkpoint its header, which is all the text it has."""
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            return file.read(1 << 20)
    return path.read_bytes()


def run_script(code: Path, script: str, arguments: tuple[str, ...], alone: bool) -> str | None:
    """Run `Code/SCRIPT` in a clean process; None if it works on the unzipped copy, else what is wrong.

    `alone`: it may not need the package roclab at all.
    """
    libraries = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    command = [sys.executable, "-I", "-S", "-B", "-c", LAUNCHER, str(code / script), json.dumps(libraries), *arguments]
    keep = ("PATH", "SYSTEMROOT", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {key: os.environ[key] for key in keep if key in os.environ} | {"HOME": str(code)}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=code, env=environment, timeout=600
        )
    except subprocess.TimeoutExpired:
        return f"python {script} did not end within ten minutes"
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or lines or ["nothing was said"])[-1]
        return f"python {script} ends with {done.returncode}: {last}"
    place = lines[-1].removeprefix("ROCLAB ") if lines else ""
    if alone:
        return None if place == "None" else f"python {script} needs the package roclab, from {place}"
    return None if place.startswith(str(code / "roclab")) else f"python {script} imports roclab from {place}"
