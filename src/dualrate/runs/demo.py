"""The demo: train a small dual-rate model, sample the released ones under a few plans, score them, write one page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualrate.experiment import Experiment
from dualrate.files import write_whole
from dualrate.metrics.evaluate import Evaluator
from dualrate.ranges import HeavyCalls, Ranged, Steps
from dualrate.recipes import fashion_mnist
from dualrate.report import headline, table
from dualrate.runs.demo_page import Column, Findings, SmallRun, demo_page
from dualrate.runs.evaluator import evaluator, messages
from dualrate.runs.measure import draw, measure
from dualrate.runs.samplers import GridName, SamplerName, grid_times, make_step
from dualrate.runs.store import EXPERIMENT, Model, load, read_losses
from dualrate.runs.train import train
from dualrate.solvers import SDEDPMSolver2M
from dualrate.timing import StepPlan
from dualrate.training.log import PlainReporter, Progress, duration

SHOWN = 30  # images of every grid: the first seeds, so rows of the same classes


@dataclass(frozen=True)
class Cell(Ranged):
    """One thing to measure. model: directory in `weights`; heavy: H, None for every step."""

    network: str
    model: str
    sampler: SamplerName
    steps: Steps
    heavy: HeavyCalls | None = None
    grid: GridName = "t"

    def plan(self, model: Model) -> StepPlan:
        refresh = StepPlan.uniform(self.steps, self.heavy).refresh
        return StepPlan(grid_times(self.grid, model.process.schedule, self.steps), refresh)


CELLS = (  # each network under its best sampler at gamma 0: pairs of about equal cost, a student, two smaller networks
    Cell("heavy", "fashion-mnist-heavy", "dpm++2m", 4, grid="karras"),
    Cell("dual-rate", "fashion-mnist-dual", "sde-dpm++2m", 8, 2),
    Cell("heavy", "fashion-mnist-heavy", "dpm++2m", 8, grid="karras"),
    Cell("dual-rate", "fashion-mnist-dual", "sde-dpm++2m", 16, 4),
    Cell("dual-rate student", "fashion-mnist-student-full", "ancestral", 8, 4),
    Cell("heavy", "fashion-mnist-heavy", "dpm++2m", 16, grid="karras"),
    Cell("dual-rate", "fashion-mnist-dual", "sde-dpm++2m", 32, 8),
    Cell("medium", "fashion-mnist-medium", "sde-dpm++2m", 16, grid="log-snr"),
    Cell("light alone", "fashion-mnist-light", "sde-dpm++2m", 32, grid="log-snr"),
)
SMALL = "small dual-rate"
SMALL_CELLS = tuple(Cell(SMALL, "run", "sde-dpm++2m", 32, heavy) for heavy in (4, 8, 16))  # if there are no weights


def demo(
    out: Path,
    weights: Path,
    *,
    minutes: float = 2,
    count: int = 1000,
    features: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run it all on the CPU; returns out/report.html, beside which rows.json has the numbers unrounded.

    out:      the small model trains in out/run, which a second call continues (or finds finished)
    weights:  directory of released weights; those that are missing are skipped, and the page says so
    count:    images per plan, 1000 or more is better
    progress: closed after every stage, and used again for the next
    Raises ValueError for too few images, KeyboardInterrupt if training was interrupted (after saving).
    """
    progress = progress or PlainReporter(seconds=10)
    experiment = fashion_mnist.small(60 * minutes)
    with closing(progress):
        judge = evaluator(experiment.data, features=features, progress=progress)
    minimum = max(SHOWN, 2 * judge.net.card.architecture.features)
    if count < minimum:
        raise ValueError(f"got count {count}; {judge.metric} needs at least {minimum} images per plan, better 1000")
    small = _train_small(experiment, out / "run", progress)
    there = [name for name in _names() if (weights / name / EXPERIMENT).is_file()]
    models = {name: load(weights / name, note=progress.note) for name in there}
    missing = [name for name in _names() if name not in models]
    cells = [cell for cell in CELLS if cell.model in models] or SMALL_CELLS
    columns = _measure(cells, models or {"run": small.model}, judge, count, progress)
    findings = Findings(columns, _real(judge), small, models, missing, judge)
    write_whole(out / "rows.json", json.dumps(table.records([column.row for column in columns]), indent=1) + "\n")
    report = out / "report.html"
    write_whole(report, demo_page(findings))
    return report


def _names() -> list[str]:
    return list(dict.fromkeys(cell.model for cell in CELLS))


@dataclass(frozen=True)
class _Timed:
    """Shows a run that ends after `seconds` as so many iterations as will fit into them."""

    shown: Progress
    seconds: float

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        fitting = min(total, iteration * self.seconds / logs["seconds"])
        self.shown.update(iteration, max(iteration, math.ceil(fitting)), logs)

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()


def _train_small(experiment: Experiment, run: Path, progress: Progress) -> SmallRun:
    """Train or continue the small model; its first images, and its losses."""
    reporter = _Timed(progress, experiment.fit.max_seconds or math.inf)
    reporter.note(f"training a small dual-rate model for {duration(experiment.fit.max_seconds or 0)} in {run}")
    result = train(experiment, run, progress=reporter, decoding=messages(reporter.note))
    if result.stopped == "signal":
        raise KeyboardInterrupt(f"training interrupted and saved in {run}; the same command continues it")
    model = load(run, note=progress.note)
    images = draw(model, SDEDPMSolver2M(model.process), StepPlan.uniform(32, 8), range(SHOWN)).images
    return SmallRun(model, images, result.seconds, read_losses(run))


def _measure(
    cells: Sequence[Cell],
    models: dict[str, Model],
    judge: Evaluator,
    count: int,
    progress: Progress,
) -> list[Column]:
    """Sample, time and score the cells one after the other."""
    columns = []
    for i, cell in enumerate(cells, 1):
        with closing(progress):
            heavy = "at every step" if cell.heavy is None else f"with {cell.heavy} heavy calls"
            progress.note(f"plan {i} of {len(cells)}: {cell.network}, {cell.sampler}, {cell.steps} steps {heavy}")
            columns.append(_column(cell, models[cell.model], judge, count, progress))
    return columns


def _column(cell: Cell, model: Model, judge: Evaluator, count: int, progress: Progress) -> Column:
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        progress.update(done, total, {"images": done, "seconds": time.monotonic() - start})

    step, plan = make_step(cell.sampler, model.process), cell.plan(model)
    row, samples = measure(cell.network, model, step, plan, judge, range(count), progress=report)
    progress.note(headline.describe(row))
    return Column(row, samples.images[:SHOWN])


def _real(judge: Evaluator) -> np.ndarray:
    """Held-out images arranged as the grids are: class `i mod classes` at place i."""
    images = judge.held_out
    assert images is not None  # for the type checker: `evaluator` loads a test split of every source
    if images.labels is None:
        return np.asarray(images.images[:SHOWN])
    members = [np.flatnonzero(images.labels == label) for label in range(images.num_classes)]
    places = [members[i % len(members)] for i in range(SHOWN)]
    return images.images[[own[i // len(members) % len(own)] for i, own in enumerate(places)]]
