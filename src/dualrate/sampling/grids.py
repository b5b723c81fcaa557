"""Time grids of samplers: N + 1 times that decrease from 1 (noise) to 0 (data), for `StepPlan.at`.

Steps of equal length in t waste calls where nothing happens. The other grids are laid out in noise levels instead, for
the N steps i = 0..N-1, and put through the inverse of the schedule:

    equal steps in log-SNR      log_snr_i = low + i / (N - 1) (high - low)
    Karras et al. 2022, eq. 5   S_i^(1/rho) = S_max^(1/rho) + i / (N - 1) (S_min^(1/rho) - S_max^(1/rho))

with S = sigma / alpha. Between equal steps in t (u_i = 1 - i / N) and in log-SNR (v_i) lies a family, b from 0 to 1:

    blend:b                     t_i = (1 - b) u_i + b v_i,   i = 0..N

Its ends are those two grids, and it decreases for every b: t_i - t_(i+1) is the same mean of two positive steps.

Two rules make them fit for few steps:

- The last step goes from a finite level to t = 0 and, of a process that ends in x_hat, returns it: `high` and S_min say
  how much noise the last call sees. Equal steps up to the schedule's own end (log-SNR 15) would spend calls on noise
  far below an 8-bit grey level.
- The first call is made at t = 1, where samples start. `low` and S_max only say where the other calls lie: above that
  level z is noise and x_hat the mean of the data, so that there is nothing to resolve.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise

import torch

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import Schedule

TimeGrid = tuple[float, ...]
GRIDS = ("t", "log-snr", "karras")
BLEND = "blend:"


def grid_times(name: str, schedule: Schedule, steps: int) -> TimeGrid:
    """The N + 1 times of a grid with its usual ends: one of GRIDS, or blend:0.3.

    Raises ValueError for another name, and where the grid's own function does.
    """
    match check_grid(name):
        case "t":
            return uniform(steps)
        case "log-snr":
            least, most = _reach(schedule)
            return uniform_log_snr(schedule, steps, max(-10.0, least), min(8.0, most))
        case "karras":
            least, most = _reach(schedule)
            sigma_min, sigma_max = max(0.002, math.exp(-most / 2)), min(80.0, math.exp(-least / 2))
            return karras(schedule, steps, sigma_min=sigma_min, sigma_max=sigma_max)
        case _:
            return blended(schedule, steps, float(name.removeprefix(BLEND)))


def check_grid(name: str) -> str:
    """The name. Raises ValueError where there is no grid of this name."""
    with suppress(ValueError):
        if name in GRIDS or (name.isascii() and name.startswith(BLEND) and 0 <= float(name.removeprefix(BLEND)) <= 1):
            return name
    raise ValueError(
        f"there is no grid {name!r}; there are {', '.join(GRIDS)}, and {BLEND}0.3, between t ({BLEND}0) and log-snr "
        f"({BLEND}1)"
    )


def blended(schedule: Schedule, steps: int, share: float) -> TimeGrid:
    """Times between those of `uniform` (share 0) and of `uniform_log_snr` (share 1): their weighted mean.

    Raises ValueError for a share outside 0 to 1, and as both of these do.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of equal steps in log-SNR is from 0 to 1, got {share}")
    ends = zip(uniform(steps), grid_times("log-snr", schedule, steps), strict=True)
    return tuple((1 - share) * even + share * log_snr for even, log_snr in ends)


def uniform(steps: int) -> TimeGrid:
    """t = 1 - i / N. Raises ValueError for less than one step."""
    return StepPlan.uniform(steps).t


def uniform_log_snr(schedule: Schedule, steps: int, low: float = -10.0, high: float = 8.0) -> TimeGrid:
    """Equal steps in log-SNR from `low` (noise) to `high`, then 0.

    Raises ValueError for less than one step, or ends that are in the wrong order or outside the schedule's.
    """
    return _through(schedule, [low + (high - low) * share for share in _shares(steps)], low, high)


def karras(
    schedule: Schedule, steps: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> TimeGrid:
    """Equal steps in (sigma / alpha)^(1 / rho) from sigma_max to sigma_min, then 0; the ends are those of the paper.

    Raises ValueError for less than one step, for ends or a rho that are not positive, in the wrong order, or outside
    the schedule's.
    """
    if not (rho > 0 and sigma_min > 0 and sigma_max > 0):
        raise ValueError(f"rho and noise levels are positive, got rho {rho}, levels {sigma_min} and {sigma_max}")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = [(first + (last - first) * share) ** rho for share in _shares(steps)]
    low, high = (-2 * math.log(level) for level in (sigma_max, sigma_min))
    return _through(schedule, [-2 * math.log(level) for level in levels], low, high)


def _reach(schedule: Schedule) -> tuple[float, float]:
    """The log-SNRs between which a grid may end. Tables of latent diffusion models go from -5.4 to 7.7 alone."""
    least, most = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    return least, most - 1  # t = 0 itself is the end of the last step


def _shares(steps: int) -> list[float]:
    """Places of the N calls between the two ends, from 0 to 1."""
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    return [i / max(steps - 1, 1) for i in range(steps)]


def _through(schedule: Schedule, log_snr: list[float], low: float, high: float) -> TimeGrid:
    """The times of these log-SNRs, the first one 1, and 0 after the last."""
    inner = schedule.time(torch.tensor(log_snr[1:], dtype=torch.float64)).tolist()
    times = (1.0, *inner, 0.0)
    if not (low < high and all(later < earlier for earlier, later in pairwise(times))):
        least, most = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        raise ValueError(
            f"a grid goes from a low to a high log-SNR within the schedule's, {least:.4g} to {most:.4g} (sigma / alpha "
            f"{math.exp(-least / 2):.4g} to {math.exp(-most / 2):.4g}), got {low:.4g} to {high:.4g}: give other ends"
        )
    return times
