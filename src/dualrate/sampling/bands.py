"""Frequency bands of images: an orthonormal DCT-II over channels, rows and columns, frequencies grouped by radius.

    U[k, n] = sqrt((2 - [k = 0]) / N) cos(pi k (n + 1/2) / N)      along an axis of N

Over three colours the same transform is an opponent rotation: grey, red against blue, green against both. A band is a
ring of spatial frequencies of one such channel; the lowest holds the mean and, of large images, little else. Rings are
of equal width in the square root of the radius, so that they are thinner where images have their energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from dualrate.config.ranges import Ranged, Rings, Side


@dataclass(frozen=True)
class Bands(Ranged):
    """shape: (C, H, W) of an image; rings: of a channel at most (small images leave some empty, which are dropped)."""

    shape: tuple[Side, Side, Side]
    rings: Rings = 12

    @cached_property
    def index(self) -> Tensor:
        """(C, H, W) int64: the band of each coefficient."""
        channels, height, width = self.shape
        down, right = torch.arange(height) / height, torch.arange(width) / width
        root = (down[:, None] ** 2 + right**2) ** 0.25
        ring = (root / root.max().clamp_min(1e-9) * self.rings).long().clamp_max(self.rings - 1)
        ring = torch.unique(ring, return_inverse=True)[1]
        return ring + (int(ring.max()) + 1) * torch.arange(channels)[:, None, None]

    @cached_property
    def count(self) -> int:
        """K, the number of bands."""
        return int(self.index.max()) + 1

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.bincount(self.index.flatten(), minlength=self.count)

    def transform(self, x: Tensor) -> Tensor:
        """U x. x: (B, C, H, W), coefficients of the same shape and dtype."""
        channels, height, width = (matrix(size, x.dtype, x.device) for size in self.shape)
        return torch.einsum("dc,bchw->bdhw", channels, height @ x @ width.mT)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """U^T c."""
        channels, height, width = (matrix(size, coefficients.dtype, coefficients.device) for size in self.shape)
        return torch.einsum("dc,bdhw->bchw", channels, height.mT @ coefficients @ width)

    def mean(self, coefficients: Tensor) -> Tensor:
        """(B, K): the mean over each band. coefficients: (B, C, H, W)."""
        flat = coefficients.flatten(1)
        return flat @ _members(self, flat.dtype, flat.device) / self._sizes.to(flat, non_blocking=True)

    def spread(self, values: Tensor) -> Tensor:
        """(B, C, H, W): each band's value at all of its coefficients. values: (B, K), or (1, K) for all rows."""
        return values[:, _index(self, values.device)].unflatten(1, self.shape)


@cache
def _index(bands: Bands, device: torch.device) -> Tensor:
    """(C H W,) the band of each coefficient; made once for a device."""
    return bands.index.flatten().to(device)


@cache
def _members(bands: Bands, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(C H W, K): 1 in the band of each coefficient. A sum by it has one order, also on a GPU."""
    return torch.nn.functional.one_hot(_index(bands, device), bands.count).to(dtype)


@cache
def matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, N) orthonormal DCT-II, rows are frequencies; made once."""
    n = torch.arange(size, dtype=torch.float64, device=device)
    waves = torch.cos(math.pi / size * n[:, None] * (n + 0.5)) * math.sqrt(2 / size)
    waves[0] *= math.sqrt(0.5)
    return waves.to(dtype)
