"""DDIM with the covariance of x given z_t, of a Fourier structure, by one derivative a step; no table beforehand.

DDIM puts x_hat = E[x | z_t] in the place of a draw x* ~ p(x | z_t), and so loses the spread of x*. With it

    z_s = (sigma_s / sigma_t) z_t + B x_hat + B C^(1/2) n,    B = alpha_s - alpha_t sigma_s / sigma_t
    C   = Cov[x | z_t] = (sigma_t^2 / alpha_t) J,             J = d x_hat / d z_t      Tweedie, second order
    C   = U^T diag(l) U,                                      U a DCT or DFT, one l a band of frequencies
    l   = (sigma_t^2 / alpha_t) r (U J U^T r),                mean over the band, r random signs

J U^T r is one Jacobian-vector product, so that a step costs two calls. l is exact for a C that U makes diagonal, which
is that of a stationary field; any number of steps, one as well, then has the field's own law. It is unbiased otherwise.

    into t = 0    x_hat + C^(1/2) n
    bounds        l >= 0, and the mean of l over all frequencies, which is that of Var[x | z_t] over an image, <= `most`

With the Markov kernel in place of DDIM's, z_s keeps the law of pairs that a reused context needs (covariance.py).

Source: Schioppa and Salimans, "Covariance-aware sampling for Diffusion Models", arXiv 2605.13910, of which the abstract
and summaries are public: "Tweedie's formula", "Fourier-space decomposition", "an extension of DDIM", "one extra
Jacobian-Vector Product per step". The probe, the rings and the bounds are a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Positive, Rings
from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import GaussianProcess, posterior_weights
from dualrate.sampling.covariance import Bands, Boundary, Kernel, KernelStep, probed
from dualrate.sampling.step import Carry, Denoise, Draw, Stepped, move_weights


@dataclass(frozen=True)
class FourierCovariance(KernelStep):
    """The step of the module.

    boundary: of the images: "even", a DCT; "periodic", a DFT
    rings:    of frequencies in each channel, at most
    most:     of the mean of Var[x | z_t] over an image. 1 is that of data in [-1, 1], and of normalised fields; at high
              noise, where a network's derivative is off and sigma_t^2 / alpha_t large, it keeps an estimate in bounds
    """

    process: GaussianProcess
    kernel: Kernel = "ddim"
    boundary: Boundary = "even"
    rings: Rings = 12
    most: Positive = 1.0
    calls_per_step = 2

    def __str__(self) -> str:
        transform = "DCT" if self.boundary == "even" else "DFT"
        return f"covariance-aware, {transform}{', Markov kernel' if self.kernel == 'markov' else ''}"

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        channels, height, width = z.shape[1:]
        bands = Bands((channels, height, width), self.rings, self.boundary)
        x_hat, estimate = probed(self.process, bands, denoise, z, t, draw())
        variance = estimate.clamp_min(0)
        variance = variance * share(bands.spread(variance).flatten(1).mean(1, keepdim=True), self.most)
        a, b, v = kernel_weights(self.process, self.kernel, t, s)
        noise = bands.noise(expand(b**2, variance) * variance + expand(v, variance), draw())
        return expand(a, z) * z + expand(b, z) * x_hat + noise, carry


def share(mean: Tensor, most: float) -> Tensor:
    """The factor that brings a mean variance down to `most`; 1 where it is below."""
    return (most / mean.clamp_min(most)).to(mean)


@cached_for_shared_time
def kernel_weights(process: GaussianProcess, kernel: Kernel, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in z_s of z and of a drawn x, and the variance of its own noise; x alone where paths end in it."""
    if process.ends(s):
        return torch.zeros_like(t), torch.ones_like(t), torch.zeros_like(t)
    if kernel == "ddim":
        a, b = move_weights(process, t, s)
        return a, b, torch.zeros_like(b)
    return posterior_weights(process, t, s)
