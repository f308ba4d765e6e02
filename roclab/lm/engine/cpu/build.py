"""The C kernels: compiled on first use for this machine's processor, kept in the cache folder, loaded through ctypes.

    library = load_library()        # None where nothing compiles: the torch path does the work then
    library = load_library("avx2")  # one path in particular

A compiler is looked for in this order: `ROCLAB_CC`, the system's `cc`, `gcc` or `clang`, the `ziglang` package
(`pip install 'roclab[fast]'`: a C compiler in a wheel). The file's name in the cache holds a hash of the sources, the
compiler and its flags, so a changed source or another machine's cache is compiled anew; and a hash of its own bytes, so
a damaged file is too. It is written whole or not at all; where it cannot be kept, it serves one run and a warning says
so. `ROCLAB_KERNELS` chooses a path: amx, avx512, avxvnni, avx2, portable, or torch for none.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, cache_folder

logger = logging.getLogger(__name__)

SOURCES = ("roclm.c", "matmul.h", "matmul_amx.h", "attention.h", "attention_int8.h", "vector.h", "pool.h", "machine.h")
COMMON = ("-O3", "-std=gnu11", "-fno-math-errno", "-Werror=int-conversion", "-fvisibility=hidden", "-shared", "-fPIC")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-DPATH_AVX512", *_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")

# Path → the processor's features it needs, as Linux names them, and the compiler's flags. Best first.
_NEEDS_AVX512 = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
PATHS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amx": ((*_NEEDS_AVX512, "amx_tile", "amx_int8"), ("-DPATH_AMX", *_AVX512, "-mamx-tile", "-mamx-int8")),
    "avx512": (_NEEDS_AVX512, _AVX512),
    "avxvnni": (("avx2", "fma", "f16c", "avx_vnni"), ("-DPATH_AVXVNNI", *_AVX2, "-mavxvnni")),
    "avx2": (("avx2", "fma", "f16c"), ("-DPATH_AVX2", *_AVX2)),
    "portable": ((), ()),
}


class Shape(ctypes.Structure):
    """`shape` of roclm.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("vocab", "hidden", "intermediate", "layers", "heads", "kv_heads",
                                              "head_dim", "max_rows", "exact", "kv_int8")),
        ("eps", ctypes.c_float),
        ("magnitude", ctypes.c_float),
    ]  # fmt: skip


class PackJob(ctypes.Structure):
    """`pack_job` of roclm.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "rows", "columns", "mapped")),
        *((name, ctypes.c_void_p) for name in ("blocks", "order", "tiles")),
    ]


class Library(ctypes.CDLL):
    """The kernels compiled for `path`."""

    path = ""


def available_paths() -> list[str]:
    """The paths this processor can run, best first."""
    features = _processor_features()
    return [path for path, (needed, _) in PATHS.items() if features.issuperset(needed)]


@functools.cache
def _processor_features() -> frozenset[str]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    if sys.platform == "darwin":
        names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
        try:
            listed = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        return frozenset(listed.lower().split())
    return frozenset()


def find_compiler() -> list[str] | None:
    """The command that compiles C here, or None."""
    if chosen := os.environ.get("ROCLAB_CC"):
        return chosen.split()
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


@functools.cache
def load_library(path: str | None = None) -> Library | None:
    """The compiled kernels for a path of PATHS, or for the best one this processor has; None where no compiler is
    found or `ROCLAB_KERNELS=torch` says so. Raises RocLabError if a path is asked for by name and cannot be had."""
    wanted = path or os.environ.get("ROCLAB_KERNELS") or None
    if wanted == "torch":
        return None
    paths = available_paths()
    if wanted is not None and wanted not in PATHS:
        raise RocLabError(f"kernels {wanted!r}: choose one of {', '.join(PATHS)}, torch")
    if wanted is not None and wanted not in paths:
        raise RocLabError(f"kernels {wanted!r}: this processor has {', '.join(paths)}")
    if os.name != "posix":  # the thread pool is POSIX
        return None
    compiler = find_compiler()
    if compiler is None:
        if wanted is None:
            return None
        raise RocLabError(f"kernels {wanted!r}: {NO_COMPILER}")
    failure = ""
    for chosen in [wanted] if wanted else paths:
        try:
            library = _declare(_compiled(chosen, compiler))
        except OSError as error:  # an old compiler may not know the newest instructions
            failure = str(error)
            continue
        if library.roclm_allowed():
            library.path = chosen
            return library
        failure = "the system does not let this process use AMX"
    if wanted is None:
        _failures.append(failure)
        return None
    raise RocLabError(f"kernels {wanted!r}: {failure}")


NO_COMPILER = "no C compiler is here (install one, or pip install 'roclab[fast]')"
_failures: list[str] = []  # why compiling failed, when it did


def why_no_library() -> str:
    """Why `load_library` gave None."""
    if os.environ.get("ROCLAB_KERNELS") == "torch":
        return "ROCLAB_KERNELS=torch forbids the kernels"
    if os.name != "posix":
        return "the kernels need Linux, macOS or WSL"
    return _failures[-1] if _failures and find_compiler() else NO_COMPILER


def _compiled(path: str, compiler: list[str]) -> Library:
    """The shared library from the cache, else compiled. Raises OSError with the compiler's first complaint."""
    here = Path(__file__).parent
    flags = [*COMMON, *PATHS[path][1]]
    if "ziglang" in compiler:  # zig takes the machine it runs on unless told otherwise
        flags.append("-mcpu=baseline")
    digest = hashlib.sha256(repr((compiler, flags, platform.machine(), sys.platform)).encode())
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    folder, name = cache_folder("kernels"), f"roclm-{path}-{digest.hexdigest()[:16]}"
    why = None
    for kept in folder.glob(f"{name}-*.so"):
        try:
            data = kept.read_bytes()
            if kept.stem == f"{name}-{_hash(data)}":  # a damaged library would end the process when it is loaded
                return Library(str(kept))
        except OSError as error:  # not readable, or on a file system that runs nothing
            why = error
    with tempfile.TemporaryDirectory(prefix="roclab-") as scratch:
        built = Path(scratch) / "roclm.so"
        _compile([*compiler, *flags, str(here / "roclm.c"), "-o", str(built), "-lm", "-lpthread"])
        kept = folder / f"{name}-{_hash(built.read_bytes())}.so"
        try:
            if why:
                raise why
            atomic_write(kept, built.read_bytes())
            library = Library(str(kept))
        except OSError as error:
            logger.warning(
                "the compiled kernels cannot be kept in %s (%s): compiled for this run only; set ROCLAB_CACHE to a "
                "folder that can be written to and run from", folder, error.strerror or error,
            )  # fmt: skip
            return Library(str(built))  # stays loaded when the file goes
        for old in set(folder.glob(f"{name}-*.so")) - {kept}:
            with contextlib.suppress(OSError):
                old.unlink()
        return library


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise OSError(f"{command[0]} cannot compile the kernels: {getattr(error, 'strerror', None) or error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        complaint = next((line for line in said if "error" in line), said[0][:200])
        raise OSError(f"{command[0]} cannot compile the kernels: {complaint}")


def _declare(library: Library) -> Library:
    """The argument types of what roclm.c exports."""
    pointer, whole, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("roclm_allowed", whole, []),
        ("roclm_new", pointer, [ctypes.POINTER(Shape)]),
        ("roclm_free", None, [pointer]),
        ("roclm_set_matrix", None, [pointer, whole, whole, whole, whole, whole, pointer, pointer]),
        ("roclm_set_vector", None, [pointer, whole, whole, pointer]),
        ("roclm_set_window", None, [pointer, whole, whole]),
        ("roclm_threads", whole, [pointer, whole, whole]),
        ("roclm_forward", whole, [pointer, whole, pointer, pointer, pointer, pointer, whole, pointer, pointer]),
        ("roclm_hidden", None, [pointer, whole, pointer]),
        ("roclm_stride", ctypes.c_long, [ctypes.c_long]),
        ("roclm_cache_bytes", ctypes.c_long, [pointer, ctypes.c_long]),
        ("roclm_copy_cache", None, [pointer, pointer, ctypes.c_long, pointer, ctypes.c_long, ctypes.c_long]),
        ("roclm_tile_bytes", ctypes.c_long, [whole]),
        ("roclm_pack", None, [ctypes.POINTER(PackJob), whole, ctypes.POINTER(whole)]),
        ("roclm_quantize", None, [whole, pointer, ctypes.c_long, pointer]),
        ("roclm_read", None, [pointer, pointer, ctypes.c_long]),
        ("roclm_multiply", ctypes.c_double, [pointer, ctypes.c_long]),
        ("roclm_alloc", pointer, [size]),
        ("roclm_release", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
