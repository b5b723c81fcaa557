"""Flow of a single layer of air round a planet: barotropic vorticity on the rotating sphere, stirred at random.

    zeta_t = -u . grad(zeta + f) - drag zeta - hyperviscosity (n (n + 1) / (N (N + 1)))^4 zeta + S
    u = k x grad psi,   lap psi = zeta,   f = 2 Omega sin(latitude)

n is the degree of a spherical harmonic and N the largest one. Lengths are those of the Earth, times are hours. The
transforms of torch-harmonics (the extra `sphere`) go to a Gaussian grid of K x 2 K points and back. A product of two
fields is free of aliases up to N = (2 K - 1) / 3 (Orszag, J. Atmos. Sci. 27, 1970): T21 on 32 x 64 points, T42 on 64 x
128.

S is red noise of degrees 6 to 10 in the middle latitudes, as storms would stir them: eddies carry eastward momentum
there, and jets arise (Vallis, Gerber, Kushner and Cash, J. Atmos. Sci. 61, 2004). Nobody observes S.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dualrate.config.ranges import Range
from dualrate.diffusion.random import Draws
from dualrate.forecasts.metadata import Coordinate, Description, Metadata
from dualrate.forecasts.systems import Duration, Evolving, Friction, etdrk4

RADIUS = 6.371e6  # m
ROTATION = 7.292e-5  # 1/s
HOUR = 3600.0  # s
STIRRED = (6, 10)  # degrees of the harmonics that are stirred, first and last
STORMS = (45.0, 12.0)  # latitude where it is stirred most, and the width of that, in degrees
DESCRIBED = (
    Description("s-1", "atmosphere_relative_vorticity", "relative vorticity"),
    Description("m s-1", "eastward_wind", "eastward wind"),
    Description("m s-1", "northward_wind", "northward wind"),
)


@dataclass(frozen=True, kw_only=True)
class Barotropic(Evolving):
    """Barotropic flow on the sphere; rows from north to south, columns from 0 degrees eastwards. Times are in hours.

    Drag outweighs chaos: trajectories that are stirred alike approach each other. What is not known ahead is S.

    latitudes: rows, half as many as columns; drag, hyperviscosity: rates in 1/h, of all waves and of the shortest;
    stirring: its standard deviation where it is largest, in 1/s per day; memory: how long it stays alike
    """

    latitudes: Annotated[int, Range(16, 512)] = 32
    drag: Friction = 1 / 144
    hyperviscosity: Friction = 1 / 4
    stirring: Friction = 1.5e-5
    memory: Duration = 48.0
    every: Duration = 6.0
    burn_in: Duration = 720.0
    dt: Duration = 1.0

    variables: ClassVar[tuple[str, ...]] = ("vorticity", "u", "v")
    axes: ClassVar[tuple[str, ...]] = ("latitude (falling)", "longitude (rising)")

    @property
    def grid(self) -> tuple[int, int]:
        return self.latitudes, 2 * self.latitudes

    @property
    def truncation(self) -> int:
        """The largest degree, N."""
        return (2 * self.latitudes - 1) // 3

    @property
    def metadata(self) -> Metadata:
        north = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(self.latitudes)[0][::-1]))
        east = np.arange(2 * self.latitudes) * (180 / self.latitudes)
        rows = Coordinate("latitude", (0,), tuple(north.tolist()), Description("degrees_north", "latitude"))
        columns = Coordinate("longitude", (1,), tuple(east.tolist()), Description("degrees_east", "longitude"))
        return Metadata(DESCRIBED, (rows, columns), "hours")

    @cached_property
    def _transforms(self) -> tuple[Any, Any, Any]:
        """To modes; to a field; and of modes (..., 2, N + 1, N + 1) of p and q to the vector grad p - k x grad q on the
        unit sphere, southward and eastward."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of compiled kernels that are not there, nor needed here
                import torch_harmonics as harmonics  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ModuleNotFoundError(
                f'flow on the sphere wants torch-harmonics ({error}): pip install "dualrate[sphere]", or, to keep the '
                "torch that you have, pip install --no-deps torch-harmonics"
            ) from error
        size = self.truncation + 1
        kinds = harmonics.RealSHT, harmonics.InverseRealSHT, harmonics.InverseRealVectorSHT
        to_modes, to_field, to_vector = (kind(*self.grid, size, size, grid="legendre-gauss") for kind in kinds)
        return to_modes, to_field, to_vector

    @cached_property
    def _eigenvalues(self) -> Tensor:
        """n (n + 1) of each mode, (N + 1, 1)."""
        n = torch.arange(self.truncation + 1, dtype=torch.float64)[:, None]
        return n * (n + 1)

    @cached_property
    def _planetary(self) -> Tensor:
        """Modes of f: of degree 1 and order 0, where a harmonic is sqrt(3 / (4 pi)) sin(latitude)."""
        modes = torch.zeros(self.truncation + 1, self.truncation + 1, dtype=torch.complex128)
        modes[1, 0] = 2 * ROTATION * math.sqrt(4 * math.pi / 3)
        return modes

    def modes(self, vorticity: Tensor) -> Tensor:
        """Modes (..., N + 1, N + 1), degree and order, of a vorticity (..., H, W); that has no mean on a sphere."""
        return self._transforms[0](vorticity) * (self._eigenvalues > 0)

    def fields(self, modes: Tensor) -> Tensor:
        """Vorticity in 1/s, eastward and northward wind in m/s, (B, 3, H, W), of modes of the vorticity."""
        southward, eastward = self.winds(modes).unbind(1)
        return torch.stack([self._transforms[1](modes), RADIUS * eastward, -RADIUS * southward], 1)

    def winds(self, modes: Tensor) -> Tensor:
        """Southward and eastward wind over the radius, (..., 2, H, W), of modes of the vorticity."""
        minus_psi = modes / self._eigenvalues.clamp_min(1)
        return self._transforms[2](torch.stack([torch.zeros_like(modes), minus_psi], -3))

    def advection(self, modes: Tensor) -> Tensor:
        """-u . grad(zeta + f) in 1/s per hour, as modes."""
        slopes = self._transforms[2](torch.stack([modes + self._planetary, torch.zeros_like(modes)], -3))
        return self.modes((self.winds(modes) * slopes).sum(-3)) * -HOUR

    def stepper(self, dt: float) -> Callable[[Tensor], Tensor]:
        """One step of modes by dt hours, without stirring."""
        shortest = self.truncation * (self.truncation + 1)
        linear = -self.drag - self.hyperviscosity * (self._eigenvalues / shortest) ** 4
        return etdrk4(linear, self.advection, dt)

    def noise(self, draws: Draws, stream: str, count: int) -> Tensor:
        """Independent stirrings, (B, count, N + 1, N + 1), as modes in 1/s per hour."""
        n, m = torch.meshgrid(*[torch.arange(self.truncation + 1)] * 2, indexing="ij")
        stirred = (m > 0) & (m <= n) & (n >= STIRRED[0]) & (n <= STIRRED[1])
        waves = int(stirred.sum())
        numbers = draws.normal(stream, count, waves, 2).double()
        modes = torch.zeros(*numbers.shape[:2], *n.shape, dtype=torch.complex128)
        modes[..., stirred] = torch.view_as_complex(numbers) * (self.stirring / 24 * math.sqrt(math.pi / waves))
        latitudes = torch.tensor(self.metadata.coordinates[0].values, dtype=torch.float64)
        storms = torch.exp(-(((latitudes.abs() - STORMS[0]) / STORMS[1]) ** 2))
        return self.modes(self._transforms[1](modes) * storms[:, None])

    def states(self, draws: Draws) -> Iterator[Tensor]:
        """States as of `Evolving`, from rest; S changes from step to step, and keeps exp(-dt / memory) of itself."""
        steps, waited = math.ceil(self.every / self.dt - 1e-9), math.ceil(self.burn_in / self.every)
        dt = self.every / steps
        step, keeps = self.stepper(dt), math.exp(-dt / self.memory)
        stirring = self.noise(draws, "stirring", 1)[:, 0]
        modes = torch.zeros_like(stirring)
        for frame in itertools.count():
            if frame >= waited:
                yield self.fields(modes)
            for fresh in self.noise(draws, f"stirring {frame}", steps).unbind(1):
                modes = step(modes) + dt * stirring
                stirring = keeps * stirring + math.sqrt(1 - keeps**2) * fresh
