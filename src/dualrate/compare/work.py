"""The work behind `dualrate compare`, in the order it is done:

    1. screen: every contender on `screen` images
    2. front:  those on the front of quality against cost, on `count` images of other seeds, so that a lucky screening
               does not flatter anyone
    3. costs:  seconds of an image of each of them, alone and in batches, and the memory of each network

With little time it is fewer contenders, on fewer images (compare/speed.py). Features are kept as images are drawn
(metrics/store.py), rows as they are scored (compare/rows.py), so a call that ran out of its minutes, or
was killed, goes on where it was; only the seconds are measured anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.compare.contender import Contender
from dualrate.compare.rows import keep_row, read_row, row_name
from dualrate.compare.speed import FEWEST, Speed, memory_of, round_robin, saturating_batch, speed, time_calls
from dualrate.config.ranges import Precision
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.latents import LOOKED_AT, Nearness, nearness
from dualrate.drawing.measure import OutOfTime, measure, stores, until
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Details, Evaluator
from dualrate.report.figures import Point, front
from dualrate.report.rows import Row
from dualrate.sampling.cost import CallCost
from dualrate.system.environment import environment
from dualrate.system.progress import Reporter
from dualrate.system.workers import Mapper, in_turn

SCREEN_SEED = 1_000_000  # of the first image of a screening; a final score starts at 0
SLOWER = 1.3  # drawing, over its networks' calls, until it has been seen
SHOWN = 20  # images of a contender on the page
BATCH = 125  # rows of the calls that are timed


@dataclass(frozen=True, eq=False)
class MeasuredContender:
    """A contender's row, and its score's bootstrap replicates; beside: those of the other judges, by metric.

    trainings: the scores of each by metric, where the row's are those of several
    ran_on:    the hardware, versions and commit that its images were scored with
    """

    contender: Contender
    row: Row
    replicates: NDArray[np.float64]
    beside: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    trainings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ran_on: str = ""

    def point(self, cost: float) -> Point:
        return Point(self.contender.key, cost, self.row.score.value, self.replicates, self.contender.curve)

    def judged_by(self, metric: str) -> MeasuredContender:
        """As this judge alone sees it. Raises KeyError for one that did not judge it."""
        replicates = {self.row.score.metric: self.replicates, **self.beside}[metric]
        return replace(self, row=self.row.judged_by(metric), replicates=replicates, beside={})


@dataclass(frozen=True, eq=False)
class TimedContender:
    """A contender measured on the front, what it costs in time, and its first images.

    memory: bytes at most while its network drew a batch under its first plan: on a GPU what torch held, on a CPU the
            whole process, Python and torch included
    nearness: of the first images of a decoder to those that it was given the latents of; None of any other model
    alphabet: of pieces of a text, which the images then are, as of an `ImageSet`
    """

    measured: MeasuredContender
    speed: Speed
    memory: int
    images: NDArray[np.uint8]
    nearness: Nearness | None = None
    alphabet: str = ""

    @property
    def row(self) -> Row:
        return self.measured.row

    @property
    def contender(self) -> Contender:
        return self.measured.contender

    @property
    def details(self) -> Details | None:
        return self.row.score.details

    def judged_by(self, metric: str) -> TimedContender:
        """As this judge alone sees it. Raises KeyError for one that did not judge it."""
        return replace(self, measured=self.measured.judged_by(metric))


@dataclass
class Bench:
    """Measures contenders until the time is up.

    models: by directory
    judges: of one image each sees the features; the first screens and orders
    directory: where features are kept; rows: where rows are, there too if not given. Both are made, before the work
    mapper: draws; share: of the time of one process that it takes
    """

    models: dict[Path, Model]
    judges: Sequence[Evaluator[Any]]
    directory: Path
    progress: Reporter
    precision: Precision = "auto"
    rows: Path | None = None
    estimates: dict[str, float] = field(default_factory=dict)  # seconds per image, from those of calls
    pace: float = SLOWER  # what drawing took, over its estimate
    mapper: Mapper = in_turn
    share: float = 1.0
    _drawers: dict[str, Drawer] = field(default_factory=dict)
    _calls: dict[tuple[Path, str | None], CallCost] = field(default_factory=dict)
    _done: float = 0
    _total: float = 0
    _images: int = 0
    _start: float = field(default_factory=time.monotonic)
    _ran_on: str = field(init=False)

    def __post_init__(self) -> None:
        for folder in (self.directory, self.rows or self.directory):
            folder.mkdir(parents=True, exist_ok=True)
        device = next(iter(self.models.values())).device
        found = environment(device)  # of the start: a checkout may change while its program runs
        self._ran_on = ", ".join(f"{name} {value}" for name, value in found.items())

    @property
    def judge(self) -> Evaluator[Any]:
        """The first."""
        return self.judges[0]

    def judges_of(self, seeds: range) -> Sequence[Evaluator[Any]]:
        """Who sees the images of these seeds: those of a screening the first alone."""
        return self.judges if seeds.start < SCREEN_SEED else self.judges[:1]

    def drawer(self, contender: Contender) -> Drawer:
        if contender.key not in self._drawers:
            drawer = contender.drawer(self.models[contender.run])
            self._drawers[contender.key] = replace(drawer, precision=self.precision)
        return self._drawers[contender.key]

    def call_seconds(self, model: Model, run: Path, denoiser: str | None = None) -> CallCost:
        """Per image, measured once."""
        if (run, denoiser) not in self._calls:
            self.progress.note(f"timing calls of {run.name}{f' under {denoiser}' if denoiser else ''}")
            self._calls[run, denoiser] = time_calls(model, BATCH, self.precision)
        return self._calls[run, denoiser]

    def estimate(self, contenders: Sequence[Contender], seconds: float = math.inf) -> list[Contender]:
        """Counts contenders' calls, and times one call of each network; those that `seconds` suffice for, in this
        order, and the first FEWEST.
        """
        deadline, found = time.monotonic() + seconds, []
        for contender in contenders:
            timed = (contender.run, contender.denoiser) in self._calls
            if not timed and len(found) >= FEWEST and time.monotonic() > deadline:
                continue
            drawer = self.drawer(contender)
            calls = self.call_seconds(drawer.model, contender.run, contender.denoiser)
            self.estimates[contender.key] = self.share * drawer.expected_cost.where(calls)
            found.append(contender)
        return found

    def see_real_images(self) -> None:
        """Have all judges take their features, once."""
        for judge in self.judges:
            self.progress.note(f"{judge.metric}: features of the {len(judge.reference_images)} images to compare with")
            judge.prepare(self.mapper)
            _ = judge.reference_features
            self.progress.close()  # the next one has its own rate

    def keeps(self, contender: Contender, seeds: range) -> bool:
        """Whether its row of these images is here."""
        return self._row_file(contender, seeds).exists()

    def seconds(self, contender: Contender, seeds: range) -> float:
        """What drawing the images that are not here yet will take."""
        if self.keeps(contender, seeds):
            return 0.0
        directory, missing = self._place(contender), set(seeds)
        if directory.exists():
            nets = [judge.net for judge in self.judges_of(seeds)]
            missing = set().union(*(one.missing(seeds) for one in stores(self.drawer(contender), nets, directory)))
        return self.pace * self.estimates[contender.key] * len(missing)

    def measure(
        self, contenders: Sequence[Contender], seeds: range, seconds: float, *, details: bool
    ) -> list[MeasuredContender]:
        """Those that `seconds` suffice for, in this order, and the first FEWEST; what is here already costs none."""
        deadline = time.monotonic() + seconds
        self._done, self._images, self._start = 0, 0, time.monotonic()
        self._total = sum(self.estimates[contender.key] for contender in contenders) * len(seeds)
        found, drawing = [], 0.0
        for i, contender in enumerate(contenders):
            before, start = self._done, time.monotonic()
            try:
                measured = self._measure(contender, seeds, deadline if i >= FEWEST else math.inf, details=details)
            except OutOfTime:
                self.progress.note(f"{i + 1}/{len(contenders)} {contender.key}: out of time")
                continue
            finally:
                drawing += time.monotonic() - start if self._done > before else 0
            score = measured.row.score
            self.progress.note(
                f"{i + 1}/{len(contenders)} {contender.key}: {score.metric} {score.value:.3f} "
                f"[{score.low:.3f}, {score.high:.3f}] of {len(seeds)} images"
            )
            found.append(measured)
        self.progress.close()
        if drawing:
            self.pace = drawing / self._done
        return found

    def _measure(self, contender: Contender, seeds: range, deadline: float, *, details: bool) -> MeasuredContender:
        done, images, total, each = self._done, self._images, self._total, self.estimates[contender.key]

        def tell(before: int, now: int) -> None:
            self._total = total - each * before  # what was drawn before is no progress of this call
            self._done, self._images = done + each * now, images + now
            logs = {"images": self._images, "seconds": time.monotonic() - self._start}
            self.progress.update(round(self._done), round(self._total), logs)

        file = self._row_file(contender, seeds)
        if file.exists():
            tell(len(seeds), 0)
        else:
            drawer, keep = self.drawer(contender), self._place(contender)
            how = {"keep": keep, "details": details, "progress": until(deadline, tell), "mapper": self.mapper}
            found = measure(drawer, seeds, *self.judges_of(seeds), **how)
            keep_row(file, found.row, found.replicates, self._ran_on)
        kept = read_row(file)
        others = kept.by_metric
        own = others.pop(self.judge.metric)
        return MeasuredContender(contender, _named(kept.row, contender), own, others, ran_on=kept.ran_on)

    def _place(self, contender: Contender) -> Path:
        """Where its features are kept."""
        origin = self.drawer(contender).origin(self.judge.net.identity)
        return self.directory / f"{contender.key}-{origin.digest}"

    def _row_file(self, contender: Contender, seeds: range) -> Path:
        """Where its row is kept."""
        name = row_name(replace(contender, training=0).key, self.drawer(contender), self.judges_of(seeds), seeds)
        return (self.rows or self.directory) / name

    def finish(self, measured: Sequence[MeasuredContender], seconds: float = math.inf) -> list[TimedContender]:
        """Times every contender, once only if the seconds are over, and takes its first images; of a decoder, PSNR."""
        deadline = time.monotonic() + seconds
        batches: dict[tuple[Path, str | None], int] = {}
        memory: dict[tuple[Path, str | None], int] = {}
        finished = []
        self.progress.note(f"timing {len(measured)} contenders, alone and in batches")
        for i, one in enumerate(measured):
            contender, drawer = one.contender, self.drawer(one.contender)
            kind = (contender.run, contender.denoiser)
            if kind not in batches:
                batches[kind] = saturating_batch(drawer)
                how = {"device": drawer.model.device, "precision": self.precision}
                memory[kind] = memory_of(contender, batches[kind], drawer.model.latents, **how)
            timed = speed(drawer, batches[kind], repeats=3 if time.monotonic() < deadline else 1)
            row = replace(one.row, seconds_per_image=timed.batched, batch_size=timed.batch)
            images = drawer.draw(range(SHOWN)).images
            near = nearness(drawer, range(min(LOOKED_AT, row.score.fingerprint.count)))
            alphabet = drawer.model.experiment.codec.alphabet
            finished.append(TimedContender(replace(one, row=row), timed, memory[kind], images, near, alphabet))
            self.progress.update(i + 1, len(measured), {"images": SHOWN * (i + 1)})
        self.progress.close()
        return finished


def _named(row: Row, contender: Contender) -> Row:
    note = f", {contender.note}" if contender.note else ""
    return replace(row, sampler=f"{row.sampler}{note}")


def chosen(
    screened: Sequence[MeasuredContender], bench: Bench, sides: Sequence[Sequence[MeasuredContender]]
) -> list[Contender]:
    """What deserves many images, most important first: what the user named, the fronts of the sides, then of networks.

    sides: what is set against each other, by turns. A front counts multiply-adds, and estimated seconds too; its best
    score comes first
    """
    networks = {one.contender.network for one in screened}
    lines = [[one for one in screened if one.contender.network == network] for network in sorted(networks)]
    named = [one.contender for one in screened if one.contender.named]
    of_sides, of_lines = ([_front(group, bench) for group in groups] for groups in (sides, lines))
    picked = [*named, *round_robin(of_sides), *chain.from_iterable(of_lines)]
    return list({contender.key: contender for contender in picked}.values())


def _front(group: Sequence[MeasuredContender], bench: Bench) -> list[Contender]:
    by_name = {one.contender.key: one for one in group}
    picked: dict[str, Contender] = {}
    for costs in ({key: float(one.row.macs) for key, one in by_name.items()}, bench.estimates):
        points = [one.point(costs[key]) for key, one in by_name.items()]
        picked |= {point.name: by_name[point.name].contender for point in reversed(front(points))}
    return list(picked.values())
