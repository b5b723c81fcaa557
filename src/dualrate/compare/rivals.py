"""The rivals of two rates: a trained single network under every denoiser of the catalogue, and after every lighter one
that is compared (DuoDiff, T-Stitch); trained exits at some thresholds; contexts of a dual-rate model, forecast.

Speculation is none of them: its images are those of the heavy network, its steps another sampler's
(sampling/speculative.py), and what it saves is time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dualrate.compare.contenders import SHARED_ENCODER, Entry
from dualrate.compare.work import MeasuredContender
from dualrate.denoisers.catalogue import DENOISERS, EARLY_EXIT
from dualrate.denoisers.denoiser import has_exits
from dualrate.diffusion.values import Reuse
from dualrate.experiments.experiment import Model
from dualrate.machine.progress import Reporter
from dualrate.report.headline import plan_of, scored
from dualrate.report.table import Table, compute_unit, significant
from dualrate.runs.store import called_by

OF_DUAL_RATE = "forecast-context"  # of no single network
THRESHOLDS = (0.01, 0.02, 0.04)  # of early exits


def rivals_of(entries: Sequence[Entry], models: dict[Path, Model], *, progress: Reporter) -> list[Entry]:
    """The dearest single network under every denoiser of the catalogue that takes it, and after lighter ones; runs with
    exits, and dual-rate ones, under theirs.

    Its encoder, shared, is a usual contender, so not among them. models: by directory.
    Raises ValueError where no such network stands alone among the entries.
    """
    usual = [entry for entry in entries if entry.plan is None and entry.denoiser is None]
    single = {entry: models[entry.run] for entry in usual if is_single(models[entry.run])}
    if not single:
        raise ValueError(
            "rivals are other ways to call a single network, and none is named without a plan: name its run, as in "
            "dualrate compare weights/fashion-mnist-heavy-annealed --rivals"
        )
    entry, model = max(single.items(), key=lambda pair: pair[1].call_cost.light)
    lighter = [str(other.run) for other, its in single.items() if its.call_cost.light < model.call_cost.light]
    wanted = [(entry, name) for name in DENOISERS if name not in (SHARED_ENCODER, OF_DUAL_RATE)]
    wanted += [(entry, name) for name in lighter]
    for other in usual:
        denoiser = models[other.run].denoiser
        wanted += [(other, f"{EARLY_EXIT}{threshold}") for threshold in THRESHOLDS if has_exits(denoiser)]
        wanted += [(other, OF_DUAL_RATE)] if denoiser.reuse is Reuse.MARKOV else []
    found = []
    for one, name in wanted:
        try:
            called_by(models[one.run], name)
        except ValueError as error:
            progress.note(f"without {name}: {error}")
        else:
            found.append(replace(one, denoiser=name, sampler=None, gamma=None, again=()))
    return found


def is_single(model: Model) -> bool:
    """Whether one network runs at every step, whole, under any plan, and of nothing given."""
    alone = model.denoiser.reuse is Reuse.FREE and not has_exits(model.denoiser)
    return alone and model.serves.any_plan and model.experiment.networks.latent is None


def rivals_table(screened: Sequence[MeasuredContender]) -> Table:
    """A line per plan of a run that another denoiser calls, beside the run's own best for no more FLOPs."""
    plain = [one for one in screened if one.contender.denoiser is None]
    lines = sorted((one for one in screened if one.contender.denoiser), key=lambda one: one.row.macs)
    header = ("called by", "sampler", "plan", "FLOPs", "score", "the run itself", "FLOPs", "score")
    if not lines:
        return Table(header, (), ())
    prefix, unit = compute_unit([one.row.flops for one in lines])
    cells = []
    for one in lines:
        own = [other for other in plain if other.contender.run == one.contender.run and other.row.macs <= one.row.macs]
        best = min(own, key=lambda other: other.row.score.value, default=None)
        beside = ("-", "-", "-") if best is None else (f"{best.row.sampler} {plan_of(best.row)}", *_cells(best, unit))
        cells.append((one.row.network, one.row.sampler, plan_of(one.row), *_cells(one, unit), *beside))
    score = lines[0].row.score
    notes = (
        f"{prefix}FLOPs an image, and {score.metric} (lower is better) with its {100 * score.level:.0f}% interval, of "
        "the images of the screening; without training, but for exits, so what differs is how often which part of the "
        "network runs, or a lighter one in its place",
        "the run itself: the best of its plans and samplers for at most as many FLOPs, called as it is",
    )
    return Table(header, tuple(cells), notes)


def _cells(one: MeasuredContender, unit: float) -> tuple[str, str]:
    return significant(one.row.flops / unit), scored(one.row)
