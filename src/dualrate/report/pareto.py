"""Points of quality against cost, and the front of them: those that no other beats.

A point is on the front if no other is at most as dear and at least as good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
FLOOR = 1e-3  # of a replicate, in scores


@dataclass(frozen=True, eq=False)
class Point:
    """cost > 0; score > 0, lower is better; replicates: (R,) of the score, from its bootstrap. Else ValueError.

    curve: names the plans between which others could stand, such as those of one network under one sampler, which
           differ in steps; None: it stands alone
    """

    name: str
    cost: float
    score: float
    replicates: NDArray[np.float64]
    curve: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.cost < math.inf and 0 < self.score < math.inf):
            raise ValueError(f"{self.name} has cost {self.cost} and score {self.score}; both must be positive numbers")

    @property
    def log_replicates(self) -> NDArray[np.float64]:
        """Bias-centred replicates of a score near zero may fall below it, where logarithms end: FLOOR at least."""
        return np.log(np.maximum(self.replicates, FLOOR * self.score))


def unbeaten(items: Iterable[Item], place: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """The items that no other beats, in order of cost. place: an item's (cost, score)."""
    kept: list[Item] = []
    for item in sorted(items, key=place):
        if not kept or place(item)[1] < place(kept[-1])[1]:
            kept.append(item)
    return kept


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, in order of cost."""
    return unbeaten(points, lambda point: (point.cost, point.score))
