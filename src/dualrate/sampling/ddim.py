"""DDIM, and DDIM with the noise that it loses in a long step put back (aDDIM).

DDIM (Song, Meng, Ermon 2021) solves the probability-flow ODE with x_hat constant over the step,

    z_s = alpha_s x_hat + sigma_s eps_hat,   eps_hat = (z_t - alpha_t x_hat) / sigma_t

which is Euler's method in X = z / alpha, S = sigma / alpha: dX/dS = eps_hat.

AdjustedDDIM. x_hat is the mean of the images that z_t may stand for, so alpha_s x_hat + sigma_s eps_hat is shorter than
z_s ought to be, and few steps of DDIM give smooth images. With xvar_t the variance of these images about x_hat, per
dimension, z_s lacks a variance zvar per dimension, which eps_hat is stretched for:

    zvar = (alpha_s - alpha_t sigma_s / sigma_t)^2 xvar_t
    z_s  = alpha_s x_hat + sqrt(sigma_s^2 + d / |eps_hat|^2 zvar) eps_hat

so that |z_s|^2 grows by d zvar where x_hat and eps_hat are orthogonal. They nearly are for images, whose variance is in
few directions; for data that vary in all directions alike they are parallel, and some steps of it overshoot. d and
|eps_hat|^2 are of one image, over all its dimensions. zvar falls with the square of the step: many steps are DDIM.

It is the step that DDIM makes with another x_hat: with u = alpha / sigma, whose DDIM is z_s / sigma_s = z_t / sigma_t +
(u_s - u_t) x_hat, and q = d / |eps_hat|^2 xvar_t,

    x_hat + (u_s - u_t) q / (1 + sqrt(1 + (u_s - u_t)^2 q)) eps_hat

xvar_t is 0.1 / (2 + SNR_t).

Source: Heek, Hoogeboom, Salimans, "Multistep Consistency Models" (arXiv 2403.06807).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.diffusion.context import expand
from dualrate.diffusion.prediction import eps_from_x
from dualrate.diffusion.process import GaussianProcess
from dualrate.sampling.step import Carry, Denoise, Draw, Step, Stepped, move


@dataclass(frozen=True)
class DDIM(Step):
    """The deterministic sampler of first order; the step into t = 0 returns x_hat."""

    process: GaussianProcess
    draws_noise = False
    title = "DDIM"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_hat = denoise(z, t)
        return x_hat if self.process.ends(s) else move(self.process, z, x_hat, t, s), carry


XVariance = Callable[[Tensor], Tensor]  # log_snr -> variance of x about x_hat, per dimension, of its shape


def analytic_variance(log_snr: Tensor) -> Tensor:
    """0.1 / (2 + SNR), for images in [-1, 1]."""
    return 0.1 / (2 + torch.exp(log_snr))


@dataclass(frozen=True)
class AdjustedDDIM(Step):
    """Deterministic, of first order, closer to the right variance in few steps; the step into t = 0 returns x_hat."""

    process: GaussianProcess
    variance: XVariance = analytic_variance
    draws_noise = False
    title = "aDDIM"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        x_hat = denoise(z, t)
        if self.process.ends(s):
            return x_hat, carry
        variance = self.variance(self.process.log_snr(t))
        return move(self.process, z, adjusted(self.process, z, x_hat, t, s, variance), t, s), carry


def adjusted(process: GaussianProcess, z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, variance: Tensor) -> Tensor:
    """The x_hat with which DDIM makes the step of AdjustedDDIM.

    variance: of x about x_hat, per dimension, (B,) or ()
    """
    log_snr_t, log_snr_s = process.log_snr(t), process.log_snr(s)
    eps_hat = eps_from_x(z, x_hat, log_snr_t)
    step = torch.exp(log_snr_s / 2) - torch.exp(log_snr_t / 2)  # u_s - u_t
    q = variance / eps_hat.square().flatten(1).mean(1)
    return x_hat + expand(step * q / (1 + torch.sqrt(1 + step**2 * q)), z) * eps_hat
