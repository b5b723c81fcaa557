"""What the dual-rate plans of a comparison save at equal quality, by every metric, and tables of it.

Scores are pooled over trainings (studies/trainings.py), intervals those of studies/saving.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

from dualrate.comparison.results import ComparisonResults
from dualrate.comparison.rows import MeasuredCandidate
from dualrate.metrics.distances import LEVEL
from dualrate.report.table import Table, compute_unit, shared_metrics, significant
from studies.saving import Point, Saving, front, saving, side
from studies.trainings import point_of, pooled_rows

TIMING = 1.1  # what two timings of one candidate may differ by
CHEAPER, COSTLIER = "cheaper", "more expensive"  # what the metrics come to
OPEN, SPLIT = "inconclusive", "metrics disagree"


@dataclass(frozen=True, eq=False)
class Costs:
    """One way to count the cost of an image. measured: with the noise of timing, TIMING"""

    name: str
    of: Callable[[MeasuredCandidate], float]
    measured: bool = False


COSTS = (
    Costs("FLOPs", lambda one: float(one.row.flops)),
    Costs("time in batches", lambda one: one.row.seconds_per_image, measured=True),
    Costs("time alone", lambda one: one.seconds_alone, measured=True),
)
SHOWN = "FLOPs", "time alone"  # those of the table


Savings = tuple[Saving, ...]  # by one metric: what a candidate saves by each of COSTS


@dataclass(frozen=True, eq=False)
class Verdict:
    """One dual-rate candidate. by_metric: the first metric first; its images are the same for all."""

    finished: MeasuredCandidate
    by_metric: Mapping[str, Savings]

    @property
    def words(self) -> tuple[str, ...]:
        """For each of COSTS: CHEAPER or COSTLIER where every metric's interval leaves out 1 on that side, of measured
        costs by TIMING, OPEN where all of them hold it, else SPLIT.
        """
        words = []
        for costs, *found in zip(COSTS, *self.by_metric.values(), strict=True):
            sides = {beyond(one, TIMING if costs.measured else 1.0) for one in found}
            words.append({1: CHEAPER, -1: COSTLIER, 0: OPEN}[sides.pop()] if len(sides) == 1 else SPLIT)
        return tuple(words)


def pooled_results(results: ComparisonResults, level: float = LEVEL) -> ComparisonResults:
    """With scores pooled over trainings, whose intervals are of this level and hold the noise of training; by cost.

    Without the saving of the first training, which is another than `verdicts` find.
    """
    pooled = {one.candidate.key: one for one in pooled_rows(results.measured, level)}
    finished = []
    for timed in results.finished:
        if one := pooled.get(timed.candidate.key):
            row = replace(one.row, seconds_per_image=timed.row.seconds_per_image, batch_size=timed.row.batch_size)
            finished.append(replace(timed, row=row, replicates=one.replicates, saving=None))
    return replace(results, finished=sorted(finished, key=lambda one: (one.row.macs, one.candidate.key)))


def metrics_of(results: ComparisonResults) -> list[str]:
    return shared_metrics([one.row for one in results.finished])


def verdicts(results: ComparisonResults) -> list[Verdict]:
    """Of every dual-rate candidate that some metric has on the front of its kind, by one of COSTS, in order of FLOPs.

    results: see `pooled_results`
    """
    if not (results.dual_rate and results.baselines):
        return []
    metrics, on_front = metrics_of(results), set()
    for metric in metrics:
        for costs in COSTS:
            points = [point_of(one, metric, costs.of(one)) for one in results.dual_rate]
            on_front |= {point.name for point in front(points)}
    return [
        Verdict(one, {metric: savings_of(one, results.baselines, metric) for metric in metrics})
        for one in results.dual_rate
        if one.candidate.key in on_front
    ]


def savings_of(one: MeasuredCandidate, baselines: Sequence[MeasuredCandidate], metric: str) -> Savings:
    """Against these baselines, by one metric."""
    return tuple(saving(point_of(one, metric, costs.of(one)), _points(baselines, metric, costs)) for costs in COSTS)


def _points(baselines: Sequence[MeasuredCandidate], metric: str, costs: Costs) -> list[Point]:
    """Measured costs along a curve rise with its FLOPs: by noise a plan of fewer calls may have taken longer than one
    of more, and the line between its neighbours would leave it out.
    """
    points = []
    ordered = sorted(baselines, key=lambda one: (one.candidate.curve, one.row.flops))
    for _, group in groupby(ordered, lambda one: one.candidate.curve):
        curve = list(group)
        values = [costs.of(one) for one in curve]
        values = rising(values) if costs.measured else values
        points += [point_of(one, metric, cost) for one, cost in zip(curve, values, strict=True)]
    return points


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and is nearest, in squares of logarithms, to positive numbers."""
    logs, places = [math.log(value) for value in values], range(len(values))

    def least(first: int, last: int) -> float:
        return min(statistics.fmean(logs[first : end + 1]) for end in places[last:])

    return [math.exp(max(least(first, place) for first in range(place + 1))) for place in places]


def beyond(found: Saving, slack: float = 1.0) -> int:
    """Of 1, on which the interval, as it is printed, is: 1 above by this factor, -1 below by it, else 0."""
    return int(round(found.low, 2) > slack) - int(round(found.high, 2) < 1 / slack)


def significant_together(results: ComparisonResults, found: Sequence[Verdict]) -> int:
    """How many ratios of FLOPs differ from 1 if all of them are to be right at once, with a probability of LEVEL.

    Holm (1979): while k of n are significant, the next is if its interval at the level 1 - (1 - LEVEL) / (n - k) leaves
    out 1. results: not pooled; found: the verdicts of these, pooled
    """
    plans = {one.finished.candidate.key for one in found}
    metrics = list(found[0].by_metric) if found else []
    together, ratios = 0, len(plans) * len(metrics)
    while together < ratios:
        sides = _sides(results, plans, metrics, 1 - (1 - LEVEL) / (ratios - together))
        if len(sides) - sides.count(0) <= together:
            break
        together = len(sides) - sides.count(0)
    return together


def _sides(results: ComparisonResults, plans: Collection[str], metrics: Sequence[str], level: float) -> list[int]:
    """Of 1, on which the interval of each plan's ratio of FLOPs is by each metric, at this level."""
    at_level, sides = pooled_results(results, level), []
    for metric in metrics:
        own, baselines = (
            [point_of(one, metric, COSTS[0].of(one)) for one in those]
            for those in (at_level.dual_rate, at_level.baselines)
        )
        sides += [side(one, baselines, 1.0, level=level) for one in own if one.name in plans]
    return sides


def verdict_table(results: ComparisonResults) -> Table:
    """A line for each of the costs SHOWN of a plan: what it saves by every metric. results: not pooled."""
    found = verdicts(pooled_results(results))
    metrics = tuple(found[0].by_metric) if found else ()
    cells: list[tuple[str, ...]] = []
    for verdict in found:
        row, ratios = verdict.finished.row, zip(*verdict.by_metric.values(), strict=True)
        named = (f"{row.network} {row.plan}", row.sampler)
        for costs, by_metric, word in zip(COSTS, ratios, verdict.words, strict=True):
            if costs.name in SHOWN:
                cells.append((*named, costs.name, *map(str, by_metric), word))
                named = ("", "")
    sides = [beyond(one[0]) for verdict in found for one in verdict.by_metric.values()]
    notes = (
        "the cost at which a single network reaches the plan's score, over the plan's; above 1 the plan is cheaper. "
        "at most: the cheapest single network is better",
        "brackets: 95% intervals over images and trainings, not over the noise of timing",
        f"{CHEAPER}, {COSTLIER}: every metric's interval lies on that side of 1, of times by a factor of {TIMING}; "
        f"{OPEN}: every interval holds 1; {SPLIT}: anything else, and nothing is claimed",
        f"on {COSTS[0].name} {sides.count(1)} ratios of {len(sides)} are significantly above 1, {sides.count(-1)} "
        f"below; {significant_together(results, found)} remain so after Holm's correction at {100 * LEVEL:.0f}%",
    )
    return Table(("plan", "sampler", "what", *metrics, "together"), tuple(cells), notes, texts=3)


def as_savings(found: Sequence[Verdict]) -> list[dict[str, object]]:
    """A flat dict for each plan and metric, unrounded; "never": none reaches the score; None: none is as cheap."""
    lines = []
    for verdict in found:
        row = verdict.finished.row
        for metric, one in verdict.by_metric.items():
            ratios = {costs.name: asdict(ratio) for costs, ratio in zip(COSTS, one, strict=True)}
            values = {
                f"{name} {part}": None if math.isnan(value) else "never" if math.isinf(value) else value
                for name, ratio in ratios.items()
                for part, value in ratio.items()
            }
            lines.append({"network": row.network, "sampler": row.sampler, "plan": row.plan, "metric": metric} | values)
    return lines


def headline_table(results: ComparisonResults) -> Table:
    """What each plan saves in FLOPs, a column a metric."""
    found = verdicts(pooled_results(results))
    prefix, unit = compute_unit([one.finished.row.flops for one in found])
    cells = []
    for one in found:
        row = one.finished.row
        savings = (str(by[0]) for by in one.by_metric.values())
        cells.append((f"{row.network} {row.plan}", row.sampler, significant(row.flops / unit), *savings))
    metrics = found[0].by_metric if found else ()
    return Table(("plan", "sampler", f"{prefix}FLOPs", *metrics), tuple(cells), ())
