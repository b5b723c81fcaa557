"""Grids of images as PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from dualrate.config.ranges import as_path
from dualrate.machine.files import whole


def image_grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """(N, C, H, W) uint8 -> one (rows, columns) picture, (H', W') or (H', W', 3) uint8, white between the images."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        page[:, top : top + height, left : left + width] = image
    return page[0] if channels == 1 else page.transpose(1, 2, 0)


def save_grid(images: np.ndarray, path: Path | str, columns: int | None = None, scale: int = 1) -> None:
    """Writes a grid, every pixel `scale` times enlarged, in the format that the name ends with; whole or not at all.

    Raises ValueError for an ending that names no format of pictures, OSError that names the file.
    """
    path = as_path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has no ending that names a format of pictures: .png will do")
    picture = Image.fromarray(image_grid(images, columns))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with whole(path) as partial:
        picture.save(partial, kind)
