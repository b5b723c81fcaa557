"""Forecasts: the frames of a field that come next, of those before.

    y = past frames, normalised, at every k-th point of each axis, with noise         what a model is given
    x = the frames after, normalised                                                  what it makes, of each frame
        or (frame - last frame of the past) / scale                                   with `difference`

Frames are `lead` time steps of the data apart, those that are made `lead stride`. A field of one dimension has one
row. A fully observed system that obeys a law without chance has one future, and needs no diffusion: several futures fit
what is observed in part, or with noise.

Points that a mask hides (geometry.py) are the mean in y and x, so 0, and count in no loss; planes of y say where.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Positive, Range, Ranged
from dualrate.config.serial import to_plain
from dualrate.data.condition_rows import Make
from dualrate.data.conditions import Condition, Conditioned
from dualrate.data.loader import Augment, Derived, TrainingSet
from dualrate.data.source import DataProgress, Split, silent
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.forecasts.clips import CLIPS, LEVELS, ClipReading
from dualrate.forecasts.externals import (
    Externals,
    Forcings,
    beside,
    checked_dates,
    months_of_step,
    statics_on,
    year_parts,
)
from dualrate.forecasts.fields import Fields, read_fields
from dualrate.forecasts.geometry import Geometry, Hiding, hidden_on, planes_on, weights_on
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.seasons import Anomalies
from dualrate.forecasts.statistics import Statistics, column
from dualrate.forecasts.trajectories import Trajectory, timing_of

Frames = Annotated[int, Range(1, 256)]
CLIP_OPTIONS = "size", "channels", "fps"  # of the data, which other fields do not have
LOOKED_AT = 1000  # windows, for the scale of differences
DAYS = 96.0  # hours
OF_DATA = "fingerprint", "axes", "metadata", "geometry", "anomalies", "months"
YEARS = {"360_day": 360, "noleap": 365, "all_leap": 366}  # days of a calendar
SHOWN_ROWS, SHOWN_RANGE = 8, 3.0  # of a frame of one dimension in a picture; standard deviations from black to white


class Coder:
    """Frames of the data as networks see them, before these are normalised, and back: the same, unless overridden.

    each:  frames of the data that become one
    exact: whether windows go on from frames as they were written, else from others, which are not on disk
    reading, writing: multiply-adds of the past of a start, and of a frame that was drawn
    """

    each, exact = 1, True
    reading = writing = 0

    def received(self, past: Tensor) -> Tensor:
        """The past of starts, (N, past, C, H, W) on the host, as networks see it."""
        return past

    def delivered(self, frames: Tensor, rows: Tensor, number: int) -> Tensor:
        """Frames (n, m, f, C, H, W) that were drawn, on the host, as the data has them.

        rows: (n m,) seeds of these members, on the networks' device; number: of the first frame in the roll-out
        """
        return frames


UNCODED = Coder()


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
    geometry: Geometry = Geometry()
    """Places of points, how much each counts, and which are hidden."""
    externals: Externals = Externals()
    """Static fields and forcings."""
    anomalies: Anomalies = Anomalies()
    """Whether networks see anomalies to a climatology by the time of the year."""
    months: Annotated[int, Range(0, 12_000)] = 0
    """Months of the calendar from one time step of the data to the next; 0: it is no such step."""
    weights: tuple[Positive, ...] = ()
    """How much each variable counts in the loss, beside the others; empty: all alike."""

    no_pictures = "starts from arrays, not pictures: dualrate forecast RUN --from FILE, or dr.forecast"

    @property
    def identity(self) -> dict[str, Any]:
        """Without the fingerprint, since the identity of a run has that of its data, and without what its file says of
        axes, units and coordinates, which changes nothing but the weights of points."""
        unsaid = [name for name in ("externals", "weights") if not getattr(self, name)]
        plain = {name: value for name, value in to_plain(self).items() if name not in (*OF_DATA, *unsaid)}
        harmonics = {"anomalies": self.anomalies.harmonics} if self.anomalies else {}  # the rest is of the data
        return {"condition": plain | self.geometry.identity | harmonics}

    def of(self, fields: Fields) -> Self:
        """The same for fields to train on, with their statistics. Raises ValueError where they are too short."""
        whole = replace(
            self,
            statistics=fields.statistics,
            variables=tuple(fields.variables),
            step=fields.step,
            axes=fields.axes,
            metadata=fields.metadata.thinned,
            scale=(1.0,) * (fields.shape[0] * self.frames),
            externals=self.externals.fitted(fields.name, fields.trajectories, fields.forced, self.geometry),
            anomalies=self.anomalies.fitted(fields),
            fingerprint=fields.fingerprint,
            months=months_of_step(fields.trajectories),
        )
        targets = Windows(fields, whole)  # refuses fields that are too short
        if not self.difference:
            return whole
        some = np.linspace(0, len(targets) - 1, min(len(targets), LOOKED_AT)).astype(np.int64)
        x = targets.rows(some, Draws(0, torch.from_numpy(some)), Augment()).double()
        scale = replace(whole, weights=()).weighed(x).square().mean((0, 2, 3)).sqrt()
        if not (scale > 0).any():
            raise ValueError(f"{fields.name} never changes from frame to frame: give a larger lead")
        return replace(whole, scale=tuple(torch.where(scale > 0, scale, 1.0).tolist()))

    @property
    def of_data(self) -> Forecast:
        """The same, of frames as the data has them: itself, where networks see these."""
        return self

    def frame(self, sample: Shape) -> Shape:
        """(C, H, W) of a frame as the data has it. sample: of the networks"""
        return sample[0] // self.frames, sample[1], sample[2]

    def coder(self, device: torch.device | str) -> Coder:
        """The way from frames of the data to those of the networks, and back."""
        return UNCODED

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
        axes = any(axis.lower().startswith("lat") for axis in self.axes)
        return axes or any(each.place == "latitude" for each in self.metadata.coordinates)

    @property
    def of_clips(self) -> bool:
        """Whether frames are pictures, from 0 to 255."""
        return bool(self.metadata.variables) and set(self.metadata.variables) == set(LEVELS.variables)

    @property
    def lead_unit(self) -> str:
        """The unit of `lead_times`; empty where the data does not say it."""
        return "time steps" if self.step is None else self.metadata.time.partition(" since ")[0]

    def shown_unit(self, longest: float) -> tuple[float, str]:
        """The factor and the unit by which people read `lead_times` up to the longest: months or years of a step that
        is such; of hours days from `DAYS` on, years of the calendar from two on."""
        if self.months:
            factor = self.months / (self.step or 1)
            return (factor / 12, "years") if self.months % 12 == 0 else (factor, "months")
        if self.lead_unit != "hours" or longest < DAYS:
            return 1.0, self.lead_unit
        year = 24 * YEARS.get(self.metadata.calendar, 365.2425)
        return (1 / 24, "days") if longest < 2 * year - 24 else (1 / year, "years")

    def plain_time(self, time: float) -> str:
        """A length of time, as `lead_times` have it, for people."""
        factor, unit = self.shown_unit(time)
        number = f"{time * factor:.6g}"
        return f"{number} {unit.removesuffix('s') if number == '1' and len(unit) > 1 else unit}".rstrip()

    def target(self, image: Shape) -> Shape:
        channels, height, width = image
        return self.frames * channels, height, width

    def shape(self, image: Shape) -> Shape:
        channels, height, width = image
        if channels % self.frames:
            raise ValueError(f"samples of {channels} channels do not divide into {self.frames} frames")
        planes = len(self.geometry.planes) + len(self.externals.statics) + self.externals.channels
        return self.past * channels // self.frames + planes, -(-height // self.every), -(-width // self.every)

    def items(self, data: Any, split: Split, progress: DataProgress = silent) -> Fields:
        return self.read_fields(data, split, progress=progress)

    def read_fields(
        self, data: Any, split: Split, statistics: Statistics | None = None, progress: DataProgress = silent
    ) -> Fields:
        """One split of a run's data, as `read_fields` reads it for its geometry. data: a `DataConfig`"""
        of_clips = str(data.source).startswith(CLIPS)
        data.refuse("holds fields, which are taken as they are", "label", "augment", *CLIP_OPTIONS * (not of_clips))
        how = {"variables": data.variables, "levels": data.levels, "geometry": self.geometry}
        how |= {"forcings": self.externals.variables}
        how |= {"clips": ClipReading.of(data, self.span)} if of_clips else {}
        return read_fields(data.source, split, statistics, progress, **how)

    def around(self, denoiser: Denoiser) -> Denoiser:
        return Hiding(denoiser, self.geometry, self.frames) if self.geometry.mask else denoiser

    def weighed(self, x: Tensor, power: float = 0.5) -> Tensor:
        if not (self.geometry.spherical or self.geometry.mask or self.weights):
            return x
        frame = x.shape[-3] // self.frames, x.shape[-2], x.shape[-1]
        weights = weights_on(x.device, self.geometry, frame, power)
        if self.weights:
            by_variable = torch.tensor(self.weights, device=x.device)[:, None, None]
            weights = weights * (by_variable / by_variable.mean()) ** power
        return x * weights.to(x.dtype).repeat(self.frames, 1, 1)

    def build(self, device: torch.device | str) -> Make:
        return self.observe

    def observe(self, past: Tensor, draws: Draws, observed: int = 0) -> Tensor:
        """The condition y (B, c, h, w) that is observed of normalised frames (B, past C, H, W) and forcings.

        draws: of the noise, for the same rows; observed: so many frames, the first, are observations and get no noise
        """
        y = past[..., :: self.every, :: self.every]
        y, forcings = y.split((y.shape[1] - self.externals.channels, self.externals.channels), 1)
        if self.noise:
            noise = self.noise * draws.normal("observation", *y.shape[1:])
            noise[:, : observed * y.shape[1] // self.past] = 0
            y = y + noise
        parts, planes = [y, forcings], list[Tensor]()
        if self.geometry.mask:
            hidden = hidden_on(y.device, self.geometry, self.past)[:, :: self.every, :: self.every]
            parts[0], planes = y.masked_fill(hidden, 0), [planes_on(y.device, self.geometry)]
        if self.externals.statics:
            planes.append(statics_on(y.device, self.externals))
        for plane in (each[:, :: self.every, :: self.every].to(y.dtype) for each in planes):
            parts.append(plane.expand(len(y), *plane.shape))
        return torch.cat(parts, 1) if planes or self.externals.channels else y

    def spread_out(self, observed: NDArray[np.float32], frame: Shape) -> NDArray[np.float32]:
        """Whole frames (..., C, H, W) of which the points (..., C, h, w) were observed; those between are 0. Whole ones
        stay as they are."""
        if observed.shape[-2:] == tuple(frame[1:]):
            return observed
        whole = np.zeros((*observed.shape[:-2], *frame[1:]), np.float32)
        whole[..., :: self.every, :: self.every] = observed
        return whole

    def forcings_after(
        self,
        trajectories: Sequence[Trajectory],
        forced: Sequence[Trajectory],
        places: NDArray[np.int64],
        frame: Shape | None = None,
    ) -> Forcings | None:
        """The forcings after frames, (N, 2) of trajectory and time step; None: there are none.

        frame: (C, H, W), of trajectories that may hold the observed points alone
        """
        if not self.externals.forcings:
            return None
        channels, height, width = frame or trajectories[0].shape[1:]
        times = [timing_of(each).times for each in trajectories]
        dates = np.array([times[i][at] for i, at in places]) if all(map(len, times)) else None

        def values(number: int, after: int) -> NDArray[np.float32]:
            i, at = places[number % len(places)]
            return self.spread_out(self.externals.values(forced[i], int(at) + after), (channels, height, width))

        return Forcings(self.externals, self.geometry, (height, width), dates, values)

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
        return following.flatten(1, 2) / column(self.scale, following)

    def frames_of(self, x: Tensor, last: Tensor) -> Tensor:
        """The inverse of `sample_of`: (B, frames, C, H, W), normalised."""
        x = x.masked_fill(hidden_on(x.device, self.geometry, self.frames), 0) if self.geometry.mask else x
        following = (x * column(self.scale, x)).unflatten(1, (self.frames, -1))
        return following + last[:, None] if self.difference else following

    def year_parts(self, dates: NDArray[Any] | None, frames: range) -> NDArray[np.float64] | None:
        """Parts of the year (N, 1, frames) of frames after starts, by number: the latest known one of each, of these
        dates, has -1. None where networks see no anomalies; raises ValueError where they do and there are no dates."""
        if not self.anomalies:
            return None
        steps = [(k + 1) * (self.lead if k < 0 else self.ahead) for k in frames]
        hours = [self.anomalies.hours * step for step in steps]
        return year_parts(checked_dates(dates, "the climatology of the run"), hours)[:, None]

    def normalised(self, frames: Tensor, parts: NDArray[np.float64] | None) -> Tensor:
        """Frames (..., C, H, W) as networks see them. parts: of the year (...), where these see anomalies"""
        if parts is None:
            return self.statistics.normalised(frames)
        return self.anomalies.statistics.normalised(frames - self.anomalies.climatology(parts, frames.device))

    def restored(self, frames: Tensor, parts: NDArray[np.float64] | None) -> Tensor:
        """The inverse, in the units of the data; frames of clips are brought into 0 to 255."""
        if parts is not None:
            return self.anomalies.statistics.restored(frames) + self.anomalies.climatology(parts, frames.device)
        frames = self.statistics.restored(frames)
        return frames.clamp(0, 255) if self.of_clips else frames

    def shown(self, x: Tensor) -> Tensor:
        """The first channel of every frame, one below the other: (B, 1, frames H, W), grey."""
        first = x.unflatten(1, (self.frames, -1))[:, :, 0] / SHOWN_RANGE
        rows = SHOWN_ROWS if first.shape[2] == 1 else 1
        return first.repeat_interleave(rows, 2).flatten(1, 2)[:, None]


class Windows(Derived):
    """Windows of fields: the past of each, or the sample that a forecast makes of it.

    past: whether rows are the pasts, with the forcings after them. Raises as `Fields.windows`.
    """

    def __init__(self, fields: Fields, forecast: Forecast, *, past: bool = False) -> None:
        super().__init__(fields)
        self.fields, self.forecast, self.past = fields, forecast, past
        self.starts, self._latest = fields.windows(forecast.span), lru_cache(maxsize=1)(self._read)

    @property
    def shape(self) -> Shape:
        (channels, height, width), forecast = self.fields.shape, self.forecast
        count = channels * forecast.past + forecast.externals.channels if self.past else channels * forecast.frames
        return count, height, width

    def __len__(self) -> int:
        return len(self.starts)

    def pasts(self) -> Windows:
        """The pasts of the same windows. A window of both is read once, if they are asked for it in turn."""
        windows = copy(self)
        windows.past = True
        return windows

    @cached_property
    def forcings(self) -> Forcings | None:
        """The forcings after the past of each window."""
        latest = self.starts + np.array([0, self.forecast.past_steps - 1])
        return self.forecast.forcings_after(self.fields.trajectories, self.fields.forced, latest)

    def frames(self, index: NDArray[np.int64]) -> Tensor:
        """Frames (B, past + frames, C, H, W) of the windows with these numbers, float32, normalised."""
        return self._latest(tuple(index.tolist()))

    def _read(self, index: tuple[int, ...]) -> Tensor:
        forecast = self.forecast
        future = range(forecast.past_steps - 1 + forecast.ahead, forecast.span, forecast.ahead)
        steps = [*range(0, forecast.past_steps, forecast.lead), *future]
        starts = self.starts[list(index)].tolist()
        frames = np.stack([self.fields.frames(i, first, forecast.span)[steps] for i, first in starts])
        parts = None
        if forecast.anomalies:
            times = [timing_of(self.fields.trajectories[i]).times[first:][steps] for i, first in starts]
            parts = np.stack([year_parts(each)[:, 0] for each in times])
        return forecast.normalised(torch.from_numpy(frames), parts)

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        frames, past = self.frames(index), self.forecast.past
        if self.past:
            return beside(frames[:, :past].flatten(1, 2), self.forcings and self.forcings(index))
        return self.forecast.sample_of(frames[:, past - 1], frames[:, past:])
