"""Plans measured in turns, a few images each: what disturbs the machine disturbs all alike, and time may run out.

    first turn   every plan draws the images that are shown, the most useful plan first. Plans for whose fewest images
                 the time would not suffice, at the pace so far, are left out
    rounds       every plan draws ROUND images; again, until all have enough or there is no time for another round
    scores       of as many images of each

Features are kept in shards of a round (metrics/store.py), so the same call goes on where it was. Seconds per
image are the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import keep_features, measure
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.store import FeatureStore
from dualrate.report.rows import Row

ROUND = 50  # images of a plan in a round
LEAST = 2  # plans that are measured, however slow the machine is


@dataclass(frozen=True)
class Limits:
    """seconds: for all of it; only the fewest images of the first two plans are drawn whatever the time.

    fewest: images of a plan that can be scored; enough: those after which it ends; shown: those of the first turn
    """

    seconds: float
    fewest: int
    enough: int
    shown: int


@dataclass(frozen=True, eq=False)
class MeasuredPlan:
    """A row, and the images of the first turn, (n, C, H, W) uint8."""

    row: Row
    images: np.ndarray


@dataclass
class Turns:
    """Measures drawers, the most useful first. progress: called with images, of how many at most, seconds."""

    judge: Evaluator[Any]
    limits: Limits
    directory: Path
    progress: Callable[[int, int, float], None]
    _start: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start

    def measure(self, drawers: Sequence[Drawer]) -> list[MeasuredPlan]:
        """Of the first drawers, all that there is time for, in their order; of as many images each."""
        drawers = [replace(drawer, batch_size=ROUND) for drawer in drawers]
        shown = self._first_turn(drawers)
        joined = drawers[: len(shown)]
        count = self._rounds(joined)
        rows = [self._row(drawer, count) for drawer in joined]
        return [MeasuredPlan(row, images) for row, images in zip(rows, shown, strict=True)]

    def _first_turn(self, drawers: Sequence[Drawer]) -> list[np.ndarray]:
        shown: list[np.ndarray] = []
        for drawer in drawers:
            images = drawer.draw(range(self.limits.shown)).images
            needed = self.seconds * (1 + self.limits.fewest / self.limits.shown)
            if needed > self.limits.seconds and len(shown) >= LEAST:
                break
            shown.append(images)
        return shown

    def _rounds(self, drawers: Sequence[Drawer]) -> int:
        """Images of each when it ended."""
        count = 0
        while count < self.limits.enough:
            drawn, start = range(count, min(count + ROUND, self.limits.enough)), self.seconds
            for i, drawer in enumerate(drawers):
                self._drawn(drawer, drawn)
                images = count * len(drawers) + len(drawn) * (i + 1)
                self.progress(images, self.limits.enough * len(drawers), self.seconds)
            count, took = drawn.stop, self.seconds - start
            if count >= self.limits.fewest and self.seconds + took > self.limits.seconds:
                break
        return count

    def _drawn(self, drawer: Drawer, seeds: range) -> FeatureStore:
        (store,) = keep_features(drawer, seeds, [self.judge.net], self._place(drawer), shard_size=ROUND)
        return store

    def _place(self, drawer: Drawer) -> Path:
        """Where its features are kept."""
        plan, origin = drawer.plan, drawer.origin(self.judge.net.identity)
        name = f"{drawer.network}-{plan.num_steps}-{plan.num_heavy}-{origin.digest}"
        return self.directory / name.replace(" ", "-")

    def _row(self, drawer: Drawer, count: int) -> Row:
        row = measure(drawer, range(count), self.judge, keep=self._place(drawer), shard_size=ROUND).row
        store = self._drawn(drawer, range(count))
        rounds = [range(first, min(first + ROUND, count)) for first in range(0, count, ROUND)]
        seconds = statistics.median(store.read(seeds).seconds / len(seeds) for seeds in rounds)
        return replace(row, seconds_per_image=seconds)
