"""Real photos for the tests: made small and on the spot, or the shared data where they are present."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(os.environ.get("ROCLAB_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Features and inspections of the tests are kept apart from the user's."""
    before = os.environ.get("ROCLAB_CACHE")
    os.environ["ROCLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("ROCLAB_CACHE")
    if before is not None:
        os.environ["ROCLAB_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not here: set ROCLAB_SHARED_DATA (looked in {SHARED})")
    return SHARED


def picture(number: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """A smooth picture of its own for each number, so that no two are near-duplicates."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten photos each, a folder per class."""
    root = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            picture(100 * c + i).save(root / name / f"{i}.jpg", quality=95)
    return root
