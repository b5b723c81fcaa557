"""Temperature and top-p of tokens: a denoiser around another one, whose likely tokens become likelier.

    p' proportional to p^(1/T);  of p' the likeliest tokens that hold `top_p` of it, all others e^-margin times p'

`margin` is finite: discrete moment matching takes the logarithm of a teacher's probabilities, and a teacher that
excludes a token altogether would pull its student away from it without bound. What x_hat itself excludes (the mask, and
all but the token itself where one is revealed) stays excluded.

Source: Discrete Moment Matching Distillation (arXiv 2603.20155); nucleus sampling: Holtzman et al. 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Factor, Range, Ranged, Share
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.categorical import AXIS, CategoricalProcess
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Cond, Context, Reuse

MARGIN = 5.0  # of log-probability: a token outside becomes 150 times less likely


@dataclass(frozen=True)
class Sharpened(Ranged):
    """See the module. temperature 1 and top_p 1 change nothing.

    Raises ValueError for a process that is not of tokens.
    """

    inner: Denoiser
    process: Process
    temperature: Factor = 1.0
    top_p: Share = 1.0
    margin: Annotated[float, Range(0, 50)] = MARGIN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.process, CategoricalProcess):
            raise ValueError(f"temperature and top-p are of tokens, got {self.process}: drop them")

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self.inner.encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.sharpened(self.inner.denoise(z, t, context, cond))

    def sharpened(self, x_hat: Tensor) -> Tensor:
        """Of probabilities (..., V, H, W)."""
        logits = x_hat.log() / self.temperature  # -inf where it excludes
        if self.top_p == 1:  # rounded sums reach 1 before the last
            return torch.softmax(logits, AXIS)
        order = logits.argsort(AXIS, descending=True)
        probability = torch.softmax(logits, AXIS).gather(AXIS, order)
        outside = probability.cumsum(AXIS) - probability >= self.top_p  # what is likelier holds enough by itself
        excluded = torch.zeros_like(outside).scatter(AXIS, order, outside)
        return torch.softmax(logits - self.margin * excluded.to(logits.dtype), AXIS)
