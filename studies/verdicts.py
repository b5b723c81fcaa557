"""Savings of the dual-rate plans of a comparison at equal quality, by every metric, and tables of them.

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
    Costs("FLOPs", lambda entry: float(entry.row.flops)),
    Costs("time in batches", lambda entry: entry.row.seconds_per_image, measured=True),
    Costs("time alone", lambda entry: entry.seconds_alone, measured=True),
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
        for costs, *savings in zip(COSTS, *self.by_metric.values(), strict=True):
            sides = {beyond(saving, TIMING if costs.measured else 1.0) for saving in savings}
            words.append({1: CHEAPER, -1: COSTLIER, 0: OPEN}[sides.pop()] if len(sides) == 1 else SPLIT)
        return tuple(words)


def pooled_results(results: ComparisonResults, level: float = LEVEL) -> ComparisonResults:
    """Results by cost, scores pooled over trainings: intervals are of this level and hold the noise of training.

    They lack the saving of the first training, which is another than `verdicts` find.
    """
    pooled = {entry.candidate.key: entry for entry in pooled_rows(results.measured, level)}
    finished = []
    for timed in results.finished:
        if entry := pooled.get(timed.candidate.key):
            row = replace(entry.row, seconds_per_image=timed.row.seconds_per_image, batch_size=timed.row.batch_size)
            finished.append(replace(timed, row=row, replicates=entry.replicates, saving=None))
    return replace(results, finished=sorted(finished, key=lambda entry: (entry.row.macs, entry.candidate.key)))


def metrics_of(results: ComparisonResults) -> list[str]:
    return shared_metrics([entry.row for entry in results.finished])


def verdicts(results: ComparisonResults) -> list[Verdict]:
    """Verdicts of all dual-rate candidates that some metric has on the front of their kind by one of COSTS, by FLOPs.

    results: see `pooled_results`
    """
    if not (results.dual_rate and results.baselines):
        return []
    metrics, on_front = metrics_of(results), set()
    for metric in metrics:
        for costs in COSTS:
            points = [point_of(entry, metric, costs.of(entry)) for entry in results.dual_rate]
            on_front |= {point.name for point in front(points)}
    return [
        Verdict(entry, {metric: savings_of(entry, results.baselines, metric) for metric in metrics})
        for entry in results.dual_rate
        if entry.candidate.key in on_front
    ]


def savings_of(entry: MeasuredCandidate, baselines: Sequence[MeasuredCandidate], metric: str) -> Savings:
    """Savings of an entry against these baselines, by one metric."""
    return tuple(saving(point_of(entry, metric, costs.of(entry)), _points(baselines, metric, costs)) for costs in COSTS)


def _points(baselines: Sequence[MeasuredCandidate], metric: str, costs: Costs) -> list[Point]:
    """Points of the baselines, whose measured costs along a curve rise with its FLOPs: by noise a plan of fewer calls
    may have taken longer than one of more, and the line between its neighbours would leave it out.
    """
    points = []
    ordered = sorted(baselines, key=lambda entry: (entry.candidate.curve, entry.row.flops))
    for _, group in groupby(ordered, lambda entry: entry.candidate.curve):
        curve = list(group)
        values = [costs.of(entry) for entry in curve]
        values = rising(values) if costs.measured else values
        points += [point_of(entry, metric, cost) for entry, cost in zip(curve, values, strict=True)]
    return points


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and is nearest, in squares of logarithms, to positive numbers."""
    logs, places = [math.log(value) for value in values], range(len(values))

    def least(first: int, last: int) -> float:
        return min(statistics.fmean(logs[first : end + 1]) for end in places[last:])

    return [math.exp(max(least(first, place) for first in range(place + 1))) for place in places]


def beyond(saving: Saving, slack: float = 1.0) -> int:
    """Side of 1 that the interval, as it is printed, lies on: 1 above by this factor, -1 below by it, else 0."""
    return int(round(saving.low, 2) > slack) - int(round(saving.high, 2) < 1 / slack)


def significant_together(results: ComparisonResults, verdicts: Sequence[Verdict]) -> int:
    """Number of ratios of FLOPs that differ from 1 if all are to be right at once, with a probability of LEVEL.

    Holm (1979): while k of n are significant, the next is if its interval at the level 1 - (1 - LEVEL) / (n - k) leaves
    out 1. results: not pooled; verdicts: of these, pooled
    """
    plans = {verdict.finished.candidate.key for verdict in verdicts}
    metrics = list(verdicts[0].by_metric) if verdicts else []
    together, ratios = 0, len(plans) * len(metrics)
    while together < ratios:
        sides = _sides(results, plans, metrics, 1 - (1 - LEVEL) / (ratios - together))
        if len(sides) - sides.count(0) <= together:
            break
        together = len(sides) - sides.count(0)
    return together


def _sides(results: ComparisonResults, plans: Collection[str], metrics: Sequence[str], level: float) -> list[int]:
    """Sides of 1 that the interval of each plan's ratio of FLOPs lies on, by each metric, at this level."""
    at_level, sides = pooled_results(results, level), []
    for metric in metrics:
        duals, baselines = (
            [point_of(entry, metric, COSTS[0].of(entry)) for entry in entries]
            for entries in (at_level.dual_rate, at_level.baselines)
        )
        sides += [side(point, baselines, 1.0, level=level) for point in duals if point.name in plans]
    return sides


def verdict_table(results: ComparisonResults) -> Table:
    """A line for each of the costs SHOWN of a plan: what it saves by every metric. results: not pooled."""
    all_verdicts = verdicts(pooled_results(results))
    metrics = tuple(all_verdicts[0].by_metric) if all_verdicts else ()
    cells: list[tuple[str, ...]] = []
    for verdict in all_verdicts:
        row, ratios = verdict.finished.row, zip(*verdict.by_metric.values(), strict=True)
        named = (f"{row.network} {row.plan}", row.sampler)
        for costs, by_metric, word in zip(COSTS, ratios, verdict.words, strict=True):
            if costs.name in SHOWN:
                cells.append((*named, costs.name, *map(str, by_metric), word))
                named = ("", "")
    sides = [beyond(savings[0]) for verdict in all_verdicts for savings in verdict.by_metric.values()]
    notes = (
        "the cost at which a single network reaches the plan's score, over the plan's; above 1 the plan is cheaper. "
        "at most: the cheapest single network is better",
        "brackets: 95% intervals over images and trainings, not over the noise of timing",
        f"{CHEAPER}, {COSTLIER}: every metric's interval lies on that side of 1, of times by a factor of {TIMING}; "
        f"{OPEN}: every interval holds 1; {SPLIT}: anything else, and nothing is claimed",
        f"on {COSTS[0].name} {sides.count(1)} ratios of {len(sides)} are significantly above 1, {sides.count(-1)} "
        f"below; {significant_together(results, all_verdicts)} remain so after Holm's correction at {100 * LEVEL:.0f}%",
    )
    return Table(("plan", "sampler", "what", *metrics, "together"), tuple(cells), notes, texts=3)


def as_savings(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """A flat dict for each plan and metric, unrounded; "never": none reaches the score; None: none is as cheap."""
    lines = []
    for verdict in verdicts:
        row = verdict.finished.row
        for metric, savings in verdict.by_metric.items():
            ratios = {costs.name: asdict(ratio) for costs, ratio in zip(COSTS, savings, strict=True)}
            values = {
                f"{name} {part}": None if math.isnan(value) else "never" if math.isinf(value) else value
                for name, ratio in ratios.items()
                for part, value in ratio.items()
            }
            lines.append({"network": row.network, "sampler": row.sampler, "plan": row.plan, "metric": metric} | values)
    return lines


def headline_table(results: ComparisonResults) -> Table:
    """A line for each plan: what it saves in FLOPs, a column a metric."""
    all_verdicts = verdicts(pooled_results(results))
    prefix, unit = compute_unit([verdict.finished.row.flops for verdict in all_verdicts])
    cells = []
    for verdict in all_verdicts:
        row = verdict.finished.row
        savings = (str(by[0]) for by in verdict.by_metric.values())
        cells.append((f"{row.network} {row.plan}", row.sampler, significant(row.flops / unit), *savings))
    metrics = all_verdicts[0].by_metric if all_verdicts else ()
    return Table(("plan", "sampler", f"{prefix}FLOPs", *metrics), tuple(cells), ())
