"""How near a decoder's images are to those whose latents it was given.

PSNR = 10 log10(255^2 / mean square error) of an image, in dB, on 8-bit pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.data.given_latents import HeldOut
from dualrate.measuring.drawer import Drawer

LOOKED_AT = 1000  # images, at most, where a score has more


@dataclass(frozen=True)
class Nearness:
    """A mean over images, and its standard error. psnr: in dB."""

    psnr: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB, standard error {self.error:.2f}, of {self.count:,} reconstructions"


def nearness(drawer: Drawer, seeds: range) -> Nearness | None:
    """Draws one image per seed. None for a model that is given no latents of images. Raises what drawing raises."""
    given = drawer.model.given
    if not isinstance(given, HeldOut):
        return None
    parts = torch.tensor(seeds).split(drawer.batch_size)
    return nearness_of((given.originals(part), drawn) for part, drawn in zip(parts, drawer.batches(seeds), strict=True))


def nearness_of(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Nearness:
    """pairs: images and their reconstructions, each (b, C, H, W), batch by batch."""
    found: list[float] = []
    for images, drawn in pairs:
        square = (drawn.astype(np.float64) - images) ** 2
        found += [10 * math.log10(255**2 / max(error, 1e-9)) for error in square.mean((1, 2, 3)).tolist()]
    return Nearness(float(np.mean(found)), float(np.std(found) / math.sqrt(len(found))), len(found))
