"""The page of a comparison: report/templates/compare.html with what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dualrate.codecs.token_codec import BETWEEN, texts
from dualrate.compare.results import ComparisonResults, MeasuredCandidate
from dualrate.diffusion.plan import StepPlan
from dualrate.report.figures import pareto_figure, plan_figure, ranks_figure, svg
from dualrate.report.html import page
from dualrate.report.image_grid import image_grid
from dualrate.report.table import EACH, Row, Table, compute_unit, scored, significant, table

COLUMNS = 10  # of a grid of samples


def compare_page(results: ComparisonResults) -> str:
    finished = sorted(results.finished, key=lambda one: one.row.macs)
    rows, plans = [one.row for one in finished], reusing_plans(finished)
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
    notes = [f"{one} The same command continues." for one in results.unfinished]
    samples = []
    for one in finished:
        caption = f"{one.row}: {one.row.score.metric} {significant(one.row.score.value)}"
        if one.columns:
            caption += ". Each row: the condition, if it is a picture; the image that it was made of; samples"
        text = BETWEEN.join(texts(one.alphabet, one.images)) if one.alphabet else ""
        samples.append((caption, None if text else image_grid(one.images, one.columns or COLUMNS), text))
    made_by = {**results.environment, "command": results.command}
    if finished:
        made_by["precision"] = rows[0].precision
        made_by["images scored on"] = "; ".join(dict.fromkeys(one.ran_on for one in finished))
        made_by["fingerprint"] = rows[0].score.fingerprint.json()
    made_by |= {one.candidate.network: str(one.candidate.run) for one in (*results.screened, *results.measured)}
    return page(
        "compare.html",
        title="Quality against compute",
        headline=headline(results) if finished else "",
        notes=notes,
        front=front_table(finished) if finished else None,
        figures=figures,
        samples=samples,
        plans=svg(plan_figure(plans)) if plans else "",
        screening=table([one.row for one in results.screened]) if results.screened else None,
        made_by=made_by,
    )


def headline(results: ComparisonResults) -> str:
    """The best dual-rate plan, and what baselines need for its score; without both, the best of all."""
    start = "So far: " if results.unfinished else ""
    best = min(results.dual_rate or results.finished, key=lambda one: one.row.score.value)
    says = f"{best.row}: {best.row.score.metric} {scored(best.row.score)} at {_costs(best.row)} an image"
    if best.saving is None:
        return f"{start}The best is {says}."
    own = f"{start}The best dual-rate plan is {says}. "
    other = min((one.row for one in results.baselines), key=lambda row: row.score.value)
    if math.isinf(best.saving.ratio):
        return f"{own}No baseline reaches this score. The best is {other}: {scored(other.score)} at {_costs(other)}."
    return f"{own}The cheapest baseline needs {best.saving} times its FLOPs for the same score."


def _costs(row: Row) -> str:
    prefix, unit = compute_unit([row.flops])
    return f"{significant(row.flops / unit)} {prefix}FLOPs and {significant(1000 * row.seconds_per_image)} ms"


def front_table(finished: Sequence[MeasuredCandidate]) -> Table:
    """Costs and metrics of every candidate, lowest cost first."""
    own = [_columns(one) for one in finished]
    names = dict.fromkeys(column for columns in own for column in columns)
    beside = [{name: columns.get(name, EACH) for name in names} for columns in own]
    notes = ["ms alone: of an image that is drawn alone, with its other members"]
    if any(one.row.ensemble for one in finished):
        notes.append(
            "M: samples of each condition, which share its heavy call. CRPS, energy: fair scores, lower is better, "
            "with standard errors over conditions. PSNR: dB. spread / skill: 1 is calibrated"
        )
    if any(one.saving for one in finished):
        notes.append(
            "saving: FLOPs of the cheapest baseline for the same score, over the plan's own, with a 95% interval over "
            "images; above 1 the plan is cheaper. never: no baseline reaches the score. at most: the cheapest plan of "
            "a baseline is better already"
        )
    return table([one.row for one in finished], beside, notes)


def _columns(one: MeasuredCandidate) -> dict[str, str]:
    """Those that only some tables have."""
    found = {"ms alone": significant(1000 * one.seconds_alone)}
    if one.saving:
        found["saving"] = str(one.saving)
    if (ensemble := one.row.ensemble) is not None:
        crps, energy, *_ = ensemble.errors
        found |= {
            "M": str(ensemble.members),
            "CRPS x 1000": f"{1000 * ensemble.crps:.2f} +- {1000 * crps:.2f}",
            "energy x 1000": f"{1000 * ensemble.energy:.2f} +- {1000 * energy:.2f}",
            "PSNR of mean": f"{ensemble.psnr_mean:.2f}",
            "spread / skill": f"{ensemble.spread_skill:.2f}",
        }
    if details := one.row.score.details:
        kernel, shares = details.kernel, details.precision_recall
        found |= {
            f"{details.kernel_metric} x 1000": f"{1000 * kernel.value:.2f} +- {1000 * kernel.standard_error:.2f}",
            "precision": f"{shares.precision:.3f}",
            "recall": f"{shares.recall:.3f}",
        }
    return found


def reusing_plans(finished: Sequence[MeasuredCandidate]) -> list[tuple[str, StepPlan]]:
    """Labels and plans that reuse something, each once."""
    notes = {(one.row.network, one.candidate.plan): one.candidate.note for one in finished if one.candidate.reuses}
    return [
        (f"{network} {plan.num_steps}/{plan.num_heavy}{f', {note}' if note else ''}", plan)
        for (network, plan), note in notes.items()
    ]
