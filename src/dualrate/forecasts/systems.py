"""Systems that make trajectories of fields, and how those of waves advance in time.

Systems of waves are u_t = L u + N(u), with a linear part L that is diagonal over their modes. ETDRK4 integrates them
(Cox and Matthews, J. Comput. Phys. 176, 2002), with the contour integrals of Kassam and Trefethen, "Fourth-order
time-stepping for stiff PDEs", SIAM J. Sci. Comput. 26, 2005. All is in float64; frames are float32.

A trajectory is a function of (seed, its number): the same bits however many are made, on one machine and version of
torch. Elsewhere rounding differs, which chaos makes another trajectory of the same law after some Lyapunov times.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.data.source import DataProgress, silent
from dualrate.diffusion.random import Draws
from dualrate.forecasts.metadata import Metadata

AT_A_TIME = 16  # trajectories that are followed together, always: kernels of another shape may round in another way
CONTOUR = 32  # points of the contour integrals
SIMULATING = "simulating"  # the message of progress

Duration = Annotated[float, Range(0, 1_000_000, above=True)]
Points = Annotated[int, Range(8, 4096)]
Friction = Annotated[float, Range(0, 1_000_000)]


def etdrk4(linear: Tensor, nonlinear: Callable[[Tensor], Tensor], dt: float) -> Callable[[Tensor], Tensor]:
    """One step of u_t = L u + N(u), of order 4. linear: L, real, of the modes; dt: the time of a step"""
    roots = torch.exp(1j * math.pi * (torch.arange(CONTOUR, dtype=torch.float64) + 0.5) / CONTOUR)
    z = dt * linear[..., None] + roots  # the upper half of a circle about each: by symmetry the real part is the mean
    e, e_half = torch.exp(dt * linear), torch.exp(dt * linear / 2)
    q = dt * (torch.expm1(z / 2) / z).real.mean(-1)
    f1 = dt * ((-4 - z + z.exp() * (4 - 3 * z + z**2)) / z**3).real.mean(-1)
    f2 = dt * ((2 + z + z.exp() * (z - 2)) / z**3).real.mean(-1)
    f3 = dt * ((-4 - 3 * z - z**2 + z.exp() * (4 - z)) / z**3).real.mean(-1)

    def step(u: Tensor) -> Tensor:
        n_u = nonlinear(u)
        half = e_half * u
        a = half + q * n_u
        n_a = nonlinear(a)
        n_b = nonlinear(half + q * n_a)
        n_c = nonlinear(e_half * a + q * (2 * n_b - n_u))
        return e * u + f1 * n_u + 2 * f2 * (n_a + n_b) + f3 * n_c

    return step


class System(Ranged, ABC):
    """A system that makes trajectories. A subclass is a frozen dataclass.

    every: time from frame to frame; lyapunov_time: inf where it is not known; periodic: whether opposite edges meet
    (those of longitudes do as their coordinates say); axes: of space, as of `FieldSource`
    """

    every: Any  # a number, of a field or of the class
    variables: ClassVar[tuple[str, ...]]
    lyapunov_time: ClassVar[float] = math.inf
    periodic: ClassVar[bool] = False
    axes: ClassVar[tuple[str, ...]] = ()

    @property
    def metadata(self) -> Metadata:
        """Units and coordinates, where it has some."""
        return Metadata()

    @abstractmethod
    def simulate(self, trajectories: int, frames: int, seed: int, progress: DataProgress = silent) -> NDArray[Any]:
        """Trajectories (S, T, C, H, W), float32 or bytes. progress: of frames. Raises ValueError for numbers
        below 1."""


def empty(trajectories: int, frames: int, frame: tuple[int, int, int], kind: type[Any] = np.float32) -> NDArray[Any]:
    """An array for trajectories of frames (C, H, W). Raises ValueError for numbers below 1."""
    if trajectories < 1 or frames < 1:
        raise ValueError(f"{trajectories} trajectories of {frames} frames; expected at least one of each")
    return np.empty((trajectories, frames, *frame), kind)


class Evolving(System):
    """A system whose every state comes of the one before."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(H, W)"""

    @abstractmethod
    def states(self, draws: Draws) -> Iterator[Tensor]:
        """States on the attractor, (B, C, H, W) float64, one after each time `every`, without end."""

    def simulate(
        self, trajectories: int, frames: int, seed: int, progress: DataProgress = silent
    ) -> NDArray[np.float32]:
        """Trajectories on the attractor, as of `System`. Raises FloatingPointError for states that are not finite."""
        array = empty(trajectories, frames, (len(self.variables), *self.grid))
        for first in range(0, trajectories, AT_A_TIME):
            here = array[first : first + AT_A_TIME]
            states = self.states(Draws(seed, torch.arange(first, first + AT_A_TIME)))
            for frame, state in zip(range(frames), states, strict=False):
                here[:, frame] = state[: len(here)].float().numpy()
                progress(first * frames + (frame + 1) * len(here), trajectories * frames, SIMULATING)
            if not np.isfinite(here).all():
                raise FloatingPointError(f"{self} is not finite after some steps: give a smaller dt")
        return array


@dataclass(frozen=True, kw_only=True)
class Simulation(Evolving):
    """A periodic system of one channel on a grid of H x W points; its state is u: (B, 1, H, W) float64.

    every:   time from frame to frame
    burn_in: time that is thrown away, from a random smooth start to the attractor
    dt:      the longest time step; a step is a whole part of `every`
    """

    every: Duration
    burn_in: Duration
    dt: Duration

    periodic: ClassVar[bool] = True

    @property
    @abstractmethod
    def linear(self) -> Tensor:
        """L of the modes that `spectrum` gives, (H, W / 2 + 1) float64."""

    @abstractmethod
    def nonlinear(self, modes: Tensor) -> Tensor:
        """N of modes (B, 1, H, W / 2 + 1), as modes."""

    @abstractmethod
    def start(self, draws: Draws) -> Tensor:
        """Random smooth states, one a row."""

    @cached_property
    def unaliased(self) -> Tensor:
        """(H, W / 2 + 1) bool: modes below a third of the points on each axis."""
        height, width = self.grid
        rows, columns = torch.fft.fftfreq(height, 1 / height).abs()[:, None], torch.arange(width // 2 + 1)
        return (3 * rows < height) & (3 * columns < width)

    def spectrum(self, u: Tensor) -> Tensor:
        """Modes of a state, without those that alias."""
        return torch.fft.rfft2(u) * self.unaliased

    def field(self, modes: Tensor) -> Tensor:
        return torch.fft.irfft2(modes, s=self.grid)

    def advance(self, u: Tensor, time: float) -> Tensor:
        """The state after a time > 0."""
        return next(self.follow(u, time))

    def follow(self, u: Tensor, every: float | None = None) -> Iterator[Tensor]:
        """The states after one, two, ... times `every`, without end; `self.every` if not given."""
        every = self.every if every is None else every
        steps, modes = math.ceil(every / self.dt - 1e-9), self.spectrum(u)
        step = etdrk4(self.linear, self.nonlinear, every / steps)
        while True:
            for _ in range(steps):
                modes = step(modes)
            yield self.field(modes)

    def states(self, draws: Draws) -> Iterator[Tensor]:
        u = self.advance(self.start(draws), self.burn_in)
        yield u
        yield from self.follow(u)
