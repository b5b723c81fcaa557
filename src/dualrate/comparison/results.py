"""Results of a comparison: what its rows say about dual-rate and its baselines, as text, as JSON and as a page.

The page is report/templates/compare.html.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from dualrate.comparison.rows import MeasuredCandidate, Saving, saving
from dualrate.comparison.yardstick import Yardstick
from dualrate.config.ranges import many
from dualrate.diffusion.plan import StepPlan
from dualrate.metrics.quality import QualityScore
from dualrate.report.figures import pareto_figure, plan_figure, svg
from dualrate.report.html import page
from dualrate.report.image_grid import image_grid
from dualrate.report.table import (
    EACH,
    Row,
    Table,
    as_text,
    compute_unit,
    record,
    scored,
    significant,
    table,
    with_article,
)

COLUMNS = 10  # of a grid of samples
FIGURES = "flops", "seconds"  # names of the files of the first figures


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """screened: every candidate on few images; measured: the best on many; finished: these, timed.

    duals:      names of the networks at two rates; all others are their baselines
    environment: hardware, versions, commit, date
    unfinished: what the minutes did not suffice for, a sentence each; the same command continues
    yardstick:  that measured, for columns and figures
    """

    screened: Sequence[MeasuredCandidate]
    measured: Sequence[MeasuredCandidate]
    finished: Sequence[MeasuredCandidate]
    duals: frozenset[str]
    unfinished: Sequence[str] = ()
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    yardstick: Yardstick | type[Yardstick] = Yardstick

    @property
    def scored(self) -> list[MeasuredCandidate]:
        """Finished candidates whose score is finite, by cost."""
        finite = [measured for measured in self.finished if math.isfinite(measured.row.score.value)]
        return sorted(finite, key=lambda measured: measured.row.macs)

    @property
    def dual_rate(self) -> list[MeasuredCandidate]:
        return [measured for measured in self.scored if measured.candidate.network in self.duals]

    @property
    def baselines(self) -> list[MeasuredCandidate]:
        return [measured for measured in self.scored if measured.candidate.network not in self.duals]

    @property
    def ties(self) -> list[str]:
        """Names, the best first, of candidates whose first scores are not distinguishable from the best one's."""
        best = min(self.scored, key=lambda measured: measured.row.score.value, default=None)
        tied = [each for each in self.scored if best and each is not best and each.row.score.low <= best.row.score.high]
        return [str(each.row) for each in (best, *tied) if each and tied]

    def with_savings(self) -> ComparisonResults:
        """Copies the results with the saving of every dual-rate candidate, where there are baselines."""
        if not self.baselines:
            return self
        ours = {measured.candidate.key for measured in self.dual_rate}
        finished = [
            replace(measured, saving=saving(measured, self.baselines)) if measured.candidate.key in ours else measured
            for measured in self.finished
        ]
        return replace(self, finished=finished)

    @cached_property
    def figures(self) -> list[tuple[str, str]]:
        """Figures of the page as SVG, each with its caption; before anything is timed, that of FLOPs."""
        costs = {"seconds": "measured time", "flops": "FLOPs"}
        rows, drawn = [measured.row for measured in self.scored], self.yardstick.figures(self.scored)
        if not self.finished:
            rows, _ = [each.row for each in self.measured if math.isfinite(each.row.score.value)], costs.pop("seconds")
        for cost, axis in costs.items() if rows else []:
            caption = (
                f"Score against {axis}. Each point has its N/H; faint points are worse than others of their network."
            )
            drawn.insert(0, (pareto_figure(rows, cost, self.yardstick.noun), caption))
        return [(svg(figure), caption) for figure, caption in drawn]

    @property
    def page(self) -> str:
        """The page, as HTML."""
        return compare_page(self)

    def __repr__(self) -> str:
        """The table, what it says, and what is unfinished."""
        lines = [f"{as_text(front_table(self.finished, self.yardstick))}\n"] if self.finished else []
        return "\n".join([*lines, *(f"{sentence}\n" for sentence in says(self))]).rstrip()

    def _repr_html_(self) -> str:
        """The table and the first figure, for a notebook."""
        front = [front_table(self.finished, self.yardstick)] if self.finished else []
        return page("tables.html", says=says(self), tables=front, figures=self.figures[:1], text="")


def as_records(results: ComparisonResults) -> list[dict[str, object]]:
    """A flat dict for each finished candidate, unrounded."""
    lines = []
    for measured in results.finished:
        candidate, details = measured.candidate, measured.row.score.details
        line = record(measured.row) | dict(measured.more)
        line |= {
            "run": candidate.run.name,
            "note_on_plan": candidate.note,
            "denoiser": candidate.denoiser and Path(candidate.denoiser).name,  # of a run its name, as above
            "plan": json.loads(candidate.plan.to_json()),
            "seconds_alone": measured.seconds_alone,
            "ran_on": measured.ran_on,
        }
        if measured.saving:
            values = {f"saving_{name}": value for name, value in asdict(measured.saving).items()}
            line |= {name: "never" if value == math.inf else value for name, value in values.items()}
        if details:
            kernel, shares = details.kernel, details.precision_recall
            line |= {"kernel_metric": details.kernel_metric, "kernel": kernel.value}
            line |= {"kernel_standard_error": kernel.standard_error}
            line |= {"precision": shares.precision, "recall": shares.recall}
        lines.append({name: None if value != value else value for name, value in line.items()})
    return lines


def as_csv(results: ComparisonResults) -> str:
    """Numbers and words of `as_records` for spreadsheets, a line each."""
    nested, text = (dict, list), io.StringIO()
    records = [
        {name: value for name, value in line.items() if not isinstance(value, nested)} for line in as_records(results)
    ]
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in records for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


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


def says(results: ComparisonResults) -> list[str]:
    """Sentences on what was found, and on what is unfinished."""
    sentences = [headline(results)] if results.finished else []
    if tied := results.ties:
        rest = ", ".join(tied[1:])
        sentences.append(f"Not distinguishable from the best score, {tied[0]}, since intervals overlap: {rest}.")
    return [*sentences, *(f"{sentence} The same command continues." for sentence in results.unfinished)]


def compare_page(results: ComparisonResults) -> str:
    """The page, as HTML."""
    finished = sorted(results.finished, key=lambda measured: measured.row.macs)
    rows, plans, noun = [measured.row for measured in finished], reusing_plans(finished), results.yardstick.noun
    samples = []
    for measured in finished:
        caption = f"{measured.row}: {measured.row.score.metric} {significant(measured.row.score.value)}"
        if measured.columns:
            caption += ". Each row: the condition, if it is a picture; the image that it was made of; samples"
        if measured.passage or len(measured.images):
            grid = None if measured.passage else image_grid(measured.images, measured.columns or COLUMNS)
            samples.append((caption, grid, measured.passage))
    made_by = {**results.environment, "command": results.command}
    if finished:
        made_by["precision"] = rows[0].precision
        made_by["scored on"] = "; ".join(dict.fromkeys(measured.ran_on for measured in finished))
        made_by["fingerprint"] = rows[0].score.fingerprint.json()
    made_by |= {
        measured.candidate.network: str(measured.candidate.run) for measured in (*results.screened, *results.measured)
    }
    first, *notes = ["", *says(results)] if not finished else says(results)
    return page(
        "compare.html",
        title="Quality against compute",
        headline=first,
        notes=notes,
        front=front_table(finished, results.yardstick) if finished else None,
        figures=results.figures,
        samples=samples,
        plans=svg(plan_figure(plans)) if plans else "",
        screening=table([each.row for each in results.screened], noun=noun) if results.screened else None,
        noun=noun,
        made_by=made_by,
    )


def headline(results: ComparisonResults) -> str:
    """Says the results in plain words: `verdict`."""
    return " ".join(verdict(results))


def verdict(results: ComparisonResults) -> list[str]:
    """Sentences: whether two rates pay, the best plans of both sides, whether their scores are told
    apart, and which takes less time; without both sides, the best of all.
    """
    start, baselines = "So far: " if results.unfinished else "", [measured.row for measured in results.baselines]
    if not results.scored:
        return [f"{start}No score is finite."]
    best = min(results.dual_rate or results.scored, key=lambda measured: measured.row.score.value)
    row, score, noun = best.row, best.row.score, results.yardstick.noun
    real = "" if math.isnan(score.floor) else f", real {noun}s have {significant(score.floor)}"
    samplers = {measured.row.sampler for measured in results.finished}
    name = partial(_in_words, with_sampler=len(samplers) > 1)
    better = f"{score.metric} {scored(score)} ({score.better} is better{real})"
    words = f"{name(row)}: {better} at {_costs(row)} {with_article(noun)}"
    if not 0 < len(baselines) < len(results.scored):
        return [f"{start}The best is {words}."]
    rival = min(baselines, key=lambda baseline: baseline.score.value)
    sentences = [
        f"{start}{_pays(saving(best, results.baselines), row, baselines, noun)}",
        f"The best plan of two rates is {words}.",
        f"The best baseline is {name(rival)}: {scored(rival.score)} at {_costs(rival)}.",
        f"{_told_apart(score, rival.score, noun)}.",
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
    return sentences


def _in_words(row: Row, *, with_sampler: bool) -> str:
    """Names a plan for a sentence: "dual-rate in 16 steps, 4 of them heavy"."""
    heavy = "" if row.num_heavy == row.num_steps else f", {row.num_heavy} of them heavy"
    return f"{row.network} in {many(row.num_steps, 'step')}{heavy}{f', by {row.sampler}' * with_sampler}"


def _told_apart(score: QualityScore, other: QualityScore, noun: str) -> str:
    """Says whether the intervals of the best dual-rate score and of the best baseline's overlap."""
    those = f"{score.fingerprint.count:,} {noun}s"
    if math.isnan(score.low + other.low):
        return f"Whether these two scores differ is open: {those} give no intervals"
    if score.low <= other.high and other.low <= score.high:
        return f"These two scores are not distinguishable: their intervals, of {those} each, overlap"
    return f"Dual-rate has the {'better' if score.value < other.value else 'worse'} score"


def _pays(flops_saving: Saving | None, row: Row, baselines: Sequence[Row], noun: str) -> str:
    """Says whether two rates pay, by the FLOPs that baselines need for the row's score."""
    if flops_saving is None:
        least = min(baseline.macs for baseline in baselines) / row.macs
        if all(baseline.score.value < row.score.value for baseline in baselines):
            apart = all(baseline.score.high < row.score.low for baseline in baselines)
            better = "is better" if apart else "has a better score, or one that cannot be told from theirs"
            return f"Two rates do not pay here: every baseline {better}, the cheapest at {least:.2f} times their FLOPs."
        return "Whether two rates pay is open: no baseline with as few FLOPs was measured."
    ratio, low, high = flops_saving.ratio, flops_saving.low, flops_saving.high
    measured = f"{row.score.fingerprint.count:,} {noun}s"
    if low > 1 or (math.isnan(low) and math.isinf(ratio)):
        nearest = min(baselines, key=lambda baseline: baseline.score.value).macs / row.macs
        needs = (
            f"no baseline reaches their score, and the nearest costs {significant(nearest)} times their FLOPs"
            if math.isinf(ratio)
            else f"baselines need {significant(ratio)} times their FLOPs for the same score"
        )
        return f"Two rates pay here: {needs}{_in_brackets(low, high)}."
    if high < 1:
        least = "at least " * flops_saving.at_most
        costs = f"they need {least}{significant(1 / ratio)} times the FLOPs of the cheapest baseline for the same score"
        return f"Two rates do not pay here: {costs}{_in_brackets(1 / high, 1 / low if low else math.inf)}."
    bounds = _bounds(low, high)
    remark = f": for the same score baselines need {bounds} times their FLOPs (95%)" if bounds else ""
    return f"Whether two rates pay cannot be told with {measured}{remark}."


def _bounds(low: float, high: float) -> str:
    """An interval in words; nothing where it says nothing. Its ends may be 0, infinite or NaN."""
    if low > 0 and high < math.inf:
        return f"{significant(low)} to {significant(high)}"
    if 0 < low < math.inf:
        return f"at least {significant(low)}"
    return f"at most {significant(high)}" if high < math.inf else ""


def _in_brackets(low: float, high: float) -> str:
    bounds = _bounds(low, high)
    return f" (95%: {bounds})" if bounds else ""


def _costs(row: Row) -> str:
    prefix, unit = compute_unit([row.flops])
    return f"{significant(row.flops / unit)} {prefix}FLOPs and {_milliseconds(row)} ms"


def _milliseconds(row: Row) -> str:
    return significant(1000 * row.seconds_per_image)


def front_table(finished: Sequence[MeasuredCandidate], yardstick: Yardstick | type[Yardstick] = Yardstick) -> Table:
    """Costs and metrics of every candidate, lowest cost first. yardstick: that measured them"""
    noun = yardstick.noun
    alone = f"ms alone: milliseconds per {noun} in batches of one {noun}, or of one condition with all its members"
    notes = [alone, *yardstick.notes(finished)]
    if any(measured.saving for measured in finished):
        notes.append(
            "saving: how many times the plan's FLOPs the cheapest baseline needs for the same score. Above 1 the plan "
            f"is cheaper. In brackets: the 95% interval over {noun}s: if 1 lies in it, which is cheaper is open. "
            "open: the interval holds every ratio. never: no baseline reaches the score. at most: the cheapest plan of "
            "a baseline is better already. "
            f"{EACH}: no dual-rate plan, or every baseline is better, or no baseline as cheap was measured"
        )
    cells = [
        {"ms alone": significant(1000 * measured.seconds_alone)}
        | ({"saving": str(measured.saving)} if measured.saving else {})
        | yardstick.columns(measured)
        for measured in finished
    ]
    names = dict.fromkeys(column for columns in cells for column in columns)
    beside = [{name: columns.get(name, EACH) for name in names} for columns in cells]
    return table([measured.row for measured in finished], beside, notes, noun=noun)


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
