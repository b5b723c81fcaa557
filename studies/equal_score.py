"""Savings of a plan at equal score, with an interval over what was scored and over trainings.

The rule is `dualrate compare`'s: between two plans of one curve (a network, what trained it, a sampler) the score is a
straight line in logarithms; beyond its plans nothing is assumed. Where the cheapest plan of a curve is better already,
a cheaper one, had it been measured, could do: the ratio is an upper bound, and 0 its lower end.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dualrate.comparison.rows import least_cost
from dualrate.report.table import significant
from studies.common import Row

RESAMPLES = 2000
TAILS = 0.025, 0.975
Key = TypeVar("Key")  # of a plan, such as (network, what trained it, steps)
Scores = Mapping[Key, NDArray[np.float64]]  # (1 + R,): the score, then its replicates


class Ratio(NamedTuple):
    """Cost of rivals at a plan's score over the plan's own. inf: they never reach it.

    low, high: its interval, no wider than the value where none is known
    at_most: whether the value is an upper bound
    """

    value: float
    low: float
    high: float
    at_most: bool = False

    def __str__(self) -> str:
        value, low, high = ("never" if math.isinf(end) else significant(end) for end in self[:3])
        return f"{'at most ' if self.at_most else ''}{value if value == low == high else f'{value} [{low}, {high}]'}"


def resampled(
    rows: Sequence[Row],
    key: Callable[[Row], Key],
    values: Callable[[Row], NDArray[np.float64]],
    curve: Callable[[Any], object] = lambda key: key[:-1],
) -> dict[Key, NDArray[np.float64]]:
    """(1 + R,) mean score of each plan, over trainings and cases; then of both drawn anew.

    values: of a row, (cases,) of the same cases for all, drawn anew together for all plans
    curve: the training of a plan, whose plans are drawn anew together

    n trainings deviate from their mean by sqrt((n - 1) / n) of what they deviate from the mean of all, so a resample of
    them has its deviation multiplied by the inverse. One training alone adds nothing.
    """
    groups: dict[Key, list[NDArray[np.float64]]] = {}
    for row in sorted(rows, key=lambda row: row.get("seed", 0)):
        groups.setdefault(key(row), []).append(values(row))
    cases = len(next(iter(groups.values()))[0])
    picked = np.random.default_rng(0).integers(0, cases, (RESAMPLES, cases))
    shares = np.stack([np.bincount(each, minlength=cases) for each in picked], 1) / cases  # (cases, R)
    scores = {}
    for plan, trainings in groups.items():
        table = np.stack(trainings)  # (trainings, cases)
        means = table @ shares  # (trainings, R)
        count = len(table)
        rng = np.random.default_rng(zlib.crc32(repr(curve(plan)).encode()))
        drawn = rng.integers(0, count, (count, RESAMPLES))
        deviation = np.take_along_axis(means, drawn, 0).mean(0) - means.mean(0)
        replicates = means.mean(0) + math.sqrt(count / max(1, count - 1)) * deviation
        scores[plan] = np.concatenate([[table.mean()], replicates])
    return scores


def at_equal_score(
    scores: Scores[Key],
    cost: Mapping[Key, float],
    plan: Key,
    rivals: Sequence[Key],
    curve: Callable[[Any], object] = lambda key: key[:-1],
) -> Ratio:
    """Cost of the cheapest of the rivals that scores as well as a plan, over the plan's own.

    rivals: plans of curves; scores above 0, lower is better
    """
    curves: dict[object, list[Key]] = {}
    for rival in sorted(rivals, key=lambda rival: cost[rival]):
        curves.setdefault(curve(rival), []).append(rival)
    costs = [np.array([cost[rival] for rival in plans]) / cost[plan] for plans in curves.values()]
    tables = [np.stack([scores[rival] for rival in plans]) for plans in curves.values()]
    ratios = [
        least_cost(costs, [table[:, i] for table in tables], score) for i, score in enumerate(scores[plan].tolist())
    ]
    (value, bound), *replicates = ratios
    low = np.quantile([0 if at_most else ratio for ratio, at_most in replicates], TAILS[0], method="inverted_cdf")
    high = np.quantile([ratio for ratio, _ in replicates], TAILS[1], method="inverted_cdf")
    return Ratio(value, 0.0 if bound else min(value, float(low)), max(value, float(high)), bound)
