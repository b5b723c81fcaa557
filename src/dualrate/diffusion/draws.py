"""Counter-based random numbers: every draw is a function of (seed, row number, stream), never of a hidden state.

So a resumed run, another batch size, another device or another number of workers draws the same numbers: a training
row is keyed by its global sample number, a sampled image by its seed.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
in int64 arithmetic so that it runs vectorised on any device. Key: the seed. Counter: (block, row low, row high,
stream). Normals by Box-Muller from pairs of 24-bit uniforms, so |normal| < 5.9.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


Words = TypeVar("Words", Tensor, np.ndarray)


def philox(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words (as int64) per counter. counter: four broadcastable int64 arrays holding 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # wraps modulo 2^64: the low 64 bits are right
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    seed: of the run, any integer below 2^64
    row:  (B,) int64, below 2^63: global sample number in training, image seed in sampling
    """

    seed: int
    row: Tensor

    def repeated(self, times: int) -> Draws:
        """The numbers of (B k,) rows, k = `times` for every row of this; row r of k = 1 is row r."""
        copy = torch.arange(times, device=self.row.device)
        return Draws(self.seed, (self.row[:, None] * times + copy).flatten())

    def _words(self, stream: str, count: int) -> Tensor:
        """(B, count) int64 in [0, 2^32)."""
        blocks = torch.arange(-(-count // 4), device=self.row.device)
        row = self.row[:, None]
        counter = (blocks[None], row & _MASK, (row >> 32) & _MASK, torch.full_like(row, zlib.crc32(stream.encode())))
        key = (self.seed & _MASK, (self.seed >> 32) & _MASK)
        if row.device.type == "cpu":  # numpy's integer arithmetic takes two thirds of torch's time
            words = tuple(torch.from_numpy(array) for array in philox([part.numpy() for part in counter], key))
        else:
            words = philox(counter, key)
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float64 in (0, 1), 32 bits fine. `stream` names the use, so that no two uses share numbers."""
        words = self._words(stream, math.prod(shape))
        return ((words.double() + 0.5) / 2**32).view(-1, *shape)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal."""
        count = math.prod(shape)
        words = self._words(stream, count + count % 2) >> 8
        u = ((words.float() + 0.5) / 2**24).unflatten(1, (-1, 2)).movedim(2, 0).contiguous()
        radius = torch.log_(u[0]).mul_(-2).sqrt_()
        angle = u[1].mul_(2 * math.pi)
        pairs = torch.stack((torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)), dim=-1)
        return pairs.flatten(1)[:, :count].reshape(-1, *shape)

    def integer(self, stream: str, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform in [0, high)."""
        return (self.uniform(stream, *shape) * high).long()
