"""Data of a few tokens whose law is a table: everything about them is a sum over all states."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dualrate.diffusion.categorical import CategoricalProcess, Masked, Uniform
from dualrate.diffusion.context import Context, Reuse
from dualrate.diffusion.schedule import Linear

WIDE = Linear(-30.0, 30.0)  # a_t = 1 - t to 1e-13
MASKED, UNIFORM = Masked(WIDE), Uniform(WIDE)
PROCESSES = {"masked": MASKED, "uniform": UNIFORM}


def one_hot(tokens: Tensor, size: int) -> Tensor:
    """(B, V, 1, L) float64 of (B, L) int64."""
    return torch.nn.functional.one_hot(tokens, size).double().permute(0, 2, 1)[:, :, None]


def tokens_of(z: Tensor) -> Tensor:
    """(B, L) int64 of (B, V, 1, L)."""
    return z.argmax(1)[:, 0]


def every(length: int, size: int) -> Tensor:
    """(size^length, size, 1, length): all states."""
    return one_hot(torch.tensor(list(itertools.product(range(size), repeat=length))), size)


@dataclass(frozen=True)
class Joint:
    """The exact denoiser of data with a table of probabilities, (data categories,) * L.

    A masked process has a category more than the data, and its table a row of zeros for it in every axis.
    """

    table: Tensor
    process: CategoricalProcess
    reuse: Reuse = field(default=Reuse.FREE)

    @cached_property
    def x(self) -> Tensor:
        return every(self.table.ndim, len(self.table))

    @property
    def weights(self) -> Tensor:
        return self.table.flatten()

    def likelihood(self, z: Tensor, t: Tensor) -> Tensor:
        """(B, K): q(z_t | x) for every x. t: (B,)."""
        marginal = self.process.marginal(self.x[None], t[:, None]).probabilities
        return (marginal * z[:, None]).sum(2).flatten(2).prod(-1)

    def density(self, z: Tensor, t: Tensor) -> Tensor:
        """(B,): p(z_t)."""
        return self.likelihood(z, t) @ self.weights

    def encode(self, z, t, cond):
        return Context()

    def denoise(self, z, t, context, cond):
        joint = self.likelihood(z, t + torch.zeros(len(z))) * self.weights
        return torch.einsum("bk,kvhl->bvhl", joint / joint.sum(1, keepdim=True), self.x).to(z.dtype)


def table(process: CategoricalProcess, *rows: list[float]) -> Joint:
    """Return the table of two tokens, with the mask added where the process has one."""
    data = torch.tensor(rows, dtype=torch.float64)
    return Joint(torch.nn.functional.pad(data, (0, 1, 0, 1)) if process is MASKED else data, process)


def frequencies(z: Tensor) -> Tensor:
    """(V,) * L: how often each state occurs among the rows."""
    tokens, size = tokens_of(z), z.shape[1]
    index = (tokens * size ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(1)
    counts = torch.bincount(index, minlength=size ** tokens.shape[1]).double()
    return (counts / len(z)).view(*[size] * tokens.shape[1])
