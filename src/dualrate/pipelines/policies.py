"""Policies of `accelerate`: when a call of a network runs whole.

    Fixed          the first steps, then every N-th
    FirstBlock     |r - r_tau|_1 / |r_tau|_1 >= threshold, of what the first block adds, r, which runs at every step
    Verified       e = |r_hat - r|_2 / |r|_2 >= threshold in some row, of what the first or the last block adds, r, and
                   its forecast, r_hat: then the very step runs whole. Ours, stricter than SpeCa
    SpeCa          e > max(threshold decay^(n / N), FLOOR) at the step before n of N, e as above. Liu et al. 2025, arXiv
                   2509.11628. Deviates: a kept step has the block's real output, and the block runs at every one

Those that see a change decide for a batch as one, by its mean, or of Verified and SpeCa by its worst row: so an image
depends on the others in it. By rows, rows that need no refresh would have to stand aside in every block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dualrate.config.ranges import Range, Ranged, Steps

Threshold = Annotated[float, Range(0, math.inf)]
FLOOR = 0.01  # of SpeCa's threshold


class Policy(Ranged, ABC):
    """When a call refreshes, all rows of its batch. Each cache has a copy, new in every sampling, so it may count.

    sees:  what `change` is of: "first block", "forecast of first" or "forecast of last"; "": nothing, and it is 0
    steps: calls that the sampling makes of its condition, by its scheduler's times; 0: nothing says it
    """

    sees: Any = ""
    steps: Any = 0

    def due(self, step: int) -> bool:
        """Whether a step from 1 on runs whole, whatever it would see."""
        return False

    @abstractmethod
    def refresh(self, step: int, change: float) -> bool:
        """Whether step 1, 2, ... of a sampling, if it is not due, runs whole. Step 0 does, and is not asked about."""


@dataclass
class Fixed(Policy):
    """Refreshes at the first steps, as TaylorSeer does at some, and then at every N-th step."""

    every: Steps
    first: Steps = 1

    def refresh(self, step: int, change: float) -> bool:
        return step < self.first or (step - self.first + 1) % self.every == 0


@dataclass
class FirstBlock(Policy):
    """Refreshes where the sum that the first block adds has changed by this share since the last refresh."""

    threshold: Threshold
    sees = "first block"

    def refresh(self, step: int, change: float) -> bool:
        return not change < self.threshold  # so also where it is no number


@dataclass
class Verified(FirstBlock):
    """Refreshes where the forecast of what a block adds, which runs all the same, is this far off.

    sees: "forecast of first", whose run a refresh uses, or "forecast of last", which it runs anew
    """

    sees: Literal["forecast of first", "forecast of last"] = "forecast of last"


@dataclass
class SpeCa(Policy):
    """Refreshes after a step whose forecast of what a block adds was off by more than a threshold, which decays.

    decay:       threshold decay^(n / N) at step n of N; not less than FLOOR
    least, most: forecast steps between refreshes
    first:       steps of a sampling that are whole
    sees:        "forecast of last" or "forecast of first" block
    """

    threshold: Threshold
    decay: Annotated[float, Range(0, 1)] = 0.01
    least: Steps = 1
    most: Steps = 5
    first: Steps = 3
    sees: Literal["forecast of first", "forecast of last"] = "forecast of last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise ValueError(f"least is {self.least} forecast steps, more than most, {self.most}")
        self.forecast_steps, self.error = 0, 0.0  # since the latest refresh; of the latest step

    def due(self, step: int) -> bool:
        """Raises ValueError where the number of steps is not known."""
        if not self.steps:
            raise ValueError("SpeCa's threshold depends on the number of steps: pass scheduler=, or take Verified")
        rejected = not self.error <= max(self.threshold * self.decay ** (step / self.steps), FLOOR)
        whole = step < self.first or self.forecast_steps >= self.most
        if whole or (rejected and self.forecast_steps >= self.least):
            self.forecast_steps, self.error = 0, 0.0
            return True
        return False

    def refresh(self, step: int, change: float) -> bool:
        self.forecast_steps, self.error = self.forecast_steps + 1, change
        return False
