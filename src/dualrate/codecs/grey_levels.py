"""Grey images as tokens: every pixel one of a few levels.

Levels are spread evenly over [-1, 1], ends included, so that what is black stays black; a pixel becomes the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dualrate.codecs.tokens import TokenCodec
from dualrate.config.ranges import Range, Ranged


@dataclass(frozen=True)
class GreyLevels(TokenCodec, Ranged):
    """Tokens of grey images."""

    levels: Annotated[int, Range(2, 256)] = 8
    """Of grey."""
    mask: bool = True
    """Whether a category more stands for noise, as a masked process has it."""

    @property
    def symbols(self) -> int:
        return self.levels

    def index(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 * (self.levels - 1)).round().long()

    def value(self, index: Tensor) -> Tensor:
        return index / (self.levels - 1) * 2.0 - 1
