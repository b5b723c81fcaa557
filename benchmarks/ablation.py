"""One network of `benchmarks.peers` with one part taken from the other packages: what explains the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import dualrate as dr
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.prediction import v_from_eps, v_from_x, x_from_v
from dualrate.diffusion.process import Process
from dualrate.diffusion.schedule import Betas
from dualrate.diffusion.weighting import Weighting


@dataclass(frozen=True)
class EpsLoss(Weighting):
    """|eps - eps_hat|^2 with uniform times: w = 2 / |dlog_snr/dt|, which is sech(log_snr / 2) / pi for Cosine."""

    def snr_weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr) / torch.cosh(log_snr / 2) / math.pi

    def integral(self, log_snr_low: Tensor, log_snr_high: Tensor) -> Tensor:
        low, high = torch.exp(log_snr_low / 2), torch.exp(log_snr_high / 2)
        return 4 / math.pi * (high - low - torch.atan(high) + torch.atan(low))


class Eps(torch.nn.Module):
    """A network that predicts eps, as one that predicts v. When it draws x_hat is clipped, as in diffusers' DDPM."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, log_snr: Tensor, *more: Any, **by_name: Any) -> Tensor:
        v = v_from_eps(z, self.network(z, log_snr, *more, **by_name), log_snr)
        return v if self.training else v_from_x(z, x_from_v(z, v, log_snr).clamp(-1, 1), log_snr)


@dataclass(frozen=True)
class EpsNetwork(dr.OneNetwork):
    def build(self, process: Process) -> tuple[torch.nn.ModuleDict, dr.Denoiser]:
        network = Eps(self.model.network())
        return torch.nn.ModuleDict({"model": network}), Plain(network, process)


def with_patch(experiment: Any) -> dr.Experiment:
    return replace(experiment, networks=dr.OneNetwork(replace(experiment.networks.model, patch=1)))


def with_eps(experiment: Any) -> dr.Experiment:
    method = replace(experiment.method, weighting=EpsLoss())
    return replace(experiment, networks=EpsNetwork(experiment.networks.model), method=method)


def with_betas(experiment: Any) -> dr.Experiment:
    return replace(experiment, process=replace(experiment.process, schedule=Betas()))


def with_constant_rate(experiment: Any) -> dr.Experiment:
    return replace(experiment, fit=replace(experiment.fit, optim=replace(experiment.fit.optim, decay="none")))


def without_averages(experiment: Any) -> dr.Experiment:
    return replace(experiment, fit=replace(experiment.fit, ema_halflife=1))


ABLATED = {
    "patches of 1": with_patch,
    "predicts eps, loss on eps": with_eps,
    "linear betas": with_betas,
    "constant rate": with_constant_rate,
    "no averaged weights": without_averages,
}
