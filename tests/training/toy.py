"""A toy method for the trainer's tests: small networks on points of the plane, in one phase or two that alternate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig, OptimConfig
from dualrate.training.method import Loss, Phase

CONFIG = FitConfig(
    iterations=16,
    batch_size=8,
    micro_batch=5,
    precision="float32",
    optim=OptimConfig(warmup=5),
    ema_halflife=500,
    log_every=5,
    checkpoint_every=4,
    sample_every=1000,
)


@dataclass(frozen=True)
class Points:
    """Batch k: points in the plane, a pure function of k."""

    size: int = 8

    def batch(self, iteration: int) -> Batch:
        sample = torch.arange(iteration * self.size, (iteration + 1) * self.size)
        return Batch(Draws(7, sample).normal("x", 2), None, sample)


class Toy:
    """Two separate regressions onto a swapped point from a noisy one: networks "a" and "b", one phase each.

    pattern:   the phases of iterations 0, 1, ..., again from the start; each a word in "a", "b", "ab"
    auxiliary: names of those that sampling would not need
    """

    def __init__(self, pattern: Sequence[str] = ("a",), dropout: float = 0.1, auxiliary: str = "") -> None:
        self.pattern = pattern
        self.each = {
            name: nn.Sequential(nn.Linear(2, 64), nn.Dropout(dropout), nn.SiLU(), nn.Linear(64, 2)) for name in "ab"
        }
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for network in self.each.values():
                for parameter in network.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.networks = nn.ModuleDict({name: net for name, net in self.each.items() if name not in auxiliary})
        self.auxiliaries = nn.ModuleDict({name: net for name, net in self.each.items() if name in auxiliary})

    def loss(self, name: str, batch: Batch, iteration: int, draws: Draws) -> Loss:
        noisy = batch.x + 0.1 * draws.normal(f"noise {name}", 2)
        dtype = self.each[name].get_parameter("0.weight").dtype
        error = self.each[name](noisy.to(dtype)) - batch.x.flip(-1)
        return Loss((error**2).mean(), {"bias": error.mean().detach()})

    def phases(self, iteration: int) -> Sequence[Phase]:
        def phase(name: str) -> Phase:
            parameters = tuple(self.each[name].parameters())
            return Phase(name, parameters, lambda batch, number, draws: self.loss(name, batch, number, draws))

        return [phase(name) for name in self.pattern[iteration % len(self.pattern)]]

    def denoiser(self) -> Denoiser:
        raise NotImplementedError


@dataclass
class Recorder:
    """A progress that remembers."""

    notes: list[str] = field(default_factory=list)
    updates: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    closed: bool = False

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.updates.append((iteration, total, dict(logs)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed = True


def final(run_dir: Path) -> dict[str, dict[str, Tensor]]:
    """Everything the newest checkpoint of a run holds."""
    return dict(checkpoint.load(checkpoint.saved_paths(run_dir / "checkpoints")[-1]).tensors)


def same_bits(first: Mapping[str, Mapping[str, Tensor]], second: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether two checkpoints hold the same files, names and bits."""
    return first.keys() == second.keys() and all(
        first[file].keys() == second[file].keys()
        and all(torch.equal(value, second[file][name]) for name, value in first[file].items())
        for file in first
    )
