"""Loss weights, of noise levels.

The denoising loss with t ~ U(0, 1) is

    L = 1/2 E[ -dlog_snr/dt * e^log_snr * w(log_snr) * |x - x_hat|^2 ]

which for w = 1 is the evidence lower bound (Kingma, Salimans, Poole, Ho 2021). The sigmoid weight of SiD2
(Hoogeboom et al. 2024, arXiv 2410.19324) is w = sigmoid(bias - log_snr), so e^log_snr w = e^bias
sigmoid(log_snr - bias): finite at both ends. The factor e^bias is kept, so that losses with different biases compare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dualrate.config.ranges import LogSNR, Ranged
from dualrate.diffusion.schedule import Schedule


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
