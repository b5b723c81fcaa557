"""Fields of a dataset of xarray: which of its dimensions are trajectories, time, levels and space.

    trajectory (or sample, member, ...), time, maybe channel or level, then one or two of space

Each variable is a channel, or one for each level (`t_850`). Where the steps of a forecast (`step`, `lead_time`) stand
beside `time`, each time is a trajectory. Along `expver`, versions of the same, each number is of the first version
that has it. Bounds and what else describes other variables are left out and named, as are variables over time alone;
what is over space alone may be a mask (`FieldSource.statics`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.forecasts.file_checks import check_claim
from dualrate.forecasts.metadata import (
    Coordinate,
    Description,
    Metadata,
    calendar_of,
    level_of,
    mesh_among,
    near_radians,
    plain_units,
    text_of,
    way,
    with_radians,
)
from dualrate.forecasts.packing import at_rest, valid, whole_dates
from dualrate.forecasts.trajectories import (
    EXPECTED,
    FieldSource,
    Lazy,
    Timing,
    common_step,
    grid_of,
    numbered,
    timings_of,
)

# names of dimensions
TRAJECTORY = ("trajectory", "start", "sample", "member", "ensemble", "number", "realization", "realisation", "run")
TRAJECTORY += ("batch", "simulation", "ens", "member_id", "ensemble_member")
LEADS = ("step", "lead_time", "prediction_timedelta", "forecast_period", "forecastMonth")
START, VERSIONS = "forecast_reference_time", "expver"  # the latter of ERA5 and, in recent months, ERA5T
TIME = ("time", "t", "frame", "valid_time", *LEADS)
CHANNEL = ("channel", "channels", "variable", "field")
LEVEL = r"lev(?!ation)|depth|(?<!p)layer|isobar|hybrid|sig(ma|lay)|bottom_top|^(p(full|half)|s_(rho|w)|nz1?)$"
OF_LEVELS = r"air_pressure|depth|height|altitude|model_level_number|(atmosphere|ocean)_\w+_coordinate"  # standard names
DESCRIBING = ("bounds", "climatology", "cell_measures", "ancillary_variables", "formula_terms")


class NoFields(ValueError):
    """A dataset has no variable that is wanted over time and space."""


class NoLevels(ValueError):
    """A variable has no level that is wanted."""


@dataclass(frozen=True)
class Layout:
    """Dimensions of a variable. channel: of channels or levels, or empty; single: of one point, left out"""

    trajectories: tuple[str, ...]
    time: str
    channel: str
    space: tuple[str, ...]
    single: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A variable and its channels, and what is said of them. at: levels, or channels, by number; None: it has none"""

    name: str
    variable: Any
    layout: Layout
    channels: tuple[str, ...]
    about: tuple[Description, ...]
    at: tuple[int, ...] | None = None

    def narrowed(self, names: Sequence[str]) -> Part:
        """The channels of these names alone, unless they are empty or have the variable's own."""
        if not names or self.name in names:
            return self
        chosen = [i for i, channel in enumerate(self.channels) if channel in names]
        at = None if self.at is None else tuple(self.at[i] for i in chosen)
        channels, about = (tuple(each[i] for i in chosen) for each in (self.channels, self.about))
        return replace(self, channels=channels, about=about, at=at)

    def read(self, at: dict[str, int], begin: int, end: int, grid: Sequence[int]) -> NDArray[Any]:
        """Frames (T, C, *grid) of a trajectory. A variable without a dimension of time is one frame."""
        layout = self.layout
        place: dict[str, Any] = {**at, **dict.fromkeys(layout.single, 0), layout.time: slice(begin, end)}
        if self.at is not None and self.at != (*range(self.variable.sizes[layout.channel]),):
            place[layout.channel] = list(self.at)
        order = [dim for dim in (layout.time, layout.channel, *layout.space) if dim in self.variable.dims]
        places = [place | {VERSIONS: i} for i in range(self.variable.sizes.get(VERSIONS, 0))] or [place]
        first, *later = (self.variable.isel(each, missing_dims="ignore").transpose(*order) for each in places)
        values = _numbers(first)
        for version in later:
            if not np.isfinite(values).all():  # else it is not read
                values = np.where(np.isfinite(values), values, _numbers(version))
        return values.reshape(-1, len(self.channels), *grid)[: end - begin]


def fields_of(
    data: Any,
    path: Path,
    names: Sequence[str],
    levels: Sequence[float],
    check: Callable[[Collection[str], Collection[str]], None],
) -> FieldSource:
    """The fields of a dataset: all, or those of these names (of variables, or of channels) and at these levels.

    check: called with the names of variables and of coordinates that are read
    """
    times, stored = times_of(data), data.data_vars
    aside = _bounds(data) | {*data.variables} & {name for each in data.variables for name in _describing(data[each])}
    aside -= {*names}
    places = {name for name, each in stored.items() if _bare(each).angular and not {*each.dims} & times} - aside
    data = data.set_coords(places)
    by_time = tuple(str(name) for name in data.coords if _bare(data[name]).place and {*data[name].dims[:-1]} & times)
    data = _over_time(at_rest(data, times, by_time), times)
    timed = {str(name): each for name, each in data.data_vars.items() if {*each.dims} & times and name not in aside}
    alone = [name for name, each in timed.items() if {*each.dims} <= {*times, *TRAJECTORY}]
    strange = [name for name, each in timed.items() if each.dtype.kind not in "fiubc" and name not in alone]
    varying = tuple(name for name in timed if name not in {*alone, *strange})
    arrays = _wanted(path, data, {name: timed[name] for name in varying}, names, alone)
    if spectral := [name for name, each in arrays.items() if text_of(each.attrs.get("GRIB_gridType", "")) == "sh"]:
        raise NoFields(f"{path}: {', '.join(spectral)} are spherical harmonics: make a grid of them (cdo sp2gp IN OUT)")
    layouts = {name: _layout(path, data, name, variable, times, levels) for name, variable in arrays.items()}
    first, layout = _common_sizes(path, arrays, layouts), next(iter(layouts.values()))
    alike = {"trajectories": layout.trajectories, "space": layout.space}
    whole = [_part(path, name, stored[name], replace(each, **alike), levels, names) for name, each in layouts.items()]
    channels = {each.name: each.channels for each in whole if each.layout.channel in CHANNEL}
    parts = [part for each in whole if (part := each.narrowed(names)).channels]
    if not parts:
        listed = ", ".join(channel for part in whole for channel in part.channels)
        raise NoFields(f"{path} has no variable {', '.join(names)}: it has {listed}")
    counts = [first[dim] for dim in layout.trajectories]
    check_claim(path, count := math.prod(counts), "trajectories")
    grid, frames = grid_of([first[dim] for dim in layout.space]), first[layout.time]
    variables = tuple(channel for part in parts for channel in part.channels)

    def one_of(number: int, timing: Timing) -> Lazy:
        at = dict(zip(layout.trajectories, map(int, np.unravel_index(number, counts)), strict=True)) if counts else {}

        def read(i: int, j: int) -> NDArray[Any]:
            return np.concatenate([part.read(at, i, j, grid) for part in parts], 1)

        return Lazy((frames, len(variables), *grid), read, timing, path)

    def static(name: str) -> NDArray[Any]:
        check([name], [])
        return _numbers(data[name].transpose(*layout.space)).reshape(grid).astype(np.float64)

    clock = _clock(path, data, layout)
    labels = {dim for variable in arrays.values() for dim in variable.dims} | {getattr(clock, "name", None)}
    check([*arrays], [str(name) for name in data.coords if name in labels or _bare(data[name]).place])
    timings = timings_of(path, "" if clock is None else str(clock.name), _times(clock, layout, counts), count, frames)
    described = tuple(about for part in parts for about in part.about)
    describing = [str(name) for name in data.variables if name in aside and name not in data.sizes]
    left_out = {"describe others": describing, "are over time alone": alone, "are no numbers": strange}
    left_out["change in time"] = [name for name in by_time if {*data[name].dims[:-1]} & times]
    notes = [f"left out, as they {why}: {', '.join(each)}" for why, each in left_out.items() if each]
    notes += list(dict.fromkeys(timing.note for timing in timings if timing.note))[:1]
    points = _points(data, layout.space, {*TRAJECTORY, *times, *aside})
    if mesh := mesh_among(points, layout.space, next(iter(arrays.values())).attrs):
        cells = "" if any(each.angular for each in points) else "-setgrid,CELLS (the model's file of where they are) "
        notes.append(
            f"points one after the other along {mesh} are no neighbours by latitude and longitude, as networks take "
            f"them to be: bring a mesh to a grid first (cdo remapcon,r64x32 {cells}IN OUT)"
        )
    if len(unsure := near_radians(points)) > 1:
        notes.append(f"{unsure[0].name} and {unsure[1].name} are taken as degrees: of radians say so, by their units")
    return FieldSource(
        {"": [one_of(*each) for each in enumerate(timings)]},
        variables,
        common_step(timing.step for timing in timings),
        tuple(dim + (way(data[dim].values) if dim in data.coords else "") for dim in layout.space),
        "; ".join(notes),
        Metadata(described, points, *_units(clock), _projection(data, arrays.values())),
        {
            str(name): lambda name=str(name): static(name)
            for name, variable in data.variables.items()
            if name in stored and {*variable.dims} == {*layout.space} and variable.dtype.kind in "fiub"
        },
        tuple(each for name in varying for each in channels.get(name, (name,))),
        str(data[layout.time].values[0]) if frames > 1 and layout.time in {*LEADS} & {*data.coords} else "",
        by_time,
    )


def _over_time(data: Any, times: set[str]) -> Any:
    """The dataset; if no variable is over time and it has one date, with that as a dimension, and nothing read."""
    if any({*each.dims} & times for each in data.data_vars.values()) or not (moment := _moment(data)):
        return data
    unread = {name: np.broadcast_to(np.zeros((), data[name].dtype), data[name].shape) for name in data.data_vars}
    return data.copy(data=unread).expand_dims(moment)


def _wanted(path: Path, data: Any, arrays: dict[str, Any], names: Sequence[str], alone: list[str]) -> dict[str, Any]:
    """The variables of these names or of their levels; all without names. Raises NoFields where there are none.

    alone: variables over time alone
    """
    if names:
        levels = [each for each in names if each not in arrays]  # perhaps
        with_channels = {name: array for name, array in arrays.items() if {*CHANNEL} & {*array.dims}}
        arrays = {
            name: array
            for name, array in arrays.items()
            if name in names or any(each.startswith(f"{name}_") for each in levels)
        } or with_channels
    if arrays:
        return arrays
    among = f"{path} has the variables {list(data.data_vars)} over {list(data.sizes)}"
    raise NoFields(
        f"{path} has no variables at its top, and those in groups are not read: write a group to a file of its own "
        "(xarray: open_dataset(FILE, group=NAME).to_netcdf(OTHER))"
        * (not data.variables)
        or f"{among}, none of them {', '.join(names)} over time and space" * bool(names)
        or f"{among}: {', '.join(alone)} have no axes of space (xarray's expand_dims('x', 1) adds one)" * bool(alone)
        or f"{among}, none with a dimension called {' or '.join(TIME)}, and of space: xarray's "
        "data.rename(NAME='time') names it so, and data.expand_dims('time') adds one to a file of one time"
    )


def _common_sizes(path: Path, arrays: Mapping[str, Any], layouts: Mapping[str, Layout]) -> dict[str, int]:
    """Sizes of trajectories, time and space, which all variables have. Raises ValueError where they differ."""
    sizes = [
        {dim: arrays[name].sizes[dim] for dim in (*each.trajectories, each.time, *sorted(each.space))}
        for name, each in layouts.items()
    ]
    channels = len(arrays) > 1 and next(iter(layouts.values())).channel in CHANNEL
    if channels or any(each != sizes[0] or 0 in each.values() for each in sizes):
        listed = "; ".join(f"{name} {dict(array.sizes)}" for name, array in arrays.items())
        raise ValueError(
            f"{path}: its variables have different dimensions, channels of their own, or none, {listed}: name those of "
            "one kind (--data.variables), make levels channels (--data.levels), or channels variables (to_dataset(DIM))"
        )
    return sizes[0]


def _numbers(variable: Any) -> NDArray[Any]:
    return valid(variable.values, variable.attrs, variable.encoding)


def times_of(data: Any) -> set[str]:
    """Names that dimensions of time have in a dataset: of time, else of those along which dates stand."""
    clocks = [each for each in data.coords.values() if _is_time(each)]
    times = {dim for dim in map(str, data.sizes) if dim.lower() in TIME} | {str(each.name) for each in clocks}
    if times & {*data.sizes} <= {*LEADS}:  # else dates along others, such as of the lines of an image, are beside
        times |= {str(each.dims[0]) for each in clocks if each.ndim == 1}
    return {*TIME} | times - {*TRAJECTORY}


def _moment(data: Any) -> str:
    """The coordinate of the one time of a dataset, rather than that of its start; empty without one."""
    moments = [each for each in data.coords.values() if not each.dims and _is_time(each)]
    moments = [each for each in moments if START not in (each.name, each.attrs.get("standard_name"))]
    return str(max(moments, key=lambda each: each.attrs.get("standard_name") == "time").name) if moments else ""


def _layout(path: Path, data: Any, name: str, variable: Any, times: Collection[str], levels: Sequence[float]) -> Layout:
    dims = [str(dim) for dim in variable.dims]
    single = [dim for dim in dims if dim == VERSIONS]
    trajectories = [dim for dim in dims if dim in TRAJECTORY]
    inside = [dim for dim in dims if dim in times]
    leads = [dim for dim in inside if dim in LEADS]
    if len(inside) == 2 and len(leads) == 1:
        start = next(dim for dim in inside if dim not in leads)
        apart = single if variable.sizes[leads[0]] == 1 else trajectories
        apart.append(leads[0] if apart is single else start)
        inside = [start] if apart is single else leads
    if len(inside) > 1:
        raise ValueError(
            f"{path} has several dimensions of time ({', '.join(inside)}), expected one: stack them into one, or take "
            "one number of the others"
        )
    time = inside[0]
    channel = next((dim for dim in dims if dim in CHANNEL), "")
    space = [dim for dim in dims if dim not in (*trajectories, *single, time, channel)]
    level = next((dim for dim in space if _is_level(data, dim)), "")
    if level and not channel and (len(space) > 2 or levels or mesh_among(_points(data, space), space, variable.attrs)):
        channel, space = level, [dim for dim in space if dim != level]
    for dim in [dim for dim in space if variable.sizes[dim] == 1][: max(0, len(space) - 2)]:
        space.remove(dim)
        single.append(dim)
    before = [dim for dim in space if dims.index(dim) < dims.index(time)]
    strange = before and (before != space or not trajectories)  # perhaps another name of trajectories
    strange = strange and not all(dim in data.coords and _bare(data[dim]).place for dim in before)
    if len(space) not in (1, 2) or strange:
        raise ValueError(
            f"{path}: its variable {name} has the dimensions {dict(variable.sizes)}; expected {EXPECTED}, or "
            "without channel, with one or two of space, after time; names such as trajectory, member, channel, level, "
            "depth (or axis='Z') tell them: name other variables (--data.variables), or bring its dimensions into this "
            "order, by such names (xarray: transpose, rename)"
        )
    return Layout(tuple(sorted(trajectories, key=dims.index)), time, channel, tuple(space), tuple(single))


def _part(path: Path, name: str, variable: Any, layout: Layout, levels: Sequence[float], names: Sequence[str]) -> Part:
    about = Description.of(variable.attrs)
    if not (dim := layout.channel):
        return Part(name, variable, layout, (name,), (about,))
    count = variable.sizes[dim]
    values = variable[dim].values.tolist() if dim in variable.coords else list(range(count))
    if dim in CHANNEL:
        channels = map(str, values) if dim in variable.coords else numbered(count)
        return Part(name, variable, layout, tuple(channels), (about,) * count, tuple(range(count)))
    numbers = np.array(values, np.float64)
    units = text_of(variable[dim].attrs.get("units", "")) if dim in variable.coords else ""
    wanted = [*levels, *(level for base, level in map(level_of, names) if base == name and level is not None)]
    if plain_units(units) == "Pa" and wanted and not np.isclose(numbers[:, None], wanted).any():
        numbers, units = numbers / 100, "hPa"  # those that are asked for
    missing = [level for level in levels if not np.isclose(numbers, level).any()]
    if missing:
        error = NoLevels if missing == [*levels] else ValueError  # of levels of another kind
        raise error(f"{path}: {name} has no level {missing[0]:g}; expected some of {', '.join(map(str, values))}")
    at = [int(np.isclose(numbers, level).argmax()) for level in levels] or range(count)
    abouts = tuple(about.at(numbers[i] if dim in variable.coords else None, units) for i in at)
    digits = next((n for n in (6, 9) if len({f"{x:.{n}g}" for x in numbers}) == count and all(numbers < 10**n)), 12)
    channels = tuple(f"{name}_{numbers[i]:.{digits}g}" for i in at)
    return Part(name, variable, layout, channels, abouts, tuple(at))


def _is_level(data: Any, dim: str) -> bool:
    """Whether a dimension is one of levels, by its name or its attributes."""
    says = data[dim].attrs if dim in data.coords else {}
    about, axes = Description.of(says), (says.get("axis"), says.get("cartesian_axis"))
    named = re.search(LEVEL, dim.lower()) or re.match(OF_LEVELS, about.standard_name)
    original = about.long_name.startswith("original GRIB coordinate for key: level")
    return bool(named) or original or plain_units(about.units) in ("Pa", "hPa") or "Z" in axes or "positive" in says


def _points(data: Any, space: Sequence[str], without: Collection[str] = ()) -> tuple[Coordinate, ...]:
    """The coordinates of points: finite numbers over axes of space, or one of all points, such as a level."""
    return with_radians(
        Coordinate(
            str(coordinate.name),
            tuple(space.index(dim) for dim in coordinate.dims),
            tuple(coordinate.values.ravel().tolist()),
            Description.of(coordinate.attrs),
        )
        for coordinate in (each for name, each in data.coords.items() if name not in without)
        if {*coordinate.dims} <= {*space} and coordinate.dtype.kind in "fiu" and np.isfinite(coordinate.values).all()
    )


def _is_time(coordinate: Any) -> bool:
    """Whether it holds dates, or says that it is time."""
    says = coordinate.attrs
    return says.get("standard_name") == "time" or says.get("axis") == "T" or _are_dates(coordinate)


def _are_dates(coordinate: Any) -> bool:
    return coordinate.dtype.kind == "M" or "calendar" in coordinate.encoding  # the latter where xarray read them


def _bare(variable: Any) -> Coordinate:
    """A coordinate without its numbers."""
    return Coordinate(str(variable.name), (), (), Description.of(variable.attrs))


def _describing(variable: Any) -> list[str]:
    """The names that the attributes of a variable refer to: of bounds, of its grid, of what goes with it."""
    attributes = variable.encoding | variable.attrs
    names = [name.rstrip(":") for kind in DESCRIBING for name in text_of(attributes.get(kind, "")).split()]
    return names + _grid_mappings(variable)


def _grid_mappings(variable: Any) -> list[str]:
    """The names in `mapping` or `mapping: x y other: lat lon`."""
    names = text_of((variable.encoding | variable.attrs).get("grid_mapping", "")).split()
    return [name.rstrip(":") for name in names if name.endswith(":")] or names


def _projection(data: Any, variables: Iterable[Any]) -> str:
    """The attributes of the grid mapping that a variable names first, as JSON; empty without one."""
    names = [name for each in variables for name in _grid_mappings(each) if name in data.variables]
    arrays = {key: np.asarray(value) for name in names[:1] for key, value in data[name].attrs.items()}
    attributes = {key: each.tolist() for key, each in arrays.items() if each.dtype.kind in "fiuSU"}  # as of NetCDF
    text = json.dumps(attributes, default=text_of)
    return text if 2 < len(text) < 2**14 else ""  # a description in words (WKT) has some thousand characters


def _bounds(data: Any) -> set[str]:
    """The variables with the names of bounds (time_bnds), of which others may say nothing."""
    names = {str(name): re.sub("_(bnds|bounds)$", "", str(name)) for name in data.data_vars}
    return {name for name, of in names.items() if of in data.variables and data[name].ndim > data[of].ndim}


def _clock(path: Path, data: Any, layout: Layout) -> Any | None:
    """Times of frames, (trajectory, time): of their dimension, of another along it, or of starts and lead times."""
    time = layout.time

    def rank(each: Any) -> tuple[bool, ...]:
        named = each.name in TIME, each.attrs.get("standard_name") == "time"
        start = each.attrs.get("standard_name") == START  # a frame comes a lead time later
        return _are_dates(each) and any(named), each.name == time and not start, *named, _are_dates(each)

    along = [each.isel(dict.fromkeys(layout.single, 0), missing_dims="ignore") for each in data.coords.values()]
    along = [each for each in along if time in each.dims]
    best = max(along, key=rank, default=None)
    if best is None or not (any(rank(best)) or _is_time(best)):
        return None
    if not {*best.dims} <= {*layout.trajectories, time}:
        raise ValueError(f"{path}: {best.name} is over {best.dims}; expected times over {time} alone")
    times = whole_dates(best).transpose(..., time)
    return _dated(data, times, layout) if time in LEADS else times


def _dated(data: Any, clock: Any, layout: Layout) -> Any:
    """Lead times as the dates of frames, where one coordinate has those of their starts."""
    from xarray.coders import CFTimedeltaCoder

    dates = [each for each in data.coords.values() if each.dtype.kind == "M"]
    starts = [each for each in dates if {*each.dims} <= {*layout.trajectories}]
    starts = [each for each in starts if START in (each.name, each.attrs.get("standard_name"))] or starts
    lead = CFTimedeltaCoder(decode_via_units=True).decode(clock.variable).values
    dated = len({each.values.tobytes() for each in starts}) == 1 and lead.dtype.kind == "m"
    return (starts[0] + clock.copy(data=lead)).rename(clock.name) if dated else clock


def _times(clock: Any | None, layout: Layout, counts: Sequence[int]) -> NDArray[Any] | None:
    """Times of frames, (T) of all trajectories or (trajectory, T)."""
    if clock is None or clock.dims in ((), (layout.time,)):
        return None if clock is None else clock.values
    missing = {dim: n for dim, n in zip(layout.trajectories, counts, strict=True) if dim not in clock.dims}
    return clock.expand_dims(missing).transpose(*layout.trajectories, layout.time).values.reshape(math.prod(counts), -1)


def _units(clock: Any | None) -> tuple[str, str]:
    """Units and calendar of times; dates are in hours. Both are empty where they are not said."""
    if clock is None:
        return "", ""
    units = text_of(clock.attrs.get("units", "")) if clock.dtype.kind in "fiu" else "hours"
    return units, calendar_of(clock.encoding.get("calendar", ""))
