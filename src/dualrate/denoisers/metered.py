"""Counting calls: a denoiser around another one. `reuse` passes through."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd import forward_ad

from dualrate.denoisers.denoiser import Denoiser, renewal
from dualrate.diffusion.values import Cond, Context, Reuse


@dataclass
class Meter:
    """Rows (image x guidance branch) seen by each network.

    partial, alone: of the light calls, those that renew a part of a context, and those without one
    """

    heavy: int = 0
    light: int = 0
    partial: int = 0
    alone: int = 0


@dataclass(frozen=True)
class Metered:
    """Counts the rows of every network call. Sits innermost, so that guidance branches are counted.

    A partial refresh is a light call too. A denoise call that returns an output computed before runs no network and
    is not counted; one that carries a forward-mode derivative along counts twice.
    """

    inner: Denoiser
    meter: Meter = field(default_factory=Meter)

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        context = self.inner.encode(z, t, cond)
        if context.features or context.x_hat is not None:
            self.meter.heavy += z.shape[0]
        return context

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        self.meter.light += z.shape[0]
        self.meter.partial += z.shape[0]
        return renewal(self.inner)(z, t, context, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        x_hat = self.inner.denoise(z, t, context, cond)
        if context.x_hat is None:
            rows = z.shape[0] * (1 if forward_ad.unpack_dual(z).tangent is None else 2)
            self.meter.light += rows
            self.meter.alone += 0 if context.features else rows
        return x_hat
