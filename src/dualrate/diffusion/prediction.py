"""Conversions between what a network predicts and x_hat, at log_snr. Everything goes through x.

    z = alpha x + sigma eps,    v = alpha eps - sigma x
    x = alpha z - sigma v,      eps = (z - alpha x) / sigma,    score = -eps / sigma

Of rectified flow, whose state is x_r = s z with r = sigmoid(-log_snr / 2), s = sqrt((1 - r)^2 + r^2) (schedule.py):

    u = eps - x = (v - (1 - 2 r) z) / s,    v = (1 - 2 r) z + s u

z, x, v, eps, u: (B, ...); log_snr: (B,) or any leading axes.

What a network takes and predicts itself, a `Convention`, in terms of (z, log_snr) and v:

    discrete   state z; time: a step of a table of betas; predicts eps, x or v
    flow       state x_r; time: r, or 1 - r where data is at 1; predicts u, or -u

Rectified flow and the variance-preserving process are one: the state differs by a factor, u and v by a linear map. So a
network of either kind trains and samples under any schedule of ours.

Loss weights. The denoising loss with t ~ U(0, 1) is

    L = 1/2 E[ -dlog_snr/dt * e^log_snr * w(log_snr) * |x - x_hat|^2 ]

which for w = 1 is the evidence lower bound (Kingma, Salimans, Poole, Ho 2021). The sigmoid weight of SiD2
(Hoogeboom et al. 2024, arXiv 2410.19324) is w = sigmoid(bias - log_snr), so e^log_snr w = e^bias
sigmoid(log_snr - bias): finite at both ends. The factor e^bias is kept, so that losses with different biases compare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dualrate.config.ranges import Factor, LogSNR, Range, Ranged
from dualrate.diffusion.context import expand
from dualrate.diffusion.schedule import Betas, Schedule, alpha, sigma


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


Prediction = Literal["epsilon", "sample", "v_prediction"]
TO_V: dict[Prediction, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": v_from_eps,
    "sample": v_from_x,
    "v_prediction": lambda z, v, log_snr: v,
}


@dataclass(frozen=True)
class Discrete(Ranged):
    """A network of a table of betas.

    clip: the range +-clip of the data, to which x_hat is clamped; None: it is not
    """

    betas: Betas
    predicts: Prediction = "epsilon"
    clip: Annotated[float, Range(0, 1_000_000, above=True)] | None = None

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The state that the network takes for z, (B, C, H, W), at log_snr, (B,)."""
        return z

    def time(self, log_snr: Tensor) -> Tensor:
        """The time that the network takes, (B,).

        Looked up in float64: a step is 1e-2 in log-SNR. Rounding of log_snr in float32 is 1e-4 of a step at most.
        """
        index = self.betas.index(log_snr.double())
        whole = index.round()
        return index.where((index - whole).abs() > 1e-3, whole).to(log_snr.dtype)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """v, computed from the network's output."""
        v = TO_V[self.predicts](z, output, log_snr)
        return v if self.clip is None else v_from_x(z, x_from_v(z, v, log_snr).clamp(-self.clip, self.clip), log_snr)


@dataclass(frozen=True)
class Flow(Ranged):
    """A network of rectified flow; its methods are those of `Discrete`.

    units: the network's time at the end that is 1; noise_at: which end of time is noise
    """

    units: Factor = 1000.0
    noise_at: Literal[0, 1] = 1
    predicts: Literal["eps - x", "x - eps"] = "eps - x"

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return expand(flow_scale(log_snr), z) * z

    def time(self, log_snr: Tensor) -> Tensor:
        return self.units * flow_time(log_snr if self.noise_at == 1 else -log_snr)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        return v_from_flow(z, output if self.predicts == "eps - x" else -output, log_snr)


Convention = Discrete | Flow
REPA = Flow(units=1.0)
SIT = Flow(units=1.0, noise_at=0, predicts="x - eps")


class Weighting(ABC):
    """A loss weight; a subclass is a frozen dataclass."""

    @abstractmethod
    def snr_weight(self, log_snr: Tensor) -> Tensor:
        """e^log_snr * w(log_snr), the factor of |x - x_hat|^2 per unit of log_snr."""

    @abstractmethod
    def integral(self, log_snr_low: Tensor, log_snr_high: Tensor) -> Tensor:
        """Integral of `snr_weight` over [low, high]: the weight of a sampler's step between two noise levels."""


@dataclass(frozen=True)
class Sigmoid(Weighting, Ranged):
    """Loss weight w = sigmoid(bias - log_snr)."""

    bias: LogSNR = 0.0
    """A lower bias spends less on fine detail; SiD2 lowers it as images grow."""

    def snr_weight(self, log_snr: Tensor) -> Tensor:
        return math.exp(self.bias) * torch.sigmoid(log_snr - self.bias)

    def integral(self, log_snr_low: Tensor, log_snr_high: Tensor) -> Tensor:
        scale = math.exp(self.bias)
        return scale * (softplus(log_snr_high - self.bias) - softplus(log_snr_low - self.bias))


@dataclass(frozen=True)
class Elbo(Weighting):
    """w = 1: the bound on the likelihood, dominated by the finest detail."""

    def snr_weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr)

    def integral(self, log_snr_low: Tensor, log_snr_high: Tensor) -> Tensor:
        return torch.exp(log_snr_high) - torch.exp(log_snr_low)


def x_loss_weight(weighting: Weighting, schedule: Schedule, t: Tensor) -> Tensor:
    """-1/2 dlog_snr/dt e^log_snr w: the weight of |x - x_hat|^2 when t is uniform. Shape of t."""
    return -0.5 * schedule.log_snr_derivative(t) * weighting.snr_weight(schedule.log_snr(t))
