"""Stability of roll-outs.

A roll-out is stable while members look like the data, where no point can be known. Of each lead time and channel
`Stability` compares five numbers of members with those of training frames: the root mean square change from frame to
frame, the variance about the training mean, and the power of the three bands. A ratio r of means is that of a stable
ensemble within

    [0.8 / (1 + c), 1.25 (1 + c)],   c = 3 s / (m sqrt(n))      m, s: mean and deviation over training frames

c is what chance moves the mean of n independent frames by. n counts trajectories: starts of one trajectory, and members
of one start, are alike at first, so that they are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.forecasts.spectra import Spectrum, band_masks, power_spectrum

WITHIN = (0.8, 1.25)  # of the training data, a stable ensemble
DEVIATIONS = 3.0  # of chance, c
STEADY = ("rate of change", "variance", "low band", "middle band", "high band")
FAINT = 1e-4  # of the variance: power of a band below it, a hundredth in amplitude, counts as equal


def steady_numbers(now: Tensor, before: Tensor, spectrum: Spectrum = power_spectrum) -> Tensor:
    """(..., C, 5) by `STEADY`, of anomalies (..., C, H, W) and those a frame before.

    NaN for a band without a wavenumber, on sides of fewer than 8 points.
    """
    now, before = now.double(), before.double()
    power, side = spectrum(now), max(now.shape[-2:])
    bands = [
        power[..., band].sum(-1) if band.any() else torch.full_like(power[..., 0], torch.nan)
        for band in band_masks(power.shape[-1], side)
    ]
    change, variance = ((field.square().mean((-2, -1))) for field in (now - before, now))
    return torch.stack([change.sqrt(), variance, *bands], -1)


@dataclass(frozen=True)
class Stability:
    """Whether members keep the look of the training data, as the module says.

    leads:  (T,); channels: names of C; ratios: (T, C, 5) by `STEADY`, of members over training frames
    bounds: (2, C, 5), least and most of a stable ensemble
    from_start: whether the change from the start to the first frame is judged, which is NaN else: of a start that was
        observed in part, or with noise, it tells nothing
    """

    leads: NDArray[np.float64]
    channels: tuple[str, ...]
    ratios: NDArray[np.float64]
    bounds: NDArray[np.float64]
    from_start: bool = True

    @staticmethod
    def of(
        leads: Sequence[float],
        channels: Sequence[str],
        members: Tensor,
        training: Tensor,
        starts: int,
        *,
        from_start: bool = True,
    ) -> Stability:
        """Compare members with training data.

        members: (T, C, 5) means over starts and members; training: (K, C, 5); starts: how many are independent
        """
        mean, deviation = training.mean(0), training.std(0, correction=min(1, len(training) - 1))
        faint = FAINT * mean[:, 1:2]
        expected = torch.cat([mean[:, :2], mean[:, 2:].clamp(min=faint)], 1)
        observed = torch.cat([members[..., :2], members[..., 2:].clamp(min=faint)], -1)
        chance = 1 + DEVIATIONS * deviation / (expected * math.sqrt(starts))
        bounds = torch.stack([WITHIN[0] / chance, WITHIN[1] * chance])
        ratios = (observed / expected).numpy()
        if not from_start:
            ratios[0, :, 0] = np.nan
        return Stability(np.asarray(leads), tuple(channels), ratios, bounds.numpy(), from_start)

    @property
    def outside(self) -> NDArray[np.bool_]:
        """(T, C, 5) bool: ratios out of bounds. A ratio that is not finite is; that of an empty band is not."""
        low, high = self.bounds
        outside = ~((self.ratios >= low) & (self.ratios <= high)) & ~np.isnan(self.bounds[0])
        outside[0, :, 0] &= self.from_start
        return outside

    @property
    def first(self) -> int | None:
        """Index of the first lead time that is not stable."""
        failed = self.outside.any((1, 2))
        return int(failed.argmax()) if failed.any() else None

    def __str__(self) -> str:
        """A line that says whether the members are stable, or where they are not."""
        what = "rate of change, variance and power in three bands of members"
        within = f"within [{WITHIN[0]}, {WITHIN[1]}] of the training data's, and what chance adds"
        if self.first is None:
            return f"stable: from frame 1 to {len(self.leads)} {what} stay {within}"
        channel, number = np.argwhere(self.outside[self.first])[0]
        ratio, (low, high) = self.ratios[self.first, channel, number], self.bounds[:, channel, number]
        begun = f"stable from frame 1 to {self.first}" if self.first else "not stable"
        return (
            f"{begun}: at frame {self.first + 1} the {STEADY[number]} of "
            f"{self.channels[channel]} is {ratio:.3g} times the training data's, outside [{low:.3g}, {high:.3g}]"
        )
