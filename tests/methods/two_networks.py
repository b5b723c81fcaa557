"""A small U-ViT for both networks of a student, images for it, and a denoiser that keeps what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.diffusion.context import Batch, Context, Reuse
from dualrate.diffusion.random import Draws

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)


def randomised(network: nn.Module) -> nn.Module:
    """In float64, with no weight that is zero."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.double()


def images(rows: int, first: int = 0) -> Batch:
    draws = Draws(3, torch.arange(first, first + rows))
    return Batch(draws.normal("x", 1, 8, 8).double(), draws.row % 3, draws.row)


@dataclass(frozen=True)
class Recorded:
    """Keeps what a denoiser answers."""

    inner: dr.Denoiser
    answers: list[Tensor]
    reuse: Reuse

    def encode(self, z, t, cond) -> Context:
        return self.inner.encode(z, t, cond)

    def denoise(self, z, t, context, cond) -> Tensor:
        self.answers.append(self.inner.denoise(z, t, context, cond))
        return self.answers[-1]
