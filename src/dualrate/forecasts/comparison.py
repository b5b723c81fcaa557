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
from dualrate.experiment.experiment import Model
from dualrate.forecasts.evaluation import Scored, window_scores
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
    """A candidate's window. macs, seconds: of a member, the latter with its scores"""

    one: Candidate
    drawer: Drawer
    scored: Scored
    macs: int
    seconds: float

    @property
    def crps(self) -> tuple[float, float, float]:
        """Mean over lead times; with its interval over starts, NaN where there is none."""
        found = self.scored.by_name["forecast"].crps
        mean = Score(np.array(found.value.mean()), found.replicates.mean(1), found.groups)
        return float(mean.value), float(mean.low), float(mean.high)


def are_forecasts(requests: Sequence[str]) -> bool:
    """Whether all of the runs are. Raises as `RunRequest.parse` and `read_experiment`."""
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
        one.key: replace(one.drawer(models[one.run]), members=members, precision=precision) for one in candidates
    }
    macs, found = {key: window_cost(drawer) for key, drawer in drawers.items()}, []
    for one in useful_first(candidates):
        if found and time.monotonic() > end:
            break
        begun, drawer = time.monotonic(), drawers[one.key]
        scored = window_scores(drawer)
        starts = scored.by_name["forecast"].starts
        seconds = (time.monotonic() - begun) / (starts * members)
        found.append(ScoredPlan(one, drawer, scored, macs[one.key], seconds))
        progress.note(f"{len(found)}/{len(candidates)} {one.key}: CRPS {found[-1].crps[0]:.4f}")
    missing = len(candidates) - len(found)
    unfinished = [f"{missing} of {len(candidates)} plans were not scored in time: give more --minutes."] * bool(missing)
    made, tied = _table(found), _ties(found)
    plain = {"command": command, "not_distinguishable_from_the_best": tied[1:], "plans": [*map(_plain, found)]}
    write_whole(out.with_suffix(".json"), json.dumps(plain, indent=1))
    write_whole(out, _page(found, made, unfinished, command))
    return made, unfinished


def _check(models: Sequence[Model]) -> None:
    first, *others = models
    expected = forecast_of(first)
    for other in others:
        if differing := [name for name in SAME if getattr(other.experiment.condition, name) != getattr(expected, name)]:
            raise ValueError(
                f"{other.name} and {first.name} forecast from other starts: they differ in {', '.join(differing)}. "
                "Compare runs of one --data.source, --past, --frames and --lead"
            )
        for here, there in forecast_of(other).metadata.differences(expected.metadata, expected.names):
            raise ValueError(
                f"{other.name} was trained on {here}, and {first.name} on {there}: they cannot be compared"
            )


def _table(found: Sequence[ScoredPlan]) -> Table:
    prefix, unit = compute_unit([2 * each.macs for each in found])
    lines = []
    for each in sorted(found, key=lambda each: each.macs):
        own, plan = each.scored.by_name["forecast"], each.one.plan
        lines.append(
            (
                each.one.network,
                each.drawer.sampler,
                str(plan.num_steps),
                EACH if plan.num_heavy == plan.num_steps else str(plan.num_heavy),
                with_interval(*each.crps, 4),
                significant(2 * each.macs / unit),
                f"{own.crps.value[0]:.3f} to {own.crps.value[-1]:.3f}",
                f"{own.rmse.value.mean():.3f}",
                EACH if own.members < 2 else f"{own.spread_skill.value.mean():.2f}",
                f"{own.correlation.value.mean():.3f}",
            )
        )
    scored = found[0].scored
    own, others = scored.by_name["forecast"], {name: scored.by_name[name].crps for name in scored.by_name}
    leads = " to ".join(f"{lead:g}" for lead in sorted({own.leads[0], own.leads[-1]}))
    notes = (
        f"N: steps. H: heavy calls; {EACH}: the whole model runs at every step. {prefix}FLOPs: twice the multiply-adds "
        f"of a member's window, of {own.members} members a start",
        f"CRPS: fair, lower is better, in standard deviations of the data, mean over lead times of "
        f"{leads} ({scored.unit}) and {own.starts} held-out starts; brackets: 95% intervals over starts",
        f"without a model: CRPS {others['persistence'].value.mean():.4f} of the last frame again, "
        f"{others['climatology'].value.mean():.4f} of random frames",
        *scored.notices,
        *filter(None, [ties_note(_ties(found))]),
    )
    header = "network", "sampler", "N", "H", "CRPS", f"{prefix}FLOPs", "by lead", "RMSE of mean", "spread / skill"
    return Table((*header, "correlation"), tuple(lines), notes)


def _ties(found: Sequence[ScoredPlan]) -> list[str]:
    return ties({name: each.crps for name, each in zip(_names(found), found, strict=True)})


def _names(found: Sequence[ScoredPlan]) -> list[str]:
    """Network, steps and heavy calls; the candidate's key, where two have the same."""
    labels = [f"{each.one.network} {each.one.plan.num_steps}/{each.one.plan.num_heavy}" for each in found]
    return [label if labels.count(label) == 1 else each.one.key for label, each in zip(labels, found, strict=True)]


def _plain(each: ScoredPlan) -> dict[str, object]:
    value, low, high = each.crps
    plan, drawer = each.one.plan, each.drawer
    return {
        "network": each.one.network,
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


def _page(found: Sequence[ScoredPlan], made: Table, unfinished: Sequence[str], command: str) -> str:
    best = min(found, key=lambda each: (np.isnan(each.crps[0]), each.crps[0]))
    own = best.scored.by_name["forecast"]
    lines = {name: each.scored.by_name["forecast"].crps for name, each in zip(_names(found), found, strict=True)}
    for name in ("persistence", "climatology"):
        lines[name] = Score(best.scored.by_name[name].crps.value)
    model = best.drawer.model
    return page(
        "compare.html",
        title="Forecasts: quality against compute",
        headline=f"The best is {best.one.network}, {best.one.plan.num_steps} steps: CRPS {best.crps[0]:.4f}.",
        notes=unfinished,
        front=made,
        figures=[
            (svg(curves_figure(own.leads.tolist(), [Panel("fair CRPS", lines, bottom=0)], "lead")), "By lead time.")
        ],
        samples=[],
        plans="",
        screening=None,
        made_by={**environment(model.device), "command": command},
    )
