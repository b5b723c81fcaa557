"""Parts that several recipes share: trainings by a few numbers, and one network or a pair."""

from __future__ import annotations

from typing import Any, Literal

from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.body import BodyConfig
from dualrate.training.config import FitConfig, OptimConfig

Decay = Literal["auto", "none", "cosine", "linear"]


def training(
    iterations: int, batch_size: int, lr: float, warmup: int, *, beta: float = 0.9, decay: Decay = "auto", **more: Any
) -> FitConfig:
    """A training with a checkpoint every 250 iterations. beta: of the mean gradient; more: fields of `FitConfig`"""
    optim = OptimConfig(lr=lr, betas=(beta, 0.99), warmup=warmup, decay=decay)
    return FitConfig(iterations, batch_size, optim=optim, **{"checkpoint_every": 250, **more})


def one_or_two(name: str, heavy: BodyConfig, light: BodyConfig | None, fit: FitConfig, data: DataConfig) -> Experiment:
    """One network at every step; or with a light one, trained together for plans of 4 to 32 heavy calls."""
    if light is None:
        return Experiment(name, OneNetwork(heavy), DenoisingConfig(), fit, data)
    return Experiment(name, TwoNetworks(heavy, light), DenoisingConfig(TimeSampler(heavy=(4, 32))), fit, data)
