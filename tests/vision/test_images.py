"""Opening images of every kind, and finding the same picture twice."""

import os
import re
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roclab.core.exceptions import DataError
from roclab.core.log import show_messages
from roclab.vision.data import images as module
from roclab.vision.data.audit import audit, describe
from roclab.vision.data.images import (
    Inspection,
    decoding,
    exact_duplicates,
    hash_pairs,
    inspect_image,
    inspect_images,
    near_duplicates,
    open_image,
)
from tests.vision.conftest import picture


def close(a: Image.Image, b: Image.Image, tolerance: float) -> bool:
    """Mean absolute difference of two pictures of one size, in grey values."""
    return a.size == b.size and np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() < tolerance


def test_an_rgb_image_is_opened_as_it_is(tmp_path: Path):
    picture(1).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert np.array_equal(opened, picture(1))


def test_a_16_bit_png_keeps_its_greys(tmp_path: Path):
    grey = np.array([[0, 257, 0x8080, 0xFFFF]], np.uint16)  # 257 · (0, 1, 128, 255)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode == "I;16"
    opened = open_image(tmp_path / "deep.png")
    assert np.asarray(opened)[0].tolist() == [[v, v, v] for v in (0, 1, 128, 255)]


def test_32_bit_values_without_a_known_white_are_refused(tmp_path: Path):
    Image.fromarray(np.array([[0.1, 0.7]], np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float.tiff: .*32 bits"):
        open_image(tmp_path / "float.tiff")


def test_a_cmyk_jpeg_is_close_to_the_rgb_it_was(tmp_path: Path):
    picture(2).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert Image.open(tmp_path / "print.jpg").mode == "CMYK"
    opened = open_image(tmp_path / "print.jpg")
    assert opened.mode == "RGB"
    assert close(opened, picture(2), 6)


def test_a_gif_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)
    assert inspect_image(tmp_path / "a.gif").frames == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int):
    upright = picture(3)
    undo = {  # what a camera held that way would have stored
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "camera.jpg", exif=exif, quality=98, subsampling=0)
    assert close(open_image(tmp_path / "camera.jpg"), upright, 3)
    found = inspect_image(tmp_path / "camera.jpg")
    assert (found.width, found.height) == upright.size
    assert found.rotated == (orientation != 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str):
    image = Image.new(mode, (4, 4), (*(0,) * (len(mode) - 1), 0))
    image.putpixel((0, 0), (*(0,) * (len(mode) - 1), 255))
    image.save(tmp_path / "clear.png")
    opened = open_image(tmp_path / "clear.png")
    assert opened.getpixel((0, 0)) == (0, 0, 0)
    assert opened.getpixel((3, 3)) == (255, 255, 255)


def test_palettes_with_and_without_transparency(tmp_path: Path):
    flat = Image.new("P", (4, 4), 1)
    flat.putpalette([0, 0, 0, 10, 20, 30])
    flat.save(tmp_path / "plain.png")
    flat.save(tmp_path / "clear.png", transparency=1)
    assert open_image(tmp_path / "plain.png").getpixel((1, 1)) == (10, 20, 30)
    assert open_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str):
    name = "a.jpg" if mode == "YCbCr" else "a.png"
    picture(4).convert(mode).save(tmp_path / name)
    assert open_image(tmp_path / name).mode == "RGB"


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jpg"
    if kind == "truncated":
        picture(5, (200, 200)).save(path)
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "text":
        path.write_text("this is no image")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    elif kind == "page":
        path.write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated"),
        ("text", "not an image"),
        ("pointer", "a Git LFS pointer.*`git lfs pull`"),
        ("page", "a web page.*download it again"),
        ("empty", "empty"),
        ("folder", "folder"),
        ("missing", "no such file"),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_reason(tmp_path: Path, kind: str, reason: str):
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=reason) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(reason, inspect_image(path).error)


def test_a_big_jpeg_may_be_decoded_small_without_losing_what_is_asked_for(tmp_path: Path):
    big = picture(6, (1600, 1200))
    big.save(tmp_path / "big.jpg", quality=95)
    small = open_image(tmp_path / "big.jpg", at_least=128)
    assert small.size == (400, 300)  # a quarter: the next step, 150 px, would be under twice 128
    assert close(small, big.resize((400, 300), Image.Resampling.BOX), 3)
    assert open_image(tmp_path / "big.jpg", at_least=512).size == (1600, 1200)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nnewpath 0 0 moveto\nshowpage\n%%EOF\n"
NO_PICTURES = {
    "plain.jpg": EPS,
    "binary.jpg": EPS.replace(b"newpath", b"%%BeginBinary: -40"),
    "dos.png": struct.pack("<I3I", 0xC6D3D0C5, 30, len(EPS), 0).ljust(30, b"\0") + EPS,  # EPS with a preview's header
    "windows.jpg": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 9, 9, 96) + bytes(40),  # WMF
    "hdf5.png": b"\x89HDF\r\n\x1a\n" + bytes(64),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_a_drawing_under_an_image_name_starts_no_program(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(NO_PICTURES[name])
    assert "not an image" in inspect_image(tmp_path / name).error
    with pytest.raises(DataError, match=f"{name}: not an image"):
        open_image(tmp_path / name)
    assert not (tmp_path / "started").exists()


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF block of (tag, type, count, value) after a right orientation 6; longer values stand behind the table."""
    entries = ((0x0112, 3, 1, struct.pack("<H", 6)), *entries)
    table, values = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, values = struct.pack("<I", 8 + 2 + 12 * len(entries) + 4 + len(values)), values + value
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + values


BROKEN_EXIF = {
    "good": exif_block(),
    "srational_denominator_0": exif_block((0x9204, 10, 1, struct.pack("<ii", -1, 0))),
    "rational_0_0": exif_block((0x011A, 5, 1, struct.pack("<II", 0, 0))),
    "text_for_a_number": exif_block((0x011A, 2, 3, b"72\0"), (0x0128, 2, 6, b"inches")),
    "pointers_outside": exif_block((0x8769, 4, 1, struct.pack("<I", 0x7FFFFFF0)), (0x8825, 2, 4, b"abc\0")),
    "values_outside": exif_block((0x010F, 2, 900, struct.pack("<I", 0x7FFFFFF0))),
    "unknown_type": exif_block((0x010F, 77, 1, b"x")),
}
BEYOND_HELP = {"cut": exif_block()[:14], "nonsense": b"nonsense here", "nothing": b"", "two": exif_block()[:10]}


@pytest.mark.parametrize("kind", BROKEN_EXIF | BEYOND_HELP)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_image_with_a_broken_exif_block_is_used(tmp_path: Path, kind: str, suffix: str):
    path = tmp_path / f"{kind}{suffix}"
    picture(3).save(path, exif=b"Exif\0\0" + (BROKEN_EXIF | BEYOND_HELP)[kind])
    with warnings.catch_warnings(record=True) as said:
        show_messages()
        found, opened = inspect_image(path), open_image(path)
    assert not said
    assert not found.error
    assert found.rotated == (kind in BROKEN_EXIF)
    assert opened.size == (found.width, found.height) == ((48, 64) if found.rotated else (64, 48))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PROFILE = b"\nexif\n" + b"%8d\n" % len(exif_block()) + exif_block().hex().encode() + b"\n"
LATE = {
    "exif": chunk(b"eXIf", exif_block()),
    "profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),  # as ImageMagick writes it
    "xmp": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
}


@pytest.mark.parametrize("kind", LATE)
def test_orientation_behind_the_pixels_counts(tmp_path: Path, kind: str):
    picture(3).save(tmp_path / "late.png")
    data = (tmp_path / "late.png").read_bytes()
    end = data.rindex(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(data[:end] + LATE[kind] + data[end:])
    assert inspect_image(tmp_path / "late.png").rotated
    assert open_image(tmp_path / "late.png").size == (48, 64)


@pytest.mark.parametrize(("name", "size", "mode"), [("a.png", (3, 20000), "RGB"), ("a.jpg", (9000, 2), "L"),
                                                    ("a.tif", (1, 9000), "I;16")])  # fmt: skip
def test_of_a_thin_strip_the_middle_is_kept(tmp_path: Path, name: str, size: tuple[int, int], mode: str):
    strip = Image.new(mode, size)
    middle = (size[0] // 2, size[1] // 2)
    strip.putpixel(middle, 65535 if mode == "I;16" else 255 if mode == "L" else (255, 255, 255))
    strip.save(tmp_path / name, quality=100)
    opened = open_image(tmp_path / name)
    assert max(opened.size) == module.STRIP * min(opened.size)
    assert np.asarray(opened).max() > 200
    assert (inspect_image(tmp_path / name).width, inspect_image(tmp_path / name).height) == size


def test_a_panorama_is_whole(tmp_path: Path):
    picture(3, (1600, 100)).save(tmp_path / "wide.png")
    assert open_image(tmp_path / "wide.png").size == (1600, 100)


def test_the_audit_says_which_16_bit_images_are_nearly_black(tmp_path: Path):
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    for name, white in (("ten.png", 1023), ("twelve.png", 4095), ("fourteen.tif", 16383), ("sixteen.png", 65535)):
        Image.fromarray((ramp * white).astype(np.uint16)).save(tmp_path / "a" / name)
    Image.fromarray((ramp * 4095).astype(">u2")).save(tmp_path / "a" / "motorola.tif")
    Image.new("I;16", (9, 9)).save(tmp_path / "a" / "black.png")
    (tmp_path / "b").mkdir()
    picture(1).save(tmp_path / "b" / "eight.png")
    report = audit(str(tmp_path))
    dark = ["a/fourteen.tif", "a/motorola.tif", "a/ten.png", "a/twelve.png"]
    assert sorted(report["nearly_black"]) == dark
    assert "4 nearly black: 16-bit files" in describe(report)


def test_many_huge_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(decoding, "size", 64 * 48)
    monkeypatch.setattr(decoding, "left", 64 * 48)
    at_work, most, facts = [], [], module._pixel_facts

    def watched(path: Path):
        at_work.append(path)
        most.append(len(at_work))
        time.sleep(0.01)
        try:
            return facts(path)
        finally:
            at_work.remove(path)

    monkeypatch.setattr(module, "_pixel_facts", watched)
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    assert not any(image.error for image in inspect_images(sorted(tmp_path.glob("*.png"))))
    assert max(most) == 1
    assert decoding.left == 64 * 48
    monkeypatch.setattr(decoding, "size", 3 * 64 * 48)
    threads = [threading.Thread(target=inspect_image, args=(path,)) for path in tmp_path.glob("*.png")]
    monkeypatch.setattr(decoding, "left", 3 * 64 * 48)
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert max(most) <= 3


def test_a_moving_png_gives_its_first_frame_and_16_bit_colours_their_upper_bytes(tmp_path: Path):
    picture(1).save(tmp_path / "a.png", save_all=True, append_images=[picture(2)])
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), np.asarray(picture(1)))
    assert inspect_image(tmp_path / "a.png").frames == 2
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert np.abs(np.asarray(open_image(tmp_path / "deep.png")) - values / 257).max() <= 1


def test_wrong_extension(tmp_path: Path):
    picture(7).save(tmp_path / "really_png.jpg", format="PNG")
    picture(7).save(tmp_path / "really.jpg")
    picture(7).save(tmp_path / "upper.JPEG", format="JPEG")
    wrong = {path.name: inspect_image(path).wrong_extension for path in tmp_path.iterdir()}
    assert wrong == {"really_png.jpg": True, "really.jpg": False, "upper.JPEG": False}


def test_inspections_are_cached_by_content_and_bad_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    picture(8).save(tmp_path / "a" / "good.jpg")
    bad = broken(tmp_path / "a", "truncated")
    paths = sorted((tmp_path / "a").iterdir())
    first = inspect_images(paths)
    assert inspect_images(paths) == first

    (tmp_path / "a" / "good.jpg").rename(tmp_path / "a" / "moved.png")
    cache = module.FactCache("inspections-3")
    moved = inspect_image(tmp_path / "a" / "moved.png", cache.get)
    assert cache.get(moved.sha256) is not None
    assert moved.path.name == "moved.png"
    assert moved.wrong_extension
    assert cache.get(inspect_image(bad).sha256) is None

    (file,) = (tmp_path / "cache" / "images").iterdir()  # a damaged cache costs time, nothing else
    file.write_bytes(b"no database")
    assert inspect_images(paths[1:]) == first[1:]


def test_exact_duplicates():
    assert exact_duplicates(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]


def pairs(hashes: list[int], limit: int) -> list[tuple[int, ...]]:
    return [tuple(map(int, pair)) for block in hash_pairs(hashes, limit) for pair in zip(*block, strict=True)]


def test_hash_pairs_counts_bits():
    hashes = [0, 1, 0xFFFF_FFFF_FFFF_FFFF, 0b1111, 0xFFFF_FFFF_FFFF_FFFE]
    assert pairs(hashes, 0) == []
    assert pairs(hashes, 1) == [(0, 1, 1), (2, 4, 1)]
    assert pairs(hashes, 4) == [(0, 1, 1), (0, 3, 4), (1, 3, 3), (2, 4, 1)]
    rng = np.random.default_rng(0)
    many = [int(h) for h in rng.integers(0, 2**64, 9000, dtype=np.uint64)]  # five blocks
    many[8900] = many[5] ^ (1 << 63)
    many[8901] = many[8900] ^ 1
    assert pairs(many, 2) == [(5, 8900, 1), (5, 8901, 2), (8900, 8901, 1)]


def test_thousands_of_frames_of_one_scene_do_not_flood_the_report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 500)
    frame = np.linspace(0, 255, 32 * 32).astype(np.uint8).tobytes()
    images = [Inspection(Path(f"{i}.jpg"), sha256=str(i), thumbnail=frame) for i in range(300)]  # 44,850 pairs
    assert 500 <= len(near_duplicates(images)) < 500 + 4096


def test_near_duplicates_are_found_after_recompression_scaling_and_a_watermark(tmp_path: Path):
    original = picture(9, (320, 240))
    original.save(tmp_path / "0_original.png")
    original.save(tmp_path / "1_recompressed.jpg", quality=40)
    original.resize((200, 150)).save(tmp_path / "2_smaller.png")
    marked = original.copy()
    marked.paste((255, 255, 255), (280, 225, 315, 235))
    marked.save(tmp_path / "3_watermark.png")
    for i in range(10, 40):
        picture(i, (320, 240)).save(tmp_path / f"{i}_other.png")
    (tmp_path / "9_copy.png").write_bytes((tmp_path / "0_original.png").read_bytes())  # exact: not a near-duplicate
    paths = [*sorted(tmp_path.glob("[0-3]_*")), tmp_path / "9_copy.png", *sorted(tmp_path.glob("*_other.png"))]
    found = {(pair.first, pair.second) for pair in near_duplicates(inspect_images(paths))}
    assert found == {(i, j) for i in range(5) for j in range(i + 1, 5)} - {(0, 4)}


def test_near_duplicates_of_pets3_are_the_six_a_person_finds(shared_data: Path):
    paths = sorted((shared_data / "pets3" / "oxford-iiit-pet" / "images").iterdir())
    names = {
        tuple(int(paths[k].stem.split("_")[1]) for k in (pair.first, pair.second))
        for pair in near_duplicates(inspect_images(paths))
    }
    assert names == {(11, 177), (5, 87), (40, 63), (122, 172), (24, 56), (151, 99)}
