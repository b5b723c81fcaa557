"""Exponential moving average of weights, with a half-life in images.

    average <- decay * average + (1 - decay) * weights,   decay = 0.5 ** (rows / halflife)

Early on the half-life is at most RAMP times the images seen so far, so that the average is not dominated by the
initial weights (the ramp of Karras et al., "Elucidating the design space", arXiv 2206.00364, code release).
Counting images rather than updates makes the average independent of the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dualrate.training.sharding import in_parts

RAMP = 0.05


class Ema:
    """The average of named live tensors, which are read at every update and never replaced.

    named:    name -> live tensor (parameters, or floating buffers)
    halflife: in images
    """

    def __init__(self, named: Mapping[str, Tensor], halflife: float) -> None:
        if halflife <= 0:
            raise ValueError(f"got an EMA half-life of {halflife} images; it must be above 0")
        self.names = tuple(named)
        self.live = [tensor.detach() for tensor in named.values()]
        self.average = [tensor.clone() for tensor in self.live]
        self.halflife = halflife
        self.images = 0

    @torch.no_grad()
    def update(self, rows: int) -> None:
        """Fold in the current weights, `rows` images after the last update."""
        self.images += rows
        decay = 0.5 ** (rows / min(self.halflife, RAMP * self.images))
        torch._foreach_lerp_(self.average, self.live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the live tensors hold the average; after it, whatever happened, the raw weights again."""
        raw = [tensor.clone() for tensor in self.live]
        try:
            self._put(self.average)
            yield
        finally:
            self._put(raw)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for live, value in zip(self.live, values, strict=True):  # of parts of tensors torch copies no list at once
            live.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(zip(self.names, self.average, strict=True))

    def load(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Continue from saved averages and the number of images they have seen."""
        if set(tensors) != set(self.names):
            raise ValueError(f"averages of other weights: {sorted(set(tensors) ^ set(self.names))[:5]} do not match")
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(in_parts(tensors[name], average))
        self.images = images
