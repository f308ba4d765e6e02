"""Folders that a command makes as a whole: an error analysis, a report, a tokenizer lab, a demo study.

A folder of ours is known by its JSON file, which names the files that were made. A new one replaces those and leaves
everything else in the folder alone; a folder of something else is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json, write_json


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder: what it is called, the command that makes it, the JSON file it is known by, the keys that this
    file has at least, and a pattern of the files that the command makes."""

    noun: str
    command: str
    mark: str
    keys: tuple[str, ...]
    ours: str

    def check(self, out: str | os.PathLike) -> set[str]:
        """The files of an older folder of this kind in `out`; raises `RocLabError` if `out` holds something else."""
        out = Path(os.path.normpath(Path(out)))  # NEW/.. is the folder it leads to
        try:
            if not out.exists() or (out.is_dir() and not any(out.iterdir())):
                return set()
            record = json.loads((out / self.mark).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or not set(self.keys) <= record.keys():
            raise RocLabError(f"{out} exists and is not a {self.noun} of `{self.command}`: choose another --out")
        files = record.get("files")  # the first versions did not write such a list: their files stay
        # a record that was edited must lead neither out of the folder nor to files of the user's
        return {file for file in files if self._is_ours(file)} if isinstance(files, list) else set()

    def _is_ours(self, file: Any) -> bool:
        return isinstance(file, str) and ".." not in file.split("/") and bool(re.fullmatch(self.ours, file))

    @contextmanager
    def new(self, out: str | os.PathLike) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder to write into, and a dict to fill with what the JSON file shall hold. At the end it becomes `out`;
        after an error everything is as before. Raises `RocLabError` if `out` holds something else or cannot be written.
        """
        out = Path(os.path.normpath(Path(out)))
        older = self.check(out)
        work = None
        try:
            fresh = not out.exists()
            place = out.parent if fresh else out  # on the disk that holds `out`, which may be a disk of its own
            place.mkdir(parents=True, exist_ok=True)
            work = place / f".{out.name}.{uuid4().hex[:8]}.part"
            work.mkdir()
            record: dict[str, Any] = {}
            yield work, record
            files = sorted(p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file())
            write_json(work / self.mark, record | {"files": files})
            if fresh:
                os.replace(work, out)
                return
            for file in (*files, self.mark):
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / file, out / file)
            for file in older - set(files):
                (out / file).unlink(missing_ok=True)
        except OSError as error:  # a full disk, most likely
            raise RocLabError(f"cannot write the {self.noun} to {out}: {_reason(error)}") from None
        finally:
            if work:
                shutil.rmtree(work, ignore_errors=True)

    def read(self, folder: Path) -> tuple[dict[str, Any], str]:
        """The JSON of a finished folder and its SHA-256; raises `RocLabError` if it is none of this kind."""
        path = folder / self.mark
        if not path.exists():
            raise RocLabError(f"{folder} has no {self.mark}: make it with `{self.command} --out {folder}`")
        found = read_json(path)
        if not isinstance(found, dict):
            raise RocLabError(f"{path} does not hold what `{self.command}` writes")
        return found, file_sha256(path)


ERRORS = FolderKind("page", "roclab vision errors", "errors.json", ("sentences", "captions", "images"),
                    r"index\.html|(figures|thumbs)/[\w-]+\.(png|jpg)")  # fmt: skip
REPORT = FolderKind("report", "roclab report", "facts.json", ("settings", "comparison"),
                    r"report\.(md|html|tex|pdf)|(comparison|verify)\.json|figures/.+|errors/.+")  # fmt: skip
LAB = FolderKind("lab", "roclab tokenizer lab", "lab.json", ("student_id", "sentences"),
                 r"Tokenizer_Lab\.(ipynb|html)|lab\.md|figures/.+")  # fmt: skip
EMBEDDING = FolderKind("map of images", "roclab vision embed", "embedding.json", ("images", "classes", "mapped"),
                       r"index\.html|features\.(npz|csv)")  # fmt: skip
STUDY = FolderKind("study", "roclab lm study", "study.json", ("kinds", "sentences"), r"(study|transcripts)\.\w+")


def _reason(error: OSError) -> str:
    """An error's words; of copying a folder, those about its first file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][2])
    return error.strerror or str(error)
