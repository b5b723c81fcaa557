"""What a comparison found: measured rows, and what they say about dual-rate and its baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualrate.compare.candidates import Candidate
from dualrate.config.serial import from_json, to_plain
from dualrate.metrics.distances import LEVEL
from dualrate.report.table import Row, record
from dualrate.system.files import read_bytes, write_whole


@dataclass(frozen=True)
class KeptRow:
    """replicates: of each metric, in the order of `row.scores`; ran_on: hardware, versions, commit, date"""

    row: Row
    replicates: tuple[tuple[float, ...], ...]
    ran_on: str


@dataclass(frozen=True, eq=False)
class MeasuredCandidate:
    """A candidate's row, and by metric its score's bootstrap replicates (R,), paired with those of other candidates.

    ran_on:    hardware, versions and commit that its images were scored with
    What is known once it is timed:
    seconds_alone: per image, drawn alone; in batches it is the row's
    images:    the first, uint8 (n, C, H, W), in so many columns; None: COLUMNS
    alphabet:  of pieces of text, which the images then are, as of an `ImageSet`
    saving:    FLOPs of the baselines for the same score, over its own; None without baselines
    """

    candidate: Candidate
    row: Row
    replicates: Mapping[str, NDArray[np.float64]]
    ran_on: str = ""
    seconds_alone: float = math.nan
    images: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8))
    columns: int | None = None
    alphabet: str = ""
    saving: Saving | None = None


def keep_row(file: Path, row: Row, replicates: Mapping[str, NDArray[np.float64]], ran_on: str) -> None:
    """replicates: by metric. Raises OSError where it cannot be written."""
    by_metric = tuple(tuple(replicates[metric].tolist()) for metric in row.scores)
    write_whole(file, json.dumps(to_plain(KeptRow(row, by_metric, ran_on))) + "\n")


def read_row(file: Path, candidate: Candidate) -> MeasuredCandidate:
    """candidate: whose row the file has. Raises ValueError for another file, OSError for one that cannot be read."""
    try:
        kept: KeptRow = from_json(KeptRow, read_bytes(file), str(file))
        counts = {len(replicates) for replicates in kept.replicates}
        if len(kept.replicates) != len(kept.row.scores) or len(counts) != 1:
            raise ValueError(f"{len(kept.row.scores)} scores with replicates of {sorted(counts)}")
    except ValueError as error:
        raise ValueError(f"{file} is no row of a comparison ({error}): delete it, and it is measured again") from error
    replicates = dict(zip(kept.row.scores, map(np.array, kept.replicates), strict=True))
    sampler = ", ".join(filter(None, (kept.row.sampler, candidate.note)))
    return MeasuredCandidate(candidate, replace(kept.row, sampler=sampler), replicates, kept.ran_on)


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """screened: every candidate on few images; measured: the best on many; finished: these, timed.

    duals:      names of the networks at two rates; all others are their baselines
    environment: hardware, versions, commit, date
    unfinished: what the minutes did not suffice for, a sentence each; the same command continues
    """

    screened: Sequence[MeasuredCandidate]
    measured: Sequence[MeasuredCandidate]
    finished: Sequence[MeasuredCandidate]
    duals: frozenset[str]
    unfinished: Sequence[str] = ()
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def dual_rate(self) -> list[MeasuredCandidate]:
        return [one for one in self.finished if one.candidate.network in self.duals]

    @property
    def baselines(self) -> list[MeasuredCandidate]:
        return [one for one in self.finished if one.candidate.network not in self.duals]

    def with_savings(self) -> ComparisonResults:
        """With the saving of every dual-rate candidate, where there are baselines."""
        if not self.baselines:
            return self
        finished = [
            replace(one, saving=saving(one, self.baselines)) if one.candidate.network in self.duals else one
            for one in self.finished
        ]
        return replace(self, finished=finished)


@dataclass(frozen=True)
class Saving:
    """Baselines' cost over a candidate's own at its score: 2 means that they need twice as much.

    low, high: 95% interval over the bootstrap replicates of all scores. Infinite where no baseline reaches the score
    at_most:   whether the cheapest measured baseline has the better score, so that a cheaper one could do
    """

    ratio: float
    low: float
    high: float
    at_most: bool = False

    def __str__(self) -> str:
        ratio, low, high = (
            f"{value:.2f}" if value < math.inf else "never" for value in (self.ratio, self.low, self.high)
        )
        return f"{'at most ' if self.at_most else ''}{ratio} [{low}, {high}]"


def saving(one: MeasuredCandidate, baselines: Sequence[MeasuredCandidate]) -> Saving:
    """In FLOPs, by the row's first metric.

    Between two plans of one network and sampler the score is a straight line in logarithms. Beyond a curve's plans
    nothing is assumed.
    """
    metric = one.row.score.metric
    curves: dict[str, list[MeasuredCandidate]] = {}
    for other in sorted(baselines, key=lambda other: other.row.macs):
        curves.setdefault(other.candidate.curve, []).append(other)
    costs = [np.array([other.row.macs for other in curve]) / one.row.macs for curve in curves.values()]
    values = [np.array([other.row.scores[metric].value for other in curve]) for curve in curves.values()]
    replicates = [np.stack([other.replicates[metric] for other in curve], axis=1) for curve in curves.values()]
    ratio = min(cost_at(cost, scores, one.row.score.value) for cost, scores in zip(costs, values, strict=True))
    ratios = [
        min(cost_at(cost, scores[i], own) for cost, scores in zip(costs, replicates, strict=True))
        for i, own in enumerate(one.replicates[metric])
    ]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(ratios, tails, method="inverted_cdf").tolist()  # which has no trouble with infinite ones
    firsts = [scores[0] for cost, scores in zip(costs, values, strict=True) if cost[0] == ratio]
    return Saving(ratio, low, high, any(score < one.row.score.value for score in firsts))


def cost_at(costs: NDArray[np.float64], scores: NDArray[np.float64], wanted: float) -> float:
    """The least cost on a curve for a score as good as `wanted`; infinite where it has none. costs: ascending, (n,)."""
    if scores[0] <= wanted:
        return float(costs[0])
    for (cost, worse), (next_cost, better) in pairwise(zip(costs, scores, strict=True)):
        if better <= wanted:
            share = math.log(worse / wanted) / math.log(worse / better) if min(better, wanted) > 0 else 1.0
            return float(cost * (next_cost / cost) ** share)
    return math.inf


def as_records(results: ComparisonResults) -> list[dict[str, object]]:
    """A flat dict for each finished candidate, unrounded."""
    lines = []
    for one in results.finished:
        candidate, details = one.candidate, one.row.score.details
        line = record(one.row) | {
            "run": candidate.run.name,
            "note_on_plan": candidate.note,
            "denoiser": candidate.denoiser and Path(candidate.denoiser).name,  # of a run its name, as above
            "plan": json.loads(candidate.plan.to_json()),
            "seconds_alone": one.seconds_alone,
            "ran_on": one.ran_on,
        }
        if one.saving:
            values = {f"saving_{name}": value for name, value in asdict(one.saving).items()}
            line |= {name: value if math.isfinite(value) else "never" for name, value in values.items()}
        if details:
            line |= {
                "kernel_metric": details.kernel_metric,
                "kernel": details.kernel.value,
                "kernel_standard_error": details.kernel.standard_error,
                "precision": details.precision_recall.precision,
                "recall": details.precision_recall.recall,
            }
        lines.append(line)
    return lines


def as_json(results: ComparisonResults) -> str:
    """All numbers of the page. "never": no baseline reaches the score."""
    found: dict[str, object] = {
        "command": results.command,
        "environment": results.environment,
        "unfinished": list(results.unfinished),
        "front": as_records(results),
        "screening": [record(one.row) for one in results.screened],
    }
    return json.dumps(found, indent=1)
