"""What the child process (`worker.py`) notices of the file under test: what it does that a model has no need of, whose
code computes its parts, and what it replaces. Against shortcuts, not attacks: the file shares this process."""

from __future__ import annotations

import builtins
import inspect
import json
import os
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from roclab.course.verify import cases, probes
from roclab.course.verify.parts import NAMES, REFUSAL, part_of

PACKAGE = str(Path(__file__).parents[2]) + os.sep  # roclab/
CHECKER = os.path.join(PACKAGE, "course", "")  # the right answers lie there
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
           "shutil.rmtree")  # audit events whose texts are paths  # fmt: skip
REFUSED = {
    "starting a program": ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"),
    "starting a process": ("os.fork", "os.forkpty"),
    "using the network": ("socket.connect", "socket.getaddrinfo", "socket.sendto"),
}
REASONS = {event: reason for reason, events in REFUSED.items() for event in events}
OF_THE_FILE = {  # refused if the file itself does it; libraries may
    "sys.setprofile": "switching off how the checker looks on (sys.setprofile)",
    "marshal.loads": "making code from stored bytes (marshal)",
    "code.__new__": "making code from the parts of other code",
}
ADAM = os.path.join(os.path.dirname(torch.__file__), "optim", "adam")  # torch's own Adam and AdamW: a whole part
FONT_LISTS = ("fc-list", "system_profiler")  # matplotlib asks these when it is imported, and does without them
# Packages whose functions are tools and no part of a model.
TOOLS = ("numpy", "einops", "opt_einsum", "jaxtyping", "beartype", "typeguard", "tqdm", "safetensors", "matplotlib")


@dataclass
class Seen:
    """What is reported with each answer. `foreign`: by the part, whose code computes it."""

    refused: list[str] = field(default_factory=list)
    foreign: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, what: str) -> None:
        if what not in self.refused and len(self.refused) < 20:
            self.refused.append(what)

    def stands_in(self, part: str, what: str) -> None:
        found = self.foreign.setdefault(part, [])
        if what not in found and len(found) < 5:
            found.append(what)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame:
        yield frame
        frame = frame.f_back


# ---- what is refused


def audit_hook(folder: str, file: str, seen: Seen) -> Callable[[str, tuple], None]:
    """Refuses writing outside of `folder`, reading the checker's files, the network, other programs; remembers it."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    me, compiled = os.getpid(), 0

    def inside(path: Any, where: str) -> bool:
        full = os.path.realpath(os.fsdecode(path))
        return (full + os.sep).startswith(os.path.realpath(where) + os.sep)

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False  # a descriptor that is open already
        return not inside(path, folder) and os.path.realpath(os.fsdecode(path)) != os.devnull

    def refuse(what: str, remember: bool = True) -> None:
        if remember:
            seen.refuse(what)
        raise PermissionError(f"{REFUSAL}: {what}")

    def opened(path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool((flags or 0) & writing)
        if writes and outside(path):
            refuse(f"writing {os.fsdecode(path)}")
        frames = list(callers(sys._getframe(2))) if inside(path, PACKAGE) and not inside(path, file) else []
        by_the_file = any(frame.f_code.co_filename == file for frame in frames)
        if by_the_file and (inside(path, CHECKER) or not imports(frames)):
            modules = {frame.f_globals.get("__name__") for frame in frames}  # linecache alone: for an error's text
            name = os.path.relpath(os.path.realpath(os.fsdecode(path)), Path(PACKAGE).parent)
            refuse(f"reading RocLab's own {name}", "linecache" not in modules or "inspect" in modules)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal compiled
        if event == "open":
            opened(*arguments)
        elif event in CHANGES:
            for path in filter(outside, arguments):
                refuse(f"changing {os.fsdecode(path)}")
        elif event in REASONS:
            local = event == "socket.connect" and getattr(arguments[0], "family", None) == socket.AF_UNIX
            if not local:
                fonts = event == "subprocess.Popen" and os.path.basename(str(arguments[0])) in FONT_LISTS
                refuse(REASONS[event], remember=not fonts)
        elif event == "os.kill" and arguments[0] != me:
            refuse("ending another process")
        elif event == "compile" and arguments[1] == file:
            compiled += 1
            if compiled > 1:
                refuse("running other code under the file's own name")
        elif event in OF_THE_FILE and sys._getframe(1).f_code.co_filename == file:
            refuse(OF_THE_FILE[event])
        elif event == "object.__setattr__" and arguments[1] == "__code__" and arguments[0].__code__.co_filename != file:
            refuse(f"replacing the code of {getattr(arguments[0], '__qualname__', 'a function')}")

    return hook


def imports(frames: list[FrameType]) -> bool:
    """Whether Python's import system reads: then whose code runs is seen by its name."""
    return any(f.f_code.co_name == "get_code" and "importlib" in f.f_code.co_filename for f in frames[:4])


# ---- whose code it is


def place(file: str) -> str:
    """A code's file in words: below its package, or its name alone."""
    if file.startswith("<"):
        return "code made from a text (exec)"
    roots = [str(Path(PACKAGE).parent), *(sysconfig.get_path(p) for p in ("purelib", "platlib"))]
    inner = [os.path.relpath(file, root) for root in roots if root and file.startswith(root.rstrip(os.sep) + os.sep)]
    return min(inner, key=len, default=os.path.basename(file))


def foreign_definitions(module: ModuleType, file: str, seen: Seen) -> set[CodeType]:
    """Notes the handout's classes and functions that are not defined in the file. Returns their code."""
    found = set()
    for name, part in NAMES.items():
        owner, _, method = name.partition(".")
        thing = getattr(module, owner, None)
        if thing is None or (method and not hasattr(thing, method)):
            continue
        if isinstance(thing, type) and issubclass(thing, (nn.Module, torch.optim.Optimizer)):
            thing = getattr(thing, method or ("forward" if issubclass(thing, nn.Module) else "step"))
        code = getattr(inspect.unwrap(thing), "__code__", None) if callable(thing) else None
        where = getattr(thing, "__module__", None)
        if code is not None and code.co_filename != file:
            seen.stands_in(part, f"{name} is defined in {place(code.co_filename)}")
            found.add(code)
        elif code is None and isinstance(thing, type) and where != module.__name__:
            seen.stands_in(part, f"{name} is defined in {where}")
    return found


def profiler(file: str, seen: Seen, noted: set[CodeType]) -> Callable[[FrameType, str, Any], None]:
    """Notes code of others that computes with torch where one of the file's parts called it; `noted` is already."""
    libraries = tuple(sysconfig.get_path(p) + os.sep for p in ("stdlib", "platstdlib"))
    packages = tuple(sysconfig.get_path(p) + os.sep for p in ("purelib", "platlib"))  # they may lie in stdlib's folder
    tools = [os.path.dirname(torch.__file__) + os.sep, *(p + tool + os.sep for p in packages for tool in TOOLS)]
    known: dict[str, bool] = {file: True}

    def is_free(name: str) -> bool:
        if name.startswith(ADAM):
            return False
        if name.startswith((*tools, CHECKER, "<frozen", "<eval_with_key")):
            return True
        return name.startswith(libraries) and not name.startswith(packages)

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        name = code.co_filename
        if name not in known:
            known[name] = is_free(name)
        if known[name] or code.co_name.startswith("__") or not {"torch", "nn", "F", "Tensor"} & frame.f_globals.keys():
            return
        frames = list(callers(frame))
        own = [f for f in frames if f.f_code.co_filename == file]
        if not own or own[0].f_code.co_name == "__init__" or not noted.isdisjoint(f.f_code for f in frames):
            return
        if part := next(filter(None, map(part_of, own)), None):
            seen.stands_in(part, f"{code.co_name} of {place(name)} computes in it")

    return look


def look_on(look: Callable[[FrameType, str, Any], None]) -> None:
    """In this thread and those to come."""
    threading.setprofile(look)
    sys.setprofile(look)


# ---- what is replaced


class Originals:
    """The functions that the checker and all files share, as they were."""

    def __init__(self) -> None:
        owners: list[Any] = [
            torch, nn, F, nn.init, torch.autograd, torch.linalg, torch.Tensor, nn.Parameter, nn.Module, nn.Linear,
            nn.Embedding, nn.ModuleList, builtins, json, os, inspect, np, probes, cases,
        ]  # fmt: skip
        self._of = {owner: {n: v for n, v in vars(owner).items() if self._counts(n, v)} for owner in owners}

    @staticmethod
    def _counts(name: str, value: Any) -> bool:
        return callable(value) and (not name.startswith("_") or name.endswith("__"))

    def restore(self) -> list[str]:
        """Puts back what was replaced. Returns their names."""
        found = []
        for owner, before in self._of.items():
            for name, value in before.items():
                if vars(owner).get(name) is not value:
                    found.append(f"{owner.__name__}.{name}")
                    setattr(owner, name, value)
            if isinstance(owner, type):  # what hides an inherited name
                hidden = [n for n, v in vars(owner).items() if n not in before and self._counts(n, v)]
                for name in (n for n in hidden if any(n in vars(base) for base in owner.__mro__[1:])):
                    found.append(f"{owner.__name__}.{name}")
                    delattr(owner, name)
        return [name.replace("torch.nn.functional", "F") for name in found]
