"""Training batches that depend on the seed and the epoch alone: not on the process, the worker or what ran before.

Each image's augmentation is drawn from a seed of its own (run, epoch, image), so a resumed run, a run with workers and
a run over two processes all see the same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from roclab.vision.data.dataset import LabelledImage

MEMORY = 2 << 30  # bytes of decoded images kept, at most


def derived_seed(*parts: object) -> int:
    """A 63-bit seed made of the parts; unlike a sum, no two tuples of parts meet."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class ImageMemory:
    """Images decoded once and kept as RGB, as long as they fit into `MEMORY`.

    A image is first brought to a shorter side of `side` px (if it is larger): decoding a 12-megapixel JPEG anew in
    each epoch would cost more than training on it. It is always done, so what fits into memory changes no pixel.
    """

    def __init__(self, images: Sequence[LabelledImage], side: int, memory: int = MEMORY):
        self.images, self.side = images, side
        self._left = memory
        self._kept: dict[int, Image] = {}

    def __getitem__(self, index: int) -> Image:
        if index in self._kept:
            return self._kept[index]
        from PIL.Image import Resampling

        from roclab.vision.data.dataset import open_image

        image = open_image(self.images[index].path, at_least=self.side)
        if (shorter := min(image.size)) > self.side:
            width, height = (max(1, round(length * self.side / shorter)) for length in image.size)
            image = image.resize((width, height), Resampling.BICUBIC, reducing_gap=3.0)
        bytes_needed = image.width * image.height * 4
        if bytes_needed <= self._left:
            self._left -= bytes_needed
            self._kept[index] = image
        return image


class TrainImages:
    """A map-style dataset whose index is (image, epoch, image size); gives (image (3, S, S), label)."""

    def __init__(
        self, images: Sequence[LabelledImage], side: int, transform: Callable[[int], Callable[[Any], Any]], seed: int
    ):
        self.memory = ImageMemory(images, side)
        self.labels = [image.label for image in images]
        self.transform, self.seed = transform, seed
        self._transforms: dict[int, Callable[[Any], Any]] = {}

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, int]:
        import torch

        index, epoch, image_size = key
        if image_size not in self._transforms:
            self._transforms[image_size] = self.transform(image_size)
        image = self.memory[index]
        with torch.random.fork_rng(devices=[]):  # the draw leaves no trace in the generator that dropout uses
            torch.manual_seed(derived_seed(self.seed, "photo", epoch, index))
            return self._transforms[image_size](image), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, processes: int = 1) -> list[list[int]]:
    """Shuffled batches of image numbers. The last incomplete one is left out: its statistics would be of a few images.

    With fewer images than `batch_size` there is one batch of all. Every batch can be dealt out to `processes` evenly.
    """
    import torch

    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    order = torch.randperm(n, generator=generator).tolist()
    size = max(min(batch_size, n) // processes * processes, processes)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def batches(
    images: TrainImages, order: Sequence[Sequence[int]], epoch: int, image_size: int, workers: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images (B, 3, S, S), labels (B,)) of each batch in `order`."""
    from torch.utils.data import DataLoader

    keys = [[(i, epoch, image_size) for i in batch] for batch in order]
    # keys are tuples and the generator is our own: torch's loader wants ints and would draw a base seed
    import torch

    loader: DataLoader = DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=4 if workers else None,
    )
    yield from loader
