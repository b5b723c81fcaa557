"""What was found, and what dual-rate models save at equal quality against everything else that was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from dualrate.compare.work import MeasuredContender, TimedContender
from dualrate.data.latent_set import DrawnLatents
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.figures import Point, front
from dualrate.report.rows import shared_metrics
from dualrate.report.saving import Saving, ScoreRatio, saving, score_ratio

TIMING = 1.1  # what two timings of one contender may differ by


@dataclass(frozen=True, eq=False)
class Costs:
    """One way to count the cost of an image. measured: with the noise of timing, TIMING"""

    name: str
    of: Callable[[TimedContender], float]
    measured: bool = False


COSTS = (
    Costs("FLOPs", lambda one: float(one.row.flops)),
    Costs("time in batches", lambda one: one.speed.batched, measured=True),
    Costs("time alone", lambda one: one.speed.alone, measured=True),
)
AT_EQUAL_COST = f"score at equal {COSTS[0].name}"  # a ratio of the others' to its own


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """screened: every contender on few images; finished: some on many.

    duals: names of the networks at two rates, which are set against all others
    unfinished: what the minutes did not suffice for, and the same command goes on with, a sentence each
    latents: that decoders were given, None: those of held-out images, or these are no decoders
    measured: what finished is of, a line for every training of a network
    device: all of it ran on
    unplanned: what the minutes are too few for, however often the same command goes on, a sentence each
    """

    screened: Sequence[MeasuredContender]
    finished: Sequence[TimedContender]
    duals: frozenset[str]
    unfinished: Sequence[str]
    judge: Evaluator[Any]
    command: str
    latents: DrawnLatents | None = None
    measured: Sequence[MeasuredContender] = ()
    device: torch.device = torch.device("cpu")
    unplanned: Sequence[str] = ()

    @property
    def own(self) -> list[TimedContender]:
        return [one for one in self.finished if one.contender.network in self.duals]

    @property
    def rivals(self) -> list[TimedContender]:
        return [one for one in self.finished if one.contender.network not in self.duals]


@dataclass(frozen=True, eq=False)
class Savings:
    """What a dual-rate contender saves at its score, one for each of COSTS; score: of the others at its FLOPs."""

    finished: TimedContender
    savings: tuple[Saving, ...]
    score: ScoreRatio


def savings(results: ComparisonResults) -> list[Savings]:
    """Of every dual-rate contender that some judge has on the front of its kind, by one of COSTS, in order of FLOPs."""
    if not (results.own and results.rivals):
        return []
    kept = set()
    for metric in shared_metrics([one.row for one in results.finished]):
        own = [one.judged_by(metric) for one in results.own]
        kept |= {point.name for costs in COSTS for point in front([point_of(one, costs) for one in own])}
    ordered = sorted(results.own, key=lambda one: one.row.macs)
    return [savings_of(one, results.rivals) for one in ordered if one.contender.key in kept]


def savings_of(one: TimedContender, rivals: Sequence[TimedContender]) -> Savings:
    """Against these rivals."""
    score = score_ratio(*_contest(one, rivals, COSTS[0]))
    return Savings(one, tuple(saving(*_contest(one, rivals, costs)) for costs in COSTS), score)


def point_of(one: TimedContender, costs: Costs) -> Point:
    return one.measured.point(costs.of(one))


def _points(rivals: Sequence[TimedContender], costs: Costs) -> list[Point]:
    """Measured costs along a curve rise with its FLOPs: by noise a plan of fewer calls may have taken longer than one
    of more, and the line between its neighbours would leave it out.
    """
    if not costs.measured:
        return [point_of(rival, costs) for rival in rivals]
    points = []
    ordered = sorted(rivals, key=lambda rival: (rival.contender.curve, rival.row.flops))
    for _, group in groupby(ordered, lambda rival: rival.contender.curve):
        curve = list(group)
        risen = rising([costs.of(rival) for rival in curve])
        points += [replace(point_of(rival, costs), cost=cost) for rival, cost in zip(curve, risen, strict=True)]
    return points


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and is nearest, in squares of logarithms, to positive numbers."""
    logs, places = [math.log(value) for value in values], range(len(values))

    def least(first: int, last: int) -> float:
        return min(statistics.fmean(logs[first : end + 1]) for end in places[last:])

    return [math.exp(max(least(first, place) for first in range(place + 1))) for place in places]


def _contest(one: TimedContender, rivals: Sequence[TimedContender], costs: Costs) -> tuple[Point, list[Point]]:
    return point_of(one, costs), _points(rivals, costs)
