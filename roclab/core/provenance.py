"""Where a run came from: versions, git revision, machine, threads; and the seed that repeats it."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import re
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from roclab import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "scikit-learn",
    "scipy",
    "openvino",
    "safetensors",
    "tokenizers",
)


def packages_by_extra() -> dict[str, list[str]]:
    """Extra of RocLab ("" for what it always needs) -> the packages that pip installs for it; empty where RocLab was
    not installed by pip, as in a hand-in."""
    found: dict[str, list[str]] = {}
    with suppress(metadata.PackageNotFoundError):
        for needed in metadata.requires("roclab") or []:
            name = re.match(r"[\w.-]+", needed)
            extra = re.search(r"extra == ['\"](\w+)['\"]", needed)
            if name and name[0] != "roclab" and "python_version" not in needed:
                found.setdefault(extra[1] if extra else "", []).append(name[0].lower())
    return found


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's (CPU and GPU) generators."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(*parts: object) -> int:
    """A 63-bit seed made of the parts, such as the run's seed and the epoch; no two tuples of parts share one."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def provenance(seed: int, **hashes: Any) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: versions, git revision, machine, threads, time, seed, hashes."""
    versions = {"python": platform.python_version(), "roclab": __version__}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    torch = sys.modules.get("torch")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "hashes": hashes,
        "versions": versions,
        "git": _git_revision(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else [],
            "threads": torch.get_num_threads() if torch else None,
        },
    }


def _git_revision() -> str | None:
    """Commit of the checkout this code runs from, `-dirty` if it was edited; None outside a checkout."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in here.parents[:2]):
        return None  # an installed package: a repository further up is somebody else's
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
