"""Every command's flags: names, types, defaults, and which are required."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.golden.common import ROOT, assert_same, read_record

# The program is started as a user starts it and stopped where it would read its words: wherever the commands lie, this
# sees the ones that are run.
READER = """
import json, runpy, typing, typer

WORDS = {"text": "str", "integer": "int", "integer range": "int", "float range": "float", "boolean": "bool"}

def kind(p):
    described = getattr(p, "type_descriptor", None)  # typer's own since it left click; before that click's types
    if described is None:
        return WORDS.get(p.type.name, p.type.name)
    found = described.annotation
    while inner := [a for a in typing.get_args(found) if a is not type(None)]:  # list[str], str | None
        found = inner[0]
    return getattr(found, "__name__", str(found)).lower()

def plain(value):
    if callable(value) or type(value).__name__ in ("Sentinel", "UnsetType") or "UNSET" in repr(value):
        return None
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

def look(command, path, found):
    found[path] = {}
    for p in sorted(command.params, key=lambda p: p.name):
        argument = p.param_type_name == "argument"
        about = {"type": kind(p), "default": plain(p.default), "required": bool(p.required),
                 "several": bool(getattr(p, "multiple", False) or p.nargs != 1),
                 "flag": bool(getattr(p, "is_flag", False))}
        for limit in ("min", "max"):
            bound = getattr(p, limit, None) if getattr(p, limit, None) is not None else (
                getattr(getattr(p, "type", None), limit, None))
            if bound is not None:
                about[limit] = bound
        name = p.name if argument else ", ".join(sorted([*p.opts, *p.secondary_opts], key=lambda o: (len(o), o)))
        found[path][("argument " if argument else "") + name] = about
    for name, child in getattr(command, "commands", {}).items():
        look(child, f"{path} {name}", found)

def stop(app, *_, **__):
    found = {}
    look(typer.main.get_command(app), "roclab", found)
    print(json.dumps(found))
    raise SystemExit(0)

typer.Typer.__call__ = stop
runpy.run_module("roclab", run_name="__main__")
"""


def now() -> dict[str, Any]:
    """Command → flag → what it takes."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", READER], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_commands_and_flags_are_the_same():
    assert_same(now(), read_record("commands"))
