"""Results of a comparison: measured rows, what they say about dual-rate and its baselines, as JSON and as a page.

The page is report/templates/compare.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualrate.codecs.token_codec import BETWEEN, texts
from dualrate.compare.candidates import Candidate
from dualrate.config.serial import from_json, to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.metrics.distances import LEVEL
from dualrate.metrics.quality import QualityScore
from dualrate.report.figures import pareto_figure, plan_figure, ranks_figure, svg
from dualrate.report.html import page
from dualrate.report.image_grid import image_grid
from dualrate.report.table import EACH, Row, Table, compute_unit, record, scored, significant, table
from dualrate.system.files import read_bytes, write_whole

COLUMNS = 10  # of a grid of samples


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
    saving:    FLOPs of the baselines for the same score, over its own; None without baselines that tell (`saving`)
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
        kept_row: KeptRow = from_json(KeptRow, read_bytes(file), str(file))
        counts = {len(replicates) for replicates in kept_row.replicates}
        if len(kept_row.replicates) != len(kept_row.row.scores) or len(counts) != 1:
            raise ValueError(f"{len(kept_row.row.scores)} scores with replicates of {sorted(counts)}")
    except ValueError as error:
        raise ValueError(f"{file} is no row of a comparison ({error}): delete it, and it is measured again") from error
    replicates = dict(zip(kept_row.row.scores, map(np.array, kept_row.replicates), strict=True))
    sampler = ", ".join(filter(None, (kept_row.row.sampler, candidate.note)))
    return MeasuredCandidate(candidate, replace(kept_row.row, sampler=sampler), replicates, kept_row.ran_on)


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
        return [measured for measured in self.finished if measured.candidate.network in self.duals]

    @property
    def baselines(self) -> list[MeasuredCandidate]:
        return [measured for measured in self.finished if measured.candidate.network not in self.duals]

    @property
    def ties(self) -> list[str]:
        """Names of the candidates that tie by the first metric, as `ties` returns them."""
        scores = {
            str(measured.row): measured.row.score
            for measured in sorted(self.finished, key=lambda measured: measured.row.macs)
        }
        return ties({name: (score.value, score.low, score.high) for name, score in scores.items()})

    def with_savings(self) -> ComparisonResults:
        """Copies the results with the saving of every dual-rate candidate, where there are baselines."""
        if not self.baselines:
            return self
        finished = [
            replace(measured, saving=saving(measured, self.baselines))
            if measured.candidate.network in self.duals
            else measured
            for measured in self.finished
        ]
        return replace(self, finished=finished)


@dataclass(frozen=True)
class Saving:
    """Baselines' cost over a candidate's own at its score: 2 means that they need twice as much.

    low, high: 95% interval over the bootstrap replicates of all scores. Infinite where no baseline reaches the score;
               low is 0 where the ratio, or that of so many replicates, is an upper bound
    at_most:   whether the cheapest plan of a baseline has the better score, so that a cheaper one could do
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


def saving(measured: MeasuredCandidate, baselines: Sequence[MeasuredCandidate]) -> Saving | None:
    """Saving in FLOPs, by the row's first metric. None where every baseline is better, and where all that could be said
    is an upper bound by a baseline that costs more, as none as cheap was measured.

    Between two plans of one network and sampler the score is a straight line in logarithms. Beyond a curve's plans
    nothing is assumed.
    """
    metric, score = measured.row.score.metric, measured.row.score.value
    curves: dict[str, list[MeasuredCandidate]] = {}
    for other in sorted(baselines, key=lambda other: other.row.macs):
        curves.setdefault(other.candidate.curve, []).append(other)
    costs = [np.array([other.row.macs for other in curve]) / measured.row.macs for curve in curves.values()]
    values = [np.array([other.row.scores[metric].value for other in curve]) for curve in curves.values()]
    replicates = [np.stack([other.replicates[metric] for other in curve], axis=1) for curve in curves.values()]
    ratio, at_most = _ratio(costs, values, score)
    if at_most and (min(cost[0] for cost in costs) > 1 or all((curve < score).all() for curve in values)):
        return None
    again = [
        _ratio(costs, [scores[i] for scores in replicates], replicate)
        for i, replicate in enumerate(measured.replicates[metric])
    ]
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2  # by a method that has no trouble with infinite ones
    low = np.quantile([0 if bound else value for value, bound in again], tails[0], method="inverted_cdf").item()
    high = np.quantile([value for value, _ in again], tails[1], method="inverted_cdf").item()
    return Saving(ratio, 0.0 if at_most else min(low, ratio), max(high, ratio), at_most)


def _ratio(
    costs: Sequence[NDArray[np.float64]], scores: Sequence[NDArray[np.float64]], wanted: float
) -> tuple[float, bool]:
    """The least cost on any curve for a score as good as `wanted`, and whether that is a bound: of a first plan, which
    is better.
    """
    curves = [*zip(costs, scores, strict=True)]
    ratio = min(cost_at(cost, values, wanted) for cost, values in curves)
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


def as_records(results: ComparisonResults) -> list[dict[str, object]]:
    """A flat dict for each finished candidate, unrounded."""
    lines = []
    for measured in results.finished:
        candidate, details = measured.candidate, measured.row.score.details
        line = record(measured.row) | {
            "run": candidate.run.name,
            "note_on_plan": candidate.note,
            "denoiser": candidate.denoiser and Path(candidate.denoiser).name,  # of a run its name, as above
            "plan": json.loads(candidate.plan.to_json()),
            "seconds_alone": measured.seconds_alone,
            "ran_on": measured.ran_on,
        }
        if measured.saving:
            values = {f"saving_{name}": value for name, value in asdict(measured.saving).items()}
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
    content: dict[str, object] = {
        "command": results.command,
        "environment": results.environment,
        "unfinished": list(results.unfinished),
        "headline": headline(results) if results.finished else "",
        "not_distinguishable_from_the_best": results.ties[1:],
        "front": as_records(results),
        "screening": [record(measured.row) for measured in results.screened],
    }
    return json.dumps(content, indent=1)


# The page


def compare_page(results: ComparisonResults) -> str:
    finished = sorted(results.finished, key=lambda measured: measured.row.macs)
    rows, plans = [measured.row for measured in finished], reusing_plans(finished)
    figures = []
    if finished:
        faint = "Each point has its N/H; faint points are worse than others of their network."
        figures = [
            (svg(pareto_figure(rows, "flops")), f"Score against FLOPs. {faint}"),
            (svg(pareto_figure(rows, "seconds")), f"Score against measured time. {faint}"),
        ]
    if ranks := {f"{row.network} {row.plan}": row.ensemble.ranks for row in rows if row.ensemble is not None}:
        says = "Ranks of the truth among samples: flat at 1 is calibrated; high at both ends is too sure."
        figures.append((svg(ranks_figure(ranks)), says))
    notes = [f"{sentence} The same command continues." for sentence in results.unfinished]
    notes += filter(None, [ties_note(results.ties)])
    samples = []
    for measured in finished:
        caption = f"{measured.row}: {measured.row.score.metric} {significant(measured.row.score.value)}"
        if measured.columns:
            caption += ". Each row: the condition, if it is a picture; the image that it was made of; samples"
        text = BETWEEN.join(texts(measured.alphabet, measured.images)) if measured.alphabet else ""
        samples.append((caption, None if text else image_grid(measured.images, measured.columns or COLUMNS), text))
    made_by = {**results.environment, "command": results.command}
    if finished:
        made_by["precision"] = rows[0].precision
        made_by["images scored on"] = "; ".join(dict.fromkeys(measured.ran_on for measured in finished))
        made_by["fingerprint"] = rows[0].score.fingerprint.json()
    made_by |= {
        measured.candidate.network: str(measured.candidate.run) for measured in (*results.screened, *results.measured)
    }
    return page(
        "compare.html",
        title="Quality against compute",
        headline=headline(results) if finished else "",
        notes=notes,
        front=front_table(finished) if finished else None,
        figures=figures,
        samples=samples,
        plans=svg(plan_figure(plans)) if plans else "",
        screening=table([measured.row for measured in results.screened]) if results.screened else None,
        made_by=made_by,
    )


def headline(results: ComparisonResults) -> str:
    """Says the results in plain words: the best dual-rate plan and the best baseline, which scores are told apart, and
    what baselines need for its score in FLOPs and in time; without both sides, the best of all.
    """
    start, baselines = "So far: " if results.unfinished else "", [measured.row for measured in results.baselines]
    best = min(results.dual_rate or results.finished, key=lambda measured: measured.row.score.value)
    row, score = best.row, best.row.score
    real = "" if math.isnan(score.floor) else f", real images have {significant(score.floor)}"
    samplers = {measured.row.sampler for measured in results.finished}
    name = partial(_in_words, with_sampler=len(samplers) > 1)
    says = f"{name(row)}: {score.metric} {scored(score)} ({score.better} is better{real}) at {_costs(row)} an image"
    if not 0 < len(baselines) < len(results.finished):
        return f"{start}The best is {says}."
    other = min(baselines, key=lambda baseline: baseline.score.value)
    sentences = [
        f"{start}The best dual-rate plan is {says}.",
        f"The best baseline is {name(other)}: {scored(other.score)} at {_costs(other)}.",
        f"{_told_apart(score, other.score)}.",
        _compute(saving(best, results.baselines), row, baselines),
    ]
    as_good = [baseline for baseline in baselines if baseline.score.low <= score.high]
    if fastest := min(as_good, key=lambda baseline: baseline.seconds_per_image, default=None):
        share = fastest.seconds_per_image / row.seconds_per_image
        sentences.append(
            f"In time a baseline is cheaper: {name(fastest)} has {scored(fastest.score)} and takes "
            f"{_milliseconds(fastest)} ms, {significant(share)} of the {_milliseconds(row)} ms of the dual-rate plan."
            if share < 1
            else "In time no baseline of such a score is cheaper."
        )
    return " ".join(sentences)


def _in_words(row: Row, *, with_sampler: bool) -> str:
    """Names a plan for a sentence: "dual-rate in 16 steps, 4 of them heavy"."""
    heavy = "" if row.num_heavy == row.num_steps else f", {row.num_heavy} of them heavy"
    return (
        f"{row.network} in {row.num_steps} step{'s' * (row.num_steps > 1)}{heavy}{f', by {row.sampler}' * with_sampler}"
    )


def _told_apart(score: QualityScore, other: QualityScore) -> str:
    """Says whether the intervals of the best dual-rate score and of the best baseline's overlap."""
    if score.low <= other.high and other.low <= score.high:
        count = score.fingerprint.count
        return f"These two scores are not distinguishable: their intervals, of {count:,} images each, overlap"
    return f"Dual-rate has the {'better' if score.value < other.value else 'worse'} score"


def _compute(flops_saving: Saving | None, row: Row, baselines: Sequence[Row]) -> str:
    """Says how many FLOPs baselines need for the row's score."""
    if flops_saving is None:
        cheapest = min(baselines, key=lambda baseline: baseline.macs)
        if all(baseline.score.value < row.score.value for baseline in baselines):
            return (
                f"Every baseline has a better score, the cheapest for {cheapest.macs / row.macs:.2f} times its FLOPs."
            )
        return "No baseline with as few FLOPs was measured, so nothing is known of what it saves."
    if math.isinf(flops_saving.ratio):
        return "No baseline reaches this score."
    which = "which is cheaper is not distinguishable"
    if flops_saving.low > 1 or flops_saving.high < 1:
        which = f"in FLOPs {'dual-rate' if flops_saving.low > 1 else 'the baseline'} is cheaper"
    return f"The cheapest baseline needs {flops_saving} times its FLOPs for the same score: {which}."


def ties(scores: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """The names, the best first, of scores that are not distinguishable from the best one; none where it stands alone.

    scores: value, low and high by name
    """
    if not scores:
        return []
    best = min(scores, key=lambda name: (math.isnan(scores[name][0]), scores[name]))
    tied = [name for name, (_, low, _) in scores.items() if name != best and low <= scores[best][2]]
    return [best, *tied] if tied else []


def ties_note(tied: Sequence[str]) -> str:
    """Says in a sentence which names tie; empty where none do."""
    if not tied:
        return ""
    best, *rest = tied
    return f"Not distinguishable from the best score, {best}, since intervals overlap: {', '.join(rest)}."


def _costs(row: Row) -> str:
    prefix, unit = compute_unit([row.flops])
    return f"{significant(row.flops / unit)} {prefix}FLOPs and {_milliseconds(row)} ms"


def _milliseconds(row: Row) -> str:
    return significant(1000 * row.seconds_per_image)


def front_table(finished: Sequence[MeasuredCandidate]) -> Table:
    """Costs and metrics of every candidate, lowest cost first."""
    cells = [_columns(measured) for measured in finished]
    names = dict.fromkeys(column for columns in cells for column in columns)
    beside = [{name: columns.get(name, EACH) for name in names} for columns in cells]
    notes = ["ms alone: of an image that is drawn alone, with its other members"]
    if any(measured.row.ensemble for measured in finished):
        notes.append(
            "M: samples of each condition, which share its heavy call. CRPS, energy: fair scores, lower is better, "
            "with standard errors over conditions. PSNR: dB. spread / skill: 1 is calibrated"
        )
    if any(measured.saving for measured in finished):
        notes.append(
            "saving: FLOPs of the cheapest baseline for the same score, over the plan's own, with a 95% interval over "
            "images; above 1 the plan is cheaper, and an interval with 1 in it leaves that open. never: no baseline "
            f"reaches the score. at most: the cheapest plan of a baseline is better already. {EACH}: of no dual-rate "
            "plan, or every baseline is better, or no baseline as cheap was measured"
        )
    return table([measured.row for measured in finished], beside, notes)


def _columns(measured: MeasuredCandidate) -> dict[str, str]:
    """Cells by the names of their columns, for the columns that only some tables have."""
    columns = {"ms alone": significant(1000 * measured.seconds_alone)}
    if measured.saving:
        columns["saving"] = str(measured.saving)
    if (ensemble := measured.row.ensemble) is not None:
        crps, energy, *_ = ensemble.errors
        columns |= {
            "M": str(ensemble.members),
            "CRPS x 1000": f"{1000 * ensemble.crps:.2f} +- {1000 * crps:.2f}",
            "energy x 1000": f"{1000 * ensemble.energy:.2f} +- {1000 * energy:.2f}",
            "PSNR of mean": f"{ensemble.psnr_mean:.2f}",
            "spread / skill": f"{ensemble.spread_skill:.2f}",
        }
    if details := measured.row.score.details:
        kernel, shares = details.kernel, details.precision_recall
        columns |= {
            f"{details.kernel_metric} x 1000": f"{1000 * kernel.value:.2f} +- {1000 * kernel.standard_error:.2f}",
            "precision": f"{shares.precision:.3f}",
            "recall": f"{shares.recall:.3f}",
        }
    return columns


def reusing_plans(finished: Sequence[MeasuredCandidate]) -> list[tuple[str, StepPlan]]:
    """Labels and plans that reuse something, each once."""
    notes = {
        (measured.row.network, measured.candidate.plan): measured.candidate.note
        for measured in finished
        if measured.candidate.reuses
    }
    return [
        (f"{network} {plan.num_steps}/{plan.num_heavy}{f', {note}' if note else ''}", plan)
        for (network, plan), note in notes.items()
    ]
