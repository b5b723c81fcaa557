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
from studies.saving import POWER, Point, Saving, ScoreRatio, front, saving, score_ratio, side
from studies.trainings import plans_of, point_of, pooled_rows

TIMING = 1.1  # what two timings of one candidate may differ by
CHEAPER, COSTLIER = "all metrics: cheaper", "all metrics: more expensive"  # what the metrics come to
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
AS_MANY = f"for {100 * POWER:.0f}% power"
AT_EQUAL_COST = "score at equal FLOPs"  # a ratio of the baselines' to its own


@dataclass(frozen=True, eq=False)
class Savings:
    """By one metric: what a candidate saves by each of COSTS; score: the baselines' at its FLOPs, over its own"""

    savings: tuple[Saving, ...]
    score: ScoreRatio


@dataclass(frozen=True, eq=False)
class Verdict:
    """One dual-rate candidate. by_metric: the first metric first; its images are the same for all."""

    finished: MeasuredCandidate
    by_metric: Mapping[str, Savings]

    @property
    def first(self) -> Savings:
        return next(iter(self.by_metric.values()))

    @property
    def words(self) -> tuple[str, ...]:
        """For each of COSTS: CHEAPER or COSTLIER where every metric's interval leaves out 1 on that side, of measured
        costs by TIMING, OPEN where all of them hold it, else SPLIT.
        """
        words = []
        for costs, *found in zip(COSTS, *(one.savings for one in self.by_metric.values()), strict=True):
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
    contests = [(point_of(one, metric, costs.of(one)), _points(baselines, metric, costs)) for costs in COSTS]
    return Savings(tuple(saving(*contest) for contest in contests), score_ratio(*contests[0]))


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
    """A line a metric for every saving, and below these what they come to. results: not pooled, as below."""
    found = verdicts(pooled_results(results))
    cells: list[tuple[str, ...]] = []
    for verdict in found:
        row = verdict.finished.row
        named = (row.network, row.sampler, row.plan)
        for metric, one in verdict.by_metric.items():
            cells.append(
                (*named, metric, significant(row.scores[metric].value), str(one.score), *map(str, one.savings))
            )
        cells.append((*named, "all metrics", "", "", *verdict.words))
    sides = [beyond(one.savings[0]) for verdict in found for one in verdict.by_metric.values()]
    notes = (
        "every metric scores the same images",
        f"{AT_EQUAL_COST}: the best score of a single network for at most the plan's FLOPs, divided by the plan's "
        "score; above 1 the plan is better",
        "other ratios: the cost at which a single network reaches the plan's score, divided by the plan's cost; above "
        "1 the plan is cheaper",
        f"{CHEAPER}, or more expensive: every interval lies on that side of 1, for times by a factor of {TIMING}; "
        f"{OPEN}: every interval holds 1; {SPLIT}: anything else, and nothing is claimed",
        f"on {COSTS[0].name} {sides.count(1)} ratios of {len(sides)} are significantly above 1, and {sides.count(-1)} "
        f"are significantly below; {significant_together(results, found)} remain significant after Holm's correction "
        f"at {100 * LEVEL:.0f}%",
    )
    header = ("network", "sampler", "plan", "metric", "score", AT_EQUAL_COST, *(costs.name for costs in COSTS))
    return Table(header, tuple(cells), notes)


def savings_table(results: ComparisonResults) -> Table:
    """A line for each plan, by the first metric."""
    pooled = pooled_results(results)
    found, more = verdicts(pooled), "trainings" if plans_of(results.measured) else "images"
    cells = []
    for one in found:
        row = one.finished.row
        named = (row.network, row.sampler, row.plan, significant(row.score.value))
        cells.append((*named, str(one.first.score), *map(str, one.first.savings), _power(one, more)))
    notes = (
        "ratios as above; between two plans of one network and sampler the score is interpolated linearly in "
        "logarithms",
        "in brackets 95% intervals over images and trainings, of both sides; never: no single network reaches it",
        "at most: even the cheapest plan of the single network beats the score, so the ratio is an upper bound and the "
        "interval begins at 0",
        "times of a network's plans are assumed to rise with their FLOPs: plans whose order noise has reversed are "
        "pooled",
        f"{AS_MANY}: as many images, or trainings, would find the ratio in {COSTS[0].name} significant with a "
        f"probability of {100 * POWER:.0f}%",
        "intervals do not cover timing noise; the front was chosen on the same images",
    )
    metric = metrics_of(results)[0]
    header = ("network", "sampler", "plan", metric, AT_EQUAL_COST, *(costs.name for costs in COSTS), AS_MANY)
    return Table(header, tuple(cells), notes)


def _power(one: Verdict, of: str) -> str:
    """A dash where no baseline is as cheap."""
    times = one.first.savings[0].to_tell
    if not math.isfinite(times):
        return "-"
    return f"{times:.1f} times the {of}"


def as_savings(found: Sequence[Verdict]) -> list[dict[str, object]]:
    """A flat dict for each plan and metric, unrounded; "never": none reaches the score; None: none is as cheap."""
    lines = []
    for verdict in found:
        row = verdict.finished.row
        for metric, one in verdict.by_metric.items():
            ratios = {costs.name: asdict(ratio) for costs, ratio in zip(COSTS, one.savings, strict=True)}
            values = {
                f"{name} {part}": None if math.isnan(value) else "never" if math.isinf(value) else value
                for name, ratio in (ratios | {AT_EQUAL_COST: asdict(one.score)}).items()
                for part, value in ratio.items()
            }
            lines.append({"network": row.network, "sampler": row.sampler, "plan": row.plan, "metric": metric} | values)
    return lines


def headline_table(results: ComparisonResults) -> Table:
    """What each plan saves in FLOPs, a column a metric."""
    return _by_metric(results, lambda one: str(one.savings[0]))


def scores_table(results: ComparisonResults) -> Table:
    """How much the best of the baselines lack at each plan's FLOPs, a column a metric."""
    return _by_metric(results, lambda one: str(one.score))


def _by_metric(results: ComparisonResults, cell: Callable[[Savings], str]) -> Table:
    found = verdicts(pooled_results(results))
    prefix, unit = compute_unit([one.finished.row.flops for one in found])
    cells = []
    for one in found:
        row = one.finished.row
        named = (row.network, row.sampler, row.plan, significant(row.flops / unit))
        cells.append((*named, *map(cell, one.by_metric.values())))
    metrics = found[0].by_metric if found else ()
    return Table(("network", "sampler", "plan", f"{prefix}FLOPs", *metrics), tuple(cells), ())


def trainings_table(results: ComparisonResults) -> Table:
    """A line for each plan whose network was trained several times, lowest cost first."""
    several = [plan for plan in plans_of(results.measured) if len(plan) > 1]
    metrics, cells = several[0][0].row.scores if several else (), []
    for plan in sorted(several, key=lambda plan: plan[0].row.macs):
        row = plan[0].row
        scores = ("; ".join(significant(one.row.scores[metric].value) for one in plan) for metric in metrics)
        cells.append((row.network, row.sampler, row.plan, *scores))
    note = "one score for each training, in the order of their seeds; other tables have the geometric mean"
    return Table(("network", "sampler", "plan", *metrics), tuple(cells), (note,))
