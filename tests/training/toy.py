"""A toy method for the trainer's tests: a small network on points of the plane; optionally a second phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualrate.denoiser import Denoiser
from dualrate.draws import Draws
from dualrate.methods.method import Loss, Phase
from dualrate.types import Batch


@dataclass(frozen=True)
class Points:
    """Batch k: points in the plane, a pure function of k."""

    size: int = 8

    def batch(self, iteration: int) -> Batch:
        sample = torch.arange(iteration * self.size, (iteration + 1) * self.size)
        return Batch(Draws(7, sample).normal("x", 2), None, sample)


class Toy:
    """Regression onto a swapped point from a noisy one; phase "first" alone, or alternating with "second"."""

    def __init__(self, *, two_phases: bool = False, dropout: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(3)
        self.networks = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(2, 16), nn.Dropout(dropout), nn.SiLU(), nn.Linear(16, 2)) for name in "ab"}
        )
        with torch.no_grad():
            for parameter in self.networks.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.two_phases = two_phases

    def loss(self, name: str, batch: Batch, draws: Draws) -> Loss:
        noisy = batch.x + 0.1 * draws.normal(f"noise {name}", 2).to(batch.x)
        error = self.networks[name](noisy) - batch.x.flip(-1)
        return Loss((error**2).mean(), {"bias": error.mean().detach()})

    def phases(self, iteration: int) -> Sequence[Phase]:
        def phase(name: str, network: str) -> Phase:
            parameters = tuple(self.networks[network].parameters())
            return Phase(name, parameters, lambda batch, _, draws: self.loss(network, batch, draws))

        if self.two_phases and iteration % 3 == 2:
            return [phase("second", "b")]
        return [phase("first", "a")]

    def denoiser(self) -> Denoiser:
        raise NotImplementedError


def weights(method: Toy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.networks.state_dict().items()}
