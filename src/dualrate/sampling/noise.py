"""The random numbers of a plan's steps, those of the next steps made along with the first that asks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from dualrate.diffusion.draws import Draws
from dualrate.diffusion.process import Process

AHEAD = {"cpu": 2**19, "cuda": 2**22}  # numbers made at once: so many that launching kernels takes little of the time


class StepNoise:
    """(step, draw) -> the random numbers of a process for states (B, *shape), keyed by image, step and draw alone.

    One draw launches some hundred kernels, however many numbers they make: at small batches those of many steps are
    made at once. A number does not depend on what it is made with.
    """

    def __init__(self, process: Process, draws: Draws, steps: int, shape: Sequence[int]) -> None:
        self.process, self.draws, self.steps, self.shape = process, draws, steps, tuple(shape)
        ahead = AHEAD.get(draws.row.device.type, AHEAD["cpu"])
        self.at_once = max(1, ahead // max(1, len(draws.row) * math.prod(shape)))
        self.made: dict[tuple[int, int], Tensor] = {}

    def __call__(self, step: int, draw: int) -> Tensor:
        if (step, draw) not in self.made:
            later = range(step, min(step + self.at_once, self.steps))
            made = self.process.noise(self.draws, [f"step {i} draw {draw}" for i in later], *self.shape)
            self.made.update(((i, draw), numbers) for i, numbers in zip(later, made, strict=True))
        return self.made.pop((step, draw))
