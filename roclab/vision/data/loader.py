"""Training batches that depend on the seed and the epoch alone: not on the process, the worker or what ran before.

Each image's augmentation is drawn from a seed of its own (run, epoch, image), so a resumed run, a run with workers and
a run over two processes all see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from roclab.core.provenance import derived_seed
from roclab.vision.data.dataset import LabelledImage
from roclab.vision.data.images import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

MEMORY = 2 << 30  # bytes of decoded images kept, at most


class TrainImages:
    """A map-style dataset whose index is (image, epoch, image size); gives (image (3, S, S), its row of `targets`).

    Images are decoded once and kept as RGB, as long as they fit into `MEMORY` bytes. An image is first brought to a
    shorter side of `side` px (if it is larger): decoding a 12-megapixel JPEG anew in each epoch would cost more than
    training on it. It is always done, so what fits into memory changes no pixel.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        targets: np.ndarray,  # as `dataset.targets_of` gives them
        side: int,
        transform: Callable[[int], Callable[[Any], Any]],  # of an image size
        seed: int,
    ):
        self.images, self.side, self.transform, self.seed = images, side, transform, seed
        self.targets = torch.from_numpy(targets)
        self._memory_left = MEMORY
        self._decoded: dict[int, Image] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        index, epoch, image_size = key
        image = self.decoded(index)
        with torch.random.fork_rng(devices=[]):  # dropout's generator is left as it was
            torch.manual_seed(derived_seed(self.seed, "photo", epoch, index))  # the word is part of every run's bits
            return self.transform(image_size)(image), self.targets[index]

    def decoded(self, index: int) -> Image:
        """The image, not yet augmented."""
        if index in self._decoded:
            return self._decoded[index]
        from PIL.Image import Resampling

        image = open_image(self.images[index].path, at_least=self.side)
        if (shorter := min(image.size)) > self.side:
            width, height = (max(1, round(length * self.side / shorter)) for length in image.size)
            image = image.resize((width, height), Resampling.BICUBIC, reducing_gap=3.0)
        bytes_needed = image.width * image.height * 4
        if bytes_needed <= self._memory_left:
            self._memory_left -= bytes_needed
            self._decoded[index] = image
        return image


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, processes: int = 1) -> list[list[int]]:
    """Shuffled batches of image numbers. The last incomplete one is left out: its statistics would be of a few images.

    With fewer images than `batch_size` there is one batch of all. Every batch can be shared out to `processes` evenly.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    order = torch.randperm(n, generator=generator).tolist()
    size = max(min(batch_size, n) // processes * processes, processes)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def batches(
    images: TrainImages, order: Sequence[Sequence[int]], epoch: int, image_size: int, workers: int = 0
) -> Iterable[tuple[Tensor, Tensor]]:
    """(images (B, 3, S, S), labels (B,) or probabilities (B, C)) of each batch in `order`."""
    return DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=[[(i, epoch, image_size) for i in batch] for batch in order],
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),  # else it draws a seed from the global generator
        prefetch_factor=4 if workers else None,
    )


def read_ahead(chunks: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield `read(chunk)` in order, reading the next chunk in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        pending = None
        for chunk in chunks:
            current, pending = pending, thread.submit(read, chunk)
            if current is not None:
                yield current.result()
        if pending is not None:
            yield pending.result()
