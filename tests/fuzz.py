"""Damaged files through the loaders: each gives its content or one clear error; no other exception, no signal, no hang.

    python -m tests.fuzz --count 10000             # prints what broke
    python -m tests.fuzz --first 4711 --count 1    # one case again

Each case is one file made from a small good one: bytes flipped, ranges cut, doubled, filled or swapped, numbers set to
extremes, cells and lines of tables shuffled. Cases run in worker processes, so that a signal is seen and a hang ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import multiprocessing as mp
import random
import resource
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from roclab.core.exceptions import RocLabError

EXTREMES = [b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x7f" * 4, b"\xff" * 2]
PIECES = [
    b"\x00",
    b'"',
    b"\n",
    b",",
    b"{",
    b"]",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    "é漢😀".encode(),
    b"1e999",
    b"-1",
    b"null",
    b"../",
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to six changes; most of them near the beginning, where headers are."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if not content:
            break
        at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 600))
        length = rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(8):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length] * rng.choice((1, 3))
            case 3:
                extreme = rng.choice(EXTREMES)
                content[at : at + len(extreme)] = extreme
            case 4:
                del content[at:]
            case 5:
                content[at : at + length] = rng.randbytes(length)
            case 6:
                content[at:at] = rng.choice(PIECES)
            case 7:
                other = rng.randrange(len(content))
                content[at : at + length], content[other : other + length] = (
                    content[other : other + length],
                    content[at : at + length],
                )
    return bytes(content)


# ── The good files, and how they are read ───────────────────────────────────────────────────────────────────────


def make_good(folder: Path) -> dict[str, list[Path]]:
    """Small files of each kind."""
    import numpy as np
    from PIL import Image

    from tests.lm.build import peer, write_folder, write_gguf

    llama, qwen = peer("llama", num_hidden_layers=1), peer("qwen3", num_hidden_layers=1)
    ggufs = [write_gguf(folder / "a.gguf", llama), write_gguf(folder / "b.gguf", qwen, block_type="Q8_0")]
    write_folder(folder / "whole", llama)
    write_folder(folder / "shards", qwen, max_shard_size="60KB")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    images = []
    for name, mode in (("jpg", "RGB"), ("png", "RGBA"), ("gif", "P"), ("tif", "RGB"), ("webp", "RGB"), ("bmp", "L")):
        image = Image.fromarray(pixels).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / f"image.{name}", **({"exif": exif} if name in ("jpg", "png", "webp", "tif") else {}))
        images.append(folder / f"image.{name}")
    tables = []
    for name, encoding, text in (
        ("comma", "utf-8", "path,label,split\nimage.jpg,cat,train\nimage.png,dog,val\nimage.gif,cat,test\n"),
        ("excel", "utf-16", "sep=;\r\npath;label\r\nimage.jpg;Kätzchen\r\n.\\image.png;Hund\r\n"),
    ):
        (folder / f"{name}.csv").write_text(text, encoding=encoding, newline="")
        tables.append(folder / f"{name}.csv")
    return {"gguf": ggufs, "folder": [folder / "whole", folder / "shards"], "image": images, "table": tables}


def read_model(path: Path) -> None:
    from roclab.lm.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    for tensor in checkpoint.tensors.values():
        tensor.load()
    tokenizer = checkpoint.load_tokenizer()
    tokenizer.decode(tokenizer.encode("the sea <|im_end|>\n", bos=False))
    if tokenizer.chat_template:
        tokenizer.encode_chat([{"role": "user", "content": "the sea"}])


def read_image(path: Path) -> None:
    from roclab.vision.data.images import inspect_image, open_image

    inspect_image(path)
    open_image(path, at_least=8)


def read_table(path: Path) -> None:
    from roclab.vision.data.audit import audit, describe
    from roclab.vision.data.dataset import load_data

    describe(audit(str(path)))
    load_data(str(path), seed=0)


def run_case(number: int, good: dict[str, list[Path]], folder: Path) -> None:
    """Make and read case `number`. Raises what the reader raises, but for RocLabError."""
    rng = random.Random(number)
    kind = ("gguf", "folder", "image", "image", "table")[number % 5]
    source = rng.choice(good[kind])
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "folder":
        shutil.copytree(source, folder)
        target = rng.choice(sorted(folder.iterdir()))
        target.write_bytes(damaged(target.read_bytes(), rng))
        target = folder
    else:
        folder.mkdir(parents=True)
        for image in good["image"] if kind == "table" else ():
            shutil.copy(image, folder)
        target = folder / source.name
        target.write_bytes(damaged(source.read_bytes(), rng))
    try:
        {"gguf": read_model, "folder": read_model, "image": read_image, "table": read_table}[kind](target)
    except RocLabError as error:
        if "\n" in str(error).strip() or not str(error):
            raise AssertionError(f"not one line: {error!r}") from None


# ── Many cases ──────────────────────────────────────────────────────────────────────────────────────────────────


def _work(connection: Connection, case: Callable[[int], None]) -> None:
    import torch

    faulthandler.disable()  # a signal is seen by its number
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # a damaged size must not ask for everything
    connection.send("ready")
    while True:
        number = connection.recv()
        complaint = io.StringIO()
        try:
            case(number)
        except Exception:
            traceback.print_exc(file=complaint)
        connection.send(complaint.getvalue())


class Worker:
    """A process that runs cases; started anew after a signal or a hang."""

    def __init__(self, case: Callable[[int], None], seconds: float = 30):
        self.case, self.seconds = case, seconds
        self.start()

    def start(self) -> None:
        self.pipe, theirs = mp.get_context("fork").Pipe()
        self.process = mp.get_context("fork").Process(target=_work, args=(theirs, self.case), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def run(self, number: int) -> str:
        """What is wrong with this case; "" if nothing is."""
        self.pipe.send(number)
        try:
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
            found = f"no end within {self.seconds} s"
        except EOFError:
            self.process.join()
            found = f"the process ended with {self.process.exitcode}"
        self.process.kill()
        self.start()
        return found


def fuzz(first: int, count: int) -> dict[int, str]:
    """Case number → what is wrong with it."""
    with tempfile.TemporaryDirectory() as temporary:
        good = make_good(Path(temporary))
        worker = Worker(partial(run_case, good=good, folder=Path(temporary) / "case"))
        found = {n: complaint for n in range(first, first + count) if (complaint := worker.run(n))}
        worker.process.kill()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    found = fuzz(asked.first, asked.count)
    kinds = Counter(complaint.strip().splitlines()[-1] for complaint in found.values())
    for line, times in kinds.most_common():
        example = next(number for number, complaint in found.items() if complaint.strip().endswith(line))
        print(f"{times} × {line} (case {example})\n{found[example]}")
    print(f"{asked.count} damaged files, {len(found)} not read or refused in one line")


if __name__ == "__main__":
    main()
