"""What was found, and what dual-rate models save at equal quality against everything else that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dualrate.compare.work import Finished, Measured
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.pareto import Point, Saving, front, saving


@dataclass(frozen=True, eq=False)
class Costs:
    """One way to count the cost of an image."""

    name: str
    of: Callable[[Finished], float]


COSTS = (
    Costs("FLOPs", lambda one: float(one.row.flops)),
    Costs("time in batches", lambda one: one.speed.batched),
    Costs("time alone", lambda one: one.speed.alone),
)


@dataclass(frozen=True, eq=False)
class Findings:
    """screened: every contender on few images; finished: some on many.

    duals: names of the networks that are set against all others
    left:  what the minutes did not suffice for, a sentence each
    """

    screened: Sequence[Measured]
    finished: Sequence[Finished]
    duals: frozenset[str]
    left: Sequence[str]
    judge: Evaluator[Any]
    command: str

    @property
    def own(self) -> list[Finished]:
        return [one for one in self.finished if one.contender.network in self.duals]

    @property
    def rivals(self) -> list[Finished]:
        return [one for one in self.finished if one.contender.network not in self.duals]


@dataclass(frozen=True, eq=False)
class Savings:
    """What a dual-rate contender saves at its score, one for each of COSTS."""

    finished: Finished
    savings: tuple[Saving, ...]


def savings(findings: Findings) -> list[Savings]:
    """Of every dual-rate contender that none of the others of its kind beats, in order of cost."""
    if not (findings.own and findings.rivals):
        return []
    by_name = {one.contender.key: one for one in findings.own}
    kept = {point.name for costs in COSTS for point in front([_point(one, costs) for one in findings.own])}
    ordered = sorted((by_name[key] for key in kept), key=lambda one: one.row.macs)
    return [Savings(one, tuple(_saving(one, findings.rivals, costs) for costs in COSTS)) for one in ordered]


def _point(one: Finished, costs: Costs) -> Point:
    return one.measured.point(costs.of(one))


def _saving(one: Finished, rivals: Sequence[Finished], costs: Costs) -> Saving:
    return saving(_point(one, costs), [_point(rival, costs) for rival in rivals])
