"""Images that stand out by how they look: dark, bright, plain, blurred, of an odd shape.

An image is named where it is both bad in itself and unlike the rest: X-rays are dark by nature, and of a set of which
all are dark none is a fault. docs/log-vision.md says what this finds on real data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roclab.vision.data.images import SIDE, STRIP, Inspection

DARK, BRIGHT = 40, 225  # grey values of 0 to 255: the lightest, and the darkest, that the image has
PLAIN = 8  # standard deviation of the grey values
BLURRED = 15  # variance of the Laplacian; not of plain images, nor of those that are small
UNLIKE = 3  # robust standard deviations from the median
KINDS = ("dark", "bright", "plain", "blurred", "shape")
SHAPE = 3  # times as wide, or as high, as the median image


def odd_images(images: Sequence[Inspection]) -> dict[str, list[tuple[int, float]]]:
    """The readable images that stand out, by kind: their numbers and what was measured, the worst first.

    Grey values are those of the thumbnail (its 1st and 99th percentile, so that a speck does not count); sharpness is
    the variance of the Laplacian.
    """
    if not images:
        return {kind: [] for kind in KINDS}
    grey = np.stack([np.frombuffer(image.thumbnail, np.uint8) for image in images]).astype(np.float32)
    darkest, lightest = np.percentile(grey, [1, 99], axis=1)
    spread, sharp = grey.std(1), np.array([image.sharpness for image in images])
    aspect = np.array([image.width / image.height for image in images])
    shape = np.abs(np.log(aspect / np.median(aspect)))
    large = np.array([min(image.width, image.height) >= SIDE // 2 for image in images])
    strip = np.maximum(aspect, 1 / aspect) > STRIP
    rows = (
        (lightest, (lightest < DARK) & (unlike(lightest) < -UNLIKE), lightest),
        (darkest, (darkest > BRIGHT) & (unlike(darkest) > UNLIKE), -darkest),
        (spread, (spread < PLAIN) & (unlike(spread) < -UNLIKE), spread),
        (sharp, (sharp < BLURRED) & (spread >= PLAIN) & large & (unlike(np.log1p(sharp)) < -UNLIKE), sharp),
        (aspect, strip | ((shape > np.log(SHAPE)) & (unlike(shape) > UNLIKE)), -shape),
    )
    return {
        kind: [(int(i), round(float(value[i]), 3)) for i in np.argsort(order, kind="stable") if odd[i]]
        for kind, (value, odd, order) in zip(KINDS, rows, strict=True)
    }


def unlike(values: np.ndarray) -> np.ndarray:
    """How many robust standard deviations (1.4826 times the median absolute deviation) each of the values (N,) lies
    from their median."""
    away = values - np.median(values)
    return away / max(1.4826 * float(np.median(np.abs(away))), 1e-9)
