"""Forward processes: what a `Process` is, and the variance-preserving Gaussian one with its conditionals.

A process knows its paths: q(z_t | x), q(z_t | z_s), q(z_s | z_t, x), pairs of states on one path, where paths begin,
the random numbers that drawing from these takes, and how a network's output is read as x_hat = E[x | z_t]. What asks
it for these serves every process: the loop, ancestral steps, denoisers, the denoising loss, the bound. Categorical
ones are in categorical.py.

Of the Gaussian, with a = alpha_t / alpha_s, r = exp(log_snr(t) - log_snr(s)) and c = 1 - r, for s < t:

    q(z_t | x)       = N(alpha_t x, sigma_t^2)
    q(z_t | z_s)     = N(a z_s, c sigma_t^2)
    q(z_s | z_t, x)  = N((r / a) z_t + c alpha_s x, c sigma_s^2)

c = -expm1(log_snr(t) - log_snr(s)) keeps small steps free of cancellation.

The pair of a dual-rate model, (z_t, z_tau) with t <= tau, lies on one forward path:
Cov(z_t, z_tau) = (alpha_tau / alpha_t) Var z_t. Two independent noisings of x would be another law.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dualrate.diffusion.context import Shape, cached_for_shared_time, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Schedule, alpha, sigma


class Distribution(Protocol):
    """A distribution of states, one for each row."""

    def sample(self, noise: Tensor, /) -> Tensor:
        """A draw, by random numbers that the process's `noise` made."""
        ...


class Process(ABC):
    """x -> z_t, t from 0 (data) to 1 (noise). x, z: (B, C, H, W), or more leading axes; times: (B,), or those axes.

    A subclass is a frozen dataclass. A plan's times are numbers on the host (`diffusion/context.py`), and so are the
    coefficients of what is made with them.
    """

    schedule: Schedule
    planes = 0  # no annotation: channels that states have beside those of x
    one_time = True  # whether all of a state is at the same t

    def state_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of states, from that of x."""
        return shape[0] + self.planes, *shape[1:]

    def data(self, z: Tensor) -> Tensor:
        """The part of a trajectory's last state that is data: all of it, unless overridden."""
        return z

    @property
    def pace(self) -> Schedule:
        """Schedule in whose noise levels a sampler's times are laid out: its own, unless overridden."""
        return self.schedule

    @property
    def end(self) -> float | None:
        """log_snr of the noisy state in which trajectories end at t = 0. None: they end in x."""
        return None

    @cached_for_shared_time
    def log_snr(self, t: Tensor) -> Tensor:
        """The schedule's log_snr(t), the time as networks see it. Shape of t, or () where t is a plan's."""
        return self.schedule.log_snr(t)

    def ends(self, s: Tensor) -> bool:
        """Whether a step to these times returns x_hat in place of a draw."""
        return False

    def served(self, plan: StepPlan) -> StepPlan:
        """A plan with its heavy calls where contexts that age are trained: as it is, unless overridden."""
        return plan

    @abstractmethod
    def noise(self, draws: Draws, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, ...): random numbers of several streams, by which a state of this shape, (C, H, W), is drawn."""

    @abstractmethod
    def prior(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        """(B, *shape): z_1 without x, where trajectories begin."""

    @abstractmethod
    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t ~ q(z_t | x)."""

    @abstractmethod
    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Distribution:
        """q(z_t | z_s) for s <= t."""

    @abstractmethod
    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Distribution:
        """q(z_s | z_t, x) for s <= t. With x_hat in place of x, the reverse chain draws from it."""

    @abstractmethod
    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """E[x | z_t], computed from a network's output. log_snr: (B,), or () where it is a plan's."""

    def drawn(self, x_hat: Tensor, draws: Draws, stream: str) -> Tensor:
        """Data that x_hat stands for, from which z_s is drawn beside z_t: x_hat itself, unless overridden."""
        return x_hat

    def conditional_mean(self, x_hat: Tensor, z_t: Tensor, z_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """E[x | z_t, z_s] for the x that x_hat at z_t stands for, where z_s was drawn from q(z_s | z_t, x)."""
        return x_hat

    @abstractmethod
    def deviance(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """(B,): -2 log-likelihood of x under x_hat, up to a constant, as a mean over the elements of a state.

        A proper score: its optimum is E[x | z_t]. x: data, or an estimate in their place.
        """

    @abstractmethod
    def extrapolate(self, x_hat: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        """Guidance: a point on the way from x_hat (weight 0) through another estimate (1) and beyond. weight: (B,)."""

    def pair(self, x: Tensor, t: Tensor, tau: Tensor, noise_tau: Tensor, noise_t: Tensor) -> tuple[Tensor, Tensor]:
        """(z_t, z_tau) on one forward path: z_tau given x, then z_t from q(z_t | z_tau, x). Needs t <= tau."""
        z_tau = self.add_noise(x, tau, noise_tau)
        return self.posterior(z_tau, x, tau, t).sample(noise_t), z_tau


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian per row. mean: (B, ...); variance: broadcastable to it."""

    mean: Tensor
    variance: Tensor

    def sample(self, normal: Tensor) -> Tensor:
        """A draw. `normal`: standard normal numbers of the mean's shape."""
        return self.mean + self.variance.sqrt() * normal


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """The value for each row, (B,), on the device of `like`: (B, ...). value: (B,), or () on the host."""
    return value if value.ndim else like.new_full((len(like),), value.item())


class NormalNoise(Process):
    """States are x and standard normal noise, in whatever proportions."""

    def noise(self, draws: Draws, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, *shape) standard normal numbers."""
        return draws.normals(streams, *shape)

    def prior(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        """N(0, I)."""
        return noise

    def deviance(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """The squared error, as a mean over elements."""
        return (x - x_hat).square().flatten(1).mean(1)

    def extrapolate(self, x_hat: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        """x_hat + weight (other - x_hat), a point on the straight line through both."""
        return x_hat + expand(weight, x_hat) * (other - x_hat)


def _gap(log_snr_t: Tensor, log_snr_s: Tensor) -> Tensor:
    """log r; 0 where both are equal, also where they are infinite, which is where z is x."""
    return torch.where(log_snr_s == log_snr_t, 0, log_snr_t - log_snr_s)


class GaussianNoise(NormalNoise):
    """States z = alpha x + sigma eps, each part of them at a noise level of its own."""

    @abstractmethod
    def levels(self, t: Tensor) -> Tensor:
        """log_snr of each part of a state at t, infinite where that is x: the shape of t, with an axis of parts."""

    @abstractmethod
    def spread(self, value: Tensor, like: Tensor) -> Tensor:
        """A number for each part, to multiply states by. value: as `levels`; like: (B, ...)"""

    @cached_for_shared_time
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, of each part."""
        levels = self.levels(t)
        return alpha(levels), sigma(levels)

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = alpha_t x + sigma_t eps; `noise` is eps."""
        alpha_t, sigma_t = self.scales(t)
        return self.spread(alpha_t, x) * x + self.spread(sigma_t, x) * noise

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Gaussian:
        scale, variance = _transition(self, s, t)
        return Gaussian(self.spread(scale, z_s) * z_s, self.spread(variance, z_s))

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        from_z, from_x, variance = posterior_weights(self, t, s)
        return Gaussian(self.spread(from_z, z_t) * z_t + self.spread(from_x, z_t) * x, self.spread(variance, z_t))


@cached_for_shared_time
def _transition(process: GaussianNoise, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a, the weight of z_s in the mean of q(z_t | z_s), and c sigma_t^2, its variance, of each part."""
    log_snr_s, log_snr_t = process.levels(s), process.levels(t)
    scale = alpha(log_snr_t) / alpha(log_snr_s)
    return scale, -torch.expm1(_gap(log_snr_t, log_snr_s)) * torch.sigmoid(-log_snr_t)


@cached_for_shared_time
def posterior_weights(process: GaussianNoise, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r / a and c alpha_s, the weights of z_t and x in the mean of q(z_s | z_t, x), and c sigma_s^2, its variance; of
    each part."""
    log_snr_t, log_snr_s = process.levels(t), process.levels(s)
    gap = _gap(log_snr_t, log_snr_s)
    from_z = torch.exp(gap) * alpha(log_snr_s) / alpha(log_snr_t)
    return from_z, -torch.expm1(gap) * alpha(log_snr_s), -torch.expm1(gap) * torch.sigmoid(-log_snr_s)


@dataclass(frozen=True)
class GaussianProcess(GaussianNoise):
    """z_t = alpha_t x + sigma_t eps under a schedule. Its networks predict v."""

    schedule: Schedule

    def levels(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t)

    def spread(self, value: Tensor, like: Tensor) -> Tensor:
        return expand(value, like)

    def ends(self, s: Tensor) -> bool:
        """Whether all times are 0, where x_hat is x."""
        return not s.any()

    def alpha(self, t: Tensor) -> Tensor:
        return alpha(self.schedule.log_snr(t))

    def sigma(self, t: Tensor) -> Tensor:
        return sigma(self.schedule.log_snr(t))

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """x_hat of v, the output."""
        return x_from_v(z, output, log_snr)


@dataclass(frozen=True)
class NoisyEnd(GaussianProcess):
    """A process whose trajectories end in z_0 with its noise, a draw of p(z_0), and not in x_hat.

    For latents that a decoder takes with their noise, at log_snr(0) (Unified Latents, arXiv 2602.17270).
    """

    @property
    def end(self) -> float:
        return round(self.schedule.log_snr(torch.zeros((), dtype=torch.float64, device="cpu")).item(), 6)

    def ends(self, s: Tensor) -> bool:
        return False


def require_gaussian(process: Process, name: str) -> GaussianProcess:
    """The process, if its noise is Gaussian. Raises ValueError, with the name, for another."""
    if not isinstance(process, GaussianProcess):
        raise ValueError(
            f"{name} has no Gaussian noise of one level ({type(process).__name__}), which this needs: of tokens "
            "make students by moments, and let compare try plans; docs/tokens.md says what else there is"
        )
    return process
