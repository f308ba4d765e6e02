"""The trusted side of the process in which files under test run (see `worker.py`)."""

from __future__ import annotations

import json
import os
import select
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError

START_SECONDS = 300  # importing torch from a cold disk on a busy machine
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class SandboxEnded(RocLabError):
    """The process is gone or silent: a file under test reached out of its own."""


class Sandbox:
    """A process that runs files. `with Sandbox() as sandbox: sandbox.run(path, probes)`, as often as wanted."""

    def __enter__(self) -> Sandbox:
        if not hasattr(os, "fork"):
            raise RocLabError("lm verify needs fork and process limits: use Linux, macOS or WSL")
        import roclab

        self._folder = tempfile.TemporaryDirectory(prefix="roclab-verify-", ignore_cleanup_errors=True)
        self._count = 0
        home = Path(self._folder.name) / "home"
        home.mkdir()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}  # no tokens, no proxies
        environment |= {
            "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(Path(roclab.__file__).parent.parent),
            "PYTHONUSERBASE": site.getuserbase(),  # or packages below the real home would vanish with HOME
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self._pipe, end = os.pipe()
        self._errors = open(Path(self._folder.name) / "errors", "w+")  # closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "roclab.course.verify.worker", str(end)],
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            cwd=self._folder.name,
            env=environment,
            pass_fds=(end,),
            start_new_session=True,
        )
        os.close(end)
        self._waiting = b""
        try:
            self._line(START_SECONDS)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, SandboxEnded):  # no file was there yet: not its fault
                raise RocLabError(f"cannot start the process that runs the file: {error}") from None
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process.stdin:
            self._process.stdin.close()  # the worker ends with its input
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._pipe)
        self._errors.close()
        self._folder.cleanup()

    def run(
        self,
        path: Path,
        probes: list[tuple[str, dict[str, Any]]],
        seconds: float = 20.0,
        total_seconds: float = 180.0,
        memory_mb: int = 2048,
    ) -> dict[str, Any]:
        """Import the file in a child process and run the probes (names of functions in `probes.py`, arguments).

        Each step has `seconds`, the file `total_seconds`, and `memory_mb` beyond what torch occupies. Returns
        {"import", "answers", "printed", "refused", "left", "seconds"} as `worker.serve` makes it.
        """
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        (folder / "home").mkdir(parents=True)
        request = {"file": str(path.resolve()), "folder": str(folder), "probes": probes, "seconds": seconds}
        request |= {"total_seconds": total_seconds, "memory_mb": memory_mb}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SandboxEnded("it killed the process that checks it") from None
        return json.loads(self._line(total_seconds + seconds + 60))

    def _line(self, seconds: float) -> bytes:
        """The worker's next line."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._waiting:
            if not select.select([self._pipe], [], [], max(0, deadline - time.monotonic()))[0]:
                raise SandboxEnded(f"the process that runs it does not answer after {seconds:g} seconds")
            if not (block := os.read(self._pipe, 1 << 20)):
                self._errors.seek(0)
                said = (self._errors.read().strip().splitlines() or ["no message"])[-1]
                raise SandboxEnded(f"it ended the process that checks it ({said})")
            self._waiting += block
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line
