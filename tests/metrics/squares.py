"""A data set that a feature net learns in seconds: light squares on the left or on the right, in noise."""

import numpy as np

from dualrate.data.images import ImageSet


def two_classes(
    count: int = 192, *, seed: int = 0, channels: int = 1, size: int = 12, split: str = "train"
) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 60, (count, channels, size, size), dtype=np.uint8)
    labels = generator.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        top, left = generator.integers(2, size // 2), 2 + label * (size // 2)
        image[:, top : top + 3, left : left + 3] += 180
    return ImageSet(images, labels.astype(np.int64), ("left", "right"), f"squares/{split}")
