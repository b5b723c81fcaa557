"""Frames of the training data, and of these some of the same time of the year: a climatology that knows the season."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.drawing.drawer import spread
from dualrate.forecasts.externals import hours_between, parts_of_time, plain_dates
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.starts import Starts
from dualrate.forecasts.trajectories import timing_of

LOOKED_AT = 1024  # frames of the training data that random ones are drawn of
NEAR = 1 / 24  # of a year: frames of the same time of it, before and after
YEAR = 360 * 24.0  # hours of the shortest year


@dataclass(frozen=True)
class Seasons:
    """Parts of the year. frames: of each training frame, (F,); starts: of each start and lead time, (N, T)"""

    frames: NDArray[np.float64]
    starts: NDArray[np.float64]

    @staticmethod
    def of(starts: Starts, ahead: int) -> Seasons | None:
        """Times of the year of starts and of training frames; None without dates, or a year of these."""
        data, dates = starts.training, starts.dates
        if data is None or dates is None or dates.dtype.kind not in "MO":
            return None
        times = [timing_of(each) for each in data.trajectories]
        hours = [hours_between(each.times, each.breaks) for each in times]
        if not all(map(len, hours)) or max(each.sum() for each in hours) < YEAR:
            return None
        step = float(np.concatenate(hours).mean()) * ahead
        leads = [timedelta(hours=step * (k + 1)) for k in range(starts.known)]
        later = [[parts_of_time(date + lead)[0] for lead in leads] for date in plain_dates(dates)]
        places = _places(data, 0)
        some = [parts_of_time(plain_dates(times[i].times[at : at + 1])[0])[0] for i, at in places]
        return Seasons(np.array(some), np.array(later))

    def drawn(self, frames: Tensor, part: range, members: int, leads: int) -> Iterator[Tensor]:
        """(n, M, C, H, W) of each lead time: random frames (F, C, H, W) near its time of the year, none twice."""
        for lead in range(leads):
            chosen = []
            for start in part:
                apart = np.abs((self.frames - self.starts[start, lead] + 0.5) % 1 - 0.5)
                near = np.argsort(apart, kind="stable")[: max(members, int((apart <= NEAR).sum()))]
                chosen.append(np.random.default_rng((start, lead)).choice(near, members, replace=False))
            yield frames[torch.from_numpy(np.stack(chosen))]


def training_frames(data: Fields, *steps: int) -> Tensor:
    """Training frames, (K len(steps), C, H, W) float32: those each of `steps` after K places, spread evenly.

    The last step is the largest.
    """
    places = _places(data, steps[-1])
    return torch.from_numpy(np.concatenate([data.frames(i, first + step, 1) for i, first in places for step in steps]))


def _places(data: Fields, last: int) -> list[list[int]]:
    windows = data.windows(last + 1)
    return windows[spread(min(len(windows), LOOKED_AT), len(windows))].tolist()
