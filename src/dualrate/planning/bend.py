"""What a solver's step gets wrong though every x_hat is right: how x_hat bends along the probability-flow ODE.

With h half the log-SNR, a step from h to h + l by DPM-Solver++ puts one x_hat in place of its mean over the step,
weighted by e^h, which is x_hat + (l / 2 + l^2 / 12) x' + l^2 / 6 x'' + O(l^3) with derivatives in h at its start:

    first order   x_hat                                                   off by   l / 2 x'
    2M            x_hat + (x_hat - x_hat of the step before) / 2          off by   l^2 (5 x'' + x') / 12

for a step as long as the one before. The first step of 2M is of first order, and a step into t = 0 ends in its x_hat,
off by what x_hat is from that of the path's last time. Derivatives are differences between the times of a grid, along
one path from noise for each image.

Source: the orders are those of DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095); the constants are Taylor's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser, posterior_mean
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.times import shared_time
from dualrate.diffusion.values import Cond
from dualrate.sampling.step import move

Numbers = NDArray[np.float64]
FEWEST = 3  # steps of a grid that says how x_hat bends


@dataclass(frozen=True)
class Bend:
    """Mean squares per element of what a step of length 1 in h is off by, at K + 1 increasing log-SNR.

    first:  (K,), of first order, in the middles between them
    second: (K - 1,), of 2M, at all but the ends
    last:   (K + 1,), of a step into t = 0, whatever its length
    """

    log_snr: Numbers
    first: Numbers
    second: Numbers
    last: Numbers

    def __post_init__(self) -> None:
        sizes = [len(part) for part in (self.log_snr, self.last, self.first, self.second)]
        if sizes[3] < 1 or sizes != [sizes[3] + 2, sizes[3] + 2, sizes[3] + 1, sizes[3]]:
            raise ValueError(f"K + 1 log-SNR, K >= 2, go with K + 1, K and K - 1 squares, got {sizes}")

    def at_the_end(self, start: Numbers) -> Numbers:
        """Mean square per element of what steps from these log-SNR into t = 0 are off by."""
        return np.interp(start, self.log_snr, self.last)

    def error(self, start: Numbers, end: Numbers, *, first: bool) -> Numbers:
        """The same of steps between these log-SNR. first: of first order."""
        length, middle = (end - start) / 2, (start + end) / 2
        if first:
            return length**2 * np.interp(middle, (self.log_snr[1:] + self.log_snr[:-1]) / 2, self.first)
        return length**4 * np.interp(middle, self.log_snr[1:-1], self.second)


@torch.no_grad()
def measure_bend(
    denoiser: Denoiser, process: GaussianProcess, t: tuple[float, ...], normal: Tensor, cond: Cond
) -> Bend:
    """Between the times t (but the last), by DDIM with a heavy call at each, from noise (B, ...), standard normal.

    t: (M + 1,), M of FEWEST steps or more. Costs M heavy calls an image.
    """
    times = [shared_time(time, len(normal)) for time in t[:-1]]
    z, x_hats = normal, []
    for now, then in zip(times, [*times[1:], None], strict=True):
        x_hats.append(posterior_mean(denoiser, z, now, cond))
        z = z if then is None else move(process, z, x_hats[-1], now, then)
    log_snr = process.schedule.log_snr(torch.tensor(t[:-1], dtype=torch.float64))
    x, h = torch.stack(x_hats).double().flatten(1).cpu(), log_snr[:, None] / 2
    slope, middle = x.diff(dim=0) / h.diff(dim=0), (h[1:] + h[:-1]) / 2
    curvature, between = slope.diff(dim=0) / middle.diff(dim=0), (slope[1:] + slope[:-1]) / 2
    first, second = (slope / 2).square().mean(1), ((5 * curvature + between) / 12).square().mean(1)
    last = (x - x[-1]).square().mean(1)
    return Bend(log_snr.numpy(), first.numpy(), second.numpy(), last.numpy())
