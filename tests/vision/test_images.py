"""Opening images of every kind, and finding the same picture twice."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roclab.core.exceptions import DataError
from roclab.vision.data import images as module
from roclab.vision.data.images import (
    Inspection,
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
    assert reason in inspect_image(path).error


def test_a_big_jpeg_may_be_decoded_small_without_losing_what_is_asked_for(tmp_path: Path):
    big = picture(6, (1600, 1200))
    big.save(tmp_path / "big.jpg", quality=95)
    small = open_image(tmp_path / "big.jpg", at_least=128)
    assert small.size == (400, 300)  # a quarter: the next step, 150 px, would be under twice 128
    assert close(small, big.resize((400, 300), Image.Resampling.BOX), 3)
    assert open_image(tmp_path / "big.jpg", at_least=512).size == (1600, 1200)


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
    cache = module.FactCache("inspections-1")
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
