"""Sprites that bounce in a frame: clips made on the spot, to try things out without data of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Positive, Range, Side
from dualrate.data.source import DataProgress, silent
from dualrate.diffusion.random import Draws
from dualrate.forecasts.clips import COLOURS, LEVELS
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.systems import SIMULATING, System, empty

DARKEST = 64  # of the colours of sprites; the frame is black


@dataclass(frozen=True, kw_only=True)
class MovingSprites(System):
    """Discs, squares and diamonds, each of a colour, that bounce in a black frame of side x side pixels, from 0 to 255.

    sprites: in a frame, the later ones in front; radius: of each, in pixels; speed: of each, in pixels a frame
    Of one frame they have several futures, as it does not tell where they go; of two one, but for rounding.
    """

    side: Side = 64
    sprites: Annotated[int, Range(1, 16)] = 3
    radius: Positive = 8.0
    speed: Positive = 3.0

    every = 0.1
    variables: ClassVar[tuple[str, ...]] = COLOURS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.room <= 0:
            raise ValueError(f"sprites of radius {self.radius:g} do not move in {self.side} pixels: give a larger side")

    @property
    def metadata(self) -> Metadata:
        return LEVELS

    @property
    def room(self) -> float:
        """Pixels that the centre of a sprite moves in, on each axis."""
        return self.side - 1 - 2 * self.radius

    def paths(self, draws: Draws, frames: int) -> Tensor:
        """(B, sprites, T, 2) float64: the centres (y, x), which stay in the frame; at its edges a velocity turns."""
        start = draws.uniform("place", self.sprites, 2).double() * self.room
        angle = draws.uniform("direction", self.sprites).double() * (2 * math.pi)
        velocity = self.speed * torch.stack((angle.sin(), angle.cos()), -1)
        free = start[:, :, None] + velocity[:, :, None] * torch.arange(frames, dtype=torch.float64)[:, None]
        return self.radius + self.room - (free % (2 * self.room) - self.room).abs()

    def simulate(self, trajectories: int, frames: int, seed: int, progress: DataProgress = silent) -> NDArray[Any]:
        array = empty(trajectories, frames, (3, self.side, self.side), np.uint8)
        draws = Draws(seed, torch.arange(trajectories))
        centres = self.paths(draws, frames).numpy()
        colours = DARKEST + (255 - DARKEST) * draws.uniform("colour", self.sprites, 3).double().numpy()
        shapes = (draws.uniform("shape", self.sprites) * len(SHAPES)).long().tolist()
        place = np.arange(self.side)
        for s in range(trajectories):
            frame = np.zeros((frames, 3, self.side, self.side))
            for centre, colour, shape in zip(centres[s], colours[s], shapes[s], strict=True):
                down, across = (abs(place - centre[:, i, None]) for i in range(2))
                distance = SHAPES[shape](down[:, :, None], across[:, None])
                cover = np.clip(self.radius - distance + 0.5, 0, 1)[:, None]
                frame += cover * (colour[:, None, None] - frame)
            array[s] = frame.round()
            progress((s + 1) * frames, trajectories * frames, SIMULATING)
        return array


SHAPES = np.hypot, np.maximum, np.add  # distances from the centre at which edges lie: a disc, a square, a diamond
