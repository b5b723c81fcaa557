"""A forecast that is refined: a mean, then a few calls that each take away noise of one small level (PDE-Refiner).

    u_0 = f(0, 0, y)                                               f trained by |f - x|^2
    z_k = u_{k-1} + sigma_k eps,  u_k = z_k - sigma_k f(z_k, k, y)    f trained by |f(x + sigma_k eps, k, y) - eps|^2

with sigma_k = sigma_min^(k / K), k = 1 .. K. In training k = 0 .. K are equally frequent. A sample costs K + 1 calls.
Members differ by these small noises alone.

As a process: level k has the time t = 1 - k / (K + 1) and z_t = x + sigma_k eps, or 0 of k = 0. A step to s draws from
N(x_hat, sigma_s^2), whatever z_t was: `Reverse`, with a posterior that looks at x alone. With x_hat = z - sigma_k f the
two losses are |x_hat - x|^2 / sigma_k^2, sigma_0 = 1.

Source: PDE-Refiner (Lippe, Veeling, Perdikaris, Turner, Brandstetter 2023, arXiv 2308.05732), sigma_min 2e-7 for the
Kuramoto-Sivashinsky equation. Deviates from it: least is 1e-5, as states are float32, and frames may be a window of
several. Its differences from frame to frame are those of `Forecast.difference`. Two rates are ours: the heavy network
sees y once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.context import expand
from dualrate.diffusion.process import Gaussian, NormalNoise
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.plan_support import OwnSteps
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import BatchTimes, SingleTime, TimeSource


@dataclass(frozen=True)
class Levels(Schedule, Ranged):
    """log_snr = -2 log sigma, linear in t: 0 at level 0, where t = 1."""

    refinements: Annotated[int, Range(1, 1000)] = 3
    """K, calls after the first."""
    sigma_min: Annotated[float, Range(1e-5, 1, below=True)] = 1e-3
    """Noise of the last call, in standard deviations of the field."""

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_min) * (self.refinements + 1) / self.refinements

    def log_snr(self, t: Tensor) -> Tensor:
        return self._rate * (t - 1)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self._rate)

    def time(self, log_snr: Tensor) -> Tensor:
        return 1 + log_snr / self._rate


@dataclass(frozen=True)
class Refinement(NormalNoise):
    """See the module. Its networks predict x at t = 1, and noise at the other levels."""

    schedule: Levels = Levels()  # pyright: ignore[reportIncompatibleVariableOverride]

    def ends(self, s: Tensor) -> bool:
        """At t = 0, where x_hat is x."""
        return not s.any()

    def prior(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        """Zeros: nothing is known of x."""
        return torch.zeros_like(noise)

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return expand((t < 1).to(x.dtype), x) * x + expand(self._sigma(t), x) * noise

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Gaussian:
        raise ValueError("levels of a refinement have noise of their own: none is made of another")

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return Gaussian(x, expand(self._sigma(s).square(), x))

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        sigma = torch.where(log_snr > 0, torch.exp(-log_snr / 2), -1)  # at t = 1 z is 0
        return z - expand(sigma, z) * output

    def _sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in z_t: 0 at t = 1."""
        return torch.where(t < 1, torch.exp(-self.schedule.log_snr(t) / 2), 0)


@dataclass(frozen=True)
class AtLevels(TimeSource):
    """Times of another source, uniform in [0, 1), each moved to the time of a level."""

    times: TimeSource
    levels: Levels

    ages = False

    @property
    def draws(self) -> int:
        return self.times.draws

    def __call__(self, draws: Draws) -> BatchTimes:
        times, count = self.times(draws), self.levels.refinements + 1
        t = (torch.floor(count * times.t) + 1).clamp(max=count) / count
        return times._replace(t=t, tau=torch.maximum(times.tau, t))


@dataclass(frozen=True)
class Refining(Denoising):
    """The loss of the module: of x_hat, as if of what the network predicts."""

    def weighted_error(self, x: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        error = self.process.deviance(self.condition.weighed(x), self.condition.weighed(x_hat))
        return torch.exp(self.process.log_snr(t)).to(error.dtype) * error


@dataclass(frozen=True)
class RefinerConfig(MethodConfig, Ranged):
    """A mean, refined by calls that take away noise of smaller and smaller levels."""

    times: TimeSource = SingleTime()
    """Of which each is moved to a level's."""
    refinements: Annotated[int, Range(1, 1000)] = 3
    """As of the process."""
    weighting = Elbo()

    @property
    def serves(self) -> OwnSteps:
        steps, heavy = self.refinements + 1, None if self.times.heavy is None else self.times.heavy[0]
        return OwnSteps(steps, heavy, learned=f"model has learned the noise levels of {steps} steps, and no others")

    def check(self, experiment: Experiment) -> None:
        process = experiment.process
        if not isinstance(process, Refinement) or process.schedule.refinements != self.refinements:
            raise ValueError(
                f"{experiment.name} refines {self.refinements} times: its process is a Refinement of as many levels, "
                f"got {process}"
            )
        if experiment.networks.given is None:
            raise ValueError(f"{experiment.name} is given nothing that a mean would be of: give a condition")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        process = experiment.process
        assert isinstance(process, Refinement)  # of `check`
        parts = networks, denoiser, process, self.weighting, AtLevels(self.times, process.schedule)
        return Prepared(Refining(*parts, condition=experiment.condition))
