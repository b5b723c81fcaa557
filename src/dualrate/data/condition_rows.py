"""Conditions by number: those of held-out images, made when they are asked for, and those that a user gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec
from dualrate.data.loader import Augment, TrainingSet
from dualrate.diffusion.random import Draws

Make = Callable[[Tensor, Draws], Tensor]  # x (B, C, H, W) in [-1, 1], draws of its rows -> y (B, c, h, w)
KEPT = 2**28  # bytes of conditions, so that a drawing of them is timed without what makes them


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The conditions of some images, or windows of fields.

    of:    what they are made of: these images, or of pairs the others
    codec: of latents; of other conditions that of pixels
    """

    images: TrainingSet
    of: TrainingSet
    make: Make
    device: torch.device | str
    codec: Codec
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def digest(self) -> str:
        """sha256 of what they are made of."""
        return self.of.fingerprint

    def rows(self, seeds: Tensor) -> Tensor:
        """(B,) int64: the numbers of the images of these seeds, (B,)."""
        return seeds.cpu() % len(self.images)

    def originals(self, seeds: Tensor) -> NDArray[Any]:
        """(B, C, H, W): the images of these seeds, (B,), uint8; of fields what a sample should be, float32."""
        return self._of(self.images, seeds).numpy()

    def __call__(self, seeds: Tensor) -> Tensor:
        """y: (B, c, h, w) float32, on the device. seeds: (B,)."""
        key = tuple(seeds.tolist())
        if key not in self._kept:
            draws = Draws(0, seeds.to(self.device))
            y = self.make(self.of.floats(self._of(self.of, seeds).to(self.device), draws), draws)
            self._kept[key] = y
            for oldest in list(self._kept)[: -max(1, KEPT // y.nbytes)]:
                del self._kept[oldest]
        return self._kept[key]

    def _of(self, some: TrainingSet, seeds: Tensor) -> Tensor:
        return some.rows(self.rows(seeds).numpy(), Draws(0, seeds.cpu()), Augment())


class StoredRows(Protocol):
    """StoredRows that are only read, (N, c, h, w), by their numbers: in files, or made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sums(self) -> str:
        """A text that all of them follow from, such as their sha256."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[Any] | Tensor: ...


class Lines(Protocol):
    """Texts by their numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> str: ...


@dataclass(frozen=True, eq=False)
class Given:
    """Conditions of one's own. y: (N, c, h, w) numbers, rows in files, or made of texts; seed i has number i, round and
    round

    texts: (N,) that prompts were made of, where they are known; files: (N,) that pictures were read of, if they were
    """

    y: Tensor | StoredRows
    texts: Lines | None = None
    files: tuple[str, ...] = ()

    def __call__(self, seeds: Tensor) -> Tensor:
        """(B, c, h, w), on the device of the seeds, (B,)."""
        return torch.as_tensor(self.y[seeds.cpu().numpy() % len(self.y)]).to(seeds.device).float()

    def texts_of(self, seeds: Iterable[int]) -> list[str] | None:
        """Texts of these seeds; None: not known."""
        return None if self.texts is None else [self.texts[seed % len(self.y)] for seed in seeds]

    @cached_property
    def digest(self) -> str:
        """sha256 of all of them."""
        content = self.y.detach().cpu().numpy().tobytes() if isinstance(self.y, Tensor) else self.y.sums.encode()
        return hashlib.sha256(repr(tuple(self.y.shape)).encode() + content).hexdigest()
