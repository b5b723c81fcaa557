"""The times of a training batch: the joint law of (t, tau).

t ~ U(0, 1) and tau = min(1, t + u / H), u ~ U(0, 1): the law of tau given t under a plan of H equal segments with a
random phase. H is log-uniform on the integers of a range, so that one model serves any H. With `phase=0`, the paper's
own grid, tau = ceil(t H) / H.

Plans whose first heavy call comes late are another family (`first`): that call is at F ~ U(a, b), the others divide
[0, F] evenly, tau = F j / H, j = ceil(t H / F), and t > F has no context.

Whatever the family, t is uniform. The loss is the mean of its plans' objectives, all of which have the same optimum,
since E[x | z_t, z_tau] = E[x | z_t].

Context dropout is by whole images, spread evenly over the sample numbers: at a dropout of 0.5 every run of an even
number of images keeps half of them. The others train the light network alone, and are not encoded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from dualrate.config.ranges import LightDraws, Probability, Range, Ranged, Share, Steps, check_rising
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws


def radical_inverse(row: Tensor) -> Tensor:
    """(B,) float64 in [0, 1): the binary digits of sample numbers, the lowest 32, mirrored at the point.

    Van der Corput's sequence: any 2^m rows that begin at a multiple of 2^m have one in every 2^-m. Together with
    the times of `stratified_uniform`, (t, heavy_rows) covers the square evenly for any dropout rate: rows that share
    their lowest digits are equally far apart, and t at these is a rotation by a multiple of the golden ratio. A second
    rotation would be tied to the first at rates near its multiples.
    """
    place = torch.arange(32, device=row.device)
    return ((row[:, None] >> place) & 1).double() @ torch.ldexp(torch.ones_like(place).double(), -place - 1)


class BatchTimes(NamedTuple):
    """The times of a training batch of B images.

    t:          (B,) float64
    tau:        (B,) float64, of the context; t <= tau
    heavy_rows: (K,) the rows whose context is not dropped
    """

    t: Tensor
    tau: Tensor
    heavy_rows: Tensor


def to_device(device: torch.device, *parts: Tensor) -> tuple[Tensor, ...]:
    """Copies of tensors of the host on a device, without waiting for what it is doing."""
    return tuple(part.to(device, non_blocking=True) for part in parts)


class TimeSource(ABC):
    """The law of a denoising method's times; a subclass is a frozen dataclass.

    It is called with draws on the host: a GPU would launch some hundred kernels for a number a row, and make the
    program wait for it to learn which rows keep their context.

    heavy:   the least and the largest number of heavy calls per image that it trains for; None: one network
    dropout: share of the images that train without context
    first:   least and largest time of a plan's first heavy call, before which it has no context; None: 1
    phase:   0 where heavy calls lie on even grids from t = 1; None: anywhere
    draws:   noise levels for each image
    ages:    whether contexts are of earlier times than t
    """

    heavy: Any = None  # Any: so that a field may stand for it
    draws: Any = 1
    dropout: Any = 0.0
    first: Any = None
    phase: Any = None
    ages = True

    @abstractmethod
    def __call__(self, draws: Draws) -> BatchTimes: ...


@dataclass(frozen=True)
class TimeSampler(TimeSource, Ranged):
    """Draws (t, tau) and the context dropout of each row."""

    heavy: tuple[Steps, Steps] = (4, 32)
    """The least and the largest number of heavy calls per image that the model is trained for."""
    dropout: Probability = 0.5
    """Share of the images that train without context."""
    phase: Annotated[float, Range(0, 0)] | None = None
    """0: heavy calls lie on the fixed grid tau = ceil(t H) / H. Default: on that grid, shifted at random."""
    first: tuple[Share, Share] | None = None
    """Least and largest time of a plan's first heavy call. Steps before it have no context. Default: 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rising("heavy is the least number of heavy calls, then the largest", self.heavy)
        if self.first is not None and self.phase is not None:
            raise ValueError("first says where the heavy calls are, at random places: drop phase, or first")
        check_rising("first is the least time of a first heavy call, then the largest", self.first)

    def __call__(self, draws: Draws) -> BatchTimes:
        t, heavy = stratified_uniform(draws), self._num_heavy(draws)
        heavy_rows = torch.nonzero(radical_inverse(draws.row) >= self.dropout).flatten()  # that keep their context
        if self.phase is not None:
            return BatchTimes(t, torch.maximum(torch.ceil(t * heavy) / heavy, t), heavy_rows)
        if self.first is None:
            return BatchTimes(t, (t + draws.uniform("tau") / heavy).clamp(max=1), heavy_rows)
        earliest, latest = self.first
        first = earliest + (latest - earliest) * draws.uniform("first")
        return BatchTimes(t, latest_heavy(t, heavy, first), heavy_rows[(t <= first)[heavy_rows]])

    def _num_heavy(self, draws: Draws) -> Tensor:
        """(B,) float64: log-uniform on the integers low..high."""
        low, high = self.heavy
        return torch.floor(low * ((high + 1) / low) ** draws.uniform("heavy")).clamp(low, high)


@dataclass(frozen=True)
class BothTimes(TimeSampler):
    """Times of a pair beside a condition that is read once: several times of each image."""

    draws: LightDraws = 4
    """Noise levels for each image, and reading of its condition."""


@dataclass(frozen=True)
class SingleTime(TimeSource):
    """Times of a single-rate model: t alone; no row has a context of another time."""

    ages = False  # no annotation: no field

    def __call__(self, draws: Draws) -> BatchTimes:
        t = stratified_uniform(draws)
        return BatchTimes(t, t, torch.arange(len(t), device=t.device))


@dataclass(frozen=True)
class GivenTimes(TimeSource, Ranged):
    """Times of a conditional pair, whose context is of the condition and of no time: one heavy call, none dropped."""

    draws: LightDraws = 1
    """Noise levels of the light network for each image and heavy call."""

    heavy, ages = (1, 1), False  # no annotation: no field

    def __call__(self, draws: Draws) -> BatchTimes:
        t = stratified_uniform(draws)
        return BatchTimes(t, torch.ones_like(t), torch.arange(len(t), device=t.device))


def latest_heavy(t: Tensor, heavy: Tensor, first: Tensor) -> Tensor:
    """tau of heavy calls at first j / heavy, j = heavy .. 1; 1 where t is above `first`. All (B,)."""
    j = torch.minimum(torch.ceil(t * heavy / first).clamp(min=1), heavy)
    tau = torch.where(t > first, torch.ones_like(t), j * first / heavy)
    return torch.maximum(tau, t)  # a rounding below it at most


def with_null(batch: Batch, draws: Draws, null: int, share: float) -> Tensor | None:
    """A batch's labels (B,), each replaced by the null class with probability `share`; None without labels."""
    if batch.label is None:
        return None
    (dropped,) = to_device(batch.label.device, draws.host.uniform("label dropout") < share)
    return torch.where(dropped, null, batch.label)


GOLDEN, SILVER = (5**0.5 - 1) / 2, 2**0.5 - 1  # of two sequences, which together fill a square evenly


def stratified_uniform(draws: Draws, stream: str = "t", ratio: float = GOLDEN) -> Tensor:
    """(B,) float64 in (0, 1): a sequence over the sample numbers of which any run of rows fills (0, 1) evenly."""
    offset = Draws(draws.seed, torch.zeros(1, dtype=torch.int64, device=draws.row.device)).uniform(stream)
    return ((draws.row.double() * ratio + offset) % 1).clamp(1e-9, 1 - 1e-9)
