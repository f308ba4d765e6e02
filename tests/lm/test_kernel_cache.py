"""The compiled kernels' cache, damaged and forbidden. Compiling takes ten seconds, so the compiler here copies."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

import pytest

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu import build
from roclab.lm.engine.cpu.build import load_library, why_no_library
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.loading import load
from roclab.lm.weights.checkpoint import open_checkpoint

if load_library() is None:
    pytest.skip("no C compiler", allow_module_level=True)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """How often the compiler ran; the cache is `tmp_path / "cache"`."""
    real, log = load_library()._name, tmp_path / "log"
    script = tmp_path / "cc"
    find = 'while [ "$1" != -o ]; do shift; done'
    script.write_text(f'#!/bin/sh\n{find}\ncp {real} "$2"\necho >> {log}\n')
    script.chmod(0o755)
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "find_compiler", lambda: [str(script)])
    load_library.cache_clear()
    yield lambda: len(log.read_text()) if log.exists() else 0
    load_library.cache_clear()


def again():
    load_library.cache_clear()
    return load_library()


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_cache_is_used_and_others_may_read_it(compiled, tmp_path):
    assert load_library()
    assert again()
    assert compiled() == 1
    (file,) = kept(tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30000])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def another(path: Path) -> None:
    shutil.copy("/bin/ls", path)


@pytest.mark.parametrize("damage", [empty, cut, flipped, another])
def test_a_damaged_library_is_compiled_anew(damage, compiled, tmp_path, caplog):
    assert load_library()
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.rename(tmp_path / "loaded")  # a library that is in use must not change
    shutil.copy(tmp_path / "loaded", file)
    damage(file)
    with caplog.at_level(logging.WARNING):
        assert again()
    assert compiled() == 2
    assert [path.read_bytes() for path in kept(tmp_path)] == [whole]
    assert not caplog.messages


def test_a_library_that_cannot_be_read_or_kept_serves_one_run_and_says_so(compiled, tmp_path, caplog, monkeypatch):
    assert load_library()
    (file,) = kept(tmp_path)
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.WARNING):
        assert again()
        monkeypatch.setenv("ROCLAB_CACHE", "/dev/null/no")
        assert again()
    assert compiled() == 3
    unreadable, forbidden = caplog.messages
    assert "Is a directory" in unreadable
    assert "/dev/null/no/kernels (Not a directory): compiled for this run only; set ROCLAB_CACHE" in forbidden


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("false", "false cannot compile the kernels: exit code 1"),
        ("/no/such/cc", "/no/such/cc cannot compile the kernels: No such file"),
        ("", "no C compiler"),
    ],
)
def test_a_compiler_that_does_not_work_is_named(command, why, compiled, smollm_path, caplog, monkeypatch):
    monkeypatch.setattr(build, "find_compiler", lambda: command.split() or None)
    assert load_library() is None
    assert why in why_no_library()
    checkpoint = open_checkpoint(smollm_path)
    with pytest.raises(RocLabError, match=why):
        load(checkpoint, "fast")
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(checkpoint)[0], TorchRunner)
    assert "slow, on torch instead of the fast engine" in caplog.text
    assert why in caplog.text


def test_who_forbids_the_kernels_is_not_warned(compiled, smollm_path, caplog, monkeypatch):
    monkeypatch.setenv("ROCLAB_KERNELS", "torch")
    with caplog.at_level(logging.WARNING):
        assert isinstance(load(open_checkpoint(smollm_path))[0], TorchRunner)
    assert not caplog.messages
