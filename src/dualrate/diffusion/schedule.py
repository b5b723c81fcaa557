"""Noise schedules: log_snr(t) = log(alpha_t^2 / sigma_t^2), strictly decreasing in t, variance preserving.

    alpha_t^2 = sigmoid(log_snr(t)),   sigma_t^2 = sigmoid(-log_snr(t)),   alpha_t^2 + sigma_t^2 = 1

Cosine (Nichol and Dhariwal 2021), truncated at both ends so that log_snr(0) = log_snr_max, log_snr(1) = log_snr_min:

    log_snr(t) = -2 log tan(a + (b - a) t),   a = atan(exp(-log_snr_max / 2)),   b = atan(exp(-log_snr_min / 2))

Shifted (Hoogeboom, Heek, Salimans, "simple diffusion", 2023): a picture of side D needs more noise than one of D_n:

    shift = 2 log(D_n / D) <= 0,   log_snr(t) = shift + cosine with end points log_snr_min - shift, log_snr_max - shift

Deviates from the listing of simple diffusion as usually reproduced, which adds the shift to the curve and so moves its
end points by it: here the end points stay log_snr_min and log_snr_max, the curve between them moves.

Interpolated: coarse structure is set as at resolution D_low, fine detail as at D_high,

    log_snr(t) = t * shifted[D_low](t) + (1 - t) * shifted[D_high](t)

Rectified flow (Liu et al. 2023; SD3, Esser et al. 2024), x_r = (1 - r) x + r eps, is the variance-preserving state
z = x_r / s scaled by s = sqrt((1 - r)^2 + r^2), so

    log_snr = 2 log((1 - r) / r),   r = sigmoid(-log_snr / 2)
    shift k of large images: r' = k r / (1 + (k - 1) r), which is log_snr' = log_snr - 2 log k

with r linear in t and truncated at both ends, as above: r(0) = sigmoid(-log_snr_max / 2).

Linear: sigma^2 in the place of r, log_snr = log((1 - sigma^2) / sigma^2).

Schedules of discrete models: log_snr tabulated at the integer steps of a table of betas.

    alpha_k^2 = prod_{j <= k} (1 - beta_j),   k = 0..T-1;   t = (k + 1) / T,   log_snr linear in t between the steps

Step k is what such a network takes for its time. t = 0 is one step below the table, to which the first piece is
extended: a sampler that steps there returns x_hat. Tables end at log-SNR -10.1 (linear) or -5.4 (scaled-linear), where
z is nearly noise; a table rescaled to end without signal (Lin et al. 2024, arXiv 2305.08891, algorithm 1) is cut at
log-SNR -30, in float32 the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from dualrate.config.ranges import Factor, LogSNR, Range, Ranged


class Schedule(ABC):
    """A variance-preserving noise schedule. Times are tensors of any shape; results have the same shape and dtype.

    A subclass is a frozen dataclass.
    """

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t in [0, 1], natural logarithm."""

    @abstractmethod
    def log_snr_derivative(self, t: Tensor) -> Tensor:
        """d log_snr / dt, negative."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""


def alpha(log_snr: Tensor) -> Tensor:
    """Scale of the data, sqrt(sigmoid(log_snr))."""
    return torch.sigmoid(log_snr).sqrt()


def sigma(log_snr: Tensor) -> Tensor:
    """Standard deviation of the noise, sqrt(sigmoid(-log_snr))."""
    return torch.sigmoid(-log_snr).sqrt()


class _Ended(Schedule, Ranged):
    """A schedule with a set log-SNR at either end."""

    log_snr_min: LogSNR
    log_snr_max: LogSNR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {self.log_snr_min} and {self.log_snr_max}")


@dataclass(frozen=True)
class Cosine(_Ended):
    """The truncated cosine schedule, moved by `shift` between fixed end points."""

    log_snr_min: LogSNR = -15.0
    """Log-SNR of pure noise, at t = 1."""
    log_snr_max: LogSNR = 15.0
    """Log-SNR of the data, at t = 0."""
    shift: LogSNR = 0.0
    """Added to the log-SNR between the ends; below 0: more noise, as large images need."""

    @property
    def _angles(self) -> tuple[float, float]:
        """The angle at t = 0 and its rate of change."""
        start = math.atan(math.exp((self.shift - self.log_snr_max) / 2))
        end = math.atan(math.exp((self.shift - self.log_snr_min) / 2))
        return start, end - start

    def log_snr(self, t: Tensor) -> Tensor:
        return (-2 * torch.log(torch.tan(self._angle(t))) + self.shift).to(t.dtype)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        return (-4 * self._angles[1] / torch.sin(2 * self._angle(t))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        start, rate = self._angles
        return ((torch.atan(torch.exp((self.shift - log_snr.double()) / 2)) - start) / rate).to(log_snr.dtype)

    def _angle(self, t: Tensor) -> Tensor:
        """The angle in float64: at t = 1 it is within 2e-9 of pi / 2 for log-SNR -40; float32 would round it beyond."""
        start, rate = self._angles
        return start + rate * t.double()

    def shifted_by(self, shift: float) -> Cosine:
        """This schedule with more log-SNR, by `shift`, between the same end points; below 0: with more noise."""
        return replace(self, shift=self.shift + shift)


def shifted(noise_resolution: float, image_resolution: float) -> Cosine:
    """The cosine schedule that treats pictures of side `image_resolution` as if noise were set at `noise_resolution`.

    Raises ValueError unless 0 < noise_resolution <= image_resolution (a shift toward more noise).
    """
    if not 0 < noise_resolution <= image_resolution:
        raise ValueError(
            f"noise_resolution must be in (0, {image_resolution}], the side of the images, got {noise_resolution}"
        )
    return Cosine(shift=2 * math.log(noise_resolution / image_resolution))


class _LinearShare(_Ended):
    """A share r of noise is linear in t, log_snr = power log((1 - r) / r) - power log(shift)."""

    power: int
    shift: Any

    @property
    def _ends(self) -> tuple[float, float, float]:
        """r at t = 0, 1 - r at t = 1, and the rate of change."""
        first = 1 / (1 + math.exp(self.log_snr_max / self.power))
        last = 1 / (1 + math.exp(-self.log_snr_min / self.power))
        return first, last, 1 - first - last

    def log_snr(self, t: Tensor) -> Tensor:
        (first, last, rate), k = self._ends, self.power
        return k * torch.log(last + rate * (1 - t)) - k * torch.log(first + rate * t) - k * math.log(self.shift)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        (first, last, rate), k = self._ends, self.power
        return -k * rate / (last + rate * (1 - t)) - k * rate / (first + rate * t)

    def time(self, log_snr: Tensor) -> Tensor:
        first, _, rate = self._ends
        return (torch.sigmoid(-log_snr / self.power - math.log(self.shift)) - first) / rate


@dataclass(frozen=True)
class RectifiedFlow(_LinearShare):
    """The schedule of rectified flow. At the usual ends, log-SNR -30 and 30, r is t to 3e-7 where the shift is 1."""

    shift: Factor = 1.0
    """k, above 1: more noise, as large images need."""
    log_snr_min: LogSNR = -30.0
    """Log-SNR of pure noise before the shift, at t = 1."""
    log_snr_max: LogSNR = 30.0
    """Log-SNR of the data before the shift, at t = 0."""
    power = 2


@dataclass(frozen=True)
class Linear(_LinearShare):
    """alpha^2 linear in t, truncated at both ends: the usual one of tokens, of which alpha^2 is the share kept."""

    log_snr_min: LogSNR = -15.0
    """Log-SNR of pure noise, at t = 1."""
    log_snr_max: LogSNR = 15.0
    """Log-SNR of the data, at t = 0."""
    power = 1
    shift = 1


@dataclass(frozen=True)
class Interpolated(Schedule):
    """Between two shifted cosines: `high_noise` rules at t = 1, `low_noise` at t = 0 (module docstring)."""

    high_noise: Cosine
    low_noise: Cosine

    @staticmethod
    def between(low: float, high: float, image_resolution: float) -> Interpolated:
        """The schedule of noise resolution `low` (usually 32) at t = 1 and `high` (usually the image's side) at 0."""
        return Interpolated(shifted(low, image_resolution), shifted(high, image_resolution))

    def shifted_by(self, shift: float) -> Interpolated:
        """This schedule with more log-SNR, by `shift`, between the same end points; 2 log r scales both sides by r.

            t (shifted[D_low](t) + shift) + (1 - t) (shifted[D_high](t) + shift) = log_snr(t) + shift

        up to what the end points take, which stay: each cosine is shifted between its own.
        """
        return Interpolated(self.high_noise.shifted_by(shift), self.low_noise.shifted_by(shift))

    def log_snr(self, t: Tensor) -> Tensor:
        return t * self.high_noise.log_snr(t) + (1 - t) * self.low_noise.log_snr(t)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        high, low = self.high_noise, self.low_noise
        return high.log_snr(t) - low.log_snr(t) + t * high.log_snr_derivative(t) + (1 - t) * low.log_snr_derivative(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, by bisection: 60 halvings exhaust float64."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class Truncated(Schedule, Ranged):
    """The part of a schedule from the data to a noise level before its end: log_snr(t) = whole.log_snr(t last)."""

    whole: Schedule
    log_snr_min: LogSNR
    """Log-SNR at t = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        first, last = self.whole.log_snr(torch.tensor((0.0, 1.0), dtype=torch.float64, device="cpu")).tolist()
        if not last <= self.log_snr_min < first:
            raise ValueError(
                f"{self.whole} goes from log-SNR {first:.4g} to {last:.4g}, and ends nowhere in between at "
                f"{self.log_snr_min:g}"
            )

    @cached_property
    def _last(self) -> float:
        """The time of the whole schedule at which this one ends."""
        return self.whole.time(torch.tensor(self.log_snr_min, dtype=torch.float64, device="cpu")).item()

    def log_snr(self, t: Tensor) -> Tensor:
        return self.whole.log_snr(self._last * t.double()).to(t.dtype)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        return (self._last * self.whole.log_snr_derivative(self._last * t.double())).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.whole.time(log_snr) / self._last


Beta = Annotated[float, Range(0, 1, above=True, below=True)]
Kind = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
LOWEST = -30.0  # log-SNR of a table's end without signal


@dataclass(frozen=True)
class Betas(Schedule, Ranged):
    """The schedule of a table of betas of a kind: Ho et al. 2020 (linear), LDM (scaled_linear: linear in
    the square root), Nichol and Dhariwal 2021 (squaredcos_cap_v2, which knows no ends), GeoDiff (sigmoid)."""

    kind: Kind = "linear"
    """How beta grows."""
    start: Beta = 1e-4
    """The first beta."""
    end: Beta = 0.02
    """The last beta."""
    steps: Annotated[int, Range(3, 100_000)] = 1000
    """T, how many there are."""
    zero_terminal: bool = False
    """Whether the table is rescaled to end without signal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flat = (_table(self).diff() >= 0).nonzero()
        if len(flat):
            raise ValueError(
                f"of these {self.steps} betas, {self.kind} from {self.start:g} to {self.end:g}, nothing is left of the "
                f"signal after step {int(flat[0]) - 1} (log-SNR {LOWEST:g}): smaller betas, or fewer, are expected"
            )

    def log_snr(self, t: Tensor) -> Tensor:
        table, low, place = self._piece(t)
        return table[low] + (place - low) * (table[low + 1] - table[low])

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        table, low, _ = self._piece(t)
        return self.steps * (table[low + 1] - table[low])

    def time(self, log_snr: Tensor) -> Tensor:
        table = _table_on(self, log_snr)
        low = (torch.searchsorted(-table, -log_snr.contiguous()) - 1).clamp(0, self.steps - 1)
        return (low + (log_snr - table[low]) / (table[low + 1] - table[low])) / self.steps

    def index(self, log_snr: Tensor) -> Tensor:
        """k, where the table has this log-SNR: a network's time, between the steps too, from step 0 to T - 1."""
        return (self.time(log_snr) * self.steps - 1).clamp(0, self.steps - 1)

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The table, the step at or below t, and t in steps."""
        place = t * self.steps
        return _table_on(self, t), place.detach().long().clamp(0, self.steps - 1), place


def _table_on(betas: Betas, like: Tensor) -> Tensor:
    """The table where `like` is: a device gets one copy for good, for which a program would wait at every call.

    What torch compiles makes it anew in every call.
    """
    if like.device.type == "cpu" or type(like) is not Tensor:  # a fake tensor is not kept
        return _table(betas).to(like)
    return _table(betas, like.device, like.dtype)


@lru_cache(64)
def _table(betas: Betas, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """(T + 1,): log_snr at t = 0, 1/T, ..., 1, made in float64 on the host."""
    with torch.inference_mode(False), torch.no_grad():
        log_alpha = torch.log1p(-_betas(betas)).cumsum(0) / 2
        if betas.zero_terminal:
            alpha = log_alpha.exp()
            log_alpha = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
        log_snr = (2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))).clamp(min=LOWEST)
        return torch.cat((2 * log_snr[:1] - log_snr[1:2], log_snr)).to(device, dtype)


def _betas(of: Betas) -> Tensor:
    """(T,) float64."""
    share = torch.linspace(0, 1, of.steps, dtype=torch.float64, device="cpu")
    match of.kind:
        case "linear":
            return of.start + (of.end - of.start) * share
        case "scaled_linear":
            return (math.sqrt(of.start) + (math.sqrt(of.end) - math.sqrt(of.start)) * share) ** 2
        case "sigmoid":
            return torch.sigmoid(12 * share - 6) * (of.end - of.start) + of.start
        case "squaredcos_cap_v2":
            edges = torch.arange(of.steps + 1, dtype=torch.float64, device="cpu") / of.steps
            remaining = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)
