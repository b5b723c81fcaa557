"""Savings as every judge sees them, and who judged what: a claim holds where independent judges agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dualrate.compare.savings import (
    AT_EQUAL_COST,
    COSTS,
    TIMING,
    ComparisonResults,
    Savings,
    point_of,
    savings,
    savings_of,
)
from dualrate.compare.trainings import as_one
from dualrate.compare.work import MeasuredContender, TimedContender
from dualrate.drawing.choice import CHOSEN_IN
from dualrate.metrics.frechet import LEVEL
from dualrate.report.rows import shared_metrics
from dualrate.report.saving import Saving, side
from dualrate.report.table import Table, plan_of, significant

CHEAPER, DEARER = "agree, it is cheaper", "agree, it is dearer"  # said of the judges
OPEN, SPLIT = "cannot tell", "do not agree"


@dataclass(frozen=True, eq=False)
class Verdict:
    """One contender's savings. by_judge: by metric, the first judge's first; its images are the same for all."""

    by_judge: Mapping[str, Savings]

    @property
    def first(self) -> Savings:
        return next(iter(self.by_judge.values()))

    @property
    def words(self) -> tuple[str, ...]:
        """For each of COSTS: CHEAPER or DEARER where every judge's interval leaves out 1 on that side, of measured
        costs by TIMING, OPEN where all of them hold it, else SPLIT.
        """
        seen = zip(COSTS, *(one.savings for one in self.by_judge.values()), strict=True)
        return tuple(
            _word({beyond(found, TIMING if costs.measured else 1.0) for found in alike}) for costs, *alike in seen
        )


def verdicts(results: ComparisonResults) -> list[Verdict]:
    """Of what `savings` holds; empty unless there are several judges."""
    metrics = shared_metrics([one.row for one in results.finished]) if results.finished else []
    if len(metrics) < 2:
        return []
    rivals = {metric: [rival.judged_by(metric) for rival in results.rivals] for metric in metrics}
    return [
        Verdict({metric: savings_of(one.finished.judged_by(metric), rivals[metric]) for metric in metrics})
        for one in savings(results)
    ]


def beyond(found: Saving, slack: float = 1.0) -> int:
    """Of 1, on which the interval, as it is printed, is: 1 above by this factor, -1 below by it, else 0."""
    return int(round(found.low, 2) > slack) - int(round(found.high, 2) < 1 / slack)


def _word(sides: set[int]) -> str:
    return {1: CHEAPER, -1: DEARER, 0: OPEN}[sides.pop()] if len(sides) == 1 else SPLIT


def verdict_table(results: ComparisonResults) -> Table:
    """A line a judge for every saving, and below these what they come to; none with a single judge."""
    cells: list[tuple[str, ...]] = []
    found = verdicts(results)
    for verdict in found:
        row = verdict.first.finished.row
        named = (row.network, row.sampler, plan_of(row))
        for metric, one in verdict.by_judge.items():
            score = significant(one.finished.row.score.value)
            cells.append((*named, metric, score, str(one.score), *map(str, one.savings)))
        cells.append((*named, "the judges", "", "", *verdict.words))
    notes = (
        "every judge sees the same images; the plans are those that one of them has on the front of their kind",
        f"{AT_EQUAL_COST}: the least of the others' for at most as many, over the plan's own: above 1 it is better; "
        "elsewhere what the others cost for its score, over its own cost: above 1 it is cheaper",
        f"the judges {CHEAPER} (or dearer): the interval of every one leaves out 1 on that side, "
        f"by a factor of {TIMING} where time is measured, so the claim holds; "
        f"they {OPEN}: every interval holds 1, of time within that factor; they {SPLIT}: anything else, and nothing is "
        "claimed",
        _counts(results, found),
    )
    return Table(
        ("network", "sampler", "plan", "judge", "score", AT_EQUAL_COST, *(costs.name for costs in COSTS)),
        tuple(cells),
        notes,
    )


def _counts(results: ComparisonResults, found: Sequence[Verdict]) -> str:
    sides = [beyond(one.savings[0]) for verdict in found for one in verdict.by_judge.values()]
    by_chance = len(sides) * (1 - LEVEL) / 2
    return (
        f"on {COSTS[0].name} {sides.count(1)} of {len(sides)} ratios leave out 1 above, {sides.count(-1)} below, each "
        f"by an interval of its own: were all of them 1, {by_chance:.2g} a side would by chance, some of them "
        f"together, since plans and judges share images and trainings; {told_together(results, found)} leave it out by "
        f"Holm's procedure, all of them rightly with a probability of {100 * LEVEL:.0f}%"
    )


def told_together(results: ComparisonResults, found: Sequence[Verdict]) -> int:
    """How many ratios of FLOPs leave out 1 if it is to be right of all of them at once, with a probability of LEVEL.

    Holm (1979): while k of n are told, the next is if its interval at the level 1 - (1 - LEVEL) / (n - k) leaves out 1.
    found: the verdicts of these results
    """
    plans = {one.first.finished.contender.key for one in found}
    metrics = list(found[0].by_judge) if found else []
    told, ratios = 0, len(plans) * len(metrics)
    while told < ratios:
        sides = _sides(results, plans, metrics, 1 - (1 - LEVEL) / (ratios - told))
        if len(sides) - sides.count(0) <= told:
            break
        told = len(sides) - sides.count(0)
    return told


def _sides(results: ComparisonResults, plans: Collection[str], metrics: Sequence[str], level: float) -> list[int]:
    """Of 1, on which the interval of each plan's ratio of FLOPs is by each judge, at this level."""
    again = {one.contender.key: one for one in as_one(results.measured, level)}
    at_level = replace(results, finished=[_with_noise(one, again) for one in results.finished])
    sides = []
    for metric in metrics:
        own, rivals = (
            [point_of(one.judged_by(metric), COSTS[0]) for one in those] for those in (at_level.own, at_level.rivals)
        )
        sides += [side(one, rivals, 1.0, level=level) for one in own if one.name in plans]
    return sides


def _with_noise(one: TimedContender, again: Mapping[str, MeasuredContender]) -> TimedContender:
    """With the replicates of another level."""
    other = again.get(one.contender.key)
    return one if other is None else replace(one, measured=replace(other, row=one.row))


def roles(results: ComparisonResults) -> list[str]:
    """A sentence a judge: what was chosen in its features, of which it is then no independent witness."""
    rows = [one.row for one in results.finished] or [one.row for one in results.screened]
    scores = [rows[0].scores[metric] for metric in shared_metrics(rows)] if rows else []
    return [_role(score.metric, score.fingerprint.features, first=score is scores[0]) for score in scores]


def _role(metric: str, identity: str, *, first: bool) -> str:
    chose = ["which contenders were measured on many images"] if first else []
    if identity == CHOSEN_IN:
        chose.append("the usual samplers and plans (docs/choosing.md)")
    if not chose:
        return f"{metric} ({identity}) chose nothing here: independent, unless it chose what you named."
    return f"{metric} ({identity}) chose {' and '.join(chose)}: it is not independent of them."
