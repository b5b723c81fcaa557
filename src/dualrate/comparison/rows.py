"""Measured rows of a comparison: kept in files, and what a dual-rate row saves against its baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.comparison.candidates import Candidate
from dualrate.config.serial import from_json, to_plain
from dualrate.drawing.measure import Measurement
from dualrate.metrics.distances import LEVEL
from dualrate.report.table import Row
from dualrate.system.files import read_bytes, write_whole

TAIL = (1 - LEVEL) / 2  # share of the replicates below an interval


@dataclass(frozen=True)
class KeptRow:
    """Content of a row's file.

    replicates: of each metric, in the order of `row.scores`; ran_on: hardware, versions, commit, date
    more:       further numbers of the modality, as JSON
    """

    row: Row
    replicates: tuple[tuple[float, ...], ...]
    ran_on: str
    more: dict = field(default_factory=dict)  # pyright: ignore[reportMissingTypeArgument]  # as JSON has it


@dataclass(frozen=True, eq=False)
class MeasuredCandidate:
    """A candidate's row, and by metric its score's bootstrap replicates (R,), paired with those of other candidates.

    R = 0: there are too few samples for an interval.

    more:      further numbers of the modality, for its columns and figures, and for JSON
    ran_on:    hardware, versions and commit that its samples were scored with
    Known once it is timed:
    seconds_alone: per sample, drawn alone; in batches it is the row's
    images:    the first, uint8 (n, C, H, W), in so many columns; None: COLUMNS of results.py
    passage:   the same as text, where samples are no pictures
    saving:    FLOPs of the baselines for the same score, over its own; None without baselines that tell (`saving`)
    """

    candidate: Candidate
    row: Row
    replicates: Mapping[str, NDArray[np.float64]]
    ran_on: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    seconds_alone: float = math.nan
    images: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8))
    columns: int | None = None
    passage: str = ""
    saving: Saving | None = None


def keep_row(file: Path, measured: Measurement, ran_on: str) -> None:
    """Write what was measured. Raises OSError where it cannot be written."""
    by_metric = tuple(tuple(measured.replicates[metric].tolist()) for metric in measured.row.scores)
    content = KeptRow(measured.row, by_metric, ran_on, dict(measured.more))
    write_whole(file, json.dumps(to_plain(content)) + "\n")


def read_row(file: Path, candidate: Candidate) -> MeasuredCandidate:
    """The candidate's row in a file. Raises ValueError for another file, OSError for one that cannot be read."""
    try:
        content: KeptRow = from_json(KeptRow, read_bytes(file), str(file))
        counts = {len(replicates) for replicates in content.replicates}
        if len(content.replicates) != len(content.row.scores) or len(counts) != 1:
            raise ValueError(f"{len(content.row.scores)} scores with replicates of {sorted(counts)}")
    except ValueError as error:
        raise ValueError(f"{file} is no row of a comparison ({error}): delete it, and it is measured again") from error
    replicates = dict(zip(content.row.scores, map(np.array, content.replicates), strict=True))
    row = replace(content.row, sampler=", ".join(filter(None, (content.row.sampler, candidate.note))))
    return MeasuredCandidate(candidate, row, replicates, content.ran_on, content.more)


@dataclass(frozen=True)
class Saving:
    """Baselines' cost over a candidate's own at its score: 2 means that they need twice as much.

    low, high: 95% interval over the bootstrap replicates of all scores. Infinite where no baseline reaches the score;
               low is 0 where the ratio, or that of so many replicates, is an upper bound. NaN without replicates
    at_most:   whether the cheapest plan of a baseline has the better score, so that a cheaper one could do
    """

    ratio: float
    low: float
    high: float
    at_most: bool = False

    def __str__(self) -> str:
        if self.low == 0 and self.high == math.inf:
            return "open"
        ratio, low, high = (
            f"{value:.2f}" if value < math.inf else "never" for value in (self.ratio, self.low, self.high)
        )
        return f"{'at most ' if self.at_most else ''}{ratio}{'' if math.isnan(self.low) else f' [{low}, {high}]'}"


def saving(measured: MeasuredCandidate, baselines: Sequence[MeasuredCandidate]) -> Saving | None:
    """Saving in FLOPs, by the row's first metric. None where every baseline is better, and where all that could be said
    is an upper bound by a baseline that costs more, as none as cheap was measured.

    Between two plans of one network and sampler the score is a straight line in logarithms. Beyond a curve's plans
    nothing is assumed.
    """
    metric, score = measured.row.score.metric, measured.row.score.value
    curves: dict[str, list[MeasuredCandidate]] = {}
    for baseline in sorted(baselines, key=lambda baseline: baseline.row.macs):
        curves.setdefault(baseline.candidate.curve, []).append(baseline)
    costs = [np.array([baseline.row.macs for baseline in curve]) / measured.row.macs for curve in curves.values()]
    values = [np.array([baseline.row.scores[metric].value for baseline in curve]) for curve in curves.values()]
    replicates = [np.stack([baseline.replicates[metric] for baseline in curve], axis=1) for curve in curves.values()]
    ratio, at_most = least_cost(costs, values, score)
    if at_most and (min(cost[0] for cost in costs) > 1 or all((curve < score).all() for curve in values)):
        return None
    again = [
        least_cost(costs, [scores[i] for scores in replicates], replicate)
        for i, replicate in enumerate(measured.replicates[metric])
    ]
    if not again:
        return Saving(ratio, math.nan, math.nan, at_most)
    tail = measured.more.get("tail", TAIL)  # by a method that has no trouble with infinite ones
    low = np.quantile([0 if bound else value for value, bound in again], tail, method="inverted_cdf").item()
    high = np.quantile([value for value, _ in again], 1 - tail, method="inverted_cdf").item()
    return Saving(ratio, 0.0 if at_most else min(low, ratio), max(high, ratio), at_most)


def least_cost(
    costs: Sequence[NDArray[np.float64]], scores: Sequence[NDArray[np.float64]], wanted: float
) -> tuple[float, bool]:
    """The least cost on any curve for a score as good as `wanted`, and whether that is a bound: of a first plan, which
    is better.
    """
    curves = [*zip(costs, scores, strict=True)]
    ratio = min((cost_at(cost, values, wanted) for cost, values in curves), default=math.inf)
    return ratio, any(cost[0] == ratio and values[0] < wanted for cost, values in curves)


def cost_at(costs: NDArray[np.float64], scores: NDArray[np.float64], wanted: float) -> float:
    """The least cost on a curve for a score as good as `wanted`; infinite where it has none. costs: ascending, (n,)."""
    if scores[0] <= wanted:
        return float(costs[0])
    for (cost, worse), (next_cost, better) in pairwise(zip(costs, scores, strict=True)):
        if better <= wanted:
            share = math.log(worse / wanted) / math.log(worse / better) if min(better, wanted) > 0 else 1.0
            return float(cost * (next_cost / cost) ** share)
    return math.inf
