"""Counter-based random numbers: every draw is a function of (seed, row number, stream), never of a hidden state.

So a resumed run, another batch size, another device or another number of processes draws the same numbers: a training
row is keyed by its global sample number, a sampled image by its seed.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
in 64-bit arithmetic so that it runs vectorised on any device. Key: the seed. Counter: (block, row low, row high,
stream). Normals by Box-Muller from pairs of 24-bit uniforms, so |normal| < 5.9.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# of few rows, numpy takes half as long with these as with Python's numbers
_FIRST, _SECOND, _HALF = (np.array(word, np.uint64) for word in (*_MULTIPLY, 32))


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (as int64) per counter. counter: four broadcastable int64 tensors holding 32-bit words."""
    c0, c1, c2, c3 = counter
    for k0, k1 in _round_keys(*key):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # wraps modulo 2^64: the low 64 bits are right
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0
    return c0, c1 & _MASK, c2, c3 & _MASK


def philox_on_host(counter: Sequence[np.ndarray], key: tuple[int, int], drop: int = 0) -> tuple[np.ndarray, ...]:
    """The same words, as uint32, of four broadcastable uint64 arrays, in half of the time that torch takes on a CPU.

    drop: low bits that they lose, in passes over two words at once
    """
    c0, c1, c2, c3 = (word.copy() for word in counter)
    *keys, (last0, last1) = _keys_on_host(*key)
    for k0, k1 in keys:
        c0 *= _FIRST  # in place: memory asked for anew would take longer than the arithmetic
        c2 *= _SECOND
        c0, c1, c2, c3 = _mixed(c1, c2, k0), c2, _mixed(c3, c0, k1), c0
        c0 >>= _HALF
        c2 >>= _HALF
    c0 *= _FIRST
    c2 *= _SECOND
    pairs = [pair.astype("<u8", copy=False).view("<u4") for pair in (_mixed(c1, c2, last0), _mixed(c3, c0, last1))]
    for pair in pairs if drop else ():
        pair >>= np.uint32(drop)
    return tuple(pair[..., half::2] for pair in pairs for half in (1, 0))


def _mixed(low: np.ndarray, high: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The xor of the lower half of one product, the upper half of the other, and a key, in the upper half of a word.

    Its lower half is that of `high`. It is made in place of `low` if it fits.
    """
    low <<= _HALF
    low ^= key
    return np.bitwise_xor(low, high, out=low if low.shape == high.shape else None)


def _round_keys(k0: int, k1: int) -> list[tuple[int, int]]:
    return [((k0 + i * _WEYL[0]) & _MASK, (k1 + i * _WEYL[1]) & _MASK) for i in range(10)]


@lru_cache(64)
def _keys_on_host(k0: int, k1: int) -> list[tuple[np.ndarray, ...]]:
    """The keys of all rounds, in the upper halves of words."""
    return [tuple(np.array(key << 32, np.uint64) for key in keys) for keys in _round_keys(k0, k1)]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    seed: of the run, any integer below 2^64
    row:  (B,) int64, below 2^63: global sample number in training, image seed in sampling
    here: the same rows on the host, where they are known
    """

    seed: int
    row: Tensor
    here: Tensor | None = None

    @property
    def host(self) -> Draws:
        """The same draws on the host, for the few that steer control flow.

        Waits for the device if it alone knows the rows.
        """
        if self.here is not None:
            return Draws(self.seed, self.here)
        return self if self.row.device.type == "cpu" else Draws(self.seed, self.row.cpu())

    def repeated(self, times: int) -> Draws:
        """The draws of (B k,) rows, k = `times` for each row of these; with k = 1 they are the same."""
        copy = torch.arange(times, device=self.row.device)
        return Draws(self.seed, (self.row[:, None] * times + copy).flatten())

    def _words(self, streams: Sequence[str], blocks: int, drop: int) -> tuple[Tensor, ...] | tuple[np.ndarray, ...]:
        """The four words of each block without so many low bits, (S, B, blocks) int64; on the host uint32 of numpy.

        Work that rows, streams and blocks share is done once, by broadcasting: most of the first three rounds.
        """
        codes = [zlib.crc32(stream.encode()) for stream in streams]
        key = (self.seed & _MASK, (self.seed >> 32) & _MASK)
        if self.row.device.type == "cpu":
            rows = self.row.numpy().view(np.uint64)[:, None]
            stream = np.array(codes, np.uint64)[:, None, None]
            return philox_on_host((np.arange(blocks, dtype=np.uint64), rows & _MASK, rows >> 32, stream), key, drop)
        row, block = self.row[:, None], torch.arange(blocks, device=self.row.device)
        stream = torch.cat([row.new_full((1, 1, 1), code) for code in codes])  # a copy would wait
        words = philox((block, row & _MASK, (row >> 32) & _MASK, stream), key)
        return tuple(word >> drop for word in words) if drop else words

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float64 in (0, 1), 32 bits fine. `stream` names the use, so that no two uses share numbers."""
        return self.uniforms([stream], *shape)[0]

    def uniforms(self, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, *shape): `uniform` of several streams at once."""
        count = math.prod(shape)
        blocks = self._words(streams, -(-count // 4), drop=0)
        words = [torch.from_numpy(word) if isinstance(word, np.ndarray) else word for word in blocks]
        words = torch.stack(words, dim=-1).flatten(2)[..., :count]
        return ((words.double() + 0.5) / 2**32).view(len(streams), -1, *shape)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal."""
        return self.normals([stream], *shape)[0]

    def normals(self, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, *shape): `normal` of several streams at once, in as many kernels as one."""
        count = math.prod(shape)
        words = self._words(streams, -(-count // 4), drop=8)
        uniform = torch.empty(2, *words[0].shape, 2, dtype=torch.float32, device=self.row.device)
        filled: Any = uniform.numpy() if isinstance(words[0], np.ndarray) else uniform
        for i, word in enumerate(words):  # 24 bits are left: words 0 and 2 give radii, 1 and 3 angles
            filled[i % 2, ..., i // 2] = word
        radius, angle = uniform.add_(0.5)
        radius.mul_(2**-24).log_().mul_(-2).sqrt_()
        angle.mul_(2 * math.pi * 2**-24)  # as in two steps: a power of two is exact
        cosine = torch.cos(angle).mul_(radius)
        pairs = torch.view_as_real(torch.complex(cosine, angle.sin_().mul_(radius)))  # side by side in one pass
        return pairs.flatten(2)[..., :count].reshape(len(streams), -1, *shape)

    def integer(self, stream: str, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform in [0, high)."""
        return (self.uniform(stream, *shape) * high).long()
