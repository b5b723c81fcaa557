"""Fronts of quality against cost, and what one front saves at the quality of another.

A point is on the front if no other is at most as dear and at least as good. Between the points of a front the score is
taken as a straight line in (log cost, log score); before its first and beyond its last point nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Point:
    """cost > 0; score > 0, lower is better; replicates: (R,) of the score, from its bootstrap. Else ValueError."""

    name: str
    cost: float
    score: float
    replicates: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not (0 < self.cost < math.inf and 0 < self.score < math.inf):
            raise ValueError(f"{self.name} has cost {self.cost} and score {self.score}; both must be positive numbers")


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


def cost_at(points: Sequence[Point], score: float) -> float:
    """What the front of some points pays for a score.

    Its cheapest point's cost for a score that even that one surpasses (so the answer is an upper bound); infinite for a
    score it never reaches.
    """
    line = front(points)
    if score >= line[0].score:
        return line[0].cost
    for worse, better in pairwise(line):
        if score >= better.score:
            share = math.log(worse.score / score) / math.log(worse.score / better.score)
            return math.exp(math.log(worse.cost) + share * math.log(better.cost / worse.cost))
    return math.inf


def _replicate(point: Point, r: int) -> float:
    """Bias-centred replicates of a score near zero may fall below it, where logarithms end: a thousandth at least."""
    return max(float(point.replicates[r]), point.score / 1000)


@dataclass(frozen=True)
class Saving:
    """The rivals' cost for a point's score over the point's own: 2 means that they pay twice as much.

    low, high: its interval; infinite where the rivals never reach the score
    at_most:   whether even the rivals' cheapest point is better, so that the ratio is an upper bound
    """

    ratio: float
    low: float
    high: float
    at_most: bool

    def __str__(self) -> str:
        low, high = (f"{value:.2f}" if math.isfinite(value) else "never" for value in (self.low, self.high))
        ratio = f"{self.ratio:.2f}" if math.isfinite(self.ratio) else "never reached"
        return f"{'at most ' if self.at_most else ''}{ratio} [{low}, {high}]"


def saving(point: Point, rivals: Sequence[Point], *, level: float = 0.95) -> Saving:
    """At the point's score, against the front of the rivals; the interval resamples the images of all of them.

    Raises ValueError for no rivals, and for other numbers of replicates than the point's.
    """
    count = len(point.replicates)
    if not rivals or any(len(rival.replicates) != count for rival in rivals):
        raise ValueError(f"a saving needs rivals with {count} replicates each, as many as its own, got {len(rivals)}")
    ratios = []
    for r in range(count):
        drawn = [replace(rival, score=_replicate(rival, r)) for rival in rivals]
        ratios.append(cost_at(drawn, _replicate(point, r)) / point.cost)
    # an observed order statistic, never a mean of two: some ratios are infinite
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    at_most = point.score > front(rivals)[0].score
    return Saving(cost_at(rivals, point.score) / point.cost, float(low), float(high), at_most)
