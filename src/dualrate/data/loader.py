"""Training batches as a function of the iteration: no state, no workers, nothing to save but the iteration.

Row r of iteration k has the global sample number n = k * batch_size + r. Its epoch is n // N; its image is number
n % N of that epoch's order, a permutation drawn from (seed, epoch); its augmentation is drawn from (seed, n).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.data.images import ImageSet, to_float
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Batch


@dataclass(frozen=True)
class Augment(Ranged):
    """Random changes of training images."""

    flip: bool = False
    """Mirror left to right with probability 1/2."""
    translate: Annotated[int, Range(0, 4096)] = 0
    """Shift by up to this many pixels on each axis, uniformly; the border is reflected."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Change row i by row i of `draws`.

        images: (B, C, H, W) of any type
        Raises ValueError unless 0 <= translate < min(H, W).
        """
        batch, _, height, width = images.shape
        if not 0 <= self.translate < min(height, width):
            raise ValueError(
                f"translate {self.translate}; expected 0 to {min(height, width) - 1} for {height} x {width}"
            )
        if not self.flip and not self.translate:
            return images
        at = torch.arange(max(height, width), device=images.device)
        row, column = at[None, :height].expand(batch, -1), at[None, :width].expand(batch, -1)
        if self.translate:
            shift = draws.integer("translate", 2 * self.translate + 1, 2) - self.translate
            row, column = _reflect(row - shift[:, :1], height), _reflect(column - shift[:, 1:], width)
        if self.flip:
            mirrored = draws.uniform("flip", 1) < 0.5
            column = torch.where(mirrored, column.flip(1), column)
        image = torch.arange(batch, device=images.device)[:, None, None]
        return images.movedim(1, -1)[image, row[:, :, None], column[:, None, :]].movedim(-1, 1).contiguous()


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices from -(size - 1) to 2 (size - 1), reflected at both ends, which are not repeated."""
    return (size - 1) - (size - 1 - index.abs()).abs()


class Batches:
    """All training batches of a run: `batch(k)` is the same however often, in whatever order, it is asked for."""

    def __init__(self, images: ImageSet, batch_size: int, seed: int, augment: Augment = Augment()) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected at least 1")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self._order = lru_cache(maxsize=2)(self._permutation)

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration`, on the CPU. Raises ValueError for a negative number."""
        if iteration < 0:
            raise ValueError(f"iteration {iteration}; expected 0 or more")
        sample = torch.arange(self.batch_size) + iteration * self.batch_size
        index = self._indices(sample).numpy()
        pixels = torch.from_numpy(self.images.images[index])  # fancy indexing copies
        labels = self.images.labels
        return Batch(
            x=to_float(self.augment(pixels, Draws(self.seed, sample))),
            label=None if labels is None else torch.from_numpy(labels[index]),
            sample=sample,
        )

    def _indices(self, sample: Tensor) -> Tensor:
        """(B,) int64 positions in the data set."""
        epoch, place = sample // len(self.images), sample % len(self.images)
        parts = [self._order(int(e))[place[epoch == e]] for e in epoch.unique()]
        return torch.cat(parts)  # samples ascend, and so do epochs

    def _permutation(self, epoch: int) -> Tensor:
        """(N,) int64: the epoch's order. From keyed draws: torch.randperm may change with the version of torch."""
        keys = Draws(self.seed, torch.arange(len(self.images))).uniform(f"order of epoch {epoch}", 1)
        return keys[:, 0].argsort(stable=True)
