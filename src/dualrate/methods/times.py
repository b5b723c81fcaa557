"""The times of a training batch: the joint law of (t, tau).

t ~ U(0, 1) and tau = min(1, t + u / H), u ~ U(0, 1): the law of tau given t under a plan of H equal segments with a
random phase. H is log-uniform on the integers of a range, so that one model serves any H. The distance to the next edge
of a plan with fixed phase (the paper's own grid) is `phase=0`: tau = ceil(t H) / H.

A shared context serves k draws of t, each of the law of t given tau; their quantiles differ by 1 / k:
    random phase, tau < 1: t uniform on [max(0, tau - 1/H), tau];  tau = 1: P(t <= y) = (1 - H (1 - y))^2
    fixed phase:           t uniform on [tau - 1/H, tau]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from dualrate.config.ranges import Probability, Range, Ranged, Steps
from dualrate.diffusion.draws import Draws
from dualrate.methods.context_dropout import kept_images


@dataclass(frozen=True)
class BatchTimes:
    """The times of a training batch of B images with k draws of t each; draw r belongs to image r // k.

    t:    (B k,) float64
    tau:  (B,) float64, of the context that the draws of an image share; t <= tau
    kept: (K,) the draws whose context is not dropped
    """

    t: Tensor
    tau: Tensor
    kept: Tensor


class TimeSource(ABC):
    """Where a denoising method's times come from; a subclass is a frozen dataclass.

    heavy:   the least and the largest number of heavy calls per image that it trains for; None: one network
    dropout: share of the images that train without context
    """

    heavy: Any = None  # Any: so that a field may stand for it
    dropout: Any = 0.0

    @abstractmethod
    def __call__(self, draws: Draws) -> BatchTimes: ...


@dataclass(frozen=True)
class TimeSampler(TimeSource, Ranged):
    """Draws (t, tau) and the context dropout of each row.

    Contexts are dropped by whole images (context_dropout.py).
    """

    heavy: tuple[Steps, Steps] = (4, 32)
    """The least and the largest number of heavy calls per image that the model is trained for."""
    dropout: Probability = 0.5
    """Share of the images that train without context."""
    phase: Annotated[float, Range(0, 0)] | None = None
    """0: heavy calls on the fixed grid tau = ceil(t H) / H; at a random place in it if not given."""
    draws: Annotated[int, Range(1, 1000)] = 1
    """The light network's times for one heavy call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.heavy
        if low > high:
            raise ValueError(f"heavy is the least number of heavy calls, then the largest, got {self.heavy}")

    def __call__(self, draws: Draws) -> BatchTimes:
        t = stratified_uniform(draws)
        heavy = self._num_heavy(draws)
        if self.phase is None:
            tau = (t + draws.uniform("tau") / heavy).clamp(max=1)
        else:
            tau = torch.maximum(torch.ceil(t * heavy) / heavy, t)
        kept = kept_images(draws, self.dropout)
        kept = kept * self.draws + torch.arange(self.draws, device=t.device)
        return BatchTimes(self._spread(tau, heavy, t).flatten(), tau, kept.flatten())

    def _spread(self, tau: Tensor, heavy: Tensor, t: Tensor) -> Tensor:
        """(B, k): t itself, and k - 1 more times of the law of t given tau, their quantiles spread evenly."""
        low = tau - 1 / heavy
        if self.phase is None:
            low = low.clamp(min=0)
        share = (t - low) / (tau - low)
        whole = tau == 1 if self.phase is None else torch.zeros_like(tau, dtype=torch.bool)
        share = torch.where(whole, share.square(), share)[:, None]
        others = (share + torch.arange(1, self.draws, device=t.device) / self.draws) % 1
        others = torch.where(whole[:, None], others.sqrt(), others)
        others = torch.minimum(low[:, None] + others * (tau - low)[:, None], tau[:, None])
        return torch.cat((t[:, None], others.clamp(min=1e-9)), dim=1)

    def _num_heavy(self, draws: Draws) -> Tensor:
        """(B,) float64, log-uniform on the integers low..high: P(H) proportional to log((H + 1) / H)."""
        low, high = self.heavy
        u = draws.uniform("heavy")
        return torch.floor(low * ((high + 1) / low) ** u).clamp(max=high)


@dataclass(frozen=True)
class SingleTime(TimeSource):
    """Times of a single-rate model: t alone; no row has a context of another time."""

    def __call__(self, draws: Draws) -> BatchTimes:
        t = stratified_uniform(draws)
        return BatchTimes(t, t, torch.arange(len(t), device=t.device))


def stratified_uniform(draws: Draws) -> Tensor:
    """(B,) float64 in (0, 1): a golden-ratio sequence over the sample numbers; any run of rows fills (0, 1) evenly."""
    golden = (5**0.5 - 1) / 2
    offset = Draws(draws.seed, torch.zeros(1, dtype=torch.int64, device=draws.row.device)).uniform("t")
    return ((draws.row.double() * golden + offset) % 1).clamp(1e-9, 1 - 1e-9)
