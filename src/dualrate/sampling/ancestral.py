"""Ancestral sampling.

Ancestral (Ho, Jain, Abbeel 2020; DDPM) draws z_s from q(z_s | z_t, x = x_hat), with the variance interpolated on a log
scale between the posterior's own (gamma = 0) and that of the transition q(z_t | z_s) (gamma = 1):

    variance = exp(gamma log(c sigma_t^2) + (1 - gamma) log(c sigma_s^2)),   c = 1 - exp(log_snr(t) - log_snr(s))

Between it and DDIM (sampling/ddim.py; Song, Meng, Ermon 2021, eq. 12 and 16) a share of eps_hat is replaced by fresh
noise,

    z_s = alpha_s x_hat + sqrt(sigma_s^2 - g^2) eps_hat + g n,   g = eta sqrt(c) sigma_s

eta = 1 is Ancestral with gamma = 0, eta = 0 is DDIM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Probability, Ranged
from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import Distribution, Gaussian, GaussianNoise, GaussianProcess, Process
from dualrate.diffusion.schedule import alpha, sigma
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.step import Carry, Denoise, Draw, MarkovStep, Stepped


@dataclass(frozen=True)
class Reverse(MarkovStep):
    """Draws z_s from q(z_s | z_t, x = x_hat) of any process: the ancestral step of a categorical one."""

    process: Process
    of = Process
    markovian = True
    title = "reverse"

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Distribution:
        return self.process.posterior(z, denoise(z, t), t, s)

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        if self.process.ends(s):
            return denoise(z, t), carry
        return self.kernel(denoise, z, t, s).sample(draw()), carry


@dataclass(frozen=True)
class Ancestral(Ranged, Reverse):
    """Samples the reverse chain; the step into t = 0 returns x_hat without noise. gamma, eta in [0, 1]: see the module.

    Raises ValueError for values out of range, and for a gamma above 0 with an eta below 1: the one adds noise to the
    posterior's, the other takes some away.
    """

    process: GaussianProcess
    gamma: Probability = 0.0
    eta: Probability = 1.0
    of = GaussianProcess

    def __str__(self) -> str:
        """The name in tables, with the settings that are not the usual ones."""
        if self.eta < 1:
            return f"ancestral, eta {self.eta:g}"
        return f"ancestral, gamma {self.gamma:g}" if self.gamma else "ancestral"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta < 1 and self.gamma > 0:
            raise ValueError(
                f"gamma adds noise and eta takes noise away, got gamma {self.gamma} with eta {self.eta}: "
                "keep one at its default, gamma at 0 or eta at 1"
            )

    @property
    def markovian(self) -> bool:
        """Whether eta is 1, so that the step draws all of its noise."""
        return self.eta == 1

    @property
    def draws_noise(self) -> bool:
        """Whether eta is above 0; at 0 the step is DDIM."""
        return self.eta > 0

    def kernel(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """p(z_s | z_t), also at s = 0, where the variance is that of the schedule's end point.

        Raises ValueError for eta = 0, which makes z_s a point.
        """
        if self.eta == 0:
            raise ValueError("with eta = 0 z_s is a function of z_t and has no density: use an eta above 0")
        if self.eta < 1:
            from_z, from_x, variance = _less_noise(self.process, self.eta, t, s)
            return Gaussian(expand(from_z, z) * z + expand(from_x, z) * denoise(z, t), expand(variance, z))
        return noisier(self.process, self.process.posterior(z, denoise(z, t), t, s), self.gamma, t, s)

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        if self.eta == 0:
            return DDIM(self.process)(denoise, z, t, s, draw, carry)
        return super().__call__(denoise, z, t, s, draw, carry)


def noisier(process: GaussianNoise, posterior: Gaussian, gamma: float, t: Tensor, s: Tensor) -> Gaussian:
    """q(z_s | z_t, x) with the variance of a gamma."""
    if gamma == 0:
        return posterior
    more = process.spread(_more_noise(process, gamma, t, s), posterior.mean)
    return Gaussian(posterior.mean, posterior.variance * more)


@cached_for_shared_time
def _more_noise(process: GaussianNoise, gamma: float, t: Tensor, s: Tensor) -> Tensor:
    """((c sigma_t^2) / (c sigma_s^2))^gamma, 1 of parts that become x: c cancels, so that small steps lose nothing."""
    log_snr_t, log_snr_s = process.levels(t), process.levels(s)
    log_ratio = torch.nn.functional.logsigmoid(-log_snr_t) - torch.nn.functional.logsigmoid(-log_snr_s)
    return torch.exp(gamma * torch.where(torch.isinf(log_snr_s), 0, log_ratio))


@cached_for_shared_time
def _less_noise(process: GaussianProcess, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of z and x in the mean, k / sigma_t and alpha_s - alpha_t k / sigma_t, and the variance g^2.

    k^2 = sigma_s^2 - g^2
    """
    log_snr_t, log_snr_s = process.schedule.log_snr(t), process.schedule.log_snr(s)
    gap = log_snr_t - log_snr_s
    share = (1 - eta) * (1 + eta) + eta**2 * torch.exp(gap)  # k^2 / sigma_s^2 = 1 - eta^2 c, free of cancellation
    from_z = share.sqrt() * sigma(log_snr_s) / sigma(log_snr_t)
    from_x = alpha(log_snr_s) - alpha(log_snr_t) * from_z
    return from_z, from_x, -(eta**2) * torch.expm1(gap) * torch.sigmoid(-log_snr_s)
