"""Tokens with planes of fresh noise beside them: a process around another, for students that draw few times.

    state      (z_t, n_t): tokens one-hot in V channels, then planes of standard normal numbers
    q          as of the inner process, and n_s is drawn anew with every z_s, of nothing else

A masked path begins in masks alone, so that a network of z_1 makes tokens that are independent; a network of (z_1, n_1)
makes a mixture of such, which one step can fit to any law. Whatever asks a process for its random numbers, its states
and their posteriors needs no case for the planes: loop, rollouts, losses. x and x_hat are the tokens' alone. A network
without an input for noise (`TokensConfig.noise`), such as a teacher, sees the tokens.

Source: Discrete Moment Matching Distillation (arXiv 2603.20155), where a masked student needs a random input; that it
enters by planes is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.categorical import AXIS, Categorical, CategoricalProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Schedule

Planes = Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class Beside:
    """A distribution of tokens, and normal numbers beside them."""

    tokens: Categorical

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of the tokens alone: all numbers beside them have one law, which adds to no divergence."""
        return self.tokens.probabilities

    def sample(self, noise: Tensor) -> Tensor:
        """Tokens, one-hot, and planes: (..., V + planes, H, W).

        noise: (..., 1 + planes, H, W), a uniform number for each token, then normal ones
        """
        tokens = self.tokens.sample(noise.narrow(AXIS, 0, 1))
        normal = noise.narrow(AXIS, 1, noise.shape[AXIS] - 1).to(tokens.dtype)
        return torch.cat((tokens, normal.expand(*tokens.shape[:AXIS], *normal.shape[AXIS:])), AXIS)


@dataclass(frozen=True)
class NoisePlanes(CategoricalProcess, Ranged):
    """`inner` with planes of noise. z: (B, V + planes, H, W); x, x_hat: (B, V, H, W)."""

    inner: CategoricalProcess
    planes: Planes = 4

    @property
    def schedule(self) -> Schedule:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.schedule

    def pi(self, like: Tensor) -> Tensor:
        return self.inner.pi(like)

    def noise(self, draws: Draws, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, 1 + planes, H, W): uniform, then standard normal."""
        uniform = self.inner.noise(draws, streams, *shape)
        normal = draws.normals([f"{stream} planes" for stream in streams], self.planes, *shape[1:])
        return torch.cat((uniform, normal.to(uniform.dtype)), AXIS)

    def prior(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        """(B, V + planes, H, W). shape: (V, H, W) of the tokens."""
        tokens = self.inner.prior(noise[:, :1], shape)
        return torch.cat((tokens, noise[:, 1:].to(tokens.dtype)), AXIS)

    def data(self, z: Tensor) -> Tensor:
        """The tokens, (B, V, H, W), without the planes."""
        return z.narrow(AXIS, 0, z.shape[AXIS] - self.planes)

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return Beside(self.marginal(x, t)).sample(noise)

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Beside:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Beside(self.inner.transition(self.data(z_s), s, t))

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Beside:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Beside(self.inner.posterior(self.data(z_t), x, t, s))

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        return self.inner.x_hat(self.data(z), output, log_snr)

    def drawn(self, x_hat: Tensor, draws: Draws, stream: str) -> Tensor:
        return self.inner.drawn(x_hat, draws, stream)

    def conditional_mean(self, x_hat: Tensor, z_t: Tensor, z_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.inner.conditional_mean(x_hat, self.data(z_t), self.data(z_s), t, s)
