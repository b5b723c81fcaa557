"""Fields made on the spot: Kuramoto-Sivashinsky (1-D) and Kolmogorov flow (2-D).

Both are chaotic and periodic; `systems.py` says how they advance. Products are free of aliases by the 2/3 rule: modes
of n / 3 and more are zero. Flow on a sphere is in `sphere.py`, clips of sprites in `sprites.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from dualrate.config.ranges import Positive, Range
from dualrate.diffusion.random import Draws
from dualrate.forecasts.sphere import Barotropic
from dualrate.forecasts.sprites import MovingSprites
from dualrate.forecasts.systems import Duration, Friction, Points, Simulation, System


@dataclass(frozen=True, kw_only=True)
class KuramotoSivashinsky(Simulation):
    """u_t = -u u_x - u_xx - u_xxxx on a circle of this length: H = 1, W points.

    At lengths of 22 and 36 all of 16 trajectories stay chaotic. At 32 (and 28) they end in a wave that travels and
    does not change: half of them within 100 time units, all within 400. `lyapunov_time` is that of the defaults, as
    tests/forecasts/test_simulations.py measures it.
    """

    length: Positive = 36.0
    points: Points = 64
    every: Duration = 1.0
    burn_in: Duration = 150.0
    dt: Duration = 0.1

    variables: ClassVar[tuple[str, ...]] = ("u",)
    lyapunov_time: ClassVar[float] = 12.0

    @property
    def grid(self) -> tuple[int, int]:
        return 1, self.points

    @property
    def linear(self) -> Tensor:
        k = _frequencies(self.points, self.length)
        return (k**2 - k**4)[None]

    @cached_property
    def _minus_half_ik(self) -> Tensor:
        return -0.5j * _frequencies(self.points, self.length) * self.unaliased

    def nonlinear(self, modes: Tensor) -> Tensor:
        return self._minus_half_ik * torch.fft.rfft(torch.fft.irfft(modes, self.points).square())

    def field(self, modes: Tensor) -> Tensor:
        return torch.fft.irfft(modes, self.points)

    def spectrum(self, u: Tensor) -> Tensor:
        return torch.fft.rfft(u) * self.unaliased

    def start(self, draws: Draws) -> Tensor:
        """Cosines and sines of the four longest waves with normal amplitudes."""
        x = torch.arange(self.points, dtype=torch.float64) * (2 * math.pi / self.points)
        waves = torch.arange(1, 5)[:, None] * x
        amplitudes = draws.normal("Kuramoto-Sivashinsky", 2, 4).double()
        return torch.einsum("btm,tmx->bx", amplitudes, torch.stack([waves.cos(), waves.sin()]))[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Kolmogorov(Simulation):
    """Vorticity of a plane flow on [0, 2 pi]^2 that a shear force sin(n y) drives (axes: y, x):

        w_t + u . grad w = nu lap w - mu w - n cos(n y),   u = (psi_y, -psi_x),   -lap psi = w

    `lyapunov_time` is that of the defaults.

    viscosity: nu; drag: mu; waves: n
    """

    points: Points = 64
    viscosity: Friction = 0.01
    drag: Friction = 0.1
    waves: Annotated[int, Range(0, 1000)] = 4
    every: Duration = 0.5
    burn_in: Duration = 30.0
    dt: Duration = 0.025

    variables: ClassVar[tuple[str, ...]] = ("vorticity",)
    lyapunov_time: ClassVar[float] = 2.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if 3 * self.waves >= self.points:
            raise ValueError(
                f"a force of {self.waves} waves is above the third of {self.points} points that is computed: give more "
                "points, or fewer waves"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return self.points, self.points

    @property
    def wavenumbers(self) -> tuple[Tensor, Tensor]:
        """Wavenumbers of rows (H, 1) and of columns (W / 2 + 1,), in radians a length."""
        rows = torch.fft.fftfreq(self.points, 1 / self.points, dtype=torch.float64)
        return rows[:, None], _frequencies(self.points, 2 * math.pi)

    @property
    def linear(self) -> Tensor:
        return -self.viscosity * self._k_squared - self.drag

    @cached_property
    def _k_squared(self) -> Tensor:
        rows, columns = self.wavenumbers
        return rows**2 + columns**2

    @cached_property
    def _velocity_of(self) -> Tensor:
        """Factors (2, H, W / 2 + 1) that turn modes of the vorticity into modes of the velocity (x, y)."""
        rows, columns = self.wavenumbers
        inverse = self.unaliased / self._k_squared.clamp_min(1)  # the mean has no velocity: its wavenumbers are zero
        return torch.stack([1j * rows * inverse, -1j * columns * inverse])

    @cached_property
    def _minus_divergence(self) -> Tensor:
        rows, columns = self.wavenumbers
        return -1j * torch.stack([columns.expand(rows.shape[0], -1), rows.expand(-1, len(columns))]) * self.unaliased

    @cached_property
    def _force(self) -> Tensor:
        y = torch.arange(self.points, dtype=torch.float64) * (2 * math.pi / self.points)
        return self.spectrum((-self.waves * torch.cos(self.waves * y))[:, None].expand(self.grid))

    def velocity(self, modes: Tensor) -> Tensor:
        """(B, 2, H, W): along x and y, of modes of the vorticity (B, 1, H, W / 2 + 1)."""
        return self.field(self._velocity_of * modes)

    def nonlinear(self, modes: Tensor) -> Tensor:
        flux = self._minus_divergence * torch.fft.rfft2(self.velocity(modes) * self.field(modes))
        return flux[:, :1] + flux[:, 1:] + self._force  # torch.sum takes ten times as long for complex numbers

    def start(self, draws: Draws) -> Tensor:
        """Normal amplitudes of the waves up to the fourth on both axes, of mean 0 and root mean square 2 pi."""
        k = torch.arange(1, 5, dtype=torch.float64)[:, None] * torch.arange(self.points) * (2 * math.pi / self.points)
        basis = torch.cat([k.cos(), k.sin()])
        u = torch.einsum("bij,iy,jx->byx", draws.normal("Kolmogorov", 8, 8).double(), basis, basis)
        return (u * (2 * math.pi / u.square().mean((1, 2), keepdim=True).sqrt()))[:, None]


def _frequencies(points: int, length: float) -> Tensor:
    """(points / 2 + 1,) float64: wavenumbers of a real transform."""
    return torch.arange(points // 2 + 1, dtype=torch.float64) * (2 * math.pi / length)


SIMULATIONS: dict[str, tuple[System, int, int]] = {  # name -> system, trajectories and frames of `read_fields`
    "kuramoto-sivashinsky": (KuramotoSivashinsky(), 500, 100),
    "kolmogorov": (Kolmogorov(), 60, 100),
    "moving-sprites": (MovingSprites(), 120, 20),
    "barotropic-t21": (Barotropic(), 96, 100),
    "barotropic-t42": (Barotropic(latitudes=64, dt=0.5), 96, 100),
}
