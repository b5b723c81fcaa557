"""Do errors of x_hat, without an image that is scored, tell what a second rate saves?

    OMP_NUM_THREADS=1 .venv/bin/python studies/saving_model.py [settled|settled-25|natural16]

Of every row of a report (docs/results/settled.json and so on) that was drawn by the sampler of the dual-rate
plans, single or dual-rate, under the plan that was scored there, the planner's terms of second order
(planning/planner.py), the heavy network's errors taken away:

    off = sum over steps, each with half the loss weight's integral over it, of
          E|x - x_hat|^2 - E|x - x_hat of heavy|^2      what the network lacks: its size, the age of its context
          + what the step is off by with heavy          its length (planning/planner.py)

Both x_hat see the same z_t, along a forward path of held-out images. Where a dual-rate plan and a single network's line
have equal `off` they should have equal scores, so the ratio of their costs there is a prediction, beside which the
ratio at equal scores is put; and what a single network of the plan's cost would have to lack for the two to be level.
Single networks are on one grid (`Report`). The scores of one lie on a line that is straight in logarithms between those
of its rows that none beats for less, as in reports; beyond them only a bound is known (<, >).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, command, keep, load, markdown, on_one_thread
from numpy.typing import NDArray

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.denoisers.denoiser import posterior_mean
from dualrate.diffusion.prediction import step_weights
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Context, Refresh, shared_time
from dualrate.drawing.drawer import SubsetBatch, subset_batches
from dualrate.drawing.likelihood import Estimate
from dualrate.planning.planner import Errors, Planner, measure_bend
from dualrate.report.figures import unbeaten
from dualrate.report.table import significant
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import Reporter

SAMPLER = "SDE-DPM-Solver++ 2M, gamma 0.1"
SINGLE_STEPS = range(5, 25)  # of a single network
GRID, PATHS = 64, 256  # of the bend: steps, and paths from noise
ROWS, COUNT = 64, 512  # held-out images at a time, and in all
SEED = 5 << 40  # of the noise; far from the seeds of images
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """models: where they are, up to their names; heavy: whose errors are taken away; grid: of single networks"""

    models: str
    heavy: str
    grid: str

    def model(self, network: str) -> dr.Model:
        return load(f"{self.models}{network}")


SETTLED = Report("weights/fashion-mnist-", "heavy-annealed", "log-snr")
REPORTS = {
    "settled": SETTLED,
    "settled-25": replace(SETTLED, grid="blend:0.5"),
    "natural16": Report("runs/natural16-", "heavy", "blend:0.5"),
}


@dataclass(frozen=True)
class Scored:
    """A row of a report. macs: of an image; scores: by every judge."""

    network: str
    plan: dr.StepPlan
    macs: int
    scores: tuple[float, ...]

    @property
    def single(self) -> bool:
        return self.plan.num_heavy == self.plan.num_steps

    @property
    def name(self) -> str:
        steps = self.plan.num_steps
        return f"{self.network} {steps if self.single else f'{steps}/{self.plan.num_heavy}'}"


def report_rows(file: Path, schedule: Schedule, grid: str) -> tuple[list[str], list[Scored]]:
    """The judges of a report, and its rows by SAMPLER, single networks on this grid alone.

    Raises ValueError where none is on it.
    """
    front = json.loads(file.read_text())["front"]
    judges = {front[0]["metric"]: "value"}
    judges |= {key.removesuffix(" value"): key for key in front[0] if key.endswith(" value")}
    rows = [
        Scored(
            row["network"],
            dr.StepPlan.from_json(json.dumps(row["plan"])),
            row["macs"],
            tuple(row[key] for key in judges.values()),
        )
        for row in front
        if f"{row['sampler']}, ".startswith(f"{SAMPLER}, ")
    ]
    kept = [row for row in rows if not row.single or on_grid(row.plan, schedule, grid)]
    if not any(row.single for row in kept):
        raise ValueError(f"{file} has no single network on {grid}: say in REPORTS which grid they are on")
    return list(judges), kept


def on_grid(plan: dr.StepPlan, schedule: Schedule, grid: str) -> bool:
    """Up to the last digits, which processors do not agree on."""
    return bool(np.allclose(plan.t, grid_times(grid, schedule, plan.num_steps), rtol=1e-12, atol=0))


@dataclass(frozen=True)
class Off:
    """What a plan's terms sum to, the network's part with its standard error over parts of the images; heavy: the
    heavy network's own errors on the same steps, its loss.
    """

    lacks: Estimate
    steps: float
    heavy: float

    @property
    def total(self) -> float:
        return self.lacks.value + self.steps


@torch.no_grad()
def errors(model: dr.Model, heavy: dr.Model, plan: dr.StepPlan, batch: SubsetBatch, draws: Draws) -> Numbers:
    """(N, 2): mean squared errors per element of a model at every step of its plan, and of heavy on the same z."""
    shape, process, denoiser = batch.x.shape[1:], model.gaussian, model.denoiser
    times = [shared_time(t, len(batch)) for t in plan.t]
    z, context, found = process.add_noise(batch.x, times[0], draws.normal("start", *shape)), Context(), []
    for i, (refresh, (now, following)) in enumerate(zip(plan.refresh, pairwise(times), strict=True)):
        match refresh:
            case Refresh.FULL:
                context = denoiser.encode(z, now, batch.cond)
            case Refresh.NONE:
                context = Context()
            case Refresh.KEEP:
                context = context.aged()
            case _:
                raise ValueError(f"a step that is neither heavy nor light: {refresh}")
        both = denoiser.denoise(z, now, context, batch.cond), posterior_mean(heavy.denoiser, z, now, batch.cond)
        found.append([(batch.x - x_hat).double().square().mean().item() for x_hat in both])
        if i + 1 < plan.num_steps:
            z = process.posterior(z, batch.x, now, following).sample(draws.normal(f"step {i}", *shape))
    return np.array(found)


def bending(heavy: dr.Model) -> Planner:
    """With what steps of the heavy network are off by, on steps even in log-SNR."""
    t, process, rows = grid_times("log-snr", heavy.gaussian.schedule, GRID), heavy.gaussian, torch.arange(PATHS)
    normal, labels = Draws(SEED, rows).normal("bend", *heavy.shape), rows % heavy.num_classes
    bend = measure_bend(heavy.denoiser, process, t, normal, dr.Cond(labels))
    return Planner(Errors(t, np.zeros((GRID, GRID + 1)), bend), process, heavy.experiment.method.weighting, order=2)


def steps_off(planner: Planner, t: Sequence[float]) -> float:
    """What steps between these times are off by."""
    return float(planner.weights(t).diagonal(1) @ planner.bending(t).diagonal(1))


def weighted_errors(model: dr.Model, heavy: dr.Model, plan: dr.StepPlan, batches: Sequence[SubsetBatch]) -> Numbers:
    """(batches, 2): of each batch the sum over the plan's steps of `errors`, each with half the integral of the weight
    that heavy was trained with.
    """
    log_snr = heavy.gaussian.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    weights = step_weights(heavy.experiment.method.weighting, log_snr).numpy()
    found = []
    for i, batch in enumerate(batches):
        draws = Draws(SEED, torch.arange(ROWS * i, ROWS * i + len(batch)))
        found.append(weights @ errors(model, heavy, plan, batch, draws))
    return np.array(found)


def held_out(heavy: dr.Model, count: int) -> list[SubsetBatch]:
    """`count` test images, evenly spread over them. Raises ValueError unless it is ROWS twice or more, for its batches
    count alike.
    """
    if count % ROWS or count < 2 * ROWS:
        raise ValueError(f"got {count} images: give a multiple of {ROWS}, twice that at least")
    return list(subset_batches(heavy, heavy.experiment.data.images("test"), count, ROWS))


def off(report: Report, planner: Planner, rows: Sequence[Scored], count: int, progress: Reporter) -> list[Off]:
    """Of each row; `count` images are a few times ROWS."""
    heavy = report.model(report.heavy)
    batches, found = held_out(heavy, count), []
    for row in rows:
        own, heavys = weighted_errors(report.model(row.network), heavy, row.plan, batches).T
        steps = steps_off(planner, row.plan.t)
        found.append(Off(Estimate.of(torch.from_numpy(own - heavys)), steps, float(heavys.mean())))
        progress.update(len(found), len(rows), {"images": count})
    progress.close()
    return found


def straight(x: float, points: Sequence[tuple[float, float]]) -> float:
    """At x on a line through points (x, y), straight between them in logarithms, and on from its ends."""
    at, of = (np.log([point[i] for point in sorted(points)]) for i in range(2))
    place = min(max(int(np.searchsorted(at, np.log(x))), 1), len(at) - 1)
    slope = (of[place] - of[place - 1]) / (at[place] - at[place - 1])
    return float(np.exp(of[place] + slope * (np.log(x) - at[place])))


@dataclass(frozen=True)
class Saving:
    """Of a dual-rate row against a single network.

    predicted: cost of the single network at equal `off`, over the row's own
    seen:      its cost at an equal score over the row's own, by every judge, and a sign: "" between rows of the single
               network, "<" where its cheapest is better already, ">" where none is as good
    lacks:     of the single network, of heavy's errors on the row's steps
    wanted:    what that would have to be for equal `off` at the row's cost
    """

    row: str
    single: str
    predicted: float
    seen: tuple[tuple[float, str], ...]
    lacks: float
    wanted: float


def savings(rows: Sequence[Scored], sums: Sequence[Off], single_steps: Mapping[int, float]) -> list[Saving]:
    """Of every dual-rate row against every single network of two rows or more. single_steps: what its N are off by."""
    both, found = list(zip(rows, sums, strict=True)), []
    for network in dict.fromkeys(row.network for row in rows if row.single):
        alone = [row for row in rows if row.network == network]
        if len(alone) == 1:
            continue
        lacks = float(np.mean([one.lacks.value for row, one in both if row.network == network]))
        steps = [(alone[0].macs / alone[0].plan.num_steps * n, off) for n, off in single_steps.items()]
        for row, one in both:
            if row.single:
                continue
            predicted = straight(one.total, [(off + lacks, cost) for cost, off in steps if off + lacks > 0])
            wanted = one.total - straight(row.macs, steps)
            seen = tuple(_seen(row, alone, k) for k in range(len(row.scores)))
            found.append(Saving(row.name, network, predicted / row.macs, seen, lacks / one.heavy, wanted / one.heavy))
    return found


def _seen(row: Scored, alone: Sequence[Scored], judge: int) -> tuple[float, str]:
    score, line = row.scores[judge], unbeaten(alone, lambda one: (one.macs, one.scores[judge]))
    if score >= line[0].scores[judge]:
        return line[0].macs / row.macs, "<"
    if score < line[-1].scores[judge]:
        return line[-1].macs / row.macs, ">"
    return straight(score, [(one.scores[judge], one.macs) for one in line]) / row.macs, ""


def agreement(found: Sequence[Saving]) -> list[tuple[float, int]]:
    """By judge, the geometric mean of what is seen over what is predicted where it is no bound, and of how many."""
    ratios: list[list[float]] = [[] for _ in found[0].seen]
    for one in found:
        for own, (ratio, sign) in zip(ratios, one.seen, strict=True):
            if not sign:
                own.append(np.log(ratio / one.predicted))
    return [(float(np.exp(np.mean(own))) if own else math.nan, len(own)) for own in ratios]


def table(rows: Sequence[Scored], sums: Sequence[Off], judges: Sequence[str]) -> str:
    header = ["network and plan", "GFLOPs", "it lacks", "of heavy's errors", "its steps", "off", *judges]
    made = [
        [row.name, f"{2 * row.macs / 1e9:.3g}", f"{1e4 * one.lacks.value:.1f} ± {1e4 * one.lacks.error:.1f}"]
        + [f"{100 * one.lacks.value / one.heavy:.1f}%", f"{1e4 * one.steps:.1f}", f"{1e4 * one.total:.1f}"]
        + [significant(score) for score in row.scores]
        for row, one in sorted(zip(rows, sums, strict=True), key=lambda both: both[1].total)
    ]
    return markdown(header, made, texts=1)


def savings_table(found: Sequence[Saving], judges: Sequence[str]) -> str:
    header = ["network and plan", "against", "predicted", *judges, "it lacks", "level at"]
    made = [
        [
            *(one.row, one.single, f"{one.predicted:.2f}"),
            *(f"{sign} {ratio:.2f}".strip() for ratio, sign in one.seen),
            *(f"{one.lacks:.1%}", f"{max(one.wanted, 0):.1%}"),
        ]
        for one in found
    ]
    return markdown(header, made, texts=2)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("name", nargs="?", choices=REPORTS, default="settled", help="of the report")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out images")
    options = parser.parse_args()
    on_one_thread()
    report = REPORTS[options.name]
    heavy = report.model(report.heavy)
    schedule = heavy.gaussian.schedule
    judges, rows = report_rows(RESULTS / f"{options.name}.json", schedule, report.grid)
    planner = bending(heavy)
    sums = off(report, planner, rows, options.count, reporter())
    single = {n: steps_off(planner, grid_times(report.grid, schedule, n)) for n in SINGLE_STEPS}
    found = savings(rows, sums, single)
    print(f"in units of 1e-4\n\n{table(rows, sums, judges)}\n\n{savings_table(found, judges)}")
    print("seen over predicted, by judge:", *(f"{factor:.2f} of {count}" for factor, count in agreement(found)))
    measured = [{"row": row.name, **asdict(one)} for row, one in zip(rows, sums, strict=True)]
    more = {"steps": single, "savings": [asdict(one) for one in found]}
    keep(RESULTS / f"saving-model-{options.name}.json", 1, count=options.count, measured=measured, **more)


if __name__ == "__main__":
    main()
