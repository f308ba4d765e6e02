"""Images: opening one as an ordinary RGB image, inspecting what is in its file, and finding those that are the same."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from roclab.core.exceptions import DataError
from roclab.core.files import cache_folder, file_sha256, not_downloaded
from roclab.core.progress import track
from roclab.core.training.memory import release_freed_memory

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

T = TypeVar("T")
S = TypeVar("S")

# What counts as an image in a folder. HEIC and RAW are here so that they are named as unreadable, not ignored.
EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
    *(".jp2", ".avif", ".heic", ".heif", ".dng", ".cr2", ".nef", ".arw"),
}
# What is looked for in a file, whatever its name: pictures of pixels. Pillow knows more formats, and some are not for
# files of strangers: it has PostScript drawn by a program, Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"),
    *("DIB", "ICO", "PCX", "PSD", "QOI", "SGI", "TGA", "DDS"),
)
ORIENTATION = 0x0112  # EXIF's tag
STRIP = 16  # length over width
DEEP = 14  # bits: cameras put so many, or 10 or 12, into files of 16
ROOM = 2**27  # pixels decoded at once: half a gigabyte, and as much for what is made of them
THUMBNAIL = 32  # px
SIDE = 256  # px: shorter side at which sharpness is measured, about what the networks see

# Two images are near-duplicates if their perceptual hashes differ in at most 4 of 64 bits and their 32 x 32 px grey
# thumbnails correlate at 0.95 or more. On pets3 this finds the six pairs in which a person sees the same image
# (cropped, recompressed, watermarked) and no other; the next pair has distance 10 and correlation 0.76. The correlation
# is for sets whose images all look alike, as elpv's cells: the hash alone also pairs cells of different modules.
MAX_DISTANCE = 4
MIN_CORRELATION = 0.95
MOST = 100_000


def open_image(path: str | os.PathLike, at_least: int | None = None) -> Image:
    """Open an image as RGB, 8 bits a channel, rotated as its EXIF data ask.

    GIF and other animations give their first frame; transparency is laid over white; CMYK, palette and grey are
    converted; 16-bit grey is scaled from 0…65535 to 0…255. `at_least` (px) lets a JPEG be decoded at a half, a
    quarter or an eighth of its size, which is much faster for camera images, as long as its shorter side stays at
    least twice as long as that. Of a strip longer than `STRIP` times its width the middle is kept: a network sees its
    middle square alone, and bringing the shorter side to 256 px would make gigabytes of three rows of pixels.

    Raises `DataError` that names the file if it is missing, truncated, no image, or of an unsupported depth.
    """
    try:
        with opened(path) as image:
            if at_least and image.format == "JPEG" and min(image.size) > 4 * at_least:
                # draft() picks the smallest scale that is no smaller than asked in either direction
                scale = 2 * at_least / min(image.size)
                image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            return _to_rgb(_middle(_upright(image)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's readers raise nearly everything on a broken file
        raise DataError(f"{path}: {_reason(error, path)}") from None


def opened(path: str | os.PathLike) -> ImageFile:
    """Pillow's image of a file, not yet decoded, if it is of one of `FORMATS`."""
    from PIL import Image

    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])  # older Pillows lack AVIF


def _orientation(image: Image) -> int:
    """EXIF's 1 to 8; 1 where it cannot be read. PNG may have it behind the pixels: known once the image is loaded."""
    with suppress(Exception):  # of a broken block
        number = int(image.getexif()[ORIENTATION])
        return number if 1 <= number <= 8 else 1
    return 1


def _upright(image: Image) -> Image:
    """A copy, rotated. (`ImageOps.exif_transpose` also writes the EXIF block anew, which fails where it is broken.)"""
    from PIL.Image import Transpose

    image.load()
    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    number = _orientation(image)
    return image.transpose(turns[number - 2]) if number > 1 else image.copy()


def _middle(image: Image) -> Image:
    width, height = (min(side, STRIP * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _reason(error: Exception, path: str | os.PathLike) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        other = "not an image that can be read" if os.path.getsize(path) else "the file is empty"
        return not_downloaded(path) or other
    known: dict[type[Exception], str] = {
        FileNotFoundError: "there is no such file",
        PermissionError: "this file may not be read (permissions)",
        IsADirectoryError: "this is a folder, not an image",
        Image.DecompressionBombError: "more pixels than is safe to decode; make it smaller",
    }
    words = " ".join(str(error).split()) or type(error).__name__
    return next((known[kind] for kind in known if isinstance(error, kind)), f"cannot be decoded ({words})")


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _deep_grey(image: Image) -> Image:
    """16-bit grey to 8 bits. Pillow's own conversion clips at 255, which turns such an image white."""
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise DataError(f"grey values of {image.mode} depth (32 bits) have no known white: save it with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))  # 257 = 65535 / 255


@dataclass(frozen=True)
class Inspection:
    """What one file holds. `error` says why it cannot be read; what could not be determined is then empty."""

    path: Path
    sha256: str = ""
    num_bytes: int = 0
    format: str = ""  # Pillow's name: JPEG, PNG, …
    mode: str = ""  # Pillow's name: RGB, L, CMYK, I;16, …
    width: int = 0  # after the EXIF rotation
    height: int = 0
    rotated: bool = False  # EXIF asks for a rotation or mirroring
    frames: int = 1
    bits: int = 0  # that the largest grey value takes, of a 16-bit image
    error: str = ""
    phash: int = 0  # 64 bits
    sharpness: float = 0.0  # `sharpness` of the grey image
    thumbnail: bytes = field(default=b"", repr=False)  # THUMBNAIL x THUMBNAIL grey values

    @property
    def facts(self) -> dict[str, Any]:
        """What the cache keeps of it."""
        kept = asdict(self) | {"thumbnail": self.thumbnail.hex()}
        return {name: value for name, value in kept.items() if name not in ("path", "error")}

    @property
    def nearly_black(self) -> bool:
        """A 12-bit camera's values in a 16-bit file: 4,095 of 65,535 is a sixteenth of white."""
        return 0 < self.bits <= DEEP

    @property
    def wrong_extension(self) -> bool:
        """The name is of one format and the bytes are of another."""
        from PIL import Image

        named = Image.registered_extensions().get(self.path.suffix.lower())
        twins = {"MPO": "JPEG"}  # many phones write .jpg files of the kind MPO: a JPEG with a second image inside
        return bool(self.format and named) and twins.get(self.format, self.format) != twins.get(named or "", named)


def inspect_image(path: str | os.PathLike, known: Callable[[str], dict[str, Any] | None] | None = None) -> Inspection:
    """Inspect a file; never raises for a bad image, `Inspection.error` tells.

    The perceptual hash is pHash (Zauner 2010: signs of the lowest 8 x 8 DCT coefficients). `known` may return
    what was cached of the same bytes by their SHA-256, which saves decoding them.
    """
    path = Path(path)
    facts: dict[str, Any] = {}
    try:
        facts = {"sha256": file_sha256(path), "num_bytes": path.stat().st_size}
        if known and (earlier := known(facts["sha256"])):
            with suppress(KeyError, TypeError, ValueError):  # a damaged row
                return Inspection(path, **earlier | {"thumbnail": bytes.fromhex(earlier["thumbnail"])})
        with opened(path) as image:
            facts |= {"format": image.format or "", "mode": image.mode, "frames": getattr(image, "n_frames", 1)}
            pixels = image.width * image.height
        with decoding.part(pixels):
            facts |= _pixel_facts(path)
    except Exception as error:
        return Inspection(path, **facts, error=str(error) if isinstance(error, DataError) else _reason(error, path))
    return Inspection(path, **facts)


def _pixel_facts(path: Path) -> dict[str, Any]:
    import imagehash
    from PIL.Image import Resampling

    with opened(path) as image:
        upright = _upright(image)
    rgb = _to_rgb(upright)
    grey = rgb.convert("L")
    return {
        "rotated": _orientation(image) > 1,
        "width": rgb.width,
        "height": rgb.height,
        "bits": int(np.asarray(upright).max()).bit_length() if upright.mode.startswith("I") else 0,
        "phash": int(np.packbits(imagehash.phash(grey).hash.ravel()).view(">u8")[0]),
        "sharpness": round(sharpness(grey_at_side(_middle(grey))), 2),
        "thumbnail": grey.resize((THUMBNAIL, THUMBNAIL), Resampling.BOX).tobytes(),
    }


def grey_at_side(grey: Image) -> np.ndarray:
    """The grey image with its shorter side at `SIDE` px, float32 in [0, 255]."""
    from PIL.Image import Resampling

    scale = SIDE / min(grey.size)
    width, height = (max(3, round(length * scale)) for length in grey.size)
    return np.asarray(grey.resize((width, height), Resampling.BICUBIC), dtype=np.float32)


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) of a grey image (H, W) in [0, 255], at `SIDE` px so that a
    large image is not called blurred for being large."""
    # the four neighbours minus four times the pixel; scipy's Laplacian takes ten times as long
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())


class _Room:
    """What threads share: each waits until its part is free. One that is larger than the whole works alone."""

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.changed = Condition()

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        size = min(size, self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.changed.notify_all()
            if size == self.size:  # else each thread's heap would keep as much
                release_freed_memory()


decoding = _Room(ROOM)


def inspect_images(paths: Sequence[Path], description: str = "checking images") -> list[Inspection]:
    """`inspect_image` over many files, in threads (Pillow decodes without holding Python's lock).

    What was found is cached under the hash of the bytes, so the next run only hashes the files.
    """
    cache = FactCache("inspections-3")
    found = in_threads(lambda path: inspect_image(path, cache.get), paths, description)
    # an unreadable file is looked at again: the fault may have been in the reading
    cache.add({image.sha256: image.facts for image in found if not image.error})
    return found


class FactCache:
    """What earlier runs found in files, by the SHA-256 of their bytes; in the cache folder (SQLite). Without it
    everything works, only slower."""

    def __init__(self, name: str) -> None:
        self._rows: dict[str, str] = {}
        self._file = cache_folder("images") / f"{name}-pillow-{metadata.version('pillow')}.sqlite"
        with suppress(sqlite3.Error, OSError):
            if self._file.exists():
                with closing(sqlite3.connect(self._file, timeout=10)) as store:
                    self._rows = dict(store.execute("SELECT sha256, facts FROM images"))

    def get(self, sha256: str) -> dict[str, Any] | None:
        """The facts of the file with these bytes, which may have had another path."""
        with suppress(KeyError, ValueError):
            return json.loads(self._rows[sha256])
        return None

    def add(self, facts: Mapping[str, dict[str, Any]]) -> None:
        new = [(sha256, json.dumps(row)) for sha256, row in facts.items() if sha256 not in self._rows]
        if not new:
            return
        with suppress(sqlite3.Error, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=10)) as store, store:
                store.execute("CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, facts TEXT)")
                store.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", new)


def in_threads(work: Callable[[T], S], items: Iterable[T], description: str) -> list[S]:
    """`[work(item) for item in items]`, a few threads at a time, with a progress bar."""
    items = list(items)
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        return list(track(pool.map(work, items), description, total=len(items)))


@dataclass(frozen=True)
class NearDuplicate:
    """Images number `first` and `second` (first < second): hash distance in bits, correlation of thumbnails."""

    first: int
    second: int
    distance: int
    correlation: float


def exact_duplicates(hashes: Sequence[str]) -> list[list[int]]:
    """Groups of two or more files with identical bytes, by index."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, sha256 in enumerate(hashes):
        groups[sha256].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: Sequence[Inspection]) -> list[NearDuplicate]:
    """Pairs of readable images that look the same but are not the same bytes, closest first.

    About `MOST` pairs at most: ten thousand frames of one dark scene have fifty million, too many to read.
    """
    readable = np.array([i for i, image in enumerate(images) if not image.error], dtype=int)
    if len(readable) < 2:
        return []
    thumbnails = np.array([np.frombuffer(images[i].thumbnail, np.uint8) for i in readable], np.float32)
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    found: list[NearDuplicate] = []
    for i, j, distance in hash_pairs([images[k].phash for k in readable], MAX_DISTANCE):
        for part in range(0, len(i), 4096):  # pairs at a time, so that their thumbnails fit into the caches
            if len(found) >= MOST:
                break
            a, b = i[part : part + 4096], j[part : part + 4096]
            correlation = np.einsum("nd,nd->n", thumbnails[a], thumbnails[b])
            for k in np.flatnonzero(correlation >= MIN_CORRELATION):
                first, second = int(readable[a[k]]), int(readable[b[k]])
                if images[first].sha256 != images[second].sha256:
                    pair = NearDuplicate(first, second, int(distance[part + k]), round(float(correlation[k]), 4))
                    found.append(pair)
    return sorted(found, key=lambda pair: (pair.distance, -pair.correlation))


def hash_pairs(hashes: Sequence[int], limit: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs i < j of 64-bit hashes that differ in at most `limit` bits: arrays of i, j and distance, block by block.

    Every pair is compared, as matrix products of ±1 vectors: the product of a and b is 64 - 2 distance.
    """
    bits = np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)
    signs = bits.astype(np.float32) * 2 - 1  # (N, 64)
    rows = max(1, 2**24 // len(hashes))  # a block of products takes 64 MB
    for start in range(0, len(hashes), rows):
        products = signs[start : start + rows] @ signs[start:].T  # (rows, N - start)
        i, j = np.nonzero(np.triu(products >= 64 - 2 * limit, k=1))
        yield start + i, start + j, (64 - products[i, j]).astype(int) // 2
