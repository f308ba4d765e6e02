"""Machines as they are: without a home, with a share of their cores, with a pip that may not or cannot install."""

from __future__ import annotations

import math
import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from roclab.core import devices, files
from roclab.core.devices import cpu_quota
from roclab.core.exceptions import RocLabError
from roclab.core.fetch import package_folder
from roclab.core.files import cache_folder
from roclab.core.training import optimizer

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("groups", "limits", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "max 100000"}, 0.5),
        ("0::/outside/name\n", {"cpu.max": "200000 100000"}, 2),  # of a container, named as its host has it
        ("4:cpu,cpuacct:/x\n0::/\n", {f"cpu,cpuacct/x/{QUOTA}": "100000", f"cpu,cpuacct/x/{PERIOD}": "50000"}, 2),
        ("2:cpuacct:/\n1:cpu:/j\n", {f"cpu/j/{QUOTA}": "-1", f"cpu/j/{PERIOD}": "100000"}, math.inf),
        ("3:cpuset:/\n", {"cpuset/cpu.max": "1 1"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_a_control_group_s_quota(groups, limits, cores, tmp_path):
    (tmp_path / "groups").write_text(groups)
    for name, text in limits.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "mount") == cores
    assert cpu_quota(tmp_path / "none", tmp_path / "mount") == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.0, 1), (1.5, 2), (2.0, 2), (math.inf, 4), (64.0, 4)])
def test_the_cores_that_count(quota, cores, monkeypatch):
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert devices.usable_cores() == cores


def test_a_user_without_a_home_gets_a_folder_of_their_own(tmp_path, monkeypatch):
    for name in ("ROCLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that the system does not know
    files._own_temporary_folder.cache_clear()
    try:
        folder = cache_folder("kernels")
        assert folder == tmp_path / f"roclab-{os.getuid()}" / "kernels"
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        folder.parent.chmod(0o777)  # somebody else could have put something in
        files._own_temporary_folder.cache_clear()
        assert cache_folder("kernels").parent != folder.parent
        folder.parent.rmdir()
        folder.parent.symlink_to(tmp_path)
        files._own_temporary_folder.cache_clear()
        assert cache_folder("kernels").parent not in (folder.parent, tmp_path)
    finally:
        files._own_temporary_folder.cache_clear()
    monkeypatch.undo()
    monkeypatch.delenv("ROCLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("x") == tmp_path / "roclab" / "x"


PEP_668 = """error: externally-managed-environment

× This environment is externally managed
note: If you believe this is a mistake, please contact your distribution.
hint: See PEP 668 for the detailed specification.
"""
NOTHING = """WARNING: Retrying after connection broken
ERROR: Could not find a version that satisfies the requirement nobody-has-this==1 (from versions: none)
ERROR: No matching distribution found for nobody-has-this==1

[notice] A new release of pip is available: 23.2.1 -> 26.0
[notice] To update, run: pip install --upgrade pip
"""
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\n[notice] new\n"


@pytest.mark.parametrize(
    ("said", "reason", "remedy"),
    [
        (PEP_668, "externally managed", "python3 -m venv .venv"),
        (NOTHING, "No matching distribution", "by hand: python -m pip install --no-deps nobody-has-this==1"),
        (FULL, "No space left", "by hand: python -m pip"),
        (f"{sys.executable}: No module named pip\n", "has no pip", "uv pip install --python"),
        ("it broke\nfor good\n", "for good", "by hand"),
        ("", "no reason given", "by hand"),
    ],
)
def test_what_pip_says_and_what_helps(said, reason, remedy, tmp_path, monkeypatch):
    """A pip that fails like this is found first."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(f"import sys\nsys.stderr.write({said!r})\nsys.exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RocLabError) as refused:
        package_folder("nobody-has-this==1", "nobody_has_this")
    line = str(refused.value)
    assert line.startswith("pip could not install nobody-has-this==1 (")
    assert reason in line
    assert remedy in line
    assert "notice" not in line
    assert "\n" not in line


def test_nothing_is_called_tilde(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", "~/roclab-cache")
    assert cache_folder("kernels") == Path.home() / "roclab-cache" / "kernels"
    monkeypatch.delenv("ROCLAB_CACHE")
    assert not any(part.startswith("~") for part in cache_folder("kernels").parts)


def test_bfloat16_that_a_cpu_would_emulate_is_said(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(optimizer, "computes_bf16", lambda: False)
    assert "many times slower" in optimizer.emulated(cpu, "bf16")
    assert not optimizer.emulated(cpu, "auto")
    assert not optimizer.emulated(torch.device("cuda"), "bf16")
    monkeypatch.setattr(optimizer, "computes_bf16", lambda: True)
    assert not optimizer.emulated(cpu, "bf16")
