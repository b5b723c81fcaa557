"""A training method as the trainer sees it: networks, and phases with a loss. Nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Factor, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    total: scalar, the mean over the batch's rows, with gradient
    logs:  named scalars for the log, detached; means over the batch's rows. The same names whatever the rows: they are
           added up over processes
    """

    total: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase(Ranged):
    """One optimiser update: all that the trainer ever sees of a method.

    name:       "model", "student", "auxiliary" or "pretraining": key of optimiser, EMA and log prefix
    parameters: updated in this phase; everything else is frozen while it runs
    loss:       (batch, iteration, draws) -> Loss; `draws` is keyed by the batch's sample numbers
    rate:       factor of the learning rate
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    loss: Callable[[Batch, int, Draws], Loss]
    rate: Factor = 1.0


class Method(Protocol):
    """A loss with its networks, as `fit` trains it.

    Several processes each compute the loss of their own rows. A loss that sums over all rows (`Batch.elsewhere`) must
    do so equally often in every process.
    """

    @property
    def networks(self) -> nn.ModuleDict:
        """The networks that sampling needs."""
        ...

    @property
    def auxiliaries(self) -> nn.ModuleDict:
        """Networks that are trained along and that sampling has no use for; other names than those of `networks`."""
        ...

    def phases(self, iteration: int) -> Sequence[Phase]:
        """The updates of this iteration, in order. Denoising: always one; moment matching: two that alternate."""
        ...

    def denoiser(self) -> Denoiser:
        """The denoiser that evaluation samples from; it reads the networks' current weights."""
        ...


@dataclass(frozen=True)
class OnePhase(Ranged, ABC):
    """A method of one phase, which trains what is not frozen of its networks. A subclass adds `loss` and `denoiser`."""

    networks: nn.ModuleDict

    phase = "model"  # its name. No annotation: no field

    @property
    def auxiliaries(self) -> nn.ModuleDict:
        """No networks."""
        return nn.ModuleDict()

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        return (Phase(self.phase, tuple(p for p in self.networks.parameters() if p.requires_grad), self.loss),)

    @abstractmethod
    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over the batch's rows. Every random number is a function of a row's sample number."""


def by_time_quartile(name: str, value: Tensor, t: Tensor) -> dict[str, Tensor]:
    """(B,) values in four quarters of t, as logs: name0 to name3, whose mean is that of the values."""
    value, quarter = 4 * value.detach(), (t * 4).long().clamp(max=3)
    means = (value * (quarter == torch.arange(4, device=t.device)[:, None])).mean(1)
    return {f"{name}{i}": mean for i, mean in enumerate(means)}
