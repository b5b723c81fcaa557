"""A forecast as a dataset of xarray, whose frames are read when they are asked for; also of forecast.nc and .zarr.

    NAME        (init_time, number, lead_time, space)  members, a variable a channel where these have names
    NAME_truth  (init_time, lead_time, space)          what came; NaN where that is not known
    init_time   of each start its latest frame: a date or number, or its number where the source says no times
    number      of a member
    lead_time   from the start to each frame; in hours, where the data has dates
    valid_time  (init_time, lead_time), their sum; of steps of months so many later, as `_months_after`
    crs         attributes of the projection, where the data has a grid mapping

Space is as in the file of the training data, or of the starts: its axes, their order, and where longitudes begin.
Points that the mask hides are NaN. With dates, `decode_timedelta=True` reads lead times as such.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends.common import BackendArray
from xarray.core.indexing import IndexingSupport, LazilyIndexedArray, explicit_indexing_adapter

from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.externals import plain_dates
from dualrate.forecasts.geometry import Mask, Order, circles
from dualrate.forecasts.metadata import Coordinate, Description
from dualrate.forecasts.model import Frame
from dualrate.forecasts.start_checks import have_names
from dualrate.forecasts.starts import Starts
from dualrate.system.files import forget

START, MEMBER, LEAD, VALID = "init_time", "number", "lead_time", "valid_time"
PLACES = ("start_trajectory", "start_time_step")  # of starts in held-out data
PROJECTION = "crs"  # the grid mapping
RESERVED = (START, MEMBER, LEAD, VALID, PROJECTION, "channel", *PLACES)
OF_PLACES = {"latitude": "degrees_north", "longitude": "degrees_east"}
EXACT = 1e-12  # what a turn round the circle rounds away


class LazyFrames(BackendArray):
    """Frames (..., T, space) of a variable, of an array (..., known, C, H, W); NaN after those that are known.

    channel: None: all, as (..., T, C, space); space: points along each axis in the file's order
    """

    def __init__(
        self, x: Frame, channel: int | None, frames: int, order: Order, hidden: Mask | None, space: Sequence[int]
    ) -> None:
        self.x, self.channel, self.order, self.hidden = x, channel, order, hidden
        self.lead, self.dtype = x.ndim - 4, np.dtype(np.float32)
        self.shape = (*x.shape[: self.lead], frames, *x.shape[-3:-2] * (channel is None), *space)

    def __getitem__(self, key: Any) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        first, times, rest = key[: self.lead], np.arange(self.shape[self.lead])[key[self.lead]], key[self.lead + 1 :]
        channel, space = (rest[0], rest[1:]) if self.channel is None else (self.channel, rest)
        after, length = 2 + isinstance(channel, slice), self.x.shape[self.lead]
        part = np.take(self.x[first][..., channel, :, :], np.minimum(times, length - 1), -1 - after)
        forget(self.x)
        unknown = np.reshape(times >= length, (*times.shape, *[1] * after))
        if self.hidden is not None:
            unknown = unknown | self.hidden[channel]
        part = self.order.restored(np.where(unknown, np.float32(np.nan), part))
        return (part if len(space) == 2 else part[..., 0, :])[(..., *space)]


def dataset_of(x: Frame, truth: Frame | None, starts: Starts, record: Any, forecast: Forecast) -> xarray.Dataset:
    """The dataset of members (N, M, T, C, H, W) and what came, (N, known, C, H, W). record: the folder's, or as it"""
    members, frames, channels, height, width = x.shape[1:]
    order = forecast.geometry.order if starts.order is None else starts.order
    grid = (width,) if height == 1 and len(forecast.axes) < 2 else (height, width)
    space = grid[::-1] if order.swapped else grid
    axes = [axis.partition(" (")[0] for axis in forecast.axes][:: -1 if order.swapped else 1]
    if len({*axes} - {*RESERVED}) != len(space) or "/" in "".join(axes):
        axes = ["y", "x"][-len(space) :]
    points = {
        each.name: (tuple(axes[i] for i in each.axes), np.reshape(each.values, [space[i] for i in each.axes]), says)
        for point in (*forecast.metadata.coordinates, *starts.metadata.coordinates)
        if point.fits(grid) and point.name not in RESERVED and "/" not in point.name
        for each, says in [_restored(point, order, grid)]
    }
    points = {name: each for name, each in points.items() if name not in axes or each[0] == (name,)}
    taken = {*RESERVED, *axes, *points, *(f"{name}_truth" for name in record.variables)}
    named = have_names(record.variables) and len({*record.variables} - taken - {""}) == channels
    named = named and not any("/" in name for name in record.variables)
    described = forecast.metadata.variables or starts.metadata.variables or (Description(),) * channels
    each: list[tuple[str, int | None, dict[str, Any]]] = [("forecast", None, {})]
    if named:
        each = [
            (name, i, about.attributes) for i, (name, about) in enumerate(zip(record.variables, described, strict=True))
        ]
    projection = forecast.metadata.projection or starts.metadata.projection
    mapped = {"grid_mapping": PROJECTION} if projection else {}
    kinds = {"": (x, (START, MEMBER, LEAD))} | ({} if truth is None else {"_truth": (truth, (START, LEAD))})
    variables = {}
    for name, channel, attributes in each:
        for ending, (array, dims) in kinds.items():
            lazy = LazyFrames(array, channel, frames, order, forecast.geometry.hidden, space)
            dims = (*dims, *["channel"] * (not named), *axes)
            variables[name + ending] = xarray.Variable(dims, LazilyIndexedArray(lazy), attributes | mapped)
    coordinates = _times(starts, record, forecast) | points
    coordinates[MEMBER] = (MEMBER, np.arange(members), {"standard_name": "realization", "long_name": "member"})
    if not named:
        coordinates["channel"] = ("channel", np.arange(channels), {"long_name": ", ".join(record.variables)})
    if projection:
        coordinates[PROJECTION] = (), np.int32(0), json.loads(projection)
    if starts.places is not None:
        coordinates |= {name: (START, starts.places[:, i]) for i, name in enumerate(PLACES)}
    about = {
        "Conventions": "CF-1.8",
        "title": f"Ensemble forecast by {record.model}",
        "source": f"{record.model} at iteration {record.iteration}, from {record.source}",
        "history": "\n".join(f"{call.get('date', '')} {call['command']}".strip() for call in record.calls),
    }
    return xarray.Dataset(variables, coordinates, about)


def _restored(point: Coordinate, order: Order, grid: Sequence[int]) -> tuple[Coordinate, dict[str, Any]]:
    """A coordinate in the order of the file, and its attributes, with what its name or units mean."""
    attributes = point.description.attributes
    if point.place:
        attributes = {"units": OF_PLACES[point.place], "standard_name": point.place} | attributes
    if not point.axes or order == Order():
        return point, attributes
    values = np.reshape(point.values, [size if i in point.axes else 1 for i, size in enumerate(grid)])
    values = order.restored(np.broadcast_to(values, (1, *grid)[-2:]))
    if len(point.axes) == 2:
        return replace(point, values=tuple(values.ravel().tolist())), attributes
    (axis,) = point.axes
    axis = len(grid) - 1 - axis if order.swapped else axis
    line = values[:, 0] if len(grid) == 2 and axis == 0 else values[0]
    if order.rolled and circles(point):
        line = np.unwrap(line, period=360)
        line = line + 360 * (-int(line.max() > 360 + EXACT) if order.turns is None else order.turns)
        line = np.where(np.abs(line.round(10) - line) < EXACT, line.round(10), line)
    return replace(point, axes=(axis,), values=tuple(line.tolist())), attributes


def _times(starts: Starts, record: Any, forecast: Forecast) -> dict[str, Any]:
    """Coordinates: lead times, and of each start and frame its time, where the data says that."""
    lead, times = np.array(record.lead_times), starts.dates
    clock = forecast.metadata.time or starts.metadata.time * (starts.places is not None)
    unit = clock.partition(" since ")[0] if forecast.step is not None else ""
    of_months = f" of {forecast.plain_time(1)}" * bool(forecast.months)
    says = {
        "standard_name": "forecast_period",
        "long_name": "lead time" if forecast.step else f"lead time in time steps{of_months}",
    }
    coordinates: dict[str, Any] = {LEAD: (LEAD, lead, says | ({"units": unit} if unit else {}))}
    if times is None:
        return {START: (START, np.arange(len(starts)), {"long_name": "number of the start"})} | coordinates
    about: dict[str, str] = {}
    if times.dtype.kind == "m":
        times, about = times / np.timedelta64(1, "h"), {"units": "hours"}
    elif times.dtype.kind not in "MO" and starts.metadata.time:
        about = {"comment" if " since " in starts.metadata.time else "units": starts.metadata.time}
    standard = {"standard_name": "forecast_reference_time", "long_name": "time of the latest known frame"}
    coordinates[START] = (START, times, standard | about)
    if forecast.months and not forecast.step and times.dtype.kind in "MO":
        dates = _months_after(plain_dates(times), [forecast.months * int(each) for each in lead])
        valid = np.array(dates, "M8[us]" if times.dtype.kind == "M" else object)
    elif forecast.step is None or (times.dtype.kind in "MO" and unit != "hours"):
        return coordinates
    elif times.dtype.kind in "MO":
        hours = [timedelta(hours=hour) for hour in lead.tolist()]
        valid = times[:, None] + np.array(hours, "m8[ns]" if times.dtype.kind == "M" else object)
    else:
        valid = times[:, None] + lead
    return coordinates | {VALID: ((START, LEAD), valid, {"standard_name": "time"} | about)}


def _months_after(dates: Sequence[Any], months: Sequence[int]) -> list[list[Any]]:
    """The dates so many months after each: in the middle or on the last day of a month if all are, else on its day."""
    middle = all(date == begin + (end - begin) / 2 for date in dates for begin, end in [_month(date)])
    last = all(_month(date)[1] - date <= timedelta(days=1) for date in dates)

    def after(date: Any, later: int) -> Any:
        (begun, ended), (begin, end) = _month(date), _month(date, later)
        if middle:
            return begin + (end - begin) / 2
        if last:
            return end - (ended - date)
        days = min((date - begun).days, (end - begin).days - 1)
        return begin + timedelta(days) + (date - begun) % timedelta(1)

    return [[after(date, each) for each in months] for date in dates]


def _month(date: Any, later: int = 0) -> tuple[Any, Any]:
    """The beginning and the end of the month of a date, or of one so many months later."""
    first = date.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    pairs = [divmod(12 * date.year + date.month - 1 + later + i, 12) for i in (0, 1)]
    begin, end = (first.replace(year=year, month=month + 1) for year, month in pairs)
    return begin, end
