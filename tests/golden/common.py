"""What the records share: processes, the machine's key, the structure of JSON, and the comparison with a record."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests import processes

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Answer:
    """What a command came to. Only the test that asks for its output fails where it did not succeed."""

    words: Sequence[str]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        assert self.code == 0, f"roclab {' '.join(self.words)} ended with {self.code}:\n{self.err[-3000:]}"
        return self.out

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def roclab(*commands: Sequence[Any], cwd: Path = ROOT, typed: str = "", **environment: Any) -> list[Answer]:
    """Run the commands one after the other; `typed` is what the last one reads. One thread: sums are then always added
    in the same order."""
    answers = []
    for words in commands:
        # The folder of this checkout comes first, so that a run from another folder does not find another roclab.
        done = processes.roclab(
            *words, stdin=typed if words is commands[-1] else "", cwd=cwd, seconds=500, COLUMNS=120,
            CUDA_VISIBLE_DEVICES="", **environment,
        )  # fmt: skip
        answers.append(Answer(list(map(str, words)), done.returncode, done.stdout, done.stderr))
    return answers


def machine_key(*packages: str) -> str:
    """Names what decides the last bits of a result: the processor's maker and instruction sets (libraries and our
    kernels choose their code by them), and the versions of the packages that compute."""
    import torch

    cpu = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            cpu.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    vnni = [flag for flag in ("avx_vnni", "avx512_vnni") if flag in cpu.get("flags", "").split()]
    parts = [platform.machine(), cpu.get("vendor_id", "unknown maker"), torch.backends.cpu.get_cpu_capability(), *vnni]
    return ", ".join([*parts, *(f"{name} {metadata.version(name)}" for name in ("torch", *packages))])


def structure(value: Any) -> Any:
    """The keys and types of a JSON value. A list's elements are one structure: a key that only some have ends in "?",
    types that differ are written with | between."""
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in value.items()}
    if isinstance(value, list):
        merged: list[Any] = []
        for element in value:
            merged = [_merge(merged[0], structure(element))] if merged else [structure(element)]
        return merged
    return "null" if value is None else type(value).__name__


def files(folder: Path) -> list[str]:
    """What lies in a folder."""
    return plain_names(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def plain_names(names: Iterable[str]) -> list[str]:
    """Without TensorBoard's times and machines, and without the hashes of photos that one machine or another shows."""
    names = (re.sub(r"(tfevents)\..*", r"\1.*", name) for name in names)
    names = (re.sub(r"(thumbs/|figures/image-)[0-9a-f]+", r"\1*", name) for name in names)
    return sorted({re.sub(r"-heat-\d+", "-heat-*", name) for name in names})


def _merge(a: Any, b: Any) -> Any:
    if a == b:
        return a
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, Any] = {}
        for name in dict.fromkeys(key.removesuffix("?") for key in [*a, *b]):
            inside = [side.get(name, side.get(name + "?")) for side in (a, b)]
            inner = inside[0] if inside[1] is None else inside[1] if inside[0] is None else _merge(*inside)
            found[name if name in a and name in b else name + "?"] = inner
        return found
    if isinstance(a, list) and isinstance(b, list):
        return [_merge(a[0], b[0])] if a and b else a or b
    words = [x if isinstance(x, str) else "object" if isinstance(x, dict) else "list" for x in (a, b)]
    return "|".join(sorted({part for word in words for part in word.split("|")}))


def write_record(name: str, found: Any) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def read_record(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text("utf-8"))


def add_machine(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The new record keeps what other machines have recorded under `machines`, unless the rest has changed: then their
    bits are no longer those of this code."""
    try:
        old = read_record(name)
    except FileNotFoundError:
        return found
    same = plain(found, without="machines") == plain(old, without="machines")
    return found | {"machines": old["machines"] | found["machines"]} if same else found


def plain(found: dict[str, Any], without: str) -> Any:
    """As JSON reads it back, so that tuples and lists are equal."""
    return json.loads(json.dumps({key: value for key, value in found.items() if key != without}))


def bits_of(record: dict[str, Any], key: str) -> Any:
    """What this machine's bits were, else a skip that says why."""
    if key not in record["machines"]:
        known = "; ".join(record["machines"])
        pytest.skip(f"bits depend on the machine, and none are recorded for this one ({key}); recorded: {known}")
    return record["machines"][key]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(found: Any, record: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, a line each: easier to read than two long values."""
    if isinstance(found, dict) and isinstance(record, dict):
        lines = []
        for key in sorted({*found, *record}):
            if key not in found or key not in record:
                lines.append(f"{at}/{key}: {'gone' if key in record else 'new'}")
            else:
                lines += differences(found[key], record[key], f"{at}/{key}")
        return lines
    if isinstance(found, list) and isinstance(record, list) and len(found) == len(record):
        return [
            line for i, (a, b) in enumerate(zip(found, record, strict=True)) for line in differences(a, b, f"{at}[{i}]")
        ]
    if isinstance(found, list) and isinstance(record, list):
        gone, new = ([x for x in a if x not in b] for a, b in ((record, found), (found, record)))
        return [f"{at}: {len(found)} elements, recorded {len(record)}; gone: {gone}; new: {new}"]
    return [] if found == record else [f"{at}: {found!r}, recorded {record!r}"]


def assert_same(found: Any, record: Any) -> None:
    lines = differences(json.loads(json.dumps(found)), record)
    assert not lines, "\n".join(["differs from the record:", *lines[:40]])


def assert_near(found: Any, record: Any, allowed: float) -> None:
    """The same structure, and numbers that differ by at most `allowed`."""
    wrong = _apart(found, record, allowed)
    assert not wrong, "\n".join([f"differs from the record by more than {allowed}:", *wrong[:40]])


def _apart(found: Any, record: Any, allowed: float, at: str = "") -> list[str]:
    if isinstance(record, dict) and isinstance(found, dict) and set(record) == set(found):
        return [line for key in record for line in _apart(found[key], record[key], allowed, f"{at}/{key}")]
    if isinstance(record, list) and isinstance(found, list) and len(record) == len(found):
        return [
            line
            for i, (a, b) in enumerate(zip(found, record, strict=True))
            for line in _apart(a, b, allowed, f"{at}[{i}]")
        ]
    if isinstance(record, float) and isinstance(found, (int, float)) and abs(found - record) <= allowed:
        return []
    return [] if found == record else [f"{at}: {found!r}, recorded {record!r}"]
