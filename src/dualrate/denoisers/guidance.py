"""Classifier-free guidance: a denoiser around another one. `reuse` passes through.

Guidance may keep the length of a flow's u = eps - x, patch by patch, as Qwen-Image's pipeline does:

    u' = u |u_label| / |u|,    u = (s z - x_hat) / r,   s z = (1 - r) x + r eps

Temperature and top-p of tokens: a denoiser around another one that makes likely tokens likelier.

    p' proportional to p^(1/T);  of p' the likeliest tokens that hold `top_p` of it, all others e^-margin times p'

`margin` is finite: discrete moment matching takes the logarithm of a teacher's probabilities, and a teacher that
excludes a token altogether would pull its student away from it without bound. What x_hat itself excludes (the mask, and
all but the token itself where one is revealed) stays excluded.

Source: Discrete Moment Matching Distillation (arXiv 2603.20155); nucleus sampling: Holtzman et al. 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from dualrate.config.ranges import Classes, Factor, GuidanceWeight, NoiseLevel, Range, Ranged, Share
from dualrate.denoisers.denoiser import Wrapper, read
from dualrate.diffusion.categorical import AXIS, CategoricalProcess
from dualrate.diffusion.context import Cond, Context, expand
from dualrate.diffusion.prediction import flow_scale
from dualrate.diffusion.process import Process


@dataclass(frozen=True)
class Guided(Ranged, Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022): x_hat = x_null + weight (x_label - x_null);
    of a categorical process the same of log-probabilities (`Process.extrapolate`).

    weight:   1 is no guidance
    null:     the null class, usually `num_classes`
    interval: (low, high]: guidance acts where the noise level sigma/alpha lies in it (Kynkaanniemi et al. 2024), so
              outside it a step of a plan, whose time all rows share, costs one branch. None: everywhere
    patch:    side of the patches in which u keeps its length; 0: it does not
    Both branches run as one batch of 2B rows, label rows first; a context holds both, so a heavy or partial call
    always does, and so do the features of a condition. These have 2B / M rows where M samples share a condition.
    """

    process: Process
    weight: GuidanceWeight
    null: Classes
    interval: tuple[NoiseLevel, NoiseLevel] | None = None
    patch: Annotated[int, Range(0, 64)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError(f"the guidance interval is 0 <= low < high in sigma/alpha, got {self.interval}")

    def read(self, cond: Cond) -> Cond:
        return replace(cond, features=read(self.inner, self._both(cond)).features)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self.inner.encode(torch.cat((z, z)), _twice(t), self._both(cond))

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        return self.inner.renew(torch.cat((z, z)), _twice(t), context, self._both(cond))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        active = self._active(t)
        if not (t.ndim or active):  # of times on a device one would wait to know
            cond = replace(cond, features=tuple(feature[: len(feature) // 2] for feature in cond.features))
            rows = len(context.features[0]) // 2 if context.features else len(z)  # fewer than z has where members share
            return self.inner.denoise(z, t, context.rows(slice(0, rows)), cond)
        x_label, x_null = self.inner.denoise(torch.cat((z, z)), _twice(t), context, self._both(cond)).chunk(2)
        none = active.new_ones((), dtype=z.dtype)  # in whose precision the weight is, and not in float32
        weight = torch.where(active, self.weight * none, none)
        x_hat = self.process.extrapolate(x_null, x_label, weight)
        return self._length_kept(z, t, x_label, x_hat) if self.patch else x_hat

    def _length_kept(self, z: Tensor, t: Tensor, x_label: Tensor, x_hat: Tensor) -> Tensor:
        state = expand(flow_scale(self.process.log_snr(t).to(z.dtype)), z) * z
        squares = ((state - x).square().mean(1, keepdim=True) for x in (x_label, x_hat))
        unguided, guided = (F.avg_pool2d(square, self.patch).sqrt() for square in squares)
        return state + (x_hat - state) * F.interpolate(unguided / guided, scale_factor=float(self.patch))

    def _both(self, cond: Cond) -> Cond:
        if cond.label is None:
            raise ValueError("guidance needs a label per image, got none: pass labels or drop the guidance weight")
        y = None if cond.given is None else torch.cat((cond.given, cond.given))
        return Cond(torch.cat((cond.label, torch.full_like(cond.label, self.null))), y, cond.features)

    def _active(self, t: Tensor) -> Tensor:
        noise_level = torch.exp(-self.process.log_snr(t) / 2)
        low, high = self.interval or (-1, math.inf)
        return (noise_level > low) & (noise_level <= high)


def _twice(t: Tensor) -> Tensor:
    """(2B,) times; a time that all rows share stays one."""
    return torch.cat((t, t)) if t.ndim else t


MARGIN = 5.0  # of log-probability: a token outside becomes 150 times less likely


@dataclass(frozen=True)
class Sharpened(Ranged, Wrapper):
    """See the module. temperature 1 and top_p 1 change nothing.

    Raises ValueError for a process that is not of tokens.
    """

    process: Process
    temperature: Factor = 1.0
    top_p: Share = 1.0
    margin: Annotated[float, Range(0, 50)] = MARGIN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.process, CategoricalProcess):
            raise ValueError(f"temperature and top-p are of tokens, got {self.process}: drop them")

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.sharpened(self.inner.denoise(z, t, context, cond))

    def sharpened(self, x_hat: Tensor) -> Tensor:
        """Probabilities (..., V, H, W), sharpened."""
        logits = x_hat.log() / self.temperature  # -inf where it excludes
        if self.top_p == 1:  # rounded sums reach 1 before the last
            return torch.softmax(logits, AXIS)
        order = logits.argsort(AXIS, descending=True)
        probability = torch.softmax(logits, AXIS).gather(AXIS, order)
        outside = probability.cumsum(AXIS) - probability >= self.top_p  # what is likelier holds enough by itself
        excluded = torch.zeros_like(outside).scatter(AXIS, order, outside)
        return torch.softmax(logits - self.margin * excluded.to(logits.dtype), AXIS)
