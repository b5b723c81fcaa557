"""The demo: train a small dual-rate model, sample the released ones under a few plans, score them, write one page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dualrate.config.ranges import as_path
from dualrate.demo.page import DemoResults, SmallRun, demo_page
from dualrate.demo.turns import Limits, MeasuredPlan, Turns
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluator, messages
from dualrate.experiment.experiment import Experiment, Model
from dualrate.metrics.evaluate import Evaluator
from dualrate.recipes import fashion_mnist
from dualrate.report import table
from dualrate.report import table as headline
from dualrate.runs.store import EXPERIMENT, load, read_losses
from dualrate.runs.train import train
from dualrate.system.files import write_whole
from dualrate.system.progress import PlainReporter, Reporter, duration

SHOWN = 30  # images of every grid: the first seeds, so rows of the same classes
REST = 1  # minutes for reading the data, scoring and the page


@dataclass(frozen=True)
class DemoPlan:
    """One thing to measure. model: directory in `weights`."""

    network: str
    model: str
    choice: Choice

    def drawer(self, model: Model) -> Drawer:
        return self.choice.drawer(model, name=self.network)


def single(network: str, model: str, steps: int) -> DemoPlan:
    """A network at every step."""
    return DemoPlan(network, f"fashion-mnist-{model}", Choice(steps))


def dual(steps: int, heavy: int) -> DemoPlan:
    return DemoPlan("dual-rate", "fashion-mnist-dual-45", Choice(steps, heavy))


DEMO_PLANS = (  # the most useful first: a dual-rate plan and single networks of its cost; others of half and twice it
    dual(16, 4),
    single("small", "medium-25", 16),
    single("medium", "medium-45", 9),
    dual(8, 2),
    single("small", "medium-25", 8),
    dual(32, 8),
    single("heavy", "heavy-annealed", 8),
    single("light alone", "light", 11),
)
SMALL = "small dual-rate"
SMALL_DEMO_PLANS = tuple(DemoPlan(SMALL, "run", Choice(32, heavy)) for heavy in (4, 8, 16))  # if there are no weights


def demo(
    out: str | Path,
    weights: str | Path,
    *,
    minutes: float = 2,
    measuring: float = 4,
    count: int = 1000,
    features: Path | None = None,
    progress: Reporter | None = None,
) -> Path:
    """Run it all on the CPU; returns out/report.html, beside which rows.json has the numbers unrounded.

    out:       the small model trains in out/run, images' features are kept in out/features: a second call goes on
    weights:   directory of released weights; those that are missing are skipped, and the page says so
    minutes:   of training; measuring: minutes of measuring, at most
    count:     images per plan, 1000 or more is better; fewer of fewer plans where the time does not suffice for all
    progress:  closed after every stage, and used again for the next
    Raises ValueError for too few images, KeyboardInterrupt if training was interrupted (after saving).
    """
    out, weights = as_path(out), as_path(weights)
    progress = progress or PlainReporter(seconds=10)
    progress.note(
        f"about {minutes + measuring + REST:.0f} minutes in all: {minutes:g} of training, at most {measuring:g} of "
        f"measuring, the rest for reading and scoring; threads: {torch.get_num_threads()}"
    )
    experiment = fashion_mnist.small(60 * minutes)
    with closing(progress):
        judge = evaluator(experiment.data, features=features, progress=progress)
    limits = Limits(60 * measuring, max(SHOWN, 2 * judge.net.dim), count, SHOWN)
    if count < limits.fewest:
        raise ValueError(
            f"got count {count}; {judge.metric} needs at least {limits.fewest} images per plan, better 1000"
        )
    small = _train_small(experiment, out / "run", progress)
    there = [name for name in _names() if (weights / name / EXPERIMENT).is_file()]
    models = {name: load(weights / name, note=progress.note) for name in there}
    missing = [name for name in _names() if name not in models]
    plans = [plan for plan in DEMO_PLANS if plan.model in models] or SMALL_DEMO_PLANS
    drawers = [plan.drawer((models or {"run": small.model})[plan.model]) for plan in plans]
    measured = _measure(drawers, judge, limits, out / "features", progress)
    left = [_named(drawer) for drawer in drawers[len(measured) :]]
    results = DemoResults(measured, _real(judge), small, models, missing, left, judge)
    write_whole(out / "rows.json", json.dumps(table.records(results.rows), indent=1) + "\n")
    report = out / "report.html"
    write_whole(report, demo_page(results))
    return report


def _names() -> list[str]:
    return list(dict.fromkeys(plan.model for plan in DEMO_PLANS))


@dataclass(frozen=True)
class _Timed:
    """Shows work that ends after `seconds` as so many iterations as will fit into them."""

    shown: Reporter
    seconds: float

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        fitting = min(total, iteration * self.seconds / logs["seconds"])
        self.shown.update(iteration, max(iteration, math.ceil(fitting)), logs)

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()


def _train_small(experiment: Experiment, run: Path, progress: Reporter) -> SmallRun:
    """Train or continue the small model; its first images, and its losses."""
    progress.note(f"training a small dual-rate model for {duration(experiment.fit.max_seconds or 0)} in {run}")
    result = train(experiment, run, progress=progress, decoding=messages(progress.note))
    if result.stopped == "signal":
        raise KeyboardInterrupt(f"training interrupted and saved in {run}; the same command continues it")
    model = load(run, note=progress.note)
    images = Choice(32, 8).drawer(model).draw(range(SHOWN)).images
    return SmallRun(model, images, result.seconds, read_losses(run))


def _measure(
    drawers: Sequence[Drawer], judge: Evaluator, limits: Limits, directory: Path, progress: Reporter
) -> list[MeasuredPlan]:
    """Sample, time and score the plans, in turns; says what was measured, and what not."""
    progress.note(
        f"{len(drawers)} plans in turns, up to {limits.enough} images each: at most {duration(limits.seconds)}"
    )

    timed = _Timed(progress, limits.seconds)

    def report(images: int, total: int, seconds: float) -> None:
        timed.update(images, total, {"images": images, "seconds": seconds})

    with closing(progress):
        measured = Turns(judge, limits, directory, report).measure(drawers)
    for one in measured:
        progress.note(headline.describe(one.row))
    count = measured[0].row.score.fingerprint.count
    if len(measured) < len(drawers) or count < limits.enough:
        progress.note(
            f"there was time for {len(measured)} of {len(drawers)} plans and {count} of {limits.enough} images: the "
            "same command goes on; with --measuring 10 for longer"
        )
    return measured


def _named(drawer: Drawer) -> str:
    return f"{drawer.network} {headline.plan_name(drawer.plan.num_steps, drawer.plan.num_heavy)}"


def _real(judge: Evaluator) -> np.ndarray:
    """Held-out images arranged as the grids are: class `i mod classes` at place i."""
    images = judge.held_out
    assert images is not None  # for the type checker: `evaluator` loads a test split of every source
    if images.labels is None:
        return np.asarray(images.images[:SHOWN])
    members = [np.flatnonzero(images.labels == label) for label in range(images.num_classes)]
    places = [members[i % len(members)] for i in range(SHOWN)]
    return images.images[[own[i // len(members) % len(own)] for i, own in enumerate(places)]]
