"""Grids of images as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualrate.config.ranges import as_path
from dualrate.data.images import to_uint8
from dualrate.system.device import own_defaults
from dualrate.system.files import whole

Images = np.ndarray | Tensor


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


@own_defaults()
def save_grid(images: Images | Iterable[Images], path: Path | str, columns: int | None = None, scale: int = 1) -> None:
    """Writes a grid, every pixel `scale` times enlarged, in the format that the name ends with; whole or not at all.

    images: (N, C, H, W) of 1 or 3 channels, or batches of them, as `sample` yields: uint8, or floats in [-1, 1], which
            become uint8 by the 8-bit rule
    Raises ValueError for other images, none, and an ending that names no format of pictures; OSError that names the
    file.
    """
    path = as_path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has no ending that names a format of pictures: .png will do")
    picture = Image.fromarray(image_grid(_pixels(images), columns))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with whole(path) as partial:
        picture.save(partial, kind)


def _pixels(images: Images | Iterable[Images]) -> np.ndarray:
    """(N, C, H, W) uint8."""
    if not isinstance(images, (np.ndarray, Tensor)):
        parts = [_pixels(batch) for batch in images] if isinstance(images, Iterable) else []
        if len({part.shape[1:] for part in parts}) != 1:
            raise ValueError(
                f"images are an array (N, C, H, W), or batches of one shape, got {type(images).__name__}: pass the "
                "images that it holds"
            )
        return np.concatenate(parts)
    found = images.detach() if isinstance(images, Tensor) else torch.tensor(images)  # a copy: maps are read-only
    if found.ndim != 4 or found.shape[1] not in (1, 3) or not found.numel():
        raise ValueError(f"images are (N, C, H, W) of 1 or 3 channels, got {tuple(found.shape)}: decode latents first")
    if found.is_floating_point():
        found = to_uint8(found)
    if found.dtype != torch.uint8:
        raise ValueError(f"images are uint8, or floats in [-1, 1], got {found.dtype}: convert them")
    return found.cpu().numpy()
