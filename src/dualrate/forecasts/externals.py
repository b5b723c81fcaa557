"""Channels of a condition that are known beside the past: fields that never change, and forcings, known ahead.

    static  a variable over space alone, such as orography, at mean 0 and deviation 1; 0 where it is missing
    day     sin and cos of the time of the year at the latest known frame;  hour: of the time of the day, UTC
    sun     cosine of the sun's zenith angle at each frame of a window, 0 by night
    NAME    a variable of the data at each frame of a window, at mean 0 and deviation 1. It is not forecast

    cos zenith = sin(lat) sin(d) + cos(lat) cos(d) cos(hour angle),   hour angle = 2 pi (day + lon / 360) - pi
    sin d      = sin(23.44 degrees) sin(2 pi (year - equinox))        of a round orbit; day, year: parts that are over

A run keeps its static fields, so that a start needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.forecasts.geometry import Geometry, from_text, static_of, to_text
from dualrate.forecasts.statistics import as_float32, survey
from dualrate.forecasts.trajectories import FieldSource, Trajectory, timing_of

CYCLES, SUN = ("day", "hour"), "sun"
SAME_DAY = 3  # between the ends, or middles, of two months
TILT, EQUINOX = np.deg2rad(23.44), 79 / 365.25


@dataclass(frozen=True)
class Externals:
    """The known channels of a run; by default none.

    statics:      names of the static fields; fields: these, (S, H, W), packed
    forcings:     `day`, `hour`, `sun` and names of variables
    lead, frames: of a window, in time steps of the data from frame to frame
    hours:        of a time step, in the mean
    mean, std:    of each variable among the forcings
    """

    statics: tuple[str, ...] = ()
    fields: str = ""
    forcings: tuple[str, ...] = ()
    lead: int = 1
    frames: int = 1
    hours: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.statics or self.forcings)

    @property
    def variables(self) -> tuple[str, ...]:
        """Forcings that are variables of the data."""
        return tuple(name for name in self.forcings if name not in (*CYCLES, SUN))

    @property
    def computed(self) -> tuple[str, ...]:
        """Forcings that are computed of dates."""
        return tuple(name for name in self.forcings if name in (*CYCLES, SUN))

    @property
    def channels(self) -> int:
        """Number of channels of forcings."""
        return sum(2 if name in CYCLES else self.frames for name in self.forcings)

    def fitted(
        self, source: str, trajectories: Sequence[Trajectory], forced: Sequence[Trajectory], geometry: Geometry
    ) -> Externals:
        """The same for fields to train on. Raises ValueError where they lack what forcings are computed of.

        forced: trajectories of the variables
        """
        externals, computed = self, self.computed
        if forced:
            measured = survey(source, forced, self.variables)[1]
            externals = replace(self, mean=measured.mean, std=measured.std)
        if not computed:
            return externals
        hours = hours_of_step(source, trajectories, ", ".join(computed), "--forcings")
        if SUN in computed and [axis.place for axis in geometry.axes if axis.values] != ["latitude", "longitude"]:
            raise ValueError(f"{source} does not say its latitudes and longitudes: drop --forcings {SUN}")
        return replace(externals, hours=hours)

    def values(self, trajectory: Trajectory, at: int) -> NDArray[np.float32]:
        """Variables (F, V, H, W) at the frames of a window after time step `at`.

        Raises ValueError beyond the end, and for what is not finite.
        """
        first, stop = at + self.lead, at + self.lead * self.frames + 1
        if stop > trajectory.shape[0]:
            names, more = ", ".join(self.variables), trajectory.shape[0] - 1 - at
            raise ValueError(
                f"the forcings {names} are known for {more} time step(s) of the next {stop - 1 - at}: give more of them"
            )
        values = as_float32("forcings", trajectory[first:stop][:: self.lead])
        for name, x in zip(self.variables, values.swapaxes(0, 1), strict=True):
            if not np.isfinite(x).all():
                raise ValueError(f"the forcing {name} has numbers that are not finite: fill what is missing")
        return values


@dataclass(frozen=True, eq=False)
class Forcings:
    """Forcings after the latest known frames of N starts or windows.

    dates:  of these frames, (N,), where they are known; grid: (H, W)
    values: (start, time step after its latest frame) -> as `Externals.values`
    Raises ValueError for forcings that are computed of dates, without them.
    """

    externals: Externals
    geometry: Geometry
    grid: tuple[int, int]
    dates: NDArray[Any] | None
    values: Callable[[int, int], NDArray[np.float32]]

    def __post_init__(self) -> None:
        if computed := self.externals.computed:
            _ = checked_dates(self.dates, ", ".join(computed))

    def __call__(self, numbers: Sequence[int] | NDArray[np.int64], after: int = 0) -> Tensor:
        """Channels (n, K, H, W) of some starts, by number, counted round, when so many time steps are over."""
        externals, channels = self.externals, list[NDArray[Any]]()
        moments = np.zeros(0)
        if self.dates is not None and externals.computed:  # then (n, F + 1, 2), parts of year and day
            hours = [
                timedelta(hours=(after + externals.lead * k) * externals.hours) for k in range(externals.frames + 1)
            ]
            dates = plain_dates(self.dates[np.asarray(numbers) % len(self.dates)])
            moments = np.array([[parts_of_time(date + each) for each in hours] for date in dates])
        values = np.stack([self.values(int(i), after) for i in numbers]) if externals.variables else np.zeros(0)
        for name in externals.forcings:
            if name in CYCLES:
                angle = 2 * np.pi * moments[:, 0, CYCLES.index(name)]
                channels.append(np.stack((np.sin(angle), np.cos(angle)), 1)[:, :, None, None])
            elif name == SUN:
                latitudes, longitudes = (np.array(axis.values) for axis in self.geometry.axes)
                channels.append(zenith(moments[:, 1:], latitudes, longitudes))
            else:
                i = externals.variables.index(name)
                channels.append((values[:, :, i] - externals.mean[i]) / externals.std[i])
        whole = [np.broadcast_to(each, (*each.shape[:2], *self.grid)) for each in channels]
        return torch.from_numpy(np.concatenate(whole, 1).astype(np.float32))


def zenith(moments: NDArray[Any], latitudes: NDArray[Any], longitudes: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of the sun's zenith angle, 0 by night, (..., H, W). moments: (..., 2), parts of year and day; degrees"""
    year, day = (2 * np.pi * moments[..., i, None, None] for i in (0, 1))
    sine = np.sin(TILT) * np.sin(year - 2 * np.pi * EQUINOX)
    lat, lon = np.deg2rad(latitudes)[:, None], np.deg2rad(longitudes)
    return np.maximum(0, np.sin(lat) * sine - np.cos(lat) * np.sqrt(1 - sine**2) * np.cos(day + lon))


def beside(past: Tensor, forcings: Tensor | None) -> Tensor:
    """Pasts (B, C, H, W) with the channels (n, K, H, W) that are known ahead of each B / n of them."""
    if forcings is None:
        return past
    return torch.cat((past, forcings.to(past.device).repeat_interleave(len(past) // len(forcings), 0)), 1)


def packed_statics(source: str, fields: FieldSource, names: Sequence[str]) -> str:
    """The static fields of these names, of a source in its usual order, packed as `Externals` has them."""
    planes: list[NDArray[Any]] = []
    for name in names:
        plane = static_of(source, fields, name)
        inside = plane[np.isfinite(plane)]
        if not inside.size or not inside.std():
            raise ValueError(f"{name} is the same at all points, which tells networks nothing: drop --static {name}")
        planes.append(np.nan_to_num((plane - inside.mean()) / inside.std(), posinf=0, neginf=0))
    return to_text(np.stack(planes).astype("<f4")) if planes else ""


@lru_cache(maxsize=16)
def statics_on(device: torch.device, externals: Externals) -> Tensor:
    """The static fields, (S, H, W) on a device."""
    return torch.from_numpy(from_text(externals.fields, np.float32).copy()).to(device)


def plain_dates(dates: NDArray[Any]) -> list[Any]:
    """Dates as objects that know their year: of the calendar of every day, or of cftime."""
    return (dates.astype("M8[us]") if dates.dtype.kind == "M" else dates).tolist()


def hours_between(times: NDArray[Any], breaks: Sequence[int]) -> NDArray[np.float64]:
    """Hours from each frame to the next, without gaps; none of what are no dates."""
    if times.dtype.kind not in "MO":
        return np.zeros(0)
    dates = plain_dates(times)
    pairs = [i for i in range(1, len(dates)) if i not in breaks]
    return np.array([(dates[i] - dates[i - 1]).total_seconds() / 3600 for i in pairs])


def months_of_step(trajectories: Sequence[Trajectory]) -> int:
    """Months of the calendar from each frame to the next, where dates say so, of about the same day; else 0."""
    apart, spread = set[int](), 0
    for timing in map(timing_of, trajectories):
        dates = plain_dates(timing.times) if timing.times.dtype.kind in "MO" else []
        months, days = [12 * date.year + date.month for date in dates], [date.day for date in dates]
        apart |= {months[i] - months[i - 1] for i in range(1, len(dates)) if i not in timing.breaks}
        spread = max(spread, max(days, default=0) - min(days, default=0))
    return apart.pop() if len(apart) == 1 and spread <= SAME_DAY else 0


def hours_of_step(source: str, trajectories: Sequence[Trajectory], computed: str, option: str) -> float:
    """Mean hours of a time step. Raises ValueError without dates, for what an option has computed of them."""
    steps = [hours_between(timing_of(each).times, timing_of(each).breaks) for each in trajectories]
    if not all(map(len, steps)):
        raise ValueError(f"{source} has no dates, of which {computed} is computed: drop {option}")
    return float(np.concatenate(steps).mean())


def checked_dates(dates: NDArray[Any] | None, computed: str) -> NDArray[Any]:
    """The dates of starts. Raises ValueError without them, for what is computed of them."""
    if dates is None or dates.dtype.kind not in "MO":
        raise ValueError(f"the starts have no dates, of which {computed} is computed: give a .nc or .zarr with them")
    return dates


def year_parts(dates: NDArray[Any], hours: Sequence[float] = (0,)) -> NDArray[np.float64]:
    """The part of the year that is over so many hours after dates, (N, K)."""
    later = [timedelta(hours=each) for each in hours]
    return np.array([[parts_of_time(date + each)[0] for each in later] for date in plain_dates(dates)])


def parts_of_time(date: Any) -> tuple[float, float]:
    """The parts of the year and of the day that are over."""
    day = date.replace(hour=0, minute=0, second=0, microsecond=0)
    begun = day.replace(month=1, day=1)
    return (date - begun) / (begun.replace(year=begun.year + 1) - begun), (date - day).total_seconds() / 86400
