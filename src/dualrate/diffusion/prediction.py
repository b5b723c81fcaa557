"""Conversions between what a network predicts and x_hat, at log_snr. Everything goes through x.

    z = alpha x + sigma eps,    v = alpha eps - sigma x
    x = alpha z - sigma v,      eps = (z - alpha x) / sigma,    score = -eps / sigma

Of rectified flow, whose state is x_r = s z with r = sigmoid(-log_snr / 2), s = sqrt((1 - r)^2 + r^2) (schedule.py):

    u = eps - x = (v - (1 - 2 r) z) / s,    v = (1 - 2 r) z + s u

z, x, v, eps, u: (B, ...); log_snr: (B,) or any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualrate.diffusion.schedule import alpha, sigma
from dualrate.diffusion.times import expand


def x_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """x = alpha z - sigma v."""
    return expand(alpha(log_snr), z) * z - expand(sigma(log_snr), z) * v


def v_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """v = (alpha z - x) / sigma."""
    return (expand(alpha(log_snr), z) * z - x) / expand(sigma(log_snr), z)


def eps_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """eps = (z - alpha x) / sigma."""
    return (z - expand(alpha(log_snr), z) * x) / expand(sigma(log_snr), z)


def eps_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """eps = sigma z + alpha v."""
    return expand(sigma(log_snr), z) * z + expand(alpha(log_snr), z) * v


def score_from_x(z: Tensor, x: Tensor, log_snr: Tensor) -> Tensor:
    """Gradient of log q(z_t) by Tweedie: (alpha x - z) / sigma^2."""
    return -eps_from_x(z, x, log_snr) / expand(sigma(log_snr), z)


def v_from_eps(z: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """v = (eps - sigma z) / alpha."""
    return (eps - expand(sigma(log_snr), z) * z) / expand(alpha(log_snr), z)


def flow_time(log_snr: Tensor) -> Tensor:
    """r = sigmoid(-log_snr / 2): the share of noise in the state of rectified flow."""
    return torch.sigmoid(-log_snr / 2)


def flow_scale(log_snr: Tensor) -> Tensor:
    """s = sqrt((1 - r)^2 + r^2), by which the state of rectified flow is z."""
    return torch.sqrt(torch.sigmoid(log_snr / 2) ** 2 + torch.sigmoid(-log_snr / 2) ** 2)


def v_from_flow(z: Tensor, u: Tensor, log_snr: Tensor) -> Tensor:
    """v = (1 - 2 r) z + s u."""
    return expand(torch.tanh(log_snr / 4), z) * z + expand(flow_scale(log_snr), z) * u


def flow_from_v(z: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """u = (v - (1 - 2 r) z) / s."""
    return (v - expand(torch.tanh(log_snr / 4), z) * z) / expand(flow_scale(log_snr), z)
