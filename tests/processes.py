"""Commands in processes of their own, without the ten seconds that importing torch and its kin takes each time.

A server process imports them once. Each command is a fork of it, which gets its own arguments, folder, environment and
standard streams, imports RocLab and runs it as `python -m roclab` does. One server for each process of the tests.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

# No network, and one thread, so that tests side by side do not wait for one another.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody there: a test that wants a Hub names its own
    "NO_PROXY": "*",
}

SERVER = """
import atexit, contextlib, importlib, json, os, runpy, signal, sys, threading, traceback

for module in ("torch", "torchvision", "scipy.stats", "sklearn.linear_model", "matplotlib.pyplot"):
    with contextlib.suppress(ImportError):  # an extra that is not installed
        importlib.import_module(module)
assert "huggingface_hub" not in sys.modules  # it reads the environment when it is imported

def run(words, folder, environment, streams):
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace")
    sys.argv = ["roclab", *words]
    try:
        runpy.run_module("roclab", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as Python ends: threads first
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)

for line in sys.stdin:
    words, folder, environment, streams, seconds = json.loads(line)
    child = os.fork()
    if not child:
        run(words, folder, environment, streams)
    def stop(*_):
        os.killpg(child, signal.SIGKILL)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # this checkout before another
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths}


@cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=_environment(),
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def roclab(
    *arguments: Any, stdin: str = "", cwd: Path = ROOT, seconds: int = 300, **environment: Any
) -> subprocess.CompletedProcess[str]:
    """Run `roclab` with these arguments and see what it printed."""
    words = list(map(str, arguments))
    env = _environment() | {name: str(value) for name, value in environment.items()}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("in", "out", "err")]
        for path in streams:
            path.write_text(stdin if path.name == "in" else "", encoding="utf-8")
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps([words, str(cwd), env, list(map(str, streams)), seconds]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams[1:])
    return subprocess.CompletedProcess(["roclab", *words], code, out, err)
