"""Plans measured in turns, a few images each: what disturbs the machine disturbs all alike, and time may run out.

    first turn   every plan draws the images that are shown, the most useful plan first. Plans for whose fewest images
                 the time would not suffice, at the pace so far, are left out
    rounds       every plan draws ROUND images; again, until all have enough or there is no time for another round
    scores       of as many images of each

Features are kept in blocks of a round (metrics/blocks.py), so the same call goes on where it was. Seconds per image are
the median over the rounds.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualrate.diffusion.plan import StepPlan
from dualrate.machine.device import pays
from dualrate.measuring.measure import Guidance, draw
from dualrate.measuring.origin import origin_of
from dualrate.measuring.stream import draw_in_blocks, measure_in_blocks
from dualrate.metrics.blocks import FeatureBlocks
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.rows import Row
from dualrate.runs.store import Model
from dualrate.sampling.step import Step

ROUND = 50  # images of a plan in a round
LEAST = 2  # plans that are measured, however slow the machine is


@dataclass(frozen=True, eq=False)
class Entrant:
    """A model under a sampler and a plan. network: what its row calls it."""

    network: str
    model: Model
    step: Step
    plan: StepPlan

    @property
    def parts(self) -> tuple[Model, Step, StepPlan]:
        return self.model, self.step, self.plan


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
class Measured:
    """A row, and the images of the first turn, (n, C, H, W) uint8."""

    row: Row
    images: np.ndarray


@dataclass
class Turns:
    """Measures entrants, the most useful first. progress: told images, of how many at most, seconds."""

    judge: Evaluator[Any]
    limits: Limits
    directory: Path
    progress: Callable[[int, int, float], None]
    _start: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start

    def measure(self, entrants: Sequence[Entrant]) -> list[Measured]:
        """Of the first entrants, all that there is time for, in their order; of as many images each."""
        shown = self._first_turn(entrants)
        joined = entrants[: len(shown)]
        count = self._rounds(joined)
        rows = [self._row(entrant, count) for entrant in joined]
        return [Measured(row, images) for row, images in zip(rows, shown, strict=True)]

    def _first_turn(self, entrants: Sequence[Entrant]) -> list[np.ndarray]:
        shown: list[np.ndarray] = []
        for entrant in entrants:
            images = draw(*entrant.parts, range(self.limits.shown), batch_size=ROUND).images
            needed = self.seconds * (1 + self.limits.fewest / self.limits.shown)
            if needed > self.limits.seconds and len(shown) >= LEAST:
                break
            shown.append(images)
        return shown

    def _rounds(self, entrants: Sequence[Entrant]) -> int:
        """Images of each when it ended."""
        count = 0
        while count < self.limits.enough:
            drawn, start = range(count, min(count + ROUND, self.limits.enough)), self.seconds
            for i, entrant in enumerate(entrants):
                self._drawn(entrant, drawn)
                images = count * len(entrants) + len(drawn) * (i + 1)
                self.progress(images, self.limits.enough * len(entrants), self.seconds)
            count, took = drawn.stop, self.seconds - start
            if count >= self.limits.fewest and self.seconds + took > self.limits.seconds:
                break
        return count

    def _drawn(self, entrant: Entrant, seeds: range) -> FeatureBlocks:
        return draw_in_blocks(
            *entrant.parts, self.judge.net, seeds, self._place(entrant), batch_size=ROUND, block_size=ROUND
        )

    def _place(self, entrant: Entrant) -> Path:
        """Another directory for whatever would give other features."""
        bfloat16 = pays(torch.device("cpu"))
        origin = origin_of(*entrant.parts, Guidance(), self.judge.net.identity, bfloat16=bfloat16)
        digest = hashlib.sha256(origin.json().encode()).hexdigest()[:8]
        name = f"{entrant.network}-{entrant.plan.num_steps}-{entrant.plan.num_heavy}-{digest}"
        return self.directory / name.replace(" ", "-")

    def _row(self, entrant: Entrant, count: int) -> Row:
        of = (entrant.network, *entrant.parts, self.judge, range(count), self._place(entrant))
        row = measure_in_blocks(*of, batch_size=ROUND, block_size=ROUND)
        blocks = self._drawn(entrant, range(count))
        rounds = [range(first, min(first + ROUND, count)) for first in range(0, count, ROUND)]
        seconds = statistics.median(blocks.read(seeds).seconds / len(seeds) for seeds in rounds)
        return replace(row, seconds_per_image=seconds)
