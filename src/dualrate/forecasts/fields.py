"""Forecasts: the frames of a field that come next, of those before.

    y = past frames, normalised, at every k-th point of each axis, with noise         what a model is given
    x = the frames after, normalised                                                  what it makes, of each frame
        or (frame - last frame of the past) / scale                                   with `difference`

Frames are `lead` time steps of the data apart, those that are made `lead stride`. A field of one dimension has one
row. A fully observed system that obeys a law without chance has one future, and needs no diffusion: several futures fit
what is observed in part, or with noise.

The splits are those that a source names (sources.py); else the last tenth of its trajectories is the test split, or of
a single one the last tenth of its frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Positive, Range, Ranged
from dualrate.config.serial import to_plain
from dualrate.data.condition_rows import Make
from dualrate.data.conditions import Condition, Conditioned
from dualrate.data.loader import Augment, Derived, TrainingSet
from dualrate.data.source import DataProgress, Split, silent, split_named, test_split
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.trajectories import EXPECTED, FieldSource, Lazy, Timing, Trajectory, timing_of

Frames = Annotated[int, Range(1, 256)]
LOOKED_AT = 1000  # windows, for the scale of differences
SHOWN_ROWS, SHOWN_RANGE = 8, 3.0  # of a frame of one dimension in a picture; standard deviations from black to white
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
        return (frames - _column(self.mean, frames)) / _column(self.std, frames)

    def restored(self, frames: Tensor) -> Tensor:
        """Frames in the units of the data: the inverse of `normalised`."""
        return frames * _column(self.std, frames) + _column(self.mean, frames)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True, eq=False)
class Fields(TrainingSet):
    """One split of trajectories. As a training set its rows are single frames, normalised.

    trajectories: each (T, C, H, W), two frames at least
    variables:    names of the channels
    step:         time between frames, if it is known
    statistics:   by which rows are normalised
    axes:         names of those of space, as of `FieldSource`
    metadata:     as of `FieldSource`
    hashed:       sha256 (hex) of variables and frames in float32, wherever they lie
    """

    name: str
    trajectories: Sequence[Trajectory]
    variables: tuple[str, ...]
    step: float | None
    statistics: Statistics
    hashed: str
    axes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    metadata: Metadata = Metadata()

    @property
    def fingerprint(self) -> str:
        return self.hashed

    @property
    def shape(self) -> Shape:
        """(C, H, W)"""
        _, channels, height, width = self.trajectories[0].shape
        return channels, height, width

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([trajectory.shape[0] for trajectory in self.trajectories])

    def __len__(self) -> int:
        """Frames of all trajectories."""
        return int(self._ends[-1])

    def frames(self, trajectory: int, first: int, count: int) -> NDArray[np.float32]:
        """Frames (count, C, H, W) in a row, not normalised. Raises IndexError beyond the ends of a trajectory."""
        if not 0 <= first <= first + count <= self.trajectories[trajectory].shape[0]:
            length = self.trajectories[trajectory].shape[0]
            raise IndexError(
                f"{self.name}: frames {first} to {first + count - 1} of {length} in trajectory {trajectory}"
            )
        return as_float32(self.name, self.trajectories[trajectory][first : first + count])

    def windows(self, count: int) -> NDArray[np.int64]:
        """(K, 2): trajectory and first frame of every window of `count` frames that follow one another.

        Raises ValueError if there is none.
        """
        windows: list[tuple[int, int]] = []
        for i, trajectory in enumerate(self.trajectories):
            for first, stop in pieces_of(trajectory):
                windows += [(i, start) for start in range(first, stop - count + 1)]
        if count < 1 or not windows:
            longest = max(stop - first for trajectory in self.trajectories for first, stop in pieces_of(trajectory))
            raise ValueError(
                f"{self.name}: windows of {count} frames, expected 1 to {longest}, the most in a row in "
                f"{len(self.trajectories)} trajectories: ask for fewer past or future frames, or give longer ones"
            )
        return np.array(windows, np.int64)

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """(B, C, H, W) float32: single frames, numbered through all trajectories."""
        if augment != Augment():
            raise ValueError(
                f"{self.name} holds fields, whose symmetries are unknown: drop --data.augment.flip and .translate"
            )
        which = np.searchsorted(self._ends, index, side="right")
        first = index - np.concatenate([[0], self._ends])[which]
        frames = [self.frames(int(i), int(j), 1) for i, j in zip(which, first, strict=True)]
        return self.statistics.normalised(torch.from_numpy(np.concatenate(frames)))

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows


def pieces_of(trajectory: Trajectory) -> list[tuple[int, int]]:
    """First frame and end of each piece between gaps in time."""
    return list(pairwise((0, *timing_of(trajectory).breaks, trajectory.shape[0])))


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
) -> tuple[str, Statistics]:
    """The fingerprint and the statistics of trajectories, of which each frame is read once.

    place: of the first in its source, trajectory and frame, for messages
    Moments are in float64, of parts, joined as by Chan, Golub and LeVeque (COMPSTAT 1982).
    Raises ValueError for a number that is not finite, and says where it is, and for a channel whose changes float32
    rounds away.
    """
    digest = hashlib.sha256(repr((variables, [trajectory.shape for trajectory in trajectories])).encode())
    channels, total = len(variables), sum(trajectory.shape[0] for trajectory in trajectories)
    states, differences, done = _Moments(channels), _Moments(channels), 0
    exact, rounding = _Moments(channels), _Moments(channels)  # before float32, from an origin, and what that changes
    origin: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    whole = True  # whether these are whole numbers, which nothing has rounded
    for i, trajectory in enumerate(trajectories):
        last: NDArray[np.float32] | None = None
        each = max(1, AT_A_TIME // int(np.prod(trajectory.shape[1:])))
        for first in range(0, trajectory.shape[0], each):
            with np.errstate(over="ignore"):
                raw = trajectory[first : first + each]
                part = as_float32(name, raw)
            if len(wrong := np.argwhere(~np.isfinite(part))):
                frame, channel, *_ = wrong[0].tolist()
                raise ValueError(
                    f"{name}: trajectory {place[0] + i}, frame {place[1] + first + frame}, channel {channel} "
                    f"({variables[channel]}) holds "
                    f"{part[tuple(wrong[0])]}, and {len(wrong)} number(s) of these {len(part)} frames are not finite "
                    "in float32: fill what is missing, say by 0 beside a channel that says where it was, or leave "
                    "these trajectories out"
                )
            digest.update(part.astype("<f4", copy=False).tobytes())
            states.add(read := part.astype(np.float64))
            if raw.dtype.itemsize > 2 and raw.dtype != np.float32:
                high, low = _halves(raw)
                origin = (high[:1, :, :1, :1], low[:1, :, :1, :1]) if origin is None else origin
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
    _check_rounding(name, variables, states.mean, exact.deviations, np.sqrt(rounding.mean), 0 if whole else CONSTANT)
    return digest.hexdigest(), Statistics(tuple(states.mean.tolist()), states.std, differences.std)


def _halves(raw: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two arrays whose sum these numbers are; integers of 64 bits have more digits than float64."""
    if raw.dtype.kind in "iu" and raw.dtype.itemsize == 8:
        return (raw >> 32).astype(np.float64) * 2.0**32, (raw & (2**32 - 1)).astype(np.float64)
    return raw.astype(np.float64), np.zeros(raw.shape)


def _check_rounding(
    name: str,
    variables: tuple[str, ...],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
    roundings: NDArray[np.float64],
    constant: float,
) -> None:
    """Raise ValueError where float32 rounds the changes of a variable away.

    constant: a deviation below this share of the mean counts as none
    """
    for variable, mean, std, lost in zip(variables, means, deviations, roundings, strict=True):
        if constant * abs(mean) < std and lost > LOST * std:
            raise ValueError(
                f"{name}: {variable} has the mean {mean:g} and the standard deviation {std:g}, and fields are computed "
                f"in float32, whose numbers are {np.spacing(np.float32(abs(mean))):g} apart there: subtract the mean "
                "from it first"
            )


class _Moments:
    """Count, mean and sum of squared deviations a channel."""

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, part: NDArray[np.float64]) -> None:
        """Add the numbers of frames (N, C, H, W)."""
        origin = part[:1, :, :1, :1]  # a constant has deviations of exactly 0
        mean = (part - origin).mean((0, 2, 3)) + origin[0, :, 0, 0]
        squares = np.square(part - mean[:, None, None]).sum((0, 2, 3))
        count = part.size // len(mean)
        both, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * (self.count * count / both)
        self.mean += apart * (count / both)
        self.count = both

    @property
    def deviations(self) -> NDArray[np.float64]:
        return np.sqrt(self.squares / max(1, self.count))

    @property
    def std(self) -> tuple[float, ...]:
        """The deviations; 1 where nothing changes."""
        return tuple(np.where(self.deviations > 0, self.deviations, 1.0).tolist())


@dataclass(frozen=True)
class Forecast(Condition, Ranged):
    """The frames of a field that come next, of those before."""

    past: Frames = 1
    """Number of known frames."""
    frames: Frames = 1
    """Frames of a window, which is one sample. One heavy call serves all of them."""
    lead: Annotated[int, Range(1, 100_000)] = 1
    """Time steps of the data from one frame to the next."""
    difference: bool = False
    """Whether samples are differences from the last known frame."""
    every: Annotated[int, Range(1, 256)] = 1
    """Spacing of the observed points on each axis: 4 observes every fourth."""
    noise: Annotated[float, Range(0, 100)] = 0.0
    """Standard deviation of the noise on observed values, in standard deviations of the field."""
    statistics: Statistics = Statistics((), (), ())
    """Of the training data; `of` fills this in, and the scale."""
    scale: tuple[Positive, ...] = ()
    """Standard deviation of each channel of each frame of a sample, in standard deviations of the field; 1 where
    nothing changes."""
    variables: tuple[str, ...] = ()
    """Names of the channels, in their order."""
    step: Positive | None = None
    """Time from one time step of the data to the next, where the data says it."""
    axes: tuple[str, ...] = ()
    """Names of the axes of space, and whether their coordinates rise or fall, where the data says it."""
    fingerprint: str = ""
    """sha256 of the training fields; empty: unknown."""
    stride: Frames = 1
    """Distance between the frames that are made, in frames that are `lead` apart."""
    metadata: Metadata = Metadata()
    """Units and coordinates, where the data says them."""

    no_pictures = "starts from arrays, not pictures: dualrate forecast RUN --from FILE"

    @property
    def identity(self) -> dict[str, Any]:
        """Without the fingerprint, since the identity of a run has that of its data, and without what its file says of
        axes, units and coordinates, which changes nothing."""
        left_out = "fingerprint", "axes", "metadata"
        return {"condition": {name: value for name, value in to_plain(self).items() if name not in left_out}}

    def of(self, fields: Fields) -> Forecast:
        """The same for fields to train on, with their statistics. Raises ValueError where they are too short."""
        whole = replace(
            self,
            statistics=fields.statistics,
            variables=tuple(fields.variables),
            step=fields.step,
            axes=fields.axes,
            metadata=fields.metadata.thinned,
            scale=(1.0,) * (fields.shape[0] * self.frames),
            fingerprint=fields.fingerprint,
        )
        targets = Windows(fields, whole)  # refuses fields that are too short
        if not self.difference:
            return whole
        some = np.linspace(0, len(targets) - 1, min(len(targets), LOOKED_AT)).astype(np.int64)
        x = targets.rows(some, Draws(0, torch.from_numpy(some)), Augment()).double()
        scale = x.square().mean((0, 2, 3)).sqrt()
        if not (scale > 0).any():
            raise ValueError(f"{fields.name} never changes from frame to frame: give a larger lead")
        return replace(whole, scale=tuple(torch.where(scale > 0, scale, 1.0).tolist()))

    @property
    def span(self) -> int:
        """Length of a window of past and sample, in time steps of the data."""
        return self.past_steps + self.frames * self.ahead

    @property
    def past_steps(self) -> int:
        """Length of the past, in time steps of the data."""
        return (self.past - 1) * self.lead + 1

    @property
    def ahead(self) -> int:
        """Time steps of the data from one frame that is made to the next, and from the past to the first."""
        return self.lead * self.stride

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels; their numbers, where the run knows no names."""
        return self.variables or tuple(map(str, range(len(self.statistics.mean))))

    def lead_times(self, frames: int) -> tuple[float, ...]:
        """Lead times of this many frames: in the time of the data, or in time steps where it does not say that."""
        step = 1.0 if self.step is None else self.step
        return tuple(float(self.ahead * step * (k + 1)) for k in range(frames))

    @property
    def over_latitudes(self) -> bool:
        """Whether an axis of space is one of latitudes, so that points do not stand for equal areas."""
        return self.metadata.over_latitudes or any(axis.lower().startswith("lat") for axis in self.axes)

    @property
    def lead_unit(self) -> str:
        """The unit of `lead_times`."""
        return "time steps" if self.step is None else "time"

    def target(self, image: Shape) -> Shape:
        channels, height, width = image
        return self.frames * channels, height, width

    def shape(self, image: Shape) -> Shape:
        channels, height, width = image
        if channels % self.frames:
            raise ValueError(f"samples of {channels} channels do not divide into {self.frames} frames")
        return self.past * channels // self.frames, -(-height // self.every), -(-width // self.every)

    def build(self, device: torch.device | str) -> Make:
        return self.observe

    def observe(self, past: Tensor, draws: Draws, observed: int = 0) -> Tensor:
        """The condition y (B, c, h, w) that is observed of normalised frames (B, past C, H, W).

        draws: of the noise, for the same rows; observed: so many frames, the first, are observations and get no noise
        """
        y = past[..., :: self.every, :: self.every]
        if not self.noise:
            return y
        noise = self.noise * draws.normal("observation", *y.shape[1:])
        noise[:, : observed * y.shape[1] // self.past] = 0
        return y + noise

    def spread_out(self, observed: NDArray[np.float32], frame: Shape) -> NDArray[np.float32]:
        """Whole frames (..., C, H, W) of which the points (..., C, h, w) were observed; those between are 0."""
        whole = np.zeros((*observed.shape[:-2], *frame[1:]), np.float32)
        whole[..., :: self.every, :: self.every] = observed
        return whole

    def check(self, image: Shape, augment: Augment) -> None:
        if augment != Augment():
            raise ValueError("fields are not mirrored or shifted in training: drop --data.augment")

    def conditioned(self, targets: TrainingSet, partners: TrainingSet | None = None) -> Conditioned:
        assert isinstance(targets, Fields)
        windows = Windows(targets, self)
        return Conditioned(windows, self, windows.pasts())

    def sample_of(self, last: Tensor, following: Tensor) -> Tensor:
        """Sample x (B, frames C, H, W) of normalised frames: the last (B, C, H, W) and the next (B, frames, ...)."""
        if self.difference:
            following = following - last[:, None]
        return following.flatten(1, 2) / _column(self.scale, following)

    def frames_of(self, x: Tensor, last: Tensor) -> Tensor:
        """The inverse of `sample_of`: (B, frames, C, H, W), normalised."""
        following = (x * _column(self.scale, x)).unflatten(1, (self.frames, -1))
        return following + last[:, None] if self.difference else following

    def shown(self, x: Tensor) -> Tensor:
        """The first channel of every frame, one below the other: (B, 1, frames H, W), grey."""
        first = x.unflatten(1, (self.frames, -1))[:, :, 0] / SHOWN_RANGE
        rows = SHOWN_ROWS if first.shape[2] == 1 else 1
        return first.repeat_interleave(rows, 2).flatten(1, 2)[:, None]


class Windows(Derived):
    """Windows of fields: the past of each, or the sample that a forecast makes of it.

    past: whether rows are the pasts. Raises as `Fields.windows`.
    """

    def __init__(self, fields: Fields, forecast: Forecast, *, past: bool = False) -> None:
        super().__init__(fields)
        self.fields, self.forecast, self.past = fields, forecast, past
        self.starts, self._latest = fields.windows(forecast.span), lru_cache(maxsize=1)(self._read)

    @property
    def shape(self) -> Shape:
        channels, height, width = self.fields.shape
        return channels * (self.forecast.past if self.past else self.forecast.frames), height, width

    def __len__(self) -> int:
        return len(self.starts)

    def pasts(self) -> Windows:
        """The pasts of the same windows. A window of both is read once, if they are asked for it in turn."""
        windows = copy(self)
        windows.past = True
        return windows

    def frames(self, index: NDArray[np.int64]) -> Tensor:
        """Frames (B, past + frames, C, H, W) of the windows with these numbers, float32, normalised."""
        return self._latest(tuple(index.tolist()))

    def _read(self, index: tuple[int, ...]) -> Tensor:
        forecast = self.forecast
        future = range(forecast.past_steps - 1 + forecast.ahead, forecast.span, forecast.ahead)
        steps = [*range(0, forecast.past_steps, forecast.lead), *future]
        frames = [self.fields.frames(int(i), int(first), forecast.span)[steps] for i, first in self.starts[list(index)]]
        return self.forecast.statistics.normalised(torch.from_numpy(np.stack(frames)))

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        frames, past = self.frames(index), self.forecast.past
        if self.past:
            return frames[:, :past].flatten(1, 2)
        return self.forecast.sample_of(frames[:, past - 1], frames[:, past:])


# Fields of a source


def read_fields(
    source: str | Path, split: Split, statistics: Statistics | None = None, progress: DataProgress = silent
) -> Fields:
    """One split of a source; every frame is read once for its fingerprint, the training frames for statistics too.

    statistics: those of a run, where the training frames need not be there
    Raises ValueError for a source, a shape or numbers that cannot be used, FileNotFoundError where there is none,
    ModuleNotFoundError that names the extra, OSError for what cannot be read.
    """
    name, fields = find_fields(source, progress)
    name, (train, chosen, place) = f"{name}/{split}", _divided(str(source), fields, split)
    if statistics is not None:
        train = chosen
    elif train is None:
        raise ValueError(
            f"{source} holds no training fields, of which the statistics are: name the folder that holds them beside "
            "these, or give those of a run"
        )
    for part in (train, chosen):
        _check(str(source), part, fields.variables)
    hashed, measured = survey(name, chosen, fields.variables, progress, place)
    if statistics is None:
        statistics = measured if train is chosen else survey(str(source), train, fields.variables)[1]
    elif len(statistics.mean) != len(fields.variables):
        raise ValueError(
            f"{source} has {len(fields.variables)} channels ({', '.join(fields.variables)}); the statistics are of "
            f"{len(statistics.mean)}: give fields with the channels that the run was trained on"
        )
    return Fields(
        name, chosen, fields.variables, fields.step, statistics, hashed, fields.axes, metadata=fields.metadata
    )


def _divided(
    source: str, fields: FieldSource, split: Split
) -> tuple[Sequence[Trajectory] | None, Sequence[Trajectory], tuple[int, int]]:
    """The training trajectories or None; those of the split; the trajectory and frame in the source of their first."""
    splits = {split_named(name): part for name, part in fields.splits.items()}
    if len(splits) < len(fields.splits):
        raise ValueError(f"{source} names a split twice ({', '.join(fields.splits)}): keep one name of each")
    test = test_split(splits)
    if test:
        chosen = splits.get("train" if split == "train" else test)
        if chosen is None:
            raise ValueError(f"{source} holds only the split {test}: name a source that has training fields")
        return splits.get("train"), chosen, (0, 0)
    every = splits["train"] if "train" in splits else next(iter(splits.values()))
    if len(every) > 1:
        count = max(1, len(every) // 10)
        train, rest, place = every[:-count], every[-count:], (len(every) - count, 0)
    else:
        frames = every[0].shape[0]
        count = max(2, frames // 10)
        if frames < count + 2:
            raise ValueError(
                f"{source} holds one trajectory of {frames} frames; expected 4 or more, of which the last tenth is "
                "held out"
            )
        train, rest = [_part(every[0], 0, frames - count)], [_part(every[0], frames - count, frames)]
        place = (0, frames - count)
    return (train, train, (0, 0)) if split == "train" else (train, rest, place)


def _part(whole: Trajectory, first: int, last: int) -> Trajectory:
    timing = timing_of(whole)
    timing = Timing(
        breaks=tuple(at - first for at in timing.breaks if first < at < last), times=timing.times[first:last]
    )
    return Lazy((last - first, *whole.shape[1:]), lambda i, j: whole[first + i : first + j], timing)  # pyright: ignore[reportArgumentType]


def _check(source: str, trajectories: Sequence[Trajectory], variables: tuple[str, ...]) -> None:
    """Raises ValueError unless there are trajectories of frames of one shape."""
    if not trajectories:
        raise ValueError(f"{source} holds no trajectories; expected {EXPECTED}")
    expected = (len(variables), *trajectories[0].shape[2:])
    for i, trajectory in enumerate(trajectories):
        if trajectory.shape[0] < 2 or trajectory.shape[1:] != expected or 0 in expected:
            raise ValueError(
                f"{source}: trajectory {i} is (time, channel, y, x) = {trajectory.shape}; expected two frames or more, "
                f"each {expected}, as its {len(variables)} variables and trajectory 0 say"
            )
