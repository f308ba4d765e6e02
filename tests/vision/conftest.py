"""Real images for the tests: made small and on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(number: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """A smooth picture of its own for each number, so that no two are near-duplicates."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten images each, a folder per class."""
    root = tmp_path / "images"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            picture(100 * c + i).save(root / name / f"{i}.jpg", quality=95)
    return root
