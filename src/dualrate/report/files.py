"""Images to files: PNGs, a grid, and the npz layout of the reference evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dualrate.report.grid import save_grid

GRID = 100  # images on the grid, at most


def write_images(
    images: np.ndarray, seeds: Sequence[int], labels: Sequence[int] | None, out: Path, *, npz: bool = False
) -> None:
    """Writes <seed>.png for every image, grid.png of the first hundred, and images.npz if asked.

    images: (N, C, H, W) uint8. npz: arr_0 (N, H, W, C) uint8, arr_1 (N,) labels if there are any.
    Raises OSError if `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = images.transpose(0, 2, 3, 1)
    for seed, picture in zip(seeds, pictures, strict=True):
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(out / f"{seed:06d}.png")
    save_grid(images[:GRID], out / "grid.png", scale=2 if images.shape[-1] < 64 else 1)
    if npz:
        more = [] if labels is None else [np.asarray(labels)]
        np.savez_compressed(out / "images.npz", pictures, *more)
