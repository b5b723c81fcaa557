"""Conversions between what a network predicts and x_hat, at log_snr. Everything goes through x.

    z = alpha x + sigma eps,    v = alpha eps - sigma x
    x = alpha z - sigma v,      eps = (z - alpha x) / sigma,    score = -eps / sigma

z, x, v, eps: (B, ...); log_snr: (B,) or any leading axes.
"""

from __future__ import annotations

from torch import Tensor

from dualrate.diffusion.process import expand
from dualrate.diffusion.schedule import alpha, sigma


def x_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """x = alpha z - sigma v."""
    return expand(alpha(log_snr), z) * z - expand(sigma(log_snr), z) * v


def v_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """v = (alpha z - x) / sigma."""
    return (expand(alpha(log_snr), z) * z - x) / expand(sigma(log_snr), z)


def x_from_eps(z: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """x = (z - sigma eps) / alpha."""
    return (z - expand(sigma(log_snr), z) * eps) / expand(alpha(log_snr), z)


def eps_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """eps = (z - alpha x) / sigma."""
    return (z - expand(alpha(log_snr), z) * x) / expand(sigma(log_snr), z)


def score_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """Gradient of log q(z_t) by Tweedie: (alpha x - z) / sigma^2."""
    return -eps_from_x(z, x, log_snr) / expand(sigma(log_snr), z)
