"""The page of a comparison: made of what was measured and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dualrate.codecs.token_codec import BETWEEN, texts
from dualrate.compare.results import ComparisonResults, TimedCandidate
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.latents import LOOKED_AT
from dualrate.report.figures import Cost, pareto_figure, plan_figure, svg
from dualrate.report.html import page
from dualrate.report.image_grid import image_grid
from dualrate.report.table import EACH, Table, compute_unit, costs, name, scored, significant, table
from dualrate.system.device import environment

COLUMNS = 10  # of a grid of samples
PAGE = """{% extends "base" %}
{% from "macros" import table, drawing, picture, passage, facts %}
{% block body %}
{% if headline %}<p class="lead">{{ headline }}</p>{% endif %}
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
{% if front %}
<h2>Quality against cost</h2>
{% for figure, caption in figures %}{{ drawing(figure, caption) }}{% endfor %}
<h2>Every plan on the front</h2>
{{ table(front) }}
<h2>Samples from the same seeds</h2>
<div class="gallery">
{% for caption, pixels, text in samples %}
{{ passage(text, caption) if pixels is none else picture(pixels, caption) }}
{% endfor %}
</div>
{% if plans %}<h2>Where the heavy calls go</h2>
{{ drawing(plans, "Plans that reuse what a heavy call computed") }}{% endif %}
{% endif %}
{% if screening %}
<h2>Screening</h2>
<p class="note">All candidates on fewer images, of other seeds than the front's, only to choose which deserve many.</p>
{{ table(screening) }}
{% endif %}
<h2>Made by</h2>
{{ facts(made_by) }}
{% endblock %}
"""


def compare_page(results: ComparisonResults) -> str:
    finished = sorted(results.finished, key=lambda one: one.row.macs)
    rows = [one.row for one in finished]
    plans = reusing_plans(finished)
    captions: dict[Cost, str] = {
        "flops": "Score against FLOPs. N/H stands beside each point",
        "seconds": "Score against measured time",
    }
    return page(
        PAGE,
        title="Quality against compute",
        headline=headline(results) if finished else "",
        notes=[*_given(results), *(f"{one} The same command continues." for one in results.unfinished)],
        front=front_table(finished) if finished else None,
        figures=[
            (svg(pareto_figure(rows, cost)), f"{caption}; faint points are worse than others of their network.")
            for cost, caption in captions.items()
            if finished
        ],
        samples=[_sample(one) for one in finished],
        plans=svg(plan_figure(plans)) if plans else "",
        screening=table([one.row for one in results.screened]) if results.screened else None,
        made_by=_made_by(results),
    )


def headline(results: ComparisonResults) -> str:
    """The best dual-rate plan, and what baselines need for its score; without both, the best of all."""
    start = "So far: " if results.unfinished else ""
    best = min(results.dual_rate or results.finished, key=lambda one: one.row.score.value)
    metric = best.row.score.metric
    says = f"{metric} {scored(best.row.score)} at {costs(best.row)} an image"
    if best.saving is None:
        return f"{start}The best is {name(best.row)}: {says}."
    own = f"{start}The best dual-rate plan is {name(best.row)}: {says}. "
    other = min((one.row for one in results.baselines), key=lambda row: row.score.value)
    if math.isinf(best.saving.ratio):
        return (
            f"{own}No baseline reaches this score. The best is {name(other)}: {scored(other.score)} at {costs(other)}."
        )
    return f"{own}The cheapest baseline needs {best.saving} times its FLOPs for the same score."


def front_table(finished: Sequence[TimedCandidate]) -> Table:
    """Costs and metrics of every candidate, lowest cost first."""
    columns = dict.fromkeys(column for one in finished for column in _beside(one))
    beside = [{column: _beside(one).get(column, EACH) for column in columns} for one in finished]
    notes = ["ms alone: of an image that is drawn alone"]
    if any(one.saving for one in finished):
        notes.append(
            "saving: what the cheapest baseline needs for the score, in FLOPs over the plan's own, with its 95% "
            "interval over images; above 1 the plan is cheaper. never: no baseline reaches the score. at most: the "
            "cheapest plan of a baseline has the better score already"
        )
    if any(one.nearness for one in finished):
        notes.append(f"PSNR: of {LOOKED_AT:,} images at most, from those whose latents were given; standard error")
    return table([one.row for one in finished], beside, notes)


def _beside(one: TimedCandidate) -> dict[str, str]:
    """Its columns beside those of every table."""
    found = {"ms alone": significant(1000 * one.seconds_alone)}
    if one.saving:
        found["saving"] = str(one.saving)
    for metric, values in one.measured.trainings.items():
        found[f"{metric} of each training"] = "; ".join(map(significant, values))
    if details := one.row.score.details:
        kernel, shares = details.kernel, details.precision_recall
        found |= {
            f"{details.kernel_metric} x 1000": f"{1000 * kernel.value:.2f} +- {1000 * kernel.standard_error:.2f}",
            "precision": f"{shares.precision:.3f}",
            "recall": f"{shares.recall:.3f}",
        }
    if one.nearness:
        found["PSNR, dB"] = f"{one.nearness.psnr:.2f} +- {one.nearness.error:.2f}"
    return found


def _given(results: ComparisonResults) -> list[str]:
    """Of which latents the images are, where a model drew them."""
    if (latents := results.latents) is None:
        return []
    prefix, unit = compute_unit([2 * latents.macs])
    return [
        f"Images of {len(latents.z_0):,} latents drawn by {latents.drawn_by}, so distances are gFDs. A latent cost "
        f"{significant(2 * latents.macs / unit)} {prefix}FLOPs, which no row counts."
    ]


def _sample(one: TimedCandidate) -> tuple[str, object, str]:
    """Caption, and a grid of pixels or a text."""
    caption = f"{name(one.row)}: {one.row.score.metric} {significant(one.row.score.value)}"
    if one.alphabet:
        return caption, None, BETWEEN.join(texts(one.alphabet, one.images))
    return caption, image_grid(one.images, COLUMNS), ""


def reusing_plans(finished: Sequence[TimedCandidate]) -> list[tuple[str, StepPlan]]:
    """Labels and plans that reuse something, each once."""
    notes = {(one.row.network, one.candidate.plan): one.candidate.note for one in finished if one.candidate.reuses}
    return [
        (f"{network} {plan.num_steps}/{plan.num_heavy}{f', {note}' if note else ''}", plan)
        for (network, plan), note in notes.items()
    ]


def _made_by(results: ComparisonResults) -> dict[str, str]:
    facts = {**environment(results.device), "command": results.command}
    if results.finished:
        row = results.finished[0].row
        facts["precision"] = row.precision
        facts["images scored on"] = "; ".join(dict.fromkeys(one.measured.ran_on for one in results.finished))
        facts["fingerprint"] = row.score.fingerprint.json()
    return facts | {one.candidate.network: str(one.candidate.run) for one in (*results.screened, *results.measured)}
