"""The process in which files under test run: `python -m roclab.course.verify.worker`.

It imports torch once, then takes requests (one JSON object a line on standard input) and answers on the descriptor that
it was given, which no file under test ever sees. For each request it forks: the child, in a session of its own, under
limits, in an empty folder, imports the file and runs one probe after another, each answer a line through a pipe. A
child that dies or runs out of time costs the probe it was at; the next child goes on behind it.

The child is not trusted: what it sends is data, judged elsewhere. This is a guard against mistakes, not a prison.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from roclab.course.verify import probes

MOST_BYTES = 64 << 20  # of one child's answers: more is not read
PRINTED_BYTES = 8 << 20  # what a file may print or write into one file
CRASHES = 3  # so many children may die or hang; the probes behind are not run


def main() -> None:
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    os.set_inheritable(answers.fileno(), False)
    torch.set_num_threads(1)
    torch.nn.Linear(2, 2)(
        torch.ones(1, 2)
    ).sum().backward()  # what is loaded late is loaded here, once for all children
    with contextlib.suppress(Exception):  # orphans of a child become ours, so that none outlives its file (Linux)
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line), answers.fileno())), file=answers, flush=True)


def serve(request: dict[str, Any], answers: int) -> dict[str, Any]:
    """Run all probes of a request. Returns {"imported", "answers": one a probe, "printed", "left", …}."""
    work, printed = Path(request["folder"]) / "work", Path(request["folder"]) / "printed"
    work.mkdir()
    result: dict[str, Any] = {"import": None, "answers": [], "refused": [], "seconds": 0.0}
    tasks, crashes, begin = request["probes"], 0, time.monotonic()
    while True:
        pipe, end = os.pipe()
        if (child := os.fork()) == 0:
            os.close(pipe)
            os.close(answers)
            _child(request, len(result["answers"]), end, work, printed)
        os.close(end)
        reason = _listen(pipe, child, result, request, begin + request["total_seconds"])
        os.close(pipe)
        _kill(child)
        if reason is None:
            break
        crashes += 1
        if result["import"] is None:  # it did not get so far
            result["import"] = {"error": reason}
        if result["import"].get("error"):
            break
        result["answers"].append({"error": reason, "died": True})
        if crashes >= CRASHES or time.monotonic() - begin > request["total_seconds"]:
            reason = "not run: checks before it crashed or ran out of time"
            result["answers"] += [{"error": reason, "skipped": True}] * (len(tasks) - len(result["answers"]))
        if len(result["answers"]) >= len(tasks):
            break
    result["seconds"] = time.monotonic() - begin
    result["left"] = sorted(str(p.relative_to(work)) for p in work.rglob("*") if not p.is_dir())[:20]
    result["printed"] = dict(zip(("lines", "first"), _lines(printed), strict=True))
    return result


def _lines(printed: Path) -> tuple[int, str]:
    """How many lines stand in the file, and the first of them."""
    text = printed.read_bytes()[:PRINTED_BYTES].decode("utf-8", "replace") if printed.exists() else ""
    return len(text.splitlines()), text[:200].strip().split("\n")[0]


def _listen(pipe: int, child: int, result: dict[str, Any], request: dict[str, Any], latest: float) -> str | None:
    """Take the child's lines until it is done or could not import the file: None; or why it did not come so far."""
    waiting, received = b"", 0
    imported = result["import"] is not None
    deadline = time.monotonic() + request["seconds"]
    while True:
        if not select.select([pipe], [], [], max(0, min(deadline, latest) - time.monotonic()))[0]:
            if time.monotonic() >= latest:
                return f"the file took more than {request['total_seconds']:g} seconds in all"
            return f"it hangs: {'no answer' if imported else 'not imported'} after {request['seconds']:g} seconds"
        if not (block := os.read(pipe, 1 << 20)):
            return _last_words(child)
        received += len(block)
        if received > MOST_BYTES:
            return f"it answers with more than {MOST_BYTES >> 20} MB"
        *lines, waiting = (waiting + block).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                kind = message["kind"]
            except (ValueError, TypeError, KeyError):
                return "its answers are not readable: the file wrote into a descriptor that is not its own"
            deadline = time.monotonic() + request["seconds"]
            result["refused"] += [r for r in message.get("refused", []) if r not in result["refused"]][:20]
            if kind == "done":
                return None
            if kind == "import":
                imported = True
                result["import"] = result["import"] or message
                if message.get("error"):
                    result["import"] = message
                    return None
            elif kind == "answer" and len(result["answers"]) < len(request["probes"]):
                result["answers"].append(message)


def _last_words(child: int) -> str:
    """How the child ended, in words."""
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.02)
    else:
        return "it closed its descriptors and went on"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        why = {"SIGSEGV": "a memory fault", "SIGXCPU": "too much processor time", "SIGKILL": "killed, or out of memory"}
        return f"the process crashed with {name}" + (f" ({why[name]})" if name in why else "")
    return f"the process ended itself with exit code {os.WEXITSTATUS(status)} (os._exit?)"


def _kill(child: int) -> None:
    """End the child, its process group and whatever else of its making is left."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)
    for _ in range(200):
        with contextlib.suppress(OSError):
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """Ours, orphans that came to us among them (where /proc tells)."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


# ---- in the child


def _child(request: dict[str, Any], first: int, pipe: int, work: Path, printed: Path) -> None:
    """Never returns."""
    refused: list[str] = []

    def send(kind: str, **content: Any) -> None:
        data = json.dumps({"kind": kind, "refused": list(refused), **content}).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    try:
        os.setsid()
        _confine(request, work, printed, refused)
        error, module = _import(request["file"])
        _flush()
        send("import", error=error, printed=_lines(printed)[0])
        if module is not None:
            for name, arguments in request["probes"][first:]:
                send("answer", **_answer(module, name, arguments))
                _flush()
        send("done")
    except BaseException as error:
        send("import", error=f"the check itself failed: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _flush() -> None:
    """What was printed goes into its file, as far as it fits."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


def _confine(request: dict[str, Any], work: Path, printed: Path, refused: list[str]) -> None:
    """Limits, an empty folder to stand in, nothing to read, what is printed into a file, no writing elsewhere."""
    os.chdir(work)
    os.environ.update(HOME=str(work.parent / "home"), TMPDIR=str(work.parent / "home"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nowhere, 0)
    os.dup2(out, 1)
    os.dup2(nowhere, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    sys.argv = [request["file"]]
    memory = _address_space() + (request["memory_mb"] << 20)
    cpu = int(request["seconds"] * (len(request["probes"]) + 1)) + 1
    for what, limit in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_FSIZE, PRINTED_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of the address space
            resource.setrlimit(what, (limit, limit))
    with contextlib.suppress(Exception):  # if the worker is killed, so is this process (Linux)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_, signal.SIG_DFL)
    sys.addaudithook(_watch(str(work.parent) + os.sep, refused))


def _address_space() -> int:
    """Bytes of address space in use: torch's libraries alone are several GB."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30


def _watch(folder: str, refused: list[str]) -> Any:
    """An audit hook that refuses, and remembers, writing outside of `folder`, the network and other programs."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    paths = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2,
             "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip
    program, network = "starting a program", "using the network"
    others = dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"), program)
    others |= dict.fromkeys(("socket.connect", "socket.getaddrinfo", "socket.sendto"), network)

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False  # a descriptor that is open already
        full = os.path.realpath(os.fsdecode(path))
        return not (full + os.sep).startswith(os.path.realpath(folder) + os.sep) and full != os.devnull

    def refuse(what: str) -> None:
        if what not in refused and len(refused) < 20:
            refused.append(what)
        raise PermissionError(f"refused while the file is checked: {what}")

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool((flags or 0) & writing)
            if writes and outside(path):
                refuse(f"writing {os.fsdecode(path)}")
        elif event in paths:
            for path in arguments[: paths[event]]:
                if outside(path):
                    refuse(f"changing {os.fsdecode(path)}")
        elif event in others and not (event == "socket.connect" and _local(arguments)):
            refuse(others[event])

    return hook


def _local(arguments: tuple) -> bool:
    return getattr(arguments[0], "family", None) == socket.AF_UNIX


def _import(file: str) -> tuple[str | None, Any]:
    """(error, module) of the file, imported under a name that is not `__main__`."""
    import importlib.machinery
    import importlib.util

    loader = importlib.machinery.SourceFileLoader("roclm_under_test", file)
    spec = importlib.util.spec_from_file_location("roclm_under_test", file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["roclm_under_test"] = module  # dataclasses look their module up
    sys.path.insert(0, os.path.dirname(file))  # as Python does for a file that is run
    try:
        loader.exec_module(module)
    except SystemExit as error:
        return f"it calls sys.exit({'' if error.code is None else error.code!r}) while it is imported", None
    except BaseException as error:
        return "it cannot be imported: " + _said(error, file), None
    return None, module


def _answer(module: Any, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A probe's value, or its error in one line. A thread's exception is not the probe's."""
    threading.excepthook = lambda _: None
    torch.manual_seed(0)
    try:
        return {"value": getattr(probes, name)(module, **arguments)}
    except SystemExit as error:
        return {"error": f"it calls sys.exit({'' if error.code is None else error.code!r})"}
    except probes.Unexpected as error:
        return {"error": str(error)}
    except BaseException as error:
        file = getattr(module, "__file__", "")
        return {"error": _said(error, file), "where": _where(error, file)}


def _where(error: BaseException, file: str) -> list[str]:
    """What of the user's file was running, innermost first: classes of methods, functions."""
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == file]
    owners = [(f.f_locals.get("self"), f.f_code.co_name) for f in reversed(frames)]
    return [name if owner is None else type(owner).__name__ for owner, name in owners][:50]


def _said(error: BaseException, file: str) -> str:
    """Kind, first lines and, where it is the user's file that raised, the line."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"it prints, or writes into a file, more than {PRINTED_BYTES >> 20} MB"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(lines[:3])[:300]}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}" + (f" (line {error.lineno})" if error.lineno else "")
    at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return text + (f" (line {at[-1]})" if at else "")


if __name__ == "__main__":
    main()
