"""Trajectories of frames (C, H, W), read when asked for, with their times and gaps. 1-D fields: H = 1.

Frames on two sides of a gap in time do not follow each other: `Timing.breaks` says where the gaps are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading
from dualrate.forecasts.metadata import Metadata
from dualrate.system.files import naming

EXPECTED = "(trajectory, time, channel, space) or (trajectory, time, channel, y, x), none of them 0"
GAP = 1.5  # times the usual step between frames


class Trajectory(Protocol):
    """Frames that are read when asked for: an array (T, C, H, W), or what looks like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Timing:
    """Times of a trajectory, where its source says them.

    step:   between frames, of dates in hours; None if it is not one
    breaks: frames that do not follow the one before
    note:   on them, in words
    steps:  from each frame to the next
    times:  of each frame: dates or numbers
    """

    step: float | None = None
    breaks: tuple[int, ...] = ()
    note: str = ""
    steps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    times: NDArray[Any] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False)
class Lazy:
    """A trajectory whose frames stay in a file until they are asked for.

    read: (first, last) -> frames (last - first, C, H, W); source: for errors, where `read` does not name it
    label: its class, by the name; empty: it has none
    """

    shape: tuple[int, int, int, int]
    read: Callable[[int, int], NDArray[Any]]
    timing: Timing = Timing()
    source: str | Path = ""
    label: str = ""

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        first, last, _ = part.indices(self.shape[0])
        with naming(self.source), reading(self.source, "fields"):
            return self.read(first, last)


def timing_of(trajectory: Trajectory) -> Timing:
    """The timing of a trajectory; `breaks` are where it has gaps."""
    return trajectory.timing if isinstance(trajectory, Lazy) else Timing()


@dataclass(frozen=True, eq=False)
class FieldSource:
    """The content of a source of fields.

    splits: by their names; of a source that names none, one without a name

    axes: of space, their names and whether their coordinates rise or fall, where the source says it
    note: in words, what a user may not expect of how it was read; empty: nothing
    metadata: units, names and coordinates, where the source says them
    statics: variables over space alone, (H, W) each, read when asked for
    varying: variables over time and space, those that are not read as well
    begins: of forecasts, whose frames are their steps, two or more, the first step; else empty
    by_time: coordinates that the source says at each time
    """

    splits: Mapping[str, Sequence[Trajectory]]
    variables: tuple[str, ...]
    step: float | None
    axes: tuple[str, ...] = ()
    note: str = ""
    metadata: Metadata = Metadata()
    statics: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)
    varying: tuple[str, ...] = ()
    begins: str = ""
    by_time: tuple[str, ...] = ()

    @property
    def space(self) -> tuple[int, ...]:
        """Points along each axis of space, of one or two."""
        if not self.trajectories:
            return ()
        _, _, height, width = self.trajectories[0].shape
        return (height, width)[-(len(self.axes) or 1 + (height > 1)) :]

    def picked(self, names: Sequence[str]) -> FieldSource:
        """The same with these variables alone, in this order. Raises ValueError for a name that is none of them."""
        if (names := tuple(names)) == self.variables:
            return self
        if missing := [name for name in names if name not in self.variables]:
            raise ValueError(f"there is no variable {', '.join(missing)} among {', '.join(self.variables)}")
        order = [self.variables.index(name) for name in names]
        described = tuple(self.metadata.variables[i] for i in order if self.metadata.variables)
        metadata = replace(self.metadata, variables=described)
        return replace(self.changed(lambda frames: frames[:, order]), variables=names, metadata=metadata)

    def changed(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> FieldSource:
        """The same with frames (T, C, H, W) that are changed when they are read, each by itself."""

        def lazy(whole: Trajectory) -> Lazy:
            _, *frame = change(np.empty((0, *whole.shape[1:]))).shape
            return Lazy((whole.shape[0], *frame), lambda i, j: change(whole[i:j]), timing_of(whole))  # pyright: ignore[reportArgumentType]

        return replace(self, splits={split: [*map(lazy, part)] for split, part in self.splits.items()})

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trajectories of all splits."""
        return [trajectory for part in self.splits.values() for trajectory in part]


def grid_of(space: Sequence[int]) -> tuple[int, int]:
    """(H, W); 1-D fields have one row."""
    height, width = (1, *space) if len(space) == 1 else space
    return height, width


def numbered(channels: int) -> tuple[str, ...]:
    """The names of variables that have none."""
    return ("u",) if channels == 1 else tuple(f"u{i}" for i in range(channels))


def check_finite(
    part: NDArray[Any], names: Sequence[str], about: tuple[Metadata, int], times: NDArray[Any], place: str, begun: int
) -> None:
    """Raises ValueError for frames (T, C, H, W) with a number that is not finite, with where and when the first is.

    about: coordinates, and the number of axes of space; times: of the frames, or none; begun: number of the first
    """
    if not len(wrong := np.argwhere(~np.isfinite(part))):
        return
    metadata, axes = about
    frame, channel, *point = wrong[0].tolist()
    where, space = [str(each)[:16] for each in times[frame : frame + 1]], part.shape[-axes:]
    for each in (each for each in metadata.coordinates if each.axes and each.fits(space)):
        number = np.ravel_multi_index([point[i - axes] for i in each.axes], [space[i] for i in each.axes])
        where.append(f"{each.name} {each.values[number]:g}")
    at = f" at {', '.join(where)}" * bool(where)
    raise ValueError(
        f"{place}, frame {begun + frame}, channel {channel} ({names[channel]}) holds {part[tuple(wrong[0])]}{at} "
        f"(in these frames not finite in float32: {len(wrong)}): fill them, leave them out, "
        "or train with points hidden that are never observed (--mask auto), or not always (--mask any)"
    )


def common_step(steps: Iterable[float | None]) -> float | None:
    """The step that all have; None if they differ."""
    distinct = set(steps)
    return distinct.pop() if len(distinct) == 1 else None


def timings_of(path: Path, name: str, times: NDArray[Any] | None, count: int, frames: int) -> list[Timing]:
    """The timing of each of `count` trajectories. times: (T), of all of them, or (1 or count, T); one number is ignored

    Raises ValueError for other shapes.
    """
    if times is None:
        return [Timing()] * count
    if not times.ndim:
        return [Timing(note=f"{name} is one number, and says nothing of each frame")] * count
    if times.shape not in ((frames,), (1, frames), (count, frames)):
        raise ValueError(f"{path}: {name} is {times.shape}; expected ({frames},) or ({count}, {frames})")
    rows = [timed(path, row) for row in np.atleast_2d(times)]
    return rows * count if len(rows) == 1 else rows


def _are_months(numbers: NDArray[Any]) -> bool:
    """Whether all numbers are a year and a month, as 202001 is."""
    years, months = numbers // 100, numbers % 100
    return bool(((years > 1500) & (years < 2500) & (months > 0) & (months < 13)).all())


def timed(path: Path, times: NDArray[Any]) -> Timing:
    """The timing of a trajectory.

    A gap is a step that is not within a factor `GAP` of the usual one, so a month is none. The usual one is the lower
    quartile, since every second step may be a gap.
    Raises ValueError for times that fall, come twice or are not finite, and for what are neither numbers nor dates.
    """
    dates = times
    if times.dtype.kind == "O":  # dates of another calendar
        with suppress(AttributeError, TypeError):
            times = np.array([(date - times[0]).total_seconds() / 3600 for date in times])
    elif times.dtype.kind == "M":
        times = (times - times[:1]) / np.timedelta64(1, "h")
    elif times.dtype.kind == "m":
        times = times / np.timedelta64(1, "h")
    numbers = times.dtype.kind in "fiu" and times is dates and np.isfinite(times).all()
    whole = np.floor(times) if numbers else np.zeros(1)
    hourly = np.where((whole % 100 < 24) & (whole // 100 % 100 < 32), whole // 10_000, 0)
    forms = (whole, 12), (whole // 100, 2), (hourly, 3)  # YYYYMM, YYYYMMDD, YYYYMMDDHH
    written = any(len(times) >= least and _are_months(each) for each, least in forms)
    if times.dtype.kind not in "fiu" or written:
        raise ValueError(
            f"{path}: its times are {times.dtype}, the first is {str(times[0])[:40]!r}; expected numbers or dates: "
            "write them as those (xarray: data.assign_coords, with what pandas.to_datetime makes), or leave them out"
        )
    if len(times) < 2:
        return Timing(times=dates[np.equal(dates, dates)])  # a missing one is none
    steps = np.diff(times.astype(np.float64))
    if not np.isfinite(steps).all() or (steps < 0).any() or (steps.any() and not steps.all()):
        at = int(np.argmin(np.nan_to_num(steps) > 0))
        raise ValueError(
            f"{path}: its times do not rise, or one is missing: after {dates[at]} comes {dates[at + 1]}: bring them "
            "into order, each once (xarray: data.sortby, data.drop_duplicates)"
        )
    if not steps.any():
        return Timing(note="its times are all the same, so that steps between frames and gaps are not known")
    usual = float(np.quantile(steps, 0.25, method="lower"))
    gaps = (steps > GAP * usual) | (steps < usual / GAP)
    even = steps[~gaps]
    step = float(even.mean()) if np.allclose(even, usual, rtol=1e-3) else None
    breaks = tuple((np.flatnonzero(gaps) + 1).tolist())
    if not breaks:
        return Timing(step, steps=steps, times=dates)
    first = breaks[0]
    return Timing(
        step,
        breaks,
        f"its time has {len(breaks)} gap(s), which no window spans: frames are {usual:g} apart, and frames "
        f"{first - 1} and {first} are {steps[first - 1]:g}",
        steps,
        dates,
    )
