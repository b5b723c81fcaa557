"""Classifier-free guidance: a denoiser around another one. `reuse` passes through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Classes, GuidanceWeight, NoiseLevel, Ranged
from dualrate.denoisers.denoiser import Denoiser, renewal
from dualrate.diffusion.process import Process
from dualrate.diffusion.times import is_shared
from dualrate.diffusion.values import Cond, Context, Reuse


@dataclass(frozen=True)
class Guided(Ranged):
    """Classifier-free guidance (Ho and Salimans 2022): x_hat = x_null + weight (x_label - x_null);
    of a categorical process the same of log-probabilities (`Process.extrapolate`).

    weight:   1 is no guidance
    null:     the null class, usually `num_classes`
    interval: (low, high]: guidance acts where the noise level sigma/alpha lies in it (Kynkaanniemi et al. 2024), so
              outside it a step of a plan, whose time all rows share, costs one branch. None: everywhere
    Both branches run as one batch of 2B rows, label rows first; a context holds both, so a heavy or partial call
    always does.
    """

    inner: Denoiser
    process: Process
    weight: GuidanceWeight
    null: Classes
    interval: tuple[NoiseLevel, NoiseLevel] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError(f"the guidance interval is 0 <= low < high in sigma/alpha, got {self.interval}")

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self.inner.encode(torch.cat((z, z)), _twice(t), self._both(cond))

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        return renewal(self.inner)(torch.cat((z, z)), _twice(t), context, self._both(cond))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        active = self._active(t)
        if is_shared(t) and not bool(active.any()):  # of times on a device one would wait to know
            return self.inner.denoise(z, t, context.rows(slice(0, z.shape[0])), cond)
        x_label, x_null = self.inner.denoise(torch.cat((z, z)), _twice(t), context, self._both(cond)).chunk(2)
        none = active.new_ones((), dtype=z.dtype)  # in whose precision the weight is, and not in float32
        weight = torch.where(active, self.weight * none, none)
        return self.process.extrapolate(x_null, x_label, weight)

    def _both(self, cond: Cond) -> Cond:
        if cond.label is None:
            raise ValueError("guidance needs a label per image, got none: pass labels or drop the guidance weight")
        z_0 = None if cond.z_0 is None else torch.cat((cond.z_0, cond.z_0))
        return Cond(torch.cat((cond.label, torch.full_like(cond.label, self.null))), z_0)

    def _active(self, t: Tensor) -> Tensor:
        noise_level = torch.exp(-self.process.log_snr(t) / 2)
        low, high = self.interval or (-1, math.inf)
        return (noise_level > low) & (noise_level <= high)


def _twice(t: Tensor) -> Tensor:
    """(2B,) times; a plan's stay one number."""
    return t.expand(2, *t.shape).flatten(0, 1)
