"""`dualrate compare` of forecasts of fields: fair CRPS against multiply-adds, of one window from the same starts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dualrate.compare.candidates import Candidate, RunRequest, candidates_of, check_names
from dualrate.compare.comparison import loaded, useful_first
from dualrate.compare.results import ties, ties_note
from dualrate.config.ranges import Members, Minutes, Precision
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.forecasts.evaluation import ForecastReport, window_scores
from dualrate.forecasts.fields import Forecast
from dualrate.forecasts.rollout import forecast_of, window_cost
from dualrate.forecasts.scores import Score
from dualrate.report.figures import Panel, curves_figure, svg
from dualrate.report.html import page
from dualrate.report.table import EACH, Table, compute_unit, significant, with_interval
from dualrate.runs.store import read_experiment
from dualrate.system.device import environment
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter

SAME = ("past", "frames", "lead", "stride", "step", "variables", "statistics")  # else starts or lead times differ


@dataclass(frozen=True)
class ScoredPlan:
    """The scores of a candidate's window. macs, seconds: of one member; the seconds include scoring"""

    candidate: Candidate
    drawer: Drawer
    scored: ForecastReport
    macs: int
    seconds: float

    @property
    def crps(self) -> tuple[float, float, float]:
        """Mean over lead times; with its interval over starts, NaN where there is none."""
        by_lead = self.scored.by_name["forecast"].crps
        mean = Score(np.array(by_lead.value.mean()), by_lead.replicates.mean(1), by_lead.groups)
        return float(mean.value), float(mean.low), float(mean.high)


def are_forecasts(requests: Sequence[str]) -> bool:
    """Whether all requested runs are forecasts. Raises as `RunRequest.parse` and `read_experiment`."""
    runs = dict.fromkeys(RunRequest.parse(text).run for text in requests)
    return all(isinstance(read_experiment(run).condition, Forecast) for run in runs)


def compare_forecasts(
    requests: Sequence[str],
    out: Path,
    *,
    minutes: Minutes,
    members: Members,
    device: torch.device,
    precision: Precision,
    compiled: bool,
    graphs: bool,
    progress: Reporter,
    command: str,
) -> tuple[Table, list[str]]:
    """Writes the page `out` and .json beside it; returns its table, and what was not measured, a sentence each.

    Raises ValueError for two runs of one name, and runs of another source, past or lead times than the first.
    """
    end = time.monotonic() + 60 * minutes
    out, parsed, models = loaded(requests, out, device=device, compiled=compiled, graphs=graphs, progress=progress)
    check_names(parsed)
    _check(list(models.values()))
    candidates = candidates_of(parsed, models)
    drawers = {
        candidate.key: replace(candidate.drawer(models[candidate.run]), members=members, precision=precision)
        for candidate in candidates
    }
    macs, plans = {key: window_cost(drawer) for key, drawer in drawers.items()}, []
    for candidate in useful_first(candidates):
        if plans and time.monotonic() > end:
            break
        begun, drawer = time.monotonic(), drawers[candidate.key]
        scored = window_scores(drawer)
        starts = scored.by_name["forecast"].starts
        seconds = (time.monotonic() - begun) / (starts * members)
        plans.append(ScoredPlan(candidate, drawer, scored, macs[candidate.key], seconds))
        progress.note(f"{len(plans)}/{len(candidates)} {candidate.key}: CRPS {plans[-1].crps[0]:.4f}")
    missing = len(candidates) - len(plans)
    unfinished = [f"{missing} of {len(candidates)} plans were not scored in time: give more --minutes."] * bool(missing)
    table, tied = _table(plans), _ties(plans)
    plain = {"command": command, "not_distinguishable_from_the_best": tied[1:], "plans": [*map(_plain, plans)]}
    write_whole(out.with_suffix(".json"), json.dumps(plain, indent=1))
    write_whole(out, _page(plans, table, unfinished, command))
    return table, unfinished


def _check(models: Sequence[Model]) -> None:
    first, *rest = models
    expected = forecast_of(first)
    for other in rest:
        if differing := [name for name in SAME if getattr(other.experiment.condition, name) != getattr(expected, name)]:
            raise ValueError(
                f"{other.name} and {first.name} forecast from other starts: they differ in {', '.join(differing)}. "
                "Compare runs of one --data.source, --past, --frames and --lead"
            )
        for mine, theirs in forecast_of(other).metadata.differences(expected.metadata, expected.names):
            raise ValueError(
                f"{other.name} was trained on {mine}, and {first.name} on {theirs}: they cannot be compared"
            )


def _table(plans: Sequence[ScoredPlan]) -> Table:
    prefix, unit = compute_unit([2 * each.macs for each in plans])
    lines = []
    for each in sorted(plans, key=lambda each: each.macs):
        forecast, plan = each.scored.by_name["forecast"], each.candidate.plan
        lines.append(
            (
                each.candidate.network,
                each.drawer.sampler,
                str(plan.num_steps),
                EACH if plan.num_heavy == plan.num_steps else str(plan.num_heavy),
                with_interval(*each.crps, 4),
                significant(2 * each.macs / unit),
                f"{forecast.crps.value[0]:.3f} to {forecast.crps.value[-1]:.3f}",
                f"{forecast.rmse.value.mean():.3f}",
                EACH if forecast.members < 2 else f"{forecast.spread_skill.value.mean():.2f}",
                f"{forecast.correlation.value.mean():.3f}",
            )
        )
    scored = plans[0].scored
    forecast, crps = scored.by_name["forecast"], {name: scored.by_name[name].crps for name in scored.by_name}
    leads = " to ".join(f"{lead:g}" for lead in sorted({forecast.leads[0], forecast.leads[-1]}))
    notes = (
        f"N: steps. H: heavy calls; {EACH}: the whole model runs at every step. {prefix}FLOPs: twice the multiply-adds "
        f"of a member's window, of {forecast.members} members a start",
        f"CRPS: fair, lower is better, in standard deviations of the data, mean over lead times of "
        f"{leads} ({scored.unit}) and {forecast.starts} held-out starts; brackets: 95% intervals over starts",
        f"without a model: CRPS {crps['persistence'].value.mean():.4f} of the last frame again, "
        f"{crps['climatology'].value.mean():.4f} of random frames",
        *scored.notices,
        *filter(None, [ties_note(_ties(plans))]),
    )
    header = "network", "sampler", "N", "H", "CRPS", f"{prefix}FLOPs", "by lead", "RMSE of mean", "spread / skill"
    return Table((*header, "correlation"), tuple(lines), notes)


def _ties(plans: Sequence[ScoredPlan]) -> list[str]:
    return ties({name: each.crps for name, each in zip(_names(plans), plans, strict=True)})


def _names(plans: Sequence[ScoredPlan]) -> list[str]:
    """Network, steps and heavy calls; the candidate's key, where two have the same."""
    labels = [
        f"{each.candidate.network} {each.candidate.plan.num_steps}/{each.candidate.plan.num_heavy}" for each in plans
    ]
    return [
        label if labels.count(label) == 1 else each.candidate.key for label, each in zip(labels, plans, strict=True)
    ]


def _plain(each: ScoredPlan) -> dict[str, object]:
    value, low, high = each.crps
    plan, drawer = each.candidate.plan, each.drawer
    return {
        "network": each.candidate.network,
        "sampler": drawer.sampler,
        "members": drawer.members,
        "num_steps": plan.num_steps,
        "num_heavy": plan.num_heavy,
        "macs": each.macs,
        "seconds": each.seconds,
        "crps": None if np.isnan(value) else value,
        "crps_low": None if np.isnan(low) else low,
        "crps_high": None if np.isnan(high) else high,
        "scores": each.scored.plain(),
    }


def _page(plans: Sequence[ScoredPlan], table: Table, unfinished: Sequence[str], command: str) -> str:
    best = min(plans, key=lambda each: (np.isnan(each.crps[0]), each.crps[0]))
    candidate, forecast = best.candidate, best.scored.by_name["forecast"]
    lines = {name: each.scored.by_name["forecast"].crps for name, each in zip(_names(plans), plans, strict=True)}
    for name in ("persistence", "climatology"):
        lines[name] = Score(best.scored.by_name[name].crps.value)
    curves = curves_figure(forecast.leads.tolist(), [Panel("fair CRPS", lines, bottom=0)], "lead")
    model = best.drawer.model
    return page(
        "compare.html",
        title="Forecasts: quality against compute",
        headline=f"The best is {candidate.network}, {candidate.plan.num_steps} steps: CRPS {best.crps[0]:.4f}.",
        notes=unfinished,
        front=table,
        figures=[(svg(curves), "By lead time.")],
        samples=[],
        plans="",
        screening=None,
        made_by={**environment(model.device), "command": command},
    )
