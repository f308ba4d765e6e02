"""The process in which files under test run: `python -m roclab.course.verify.worker`.

It imports torch once, then takes requests (one JSON object a line on standard input) and answers on standard output,
which no file under test ever sees. For each request it forks: the child, in a session of its own, under limits, in an
empty folder, imports the file and runs one probe after another, each answer a line in a file. A child that dies or runs
out of time costs the probe that it was running; the next child goes on behind it.

The child is not trusted: what it writes is data, evaluated elsewhere. This guards against mistakes, not attacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.machinery
import importlib.util
import io
import json
import os
import resource
import secrets
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from roclab.course.verify import probes
from roclab.course.verify.cases import directions, stored_arrays
from roclab.course.verify.parts import REFUSAL
from roclab.course.verify.watch import Originals, Seen, audit_hook, foreign_definitions, look_on, profiler

FILE_MB = 16  # what a file may print or write into one file
CRASHES = 3  # so many children may die or hang; the probes behind are not run
MODULE = "roclm_under_test"  # not __main__, so that what stands below `if __name__ == "__main__"` does not run
MAIN = "below if __name__ == '__main__'"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()  # torch loads some parts late: once, for all children
    with contextlib.suppress(Exception):  # orphans of a child become ours, so that none outlives its file (Linux)
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    stored_arrays(), directions()  # read once: no child has to
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line), answers.fileno())), file=answers, flush=True)


def serve(request: dict[str, Any], descriptor: int) -> dict[str, Any]:
    """Run all probes of a request. Returns {"import", "answers": one a probe, "printed", "refused", "foreign",
    "left", "seconds"}. The children must not have the descriptor."""
    folder, total, begin = Path(request["folder"]), len(request["probes"]), time.monotonic()
    result: dict[str, Any] = {"import": {}, "answers": [], "refused": [], "foreign": {}}
    (folder / "work").mkdir()
    if any(name == "adamw" for name, _ in request["probes"]):  # an optimizer's parts take torch seconds to load
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).step()
    for crashes in range(1, CRASHES + 1):
        output = folder / f"answers{crashes}"
        output.touch()
        nonce = secrets.token_hex(16)  # a line without it is not the child's
        if (child := os.fork()) == 0:
            os.close(descriptor)
            run_child(request, folder, output, nonce, len(result["answers"]))
        reason = supervise(child, output, request, bool(result["import"]), begin + request["total_seconds"])
        end_family(child)
        read_lines(output, nonce, result, total)
        result["import"] = result["import"] or {"error": reason}
        if result["import"].get("error") or len(result["answers"]) == total:
            break
        result["answers"].append({"error": reason})
        if crashes == CRASHES or time.monotonic() - begin > request["total_seconds"]:
            skipped = {"error": "not run: checks before it crashed or ran out of time"}
            result["answers"] += [skipped] * (total - len(result["answers"]))
        if len(result["answers"]) == total:
            break
    left = [str(p.relative_to(folder / "work")) for p in (folder / "work").rglob("*") if not p.is_dir()]
    lines, first = printed_lines(folder)
    printed = {"lines": lines, "first": first}
    return result | {"seconds": time.monotonic() - begin, "left": sorted(left)[:20], "printed": printed}


def supervise(child: int, output: Path, request: dict[str, Any], imported: bool, latest: float) -> str:
    """Wait until the child ends or has to be ended. Returns why, in words: the reason where it has not answered all."""
    size, deadline = 0, time.monotonic() + request["seconds"]
    while time.monotonic() < min(deadline, latest):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return last_words(status)
        if (new := output.stat().st_size) > size:
            size, imported, deadline = new, True, time.monotonic() + request["seconds"]
        time.sleep(0.005)
    if time.monotonic() >= latest:
        return f"the file took more than {request['total_seconds']:g} seconds in all"
    if imported:
        return f"it hangs: no answer after {request['seconds']:g} seconds"
    return f"it hangs: not imported after {request['seconds']:g} seconds; what takes long belongs {MAIN}"


def last_words(status: int) -> str:
    """How a child ended, in words."""
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        why = {"SIGSEGV": "a memory fault", "SIGXCPU": "too much processor time", "SIGKILL": "killed, or out of memory"}
        return f"the process crashed with {name}" + (f" ({why[name]})" if name in why else "")
    return f"the process ended itself with exit code {os.WEXITSTATUS(status)} (os._exit?)"


def read_lines(output: Path, nonce: str, result: dict[str, Any], total: int) -> None:
    """The child's lines into the result; what others wrote there is told."""
    for line in filter(None, output.read_bytes().split(b"\n")[:-1]):
        if not line.startswith(nonce.encode()):
            note(result["refused"], ["writing into a descriptor that is not its own"])
            continue
        message = json.loads(line[len(nonce) :])
        note(result["refused"], message["refused"])
        for part, found in message["foreign"].items():
            note(result["foreign"].setdefault(part, []), found)
        if message["kind"] == "import":
            result["import"] = message if message["error"] else result["import"] or message
        elif message["kind"] == "answer" and len(result["answers"]) < total:
            result["answers"].append(message)


def note(known: list[str], new: list[str]) -> None:
    known += [text for text in new if text not in known][:20]


def printed_lines(folder: Path) -> tuple[int, str]:
    """How many lines the file printed, and the first of them."""
    path = folder / "printed"
    text = path.read_bytes()[: 8 << 20].decode("utf-8", "replace") if path.exists() else ""
    return len(text.splitlines()), text[:200].strip().split("\n")[0]


def end_family(child: int) -> None:
    """End the child, its process group and all other processes that it started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)
    children = Path(f"/proc/self/task/{os.getpid()}/children")  # orphans that came to us among them (Linux)
    for _ in range(200):
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


# ---- in the child


def run_child(request: dict[str, Any], folder: Path, output: Path, nonce: str, first: int) -> None:
    """Import the file and run its probes from `first` on. Never returns."""
    seen, originals, me, leave = Seen(), Originals(), os.getpid(), os._exit
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)

    def send(kind: str, **content: Any) -> None:
        if copied := os.getpid() != me:  # the file started it past Python
            kind, content = "note", {}
            seen.refuse("starting a process")
        # The line break in front ends what anything else may have written.
        data = f"\n{nonce}{json.dumps({'kind': kind, **asdict(seen), **content})}\n".encode()
        while data:
            data = data[os.write(descriptor, data) :]
        if copied:
            leave(0)

    def replaced() -> list[str]:
        names = [f"replacing {name}" for name in originals.restore()]
        for name in names:
            seen.refuse(name)
        return names

    try:
        os.setsid()
        confine(request, folder)
        file = request["file"]
        for name in [n for n in sys.modules if n.split(".")[0] in ("roclab", "__main__")]:
            del sys.modules[name]  # the checker's: the file has no need of them
        sys.modules["__main__"] = ModuleType("__main__")
        os.environ.pop("PYTHONPATH", None)
        sys.addaudithook(audit_hook(str(folder) + os.sep, file, seen))
        error, module = import_file(request)
        replaced()
        if module is not None:
            noted = foreign_definitions(module, file, seen)
        send("import", error=error, printed=printed_lines(folder)[0])
        if module is not None:
            look_on(profiler(file, seen, noted))
            for name, arguments in request["probes"][first:]:
                answered = answer(module, name, arguments, request)
                if names := replaced():
                    answered = {"error": f"{REFUSAL}: {names[0]}"}
                send("answer", **answered)
    except BaseException as error:
        send("import", error=f"the check itself failed: {type(error).__name__}: {error}")
    finally:
        leave(0)


def confine(request: dict[str, Any], folder: Path) -> None:
    """Limits, an empty folder to work in, nothing to read, what is printed into a file."""
    os.chdir(folder / "work")
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "home"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, place in ((nowhere, 0), (printed, 1), (nowhere, 2)):
        os.dup2(descriptor, place)
    os.close(nowhere)
    os.close(printed)
    sys.stdin = os.fdopen(0, closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = os.fdopen(number, "wb", buffering=0, closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    sys.argv = [request["file"]]
    cpu = int(request["seconds"] * (len(request["probes"]) + 1)) + 1
    for what, limit in (
        (resource.RLIMIT_AS, address_space() + (request["memory_mb"] << 20)), (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, FILE_MB << 20), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of the address space
            resource.setrlimit(what, (limit, limit))
    with contextlib.suppress(Exception):  # if the worker is killed, so is this process (Linux)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_, signal.SIG_DFL)


def address_space() -> int:
    """Bytes of address space in use: torch's libraries alone are several GB."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30


def import_file(request: dict[str, Any]) -> tuple[str | None, Any]:
    """(error, module) of the file. Its text is compiled here: what lies in __pycache__ may be another's."""
    file = request["file"]
    loader = importlib.machinery.SourceFileLoader(MODULE, file)
    spec = importlib.util.spec_from_file_location(MODULE, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # dataclasses look their module up
    sys.path.insert(0, request["beside"])  # as Python does for a file that is run
    try:
        exec(loader.source_to_code(loader.get_data(file), file), module.__dict__)
    except SystemExit as error:
        return f"{in_words(error, request)} while it is imported", None
    except BaseException as error:
        return f"it cannot be imported: {in_words(error, request)}", None
    return None, module


def answer(module: Any, name: str, arguments: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """A probe's value, or its error in one line and what of the file was running. A thread's exception is not the
    probe's."""
    threading.excepthook = lambda _: None
    torch.manual_seed(0)
    try:
        return {"value": getattr(probes, name)(module, **arguments)}
    except probes.Unexpected as error:
        return {"error": str(error)}
    except BaseException as error:
        return {"error": in_words(error, request), "where": running(error, request["file"])}


def running(error: BaseException, file: str) -> list[str]:
    """What of the user's file was running, innermost first: classes of methods, functions."""
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == file]
    owners = [(f.f_locals.get("self"), f.f_code.co_name) for f in reversed(frames)]
    return [name if owner is None else type(owner).__name__ for owner, name in owners][:50]


def in_words(error: BaseException, request: dict[str, Any]) -> str:
    """Kind, first lines and, where the user's file raised it, the line."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else error.code!r})"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"it prints, or writes into a file, more than {FILE_MB} MB"
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind}: {error.msg}" + (f" (line {error.lineno})" if error.lineno else "")
    text = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:3])[:300]
    if isinstance(error, MemoryError) or "allocate memory" in text:
        text = f"it needs more memory than the limit of {request['memory_mb']} MB (--memory-mb); build a large model "
        text += f"only {MAIN}"
    at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == request["file"]]
    return f"{kind}: {text}".rstrip(": ") + (f" (line {at[-1]})" if at else "")


if __name__ == "__main__":
    main()
