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
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dualrate.config.ranges import Factor, LogSNR, Ranged


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


def _check_ends(log_snr_min: float, log_snr_max: float) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min must be below log_snr_max, got {log_snr_min} and {log_snr_max}")


@dataclass(frozen=True)
class Cosine(Schedule, Ranged):
    """The truncated cosine schedule, moved by `shift` between fixed end points."""

    log_snr_min: LogSNR = -15.0
    """Log-SNR of pure noise, at t = 1."""
    log_snr_max: LogSNR = 15.0
    """Log-SNR of the data, at t = 0."""
    shift: LogSNR = 0.0
    """Added to the log-SNR between the ends; below 0: more noise, as large images need."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ends(self.log_snr_min, self.log_snr_max)

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
        """In float64: at t = 1 it is within 2e-9 of pi / 2 for log-SNR -40, and float32 would round it beyond."""
        start, rate = self._angles
        return start + rate * t.double()

    def shifted_by(self, shift: float) -> Cosine:
        """With so much more log-SNR between the same end points; below 0: more noise."""
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


@dataclass(frozen=True)
class RectifiedFlow(Schedule, Ranged):
    """The schedule of rectified flow. At the usual ends, log-SNR -30 and 30, r is t to 3e-7 where the shift is 1."""

    shift: Factor = 1.0
    """k, above 1: more noise, as large images need."""
    log_snr_min: LogSNR = -30.0
    """Log-SNR of pure noise before the shift, at t = 1."""
    log_snr_max: LogSNR = 30.0
    """Log-SNR of the data before the shift, at t = 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ends(self.log_snr_min, self.log_snr_max)

    @property
    def _ends(self) -> tuple[float, float, float]:
        """r at t = 0, 1 - r at t = 1, and the rate of change."""
        first, last = 1 / (1 + math.exp(self.log_snr_max / 2)), 1 / (1 + math.exp(-self.log_snr_min / 2))
        return first, last, 1 - first - last

    def log_snr(self, t: Tensor) -> Tensor:
        first, last, rate = self._ends
        return 2 * torch.log(last + rate * (1 - t)) - 2 * torch.log(first + rate * t) - 2 * math.log(self.shift)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        first, last, rate = self._ends
        return -2 * rate / (last + rate * (1 - t)) - 2 * rate / (first + rate * t)

    def time(self, log_snr: Tensor) -> Tensor:
        first, _, rate = self._ends
        return (torch.sigmoid(-log_snr / 2 - math.log(self.shift)) - first) / rate


@dataclass(frozen=True)
class Linear(Schedule, Ranged):
    """alpha^2 linear in t, truncated at both ends: the usual one of tokens, of which alpha^2 is the share kept."""

    log_snr_min: LogSNR = -15.0
    """Log-SNR of pure noise, at t = 1."""
    log_snr_max: LogSNR = 15.0
    """Log-SNR of the data, at t = 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ends(self.log_snr_min, self.log_snr_max)

    @property
    def _ends(self) -> tuple[float, float, float]:
        """sigma^2 at t = 0, alpha^2 at t = 1, and the rate of change."""
        first, last = 1 / (1 + math.exp(self.log_snr_max)), 1 / (1 + math.exp(-self.log_snr_min))
        return first, last, 1 - first - last

    def log_snr(self, t: Tensor) -> Tensor:
        first, last, rate = self._ends
        return torch.log(last + rate * (1 - t)) - torch.log(first + rate * t)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        first, last, rate = self._ends
        return -rate / (last + rate * (1 - t)) - rate / (first + rate * t)

    def time(self, log_snr: Tensor) -> Tensor:
        first, _, rate = self._ends
        return (torch.sigmoid(-log_snr) - first) / rate


@dataclass(frozen=True)
class Interpolated(Schedule):
    """Between two shifted cosines: `high_noise` rules at t = 1, `low_noise` at t = 0 (module docstring)."""

    high_noise: Cosine
    low_noise: Cosine

    @staticmethod
    def between(low: float, high: float, image_resolution: float) -> Interpolated:
        """Noise resolution `low` (usually 32) at t = 1 and `high` (usually the image's side) at t = 0."""
        return Interpolated(shifted(low, image_resolution), shifted(high, image_resolution))

    def shifted_by(self, shift: float) -> Interpolated:
        """With so much more log-SNR between the same end points; a shift of 2 log r scales both resolutions by r.

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
        """By bisection: 60 halvings exhaust float64."""
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
