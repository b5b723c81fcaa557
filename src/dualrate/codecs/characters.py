"""Texts as tokens: every character one of an alphabet. Data are its places there as 8-bit values, (B, 1, 1, L)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.tokens import TokenCodec

BETWEEN = "\n---\n"  # pieces that are shown one after the other
MOST = 255  # characters of an alphabet, which a byte tells apart


@dataclass(frozen=True)
class Characters(TokenCodec):
    """Tokens of a text. Raises ValueError for an alphabet of fewer than 2 or more than 255 characters, or of twice one.

    alphabet: all characters that there are
    mask:     whether a category more stands for noise, as a masked process has it
    """

    alphabet: str  # pyright: ignore[reportIncompatibleVariableOverride]
    mask: bool = True

    def __post_init__(self) -> None:
        if not 2 <= len(self.alphabet) <= MOST or len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError(f"an alphabet is 2 to {MOST} different characters, got {len(self.alphabet)}")

    @property
    def symbols(self) -> int:
        return len(self.alphabet)

    def index(self, x: Tensor) -> Tensor:
        return (127.5 * x + 127.5).round().long()

    def value(self, index: Tensor) -> Tensor:
        return index / 127.5 - 1


def texts(alphabet: str, places: NDArray[np.uint8]) -> Iterable[str]:
    """The pieces of text that 8-bit values say. places: (N, 1, 1, L)."""
    return ("".join(alphabet[place] for place in piece.ravel()) for piece in places)
