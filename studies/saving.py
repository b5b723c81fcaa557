"""Saving of a point of quality and cost against baselines: a ratio of costs, and its interval.

The baselines' front at a cost is the least score that they have for at most this cost. Between two plans of one curve
the score is a straight line in (log cost, log score); between curves, before the first point and beyond the last one
nothing is assumed: where the front falls to the first plan of a curve, a cheaper one, had it been measured, could do,
so the ratio is an upper bound and has no lower end. At a fixed cost the log of the front is the least of several linear
functions of the baselines' log scores: continuous in all of them, which the cost at a fixed score is not (a flat
stretch of a curve is a jump of it). The interval is therefore made where the noise is tame: the ratio a belongs to it
unless

    D(a) = log front(a * cost) - log score

differs from zero at this level, by the normal law of its bootstrap replicates. The least of many noisy scores is too
low, and that of their replicates again: their mean tells by how much. The correction is used on the side where it
widens the interval only, so neither side owes a claim to it.
Simulations say that intervals hold 92 to 95% of the time (docs/results/tried.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dualrate.comparison.rows import cost_at as cost_on_curve
from dualrate.metrics.distances import LEVEL
from dualrate.report.figures import pareto_front

RESOLUTION = 0.01  # of the costs at which an interval is looked for, in log cost
PRECISION = 1e-4  # of its ends
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


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, in order of cost."""
    return pareto_front(points, lambda point: (point.cost, point.score))


@dataclass(frozen=True)
class Saving:
    """The baselines' cost for a point's score over the point's own: 2 means that they pay twice as much.

    low, high: its interval; infinite where the baselines never reach the score, low 0 where noise leaves open that even
               the first plan of a curve is better, so that a cheaper one, had it been measured, could do
    at_most:   whether what reaches the score is the first plan of a curve, or the cheapest baseline, and is better: the
               ratio is then an upper bound
    """

    ratio: float
    low: float
    high: float
    at_most: bool

    def __str__(self) -> str:
        low, high = (f"{value:.2f}" if math.isfinite(value) else "never" for value in (self.low, self.high))
        ratio = f"{self.ratio:.2f}" if math.isfinite(self.ratio) else "never reached"
        return f"{'at most ' if self.at_most else ''}{ratio} [{low}, {high}]"


def saving(point: Point, baselines: Sequence[Point], *, level: float = LEVEL) -> Saving:
    """At the point's score, against all baselines; the interval is one of both sides' images.

    Raises ValueError for no baselines, for other numbers of replicates than the point's, and for less than two or any
    that is no number.
    """
    contest, z = _Contest.of(point, baselines), _quantile(level)
    costs, paid = _costs(baselines), cost_at(baselines, point.score)
    low, high = _ends(contest, costs, z)
    at_most = any(first.cost == paid and first.score < point.score for first in _firsts(baselines))
    return Saving(
        ratio=paid / point.cost,
        low=0.0 if at_most else min(low, paid) / point.cost,
        high=max(high, paid) / point.cost,
        at_most=at_most,
    )


def _ends(contest: _Contest, costs: Sequence[float], z: float) -> tuple[float, float]:
    """The lowest and the highest cost at which the baselines may be as good. costs: to look at, ascending."""
    gaps = [contest.gap(cost) for cost in costs]
    not_worse = [i for i, gap in enumerate(gaps) if gap.low(z) <= 0]  # the baselines, as far as the noise tells
    not_better = [i for i, gap in enumerate(gaps) if gap.high(z) >= 0]
    low, high = math.inf, costs[0]
    if gaps[0].low(z) < 0:
        low = 0.0
    elif not_worse:
        first = not_worse[0]
        low = _border(lambda cost: contest.gap(cost).low(z) <= 0, costs[first], costs[max(first - 1, 0)])
        if contest.falls(low):
            low = 0.0
    if not_better:
        last = not_better[-1]
        beyond = [*costs, math.inf][last + 1]
        high = _border(lambda cost: contest.gap(cost).high(z) >= 0, costs[last], beyond)
    return low, high


def _border(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The cost up to which it holds, between one where it does and one where it does not; an infinite one itself."""
    if outside == math.inf:
        return outside
    while abs(math.log(outside / inside)) > PRECISION:
        middle = math.sqrt(inside * outside)
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def side(point: Point, baselines: Sequence[Point], ratio: float, *, level: float = LEVEL) -> int:
    """Where a ratio is: -1 below, 0 in, 1 above the saving's interval.

    Raises ValueError as `saving`.
    """
    contest, z = _Contest.of(point, baselines), _quantile(level)
    cost, cheapest = ratio * point.cost, min(baseline.cost for baseline in baselines)
    if cost < cheapest:
        return -int(contest.gap(cheapest).low(z) >= 0)
    if contest.gap(cost).low(z) > 0:
        return -int(ratio < saving(point, baselines, level=level).low)
    before = max(cost * math.exp(-PRECISION), cheapest)
    return int(contest.gap(before).high(z) < 0)  # the front may fall at a cost, all at once


def cost_at(baselines: Sequence[Point], score: float) -> float:
    """The cheapest baseline's cost for a score at least as good.

    The cheapest point's cost for a score that even that one surpasses (so the answer is an upper bound); infinite for a
    score that none reaches.
    """
    curves = [np.array([(point.cost, point.score) for point in curve]).T for curve in _curves(baselines)]
    return min(cost_on_curve(costs, scores, score) for costs, scores in curves)


def _curves(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each curve, cheapest first; of equal costs the best last, from which the line goes on."""
    ordered = sorted(points, key=lambda point: (point.curve or "", point.cost, -point.score))
    together = [list(curve) for name, curve in groupby(ordered, lambda point: point.curve) if name is not None]
    return together + [[point] for point in ordered if point.curve is None]


def _firsts(baselines: Sequence[Point]) -> list[Point]:
    """Where a cheaper baseline could have been measured: of every curve its first plan, and the cheapest of all."""
    return [curve[0] for curve in _curves(baselines) if curve[0].curve is not None] + [front(baselines)[0]]


def _costs(baselines: Sequence[Point]) -> list[float]:
    """Every cost of a baseline, and more between them, cheapest first."""
    costs = sorted({baseline.cost for baseline in baselines})
    filled = [
        np.geomspace(low, high, 1 + math.ceil(math.log(high / low) / RESOLUTION))[:-1] for low, high in pairwise(costs)
    ]
    return [*(float(cost) for part in filled for cost in part), costs[-1]]


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


@dataclass(frozen=True)
class _Gap:
    """D at a cost. bias: of the least of noisy scores, as the replicates' mean tells it."""

    value: float
    bias: float
    deviation: float

    def low(self, z: float) -> float:
        return min(self.value, self.value - self.bias) - z * self.deviation

    def high(self, z: float) -> float:
        return max(self.value, self.value - self.bias) + z * self.deviation


@dataclass(frozen=True, eq=False)
class _Contest:
    """Log scores: own_score () and its replicates (R,), baselines (n,) and theirs (n, R).

    baselines: curve by curve; lines: places among them of two neighbours on a curve
    """

    baselines: Sequence[Point]
    lines: Sequence[tuple[int, int]]
    own_score: float
    own_replicates: NDArray[np.float64]
    scores: NDArray[np.float64]
    replicates: NDArray[np.float64]

    @staticmethod
    def of(point: Point, baselines: Sequence[Point]) -> _Contest:
        count = len(point.replicates)
        if not baselines or any(len(baseline.replicates) != count for baseline in baselines):
            raise ValueError(
                f"a saving needs baselines with {count} replicates each, as many as its own, got {len(baselines)}"
            )
        if count < 2 or not all(np.isfinite(entry.replicates).all() for entry in (point, *baselines)):
            raise ValueError(f"a saving needs at least two replicates of every score, all numbers, got {count}")
        ordered = [(number, baseline) for number, curve in enumerate(_curves(baselines)) for baseline in curve]
        lines = [(i, i + 1) for i, (first, second) in enumerate(pairwise(ordered)) if first[0] == second[0]]
        baselines = [baseline for _, baseline in ordered]
        scores = np.log([baseline.score for baseline in baselines])
        replicates = np.stack([baseline.log_replicates for baseline in baselines])
        return _Contest(baselines, lines, math.log(point.score), point.log_replicates, scores, replicates)

    def falls(self, cost: float) -> bool:
        """Whether the baselines' front falls there to the first plan of a curve, as far as PRECISION tells."""
        before = cost * math.exp(-2 * PRECISION)
        return any(before < first.cost <= cost * math.exp(PRECISION) for first in _firsts(self.baselines))

    def gap(self, cost: float) -> _Gap:
        choices = self._choices(cost)
        value = float((choices @ self.scores).min() - self.own_score)
        gaps = (choices @ self.replicates).min(0) - self.own_replicates
        return _Gap(value, float(gaps.mean() - value), float(gaps.std(ddof=1)))

    def _choices(self, cost: float) -> NDArray[np.float64]:
        """(choices, n): the log scores to be had for at most this cost, as sums of those of the baselines.

        Each baseline that is no more expensive, and of each curve the line between the two points around the cost.
        """
        unit = np.eye(len(self.baselines))
        choices = [unit[i] for i, baseline in enumerate(self.baselines) if baseline.cost <= cost]
        for i, j in self.lines:
            before, after = self.baselines[i].cost, self.baselines[j].cost
            if before < cost < after:
                share = math.log(cost / before) / math.log(after / before)
                choices.append((1 - share) * unit[i] + share * unit[j])
        return np.array(choices)
