"""Statistics of fields, and the fingerprint of their content: each frame is read once, in parts.

Points that a mask hides count nowhere: they are 0 before anything looks at them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.source import DataProgress, silent
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.trajectories import Trajectory, check_finite, timing_of

AT_A_TIME = 2**22  # numbers that are read at once
LOST = 0.01  # of the deviation of a channel: the most that float32 may round away
CONSTANT = 1e-12  # a smaller deviation, as a share of the mean, is float64's own rounding


@dataclass(frozen=True)
class Statistics:
    """Numbers of the training split, one a channel: mean and standard deviation of states, and the standard deviation
    of differences from frame to frame. A deviation is 1 where nothing changes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    difference: tuple[float, ...]

    def normalised(self, frames: Tensor) -> Tensor:
        """Frames (..., C, H, W) at mean 0 and deviation 1 in every channel."""
        return (frames - column(self.mean, frames)) / column(self.std, frames)

    def restored(self, frames: Tensor) -> Tensor:
        """Frames in the units of the data: the inverse of `normalised`."""
        return frames * column(self.std, frames) + column(self.mean, frames)

    def filled(self, frames: NDArray[np.float32], hidden: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Frames (..., C, H, W) with the mean, which is 0 when normalised, at hidden points (C, H, W)."""
        if hidden is None:
            return frames
        return np.where(hidden, np.array(self.mean, np.float32)[:, None, None], frames)


def column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


def as_float32(source: str | Path, frames: NDArray[Any]) -> NDArray[np.float32]:
    """A copy of frames in float32. Raises ValueError for numbers that are not real."""
    if frames.dtype.kind not in "fiub":
        raise ValueError(f"{source} holds {frames.dtype}; expected real numbers, of complex ones two channels")
    return np.array(frames, np.float32, order="C")  # a copy: memory maps are only read


def survey(
    name: str,
    trajectories: Sequence[Trajectory],
    variables: tuple[str, ...],
    progress: DataProgress = silent,
    place: tuple[int, int] = (0, 0),
    hidden: NDArray[np.bool_] | None = None,
    about: tuple[Metadata, int] = (Metadata(), 0),
    into: Sequence[NDArray[np.float32]] = (),
) -> tuple[str, Statistics]:
    """The fingerprint and the statistics of trajectories, of which each frame is read once.

    place: of the first in its source, trajectory and frame, for messages; hidden: (C, H, W), points that do not count
    about: coordinates of points, and the number of axes of space, for messages
    into: an array for each trajectory, which gets its frames in float32; none: nothing is kept
    Moments are in float64, of parts, joined as by Chan, Golub and LeVeque (COMPSTAT 1982).
    Raises ValueError for a number that is not finite, and says where it is, and for a channel whose changes float32
    rounds away.
    """
    digest = hashlib.sha256(repr((variables, [trajectory.shape for trajectory in trajectories])).encode())
    digest.update(b"" if hidden is None else np.packbits(hidden).tobytes())
    open_points = np.ones(trajectories[0].shape[1:], bool) if hidden is None else ~hidden
    total, done = sum(trajectory.shape[0] for trajectory in trajectories), 0
    states, differences = _Moments(open_points), _Moments(open_points)
    exact, rounding = _Moments(open_points), _Moments(open_points)  # before float32, and what that changes
    origin: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    whole = True  # whether these are whole numbers, which nothing has rounded
    for i, trajectory in enumerate(trajectories):
        last: NDArray[np.float32] | None = None
        each = max(1, AT_A_TIME // int(np.prod(trajectory.shape[1:])))
        for first in range(0, trajectory.shape[0], each):
            with np.errstate(over="ignore"):
                raw = trajectory[first : first + each]
                raw = raw if hidden is None else np.where(hidden, np.zeros((), raw.dtype), raw)
                part = as_float32(name, raw)
            times = timing_of(trajectory).times[first : first + each]
            check_finite(part, variables, about, times, f"{name}: trajectory {place[0] + i}", place[1] + first)
            digest.update(part.astype("<f4", copy=False).tobytes())
            if into:
                into[i][first : first + each] = part
            states.add(read := part.astype(np.float64))
            if raw.dtype.itemsize > 2 and raw.dtype != np.float32:
                high, low = _halves(raw)
                origin = (states.first(high), states.first(low)) if origin is None else origin
                exact.add((high - origin[0]) + (low - origin[1]))
                rounding.add(np.square((high - read) + low))
                whole &= raw.dtype.kind in "iu"
            joined = part if last is None else np.concatenate([last, part])
            numbers = np.arange(first + len(part) - len(joined), first + len(part))
            follows = ~np.isin(numbers[1:], timing_of(trajectory).breaks)
            if follows.any():
                differences.add(np.diff(joined.astype(np.float64), axis=0)[follows])
            last, done = part[-1:], done + len(part)
            progress(done, total, "reading fields")
    constant, roundings = 0 if whole else CONSTANT, np.sqrt(rounding.mean)
    for variable, mean, std, lost in zip(variables, states.mean, exact.deviations, roundings, strict=True):
        if constant * abs(mean) < std and lost > LOST * std:
            raise ValueError(
                f"{name}: {variable} has the mean {mean:g} and the standard deviation {std:g}, and fields are computed "
                f"in float32, whose numbers are {np.spacing(np.float32(abs(mean))):g} apart there: subtract the mean "
                "from it first"
            )
    return digest.hexdigest(), Statistics(tuple(states.mean.tolist()), states.std, differences.std)


def _halves(raw: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two arrays whose sum these numbers are; integers of 64 bits have more digits than float64."""
    if raw.dtype.kind in "iu" and raw.dtype.itemsize == 8:
        return (raw >> 32).astype(np.float64) * 2.0**32, (raw & (2**32 - 1)).astype(np.float64)
    return raw.astype(np.float64), np.zeros(raw.shape)


class _Moments:
    """Count, mean and sum of squared deviations a channel, of points that are open, (C, H, W)."""

    def __init__(self, open_points: NDArray[np.bool_]) -> None:
        channels = len(open_points)
        self.points, self.hidden = open_points.reshape(channels, -1).sum(1), ~open_points
        row, column = np.unravel_index(open_points.reshape(channels, -1).argmax(1), open_points.shape[1:])
        self._place = np.arange(channels), row, column
        self.count, self.mean, self.squares = np.zeros(channels, np.int64), np.zeros(channels), np.zeros(channels)

    def first(self, part: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first open number of each channel, (1, C, 1, 1)."""
        return part[:1, *self._place].reshape(1, -1, 1, 1)

    def add(self, part: NDArray[np.float64]) -> None:
        """Add the numbers of frames (N, C, H, W)."""
        origin, count = self.first(part), len(part) * self.points  # a constant has deviations of exactly 0
        mean = self._sum(part - origin) / count + origin[0, :, 0, 0]
        squares = self._sum(np.square(part - mean[:, None, None]))
        both, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * (self.count * count / both)
        self.mean += apart * (count / both)
        self.count = both

    def _sum(self, part: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.hidden.any():
            part[:, self.hidden] = 0
        return part.sum((0, 2, 3))

    @property
    def deviations(self) -> NDArray[np.float64]:
        return np.sqrt(self.squares / np.maximum(1, self.count))

    @property
    def std(self) -> tuple[float, ...]:
        """The deviations; 1 where nothing changes."""
        return tuple(np.where(self.deviations > 0, self.deviations, 1.0).tolist())
