"""The trusted side of the process in which files under test run (see `worker.py`)."""

from __future__ import annotations

import json
import os
import select
import site
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.course.verify.limits import Limits

START_SECONDS = 300  # importing torch from a cold disk on a busy machine
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
PACKAGES = Path(__file__).parents[3]  # the folder that holds roclab


class SandboxEnded(RocLabError):
    """The process is gone or silent: a file under test did something to it."""


class Sandbox:
    """A process that runs files. `with Sandbox() as sandbox: sandbox.run(path, probes)`, as often as wanted."""

    def __enter__(self) -> Sandbox:
        self._start()
        return self

    def _start(self) -> None:
        if not hasattr(os, "fork"):
            raise RocLabError("lm verify needs fork and process limits: use Linux, macOS or WSL")
        self._folder = tempfile.TemporaryDirectory(prefix="roclab-verify-", ignore_cleanup_errors=True)
        self._count = 0
        home = Path(self._folder.name) / "home"
        home.mkdir()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}  # no tokens, no proxies
        environment |= {
            "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(PACKAGES),
            "PYTHONUSERBASE": site.getuserbase(),  # or packages below the real home would vanish with HOME
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self._errors = open(Path(self._folder.name) / "errors", "w+")  # noqa: SIM115  (closed in _end)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "roclab.course.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self._folder.name,
            env=environment,
            start_new_session=True,
        )

    def __exit__(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()  # the worker ends with its input
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def run(
        self, path: Path, probes: list[tuple[str, dict[str, Any]]], limits: Limits, text: str | None = None
    ) -> dict[str, Any]:
        """Import the file, or `text` in its place, in a child process and run the probes (names of functions in
        `probes.py`, arguments).

        Returns {"import", "answers", "printed", "refused", "foreign", "left", "seconds"} as `worker.serve` makes it.
        """
        if self._process.poll() is not None and self._count:  # an earlier file ended it
            self._end()
            self._start()
        if self._count == 0:
            try:
                self._line(START_SECONDS)  # "ready"
            except SandboxEnded as error:  # no file was there yet: not its fault
                raise RocLabError(f"cannot start the process that runs the file: {error}") from None
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        (folder / "home").mkdir(parents=True)
        file, beside = path.resolve(), path.resolve().parent
        if text is not None:
            file = folder / "notebook.py"
            file.write_text(text, encoding="utf-8")
        request = {"file": str(file), "beside": str(beside), "folder": str(folder), "probes": probes, **asdict(limits)}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SandboxEnded("it killed the process that checks it") from None
        try:
            return json.loads(self._line(limits.total_seconds + limits.seconds + 60))
        except SandboxEnded:
            self._process.kill()
            self._process.wait()
            raise

    def _line(self, seconds: float) -> bytes:
        """The worker's next line."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise SandboxEnded(f"the process that runs it does not answer after {seconds:g} seconds")
        if not (line := self._process.stdout.readline()).endswith(b"\n"):
            self._errors.seek(0)
            said = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            raise SandboxEnded(f"it ended the process that checks it ({said})")
        return line
