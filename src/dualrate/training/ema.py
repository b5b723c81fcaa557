"""Exponential moving average of weights, with a half-life in images.

    average <- decay * average + (1 - decay) * weights,   decay = 0.5 ** (rows / halflife)

Early on the half-life is at most RAMP times the images seen so far, so that the average is not dominated by the
initial weights (the ramp of Karras et al., "Elucidating the design space", arXiv 2206.00364, code release).
Counting images rather than updates makes the average independent of the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from dualrate.system.files import check_dtypes

RAMP = 0.05


class Ema:
    """The average of named live tensors, which are read at every update and never replaced.

    named:    name -> live tensor (parameters, or floating buffers)
    halflife: in images
    """

    def __init__(self, named: Mapping[str, Tensor], halflife: float) -> None:
        self.live = {name: tensor.detach() for name, tensor in named.items()}
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}
        self.halflife, self.images = halflife, 0

    @torch.no_grad()
    def update(self, rows: int) -> None:
        """Fold in the current weights, `rows` images after the last update."""
        self.images += rows
        decay = 0.5 ** (rows / min(self.halflife, RAMP * self.images))
        average, live = list(self.average.values()), list(self.live.values())
        torch._foreach_lerp_(average, live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the live tensors hold the average; after it, whatever happened, the raw weights again."""
        raw = {name: tensor.clone() for name, tensor in self.live.items()}
        try:
            _copy(self.live, self.average)
            yield
        finally:
            _copy(self.live, raw)

    def load(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Continue from saved averages and the number of images they have seen."""
        if tensors.keys() != self.average.keys():
            names = sorted(tensors.keys() ^ self.average.keys())[:5]
            raise ValueError(f"averages of other weights: {names} do not match")
        check_dtypes(tensors, {name: tensor.dtype for name, tensor in self.average.items()})
        _copy(self.average, tensors)
        self.images = images


def _copy(to: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(source[name])
