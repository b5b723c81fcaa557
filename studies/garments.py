"""Garments of Fashion-MNIST that bounce in a frame: a system of the test of the excess (studies/excess.py).

They move as the digits of Srivastava, Mansimov and Salakhutdinov (arXiv 1502.04681): straight on, and back from the
edges. Of one frame they have several futures, as it does not tell where they go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Positive, Range, Side
from dualrate.data.images import load_images
from dualrate.data.source import DataProgress, silent
from dualrate.diffusion.random import Draws
from dualrate.forecasts.systems import SIMULATING, System, empty


@dataclass(frozen=True, kw_only=True)
class MovingGarments(System):
    """Garments of Fashion-MNIST that bounce in a frame of side x side pixels, from 0 to 1; the brighter one in front.

    garments: in a frame; shrink: how many times smaller than 28 pixels they are; speed: of each, in pixels a frame
    """

    side: Side = 32
    garments: Annotated[int, Range(1, 16)] = 2
    shrink: Literal[1, 2, 4] = 2
    speed: Positive = 2.0

    every = 1.0
    variables: ClassVar[tuple[str, ...]] = ("grey",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.room < 1:
            raise ValueError(f"garments of {28 // self.shrink} pixels do not move in {self.side}: give a larger side")

    @property
    def room(self) -> int:
        """Pixels that the upper left corner of a garment moves in, on each axis."""
        return self.side - 28 // self.shrink

    def paths(self, draws: Draws, frames: int) -> Tensor:
        """(B, garments, T, 2) float64: the upper left corners (y, x), 0 to `room`; at its ends a velocity turns."""
        start = draws.uniform("place", self.garments, 2) * self.room
        angle = draws.uniform("direction", self.garments) * (2 * math.pi)
        velocity = self.speed * torch.stack((angle.sin(), angle.cos()), -1)
        free = start[:, :, None] + velocity[:, :, None] * torch.arange(frames, dtype=torch.float64)[:, None]
        return self.room - (free % (2 * self.room) - self.room).abs()

    def simulate(
        self, trajectories: int, frames: int, seed: int, progress: DataProgress = silent
    ) -> NDArray[np.float32]:
        """Trajectories as of `System`. Raises what fetching Fashion-MNIST raises."""
        array, draws = empty(trajectories, frames, (1, self.side, self.side)), Draws(seed, torch.arange(trajectories))
        array[:] = 0
        images = load_images("fashion-mnist", split="train", progress=progress).images
        chosen = (draws.uniform("garment", self.garments) * len(images)).long().numpy()
        corners = self.paths(draws, frames).round().long().numpy()
        size = 28 // self.shrink
        for s in range(trajectories):
            whole = images[chosen[s]].astype(np.float32)[:, 0] / 255
            small = whole.reshape(-1, size, self.shrink, size, self.shrink).mean((2, 4))
            for garment, path in zip(small, corners[s], strict=True):
                for frame, (y, x) in zip(array[s, :, 0], path, strict=True):
                    place = frame[y : y + size, x : x + size]
                    np.maximum(place, garment, out=place)
            progress((s + 1) * frames, trajectories * frames, SIMULATING)
        return array
