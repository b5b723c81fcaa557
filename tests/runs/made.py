"""Runs with random weights, as the tests of runs and of released weights use them."""

from pathlib import Path

import torch

from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import write_experiment
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
ONE = Experiment("one", OneNetwork(NET), DenoisingConfig(), FitConfig(iterations=1))
TWO = Experiment("two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1))


def saved(experiment: Experiment, path, *iterations: int, ema: float | None = None):
    """A run with checkpoints of random weights, no zeros among them; `ema`: averaged weights that are all that."""
    write_experiment(path, experiment)
    for iteration in iterations or (7,):
        networks, _ = experiment.build()
        for parameter in networks.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        tensors = {"model": networks.state_dict()}
        if ema is not None:
            tensors["ema-model"] = {name: torch.full_like(p, ema) for name, p in networks.named_parameters()}
        counts = {"iteration": iteration, "seconds": 1.0, "skipped": 0, "precision": "float32"}
        checkpoint.save(path / "checkpoints", iteration, tensors, {**counts, "phases": {"model": {}}})
    return path


def saved_random(experiment: Experiment, path: Path, seed: int = 0) -> Path:
    """A run at iteration 1 whose weights, averages too, are normal numbers of a seed, of deviation 0.2."""
    networks, _ = experiment.build()
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(p.shape, generator=generator) for name, p in networks.state_dict().items()}
    write_experiment(path, experiment)
    checkpoint.save(path / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})
    return path
