"""The variance-preserving Gaussian forward process and its conditionals.

With a = alpha_t / alpha_s, r = exp(log_snr(t) - log_snr(s)) and c = 1 - r, for s < t:

    q(z_t | x)       = N(alpha_t x, sigma_t^2)
    q(z_t | z_s)     = N(a z_s, c sigma_t^2)
    q(z_s | z_t, x)  = N((r / a) z_t + c alpha_s x, c sigma_s^2)

c = -expm1(log_snr(t) - log_snr(s)) keeps small steps free of cancellation.

The pair of a dual-rate model, (z_t, z_tau) with t <= tau, lies on one forward path:
Cov(z_t, z_tau) = (alpha_tau / alpha_t) Var z_t. Two independent noisings of x would be another law.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.diffusion.schedule import Schedule, alpha, sigma
from dualrate.diffusion.times import once


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian per row. mean: (B, ...); variance: broadcastable to it."""

    mean: Tensor
    variance: Tensor

    def sample(self, normal: Tensor) -> Tensor:
        """`normal`: standard normal numbers of the mean's shape."""
        return self.mean + self.variance.sqrt() * normal


def expand(value: Tensor, like: Tensor) -> Tensor:
    """A tensor over leading axes with trailing axes of size one, so that it broadcasts against `like`, in its dtype.

    Coefficients are computed in the dtype of the times (float64 in sampling); a state keeps its own. One number for all
    rows, (), is left where it is, on the host: an operator takes it along whatever the device.
    """
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)).to(like) if value.ndim else value


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """(B,) on the device of `like`: (B, ...). value: (B,), or () on the host."""
    return value if value.ndim else like.new_full((len(like),), value.item())


@once
def _log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    return schedule.log_snr(t)


@once
def _scales(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    log_snr = schedule.log_snr(t)
    return alpha(log_snr), sigma(log_snr)


@once
def _transition(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a, c sigma_t^2."""
    log_snr_s, log_snr_t = schedule.log_snr(s), schedule.log_snr(t)
    scale = alpha(log_snr_t) / alpha(log_snr_s)
    return scale, -torch.expm1(log_snr_t - log_snr_s) * torch.sigmoid(-log_snr_t)


@once
def _posterior(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r / a, c alpha_s, c sigma_s^2."""
    log_snr_s, log_snr_t = schedule.log_snr(s), schedule.log_snr(t)
    gap = log_snr_t - log_snr_s
    from_z = torch.exp(gap) * alpha(log_snr_s) / alpha(log_snr_t)
    from_x = -torch.expm1(gap) * alpha(log_snr_s)
    return from_z, from_x, -torch.expm1(gap) * torch.sigmoid(-log_snr_s)


@dataclass(frozen=True)
class GaussianProcess:
    """x -> z_t under a schedule. x, z: (B, ...); times: (B,), or any leading axes of the state.

    A plan's times are numbers on the host (`diffusion/times.py`); so are the coefficients of what is made with them.
    """

    schedule: Schedule

    @property
    def end(self) -> float | None:
        """log_snr of what trajectories end in at t = 0; None: in x."""
        return None

    def ends(self, s: Tensor) -> bool:
        """Whether a step to these times ends in x: at t = 0, where x_hat is it."""
        return bool((s == 0).all())

    def alpha(self, t: Tensor) -> Tensor:
        return alpha(self.schedule.log_snr(t))

    def sigma(self, t: Tensor) -> Tensor:
        return sigma(self.schedule.log_snr(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """The schedule's log_snr(t), or () where t is a plan's."""
        return _log_snr(self.schedule, t)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, or () where t is a plan's."""
        return _scales(self.schedule, t)

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t = alpha_t x + sigma_t eps."""
        alpha_t, sigma_t = self.scales(t)
        return expand(alpha_t, x) * x + expand(sigma_t, x) * eps

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Gaussian:
        """q(z_t | z_s) for s <= t."""
        scale, variance = _transition(self.schedule, s, t)
        return Gaussian(expand(scale, z_s) * z_s, expand(variance, z_s))

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """q(z_s | z_t, x) for s <= t."""
        from_z, from_x, variance = _posterior(self.schedule, t, s)
        return Gaussian(expand(from_z, z_t) * z_t + expand(from_x, z_t) * x, expand(variance, z_t))

    def pair(self, x: Tensor, t: Tensor, tau: Tensor, eps_tau: Tensor, eps_t: Tensor) -> tuple[Tensor, Tensor]:
        """(z_t, z_tau) on one forward path: z_tau given x, then z_t from q(z_t | z_tau, x). Needs t <= tau."""
        z_tau = self.add_noise(x, tau, eps_tau)
        return self.posterior(z_tau, x, tau, t).sample(eps_t), z_tau


@dataclass(frozen=True)
class NoisyEnd(GaussianProcess):
    """One whose trajectories end in z_0 with its noise, a draw of p(z_0), where that of others ends in x_hat.

    For latents that a decoder takes with their noise, at log_snr(0) (Unified Latents, arXiv 2602.17270).
    """

    @property
    def end(self) -> float:
        return round(self.schedule.log_snr(torch.zeros((), dtype=torch.float64)).item(), 6)

    def ends(self, s: Tensor) -> bool:
        return False
