"""Fields in NetCDF and zarr, read through xarray, and what writes NetCDF and .npz.

Dimensions: trajectory (or sample, ...), time, maybe channel, and space after them; without channel each variable is one
channel, those of zarr by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading
from dualrate.forecasts.file_checks import (
    check_count,
    check_netcdf,
    check_written,
    check_zarr,
    missing_of_hdf5,
    missing_of_zarr,
    open_members,
    with_extra,
)
from dualrate.forecasts.metadata import SAME_AXIS, Coordinate, Description, Metadata, calendar_of, text_of
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
from dualrate.system.files import naming, whole
from dualrate.system.folders import some_of

# names of dimensions
TRAJECTORY = ("trajectory", "start", "sample", "member", "ensemble", "number", "realization", "realisation", "run")
TRAJECTORY += ("batch", "simulation")
TIME = ("time", "t", "frame", "step", "lead_time", "valid_time")
CHANNEL = ("channel", "channels", "variable", "field")


def read_labelled(path: Path) -> FieldSource:
    how: dict[str, Any]
    with with_extra():
        import xarray

        if path.suffix == ".zarr":
            import zarr  # noqa: F401  xarray says of a missing one that it cannot guess the engine

            kind, how = "zarr", {"engine": "zarr", "consolidated": False}  # else it warns of what it did not find
        else:
            import h5netcdf  # noqa: F401

            kind, how = "NetCDF", {"engine": "h5netcdf"}
    with naming(path), reading(path, kind), _naming_calendar(path):
        if kind == "zarr":
            check_zarr(path)
            open_members(path)
        else:
            check_netcdf(path)
        data = xarray.open_dataset(path, **how)
        if kind == "zarr":  # a store keeps no order of its arrays, and lists them in another one each time
            data = data[sorted(data.variables, key=str)]
        return _of_dataset(data, path)


def _of_dataset(data: Any, path: Path) -> FieldSource:
    """The fields of a dataset of xarray."""
    times = TIME + tuple(dim for dim in map(str, data.coords) if dim not in TRAJECTORY and _is_time(data[dim]))
    bounds = {name for variable in data.variables.values() for name in _bounds(variable)}
    over_time = {str(name): variable for name, variable in data.data_vars.items() if set(variable.dims) & set(times)}
    arrays = {name: variable for name, variable in over_time.items() if name not in bounds}
    left_out = ", ".join(name for name in over_time if name in bounds)
    if not arrays:
        raise ValueError(
            f"{path} has the variables {list(data.data_vars)} over {some_of(list(map(str, data.dims)))}, none with a "
            f"dimension called {' or '.join(TIME)}"
        )
    if len({tuple(variable.sizes.items()) for variable in arrays.values()}) > 1:
        sizes = "; ".join(f"{name} {dict(variable.sizes)}" for name, variable in arrays.items())
        raise ValueError(
            f"{path}: its variables have different dimensions, {sizes}; expected the same for all: drop those that are "
            "no fields"
        )
    first = next(iter(arrays.values()))
    trajectory, time, channel = (
        next((str(dim) for dim in first.dims if dim in names), "") for names in (TRAJECTORY, times, CHANNEL)
    )
    for names, of in ((TRAJECTORY, "trajectories"), (times, "time")):
        if len(several := [str(dim) for dim in first.dims if dim in names]) > 1:
            raise ValueError(
                f"{path} has several dimensions of {of} ({', '.join(several)}), expected one: stack them into one, or "
                "take one number of the others"
            )
    space = [str(dim) for dim in first.dims if dim not in (trajectory, time, channel)]
    before = [dim for dim in space if first.dims.index(dim) < first.dims.index(time)]
    unknown = before and (before != space or not trajectory)  # perhaps another name of trajectories
    if len(space) not in (1, 2) or unknown or 0 in first.shape or (channel and len(arrays) > 1):
        raise ValueError(
            f"{path}: its variables {list(arrays)} have the dimensions {dict(first.sizes)}; expected {EXPECTED}, or "
            f"without channel, with one or two of space, after time; trajectories are called {' or '.join(TRAJECTORY)}"
        )
    sizes, variables = dict(first.sizes), tuple(arrays)
    check_count(path, sizes.get(trajectory, 1))
    clock = _clock(path, data, time, trajectory)
    labels = {*first.dims} if clock is None else {*first.dims, clock.name}
    _check_written(path, data, arrays, [name for name in data.coords if name in labels or _is_place(data[name])])
    if channel:
        names = first[channel].values.tolist() if channel in first.coords else numbered(sizes[channel])
        variables = tuple(map(str, names))
    order = [dim for dim in (time, channel, *space) if dim]
    grid = grid_of([sizes[dim] for dim in space])

    def one_of(number: int, timing: Timing) -> Lazy:
        at = {trajectory: number} if trajectory else {}

        def read(i: int, j: int) -> NDArray[Any]:
            parts = [variable.isel({**at, time: slice(i, j)}).transpose(*order).values for variable in arrays.values()]
            return (parts[0] if channel else np.stack(parts, 1)).reshape(j - i, len(variables), *grid)

        return Lazy((sizes[time], len(variables), *grid), read, timing, path)

    count = sizes.get(trajectory, 1)
    dates, called = (None, "") if clock is None else (clock.values, str(clock.name))
    timings = timings_of(path, called, dates, count, sizes[time])
    axes = tuple(dim + (_way(data[dim].values) if dim in data.coords else "") for dim in space)
    described = tuple(Description.of(variable.attrs) for variable in arrays.values())
    described *= len(variables) if channel else 1
    points = _points(data, space, {*TRAJECTORY, *times, *bounds})
    notes = [f"left out, as they bound coordinates: {left_out}"] * bool(left_out)
    notes += list(dict.fromkeys(timing.note for timing in timings if timing.note))[:1]
    return FieldSource(
        {"": [one_of(*each) for each in enumerate(timings)]},
        variables,
        common_step(timing.step for timing in timings),
        axes,
        "; ".join(notes),
        Metadata(described, points, *_units(clock)),
    )


def _points(data: Any, space: Sequence[str], without: Container[str]) -> tuple[Coordinate, ...]:
    """The coordinates of points: finite numbers over axes of space, or one of all points, such as a level."""
    names = [str(name) for name in (*data.coords, *data.data_vars) if name in data.coords or name in SAME_AXIS]
    chosen = [data[name] for name in names if name not in without]
    return tuple(
        Coordinate(
            str(coordinate.name),
            tuple(space.index(dim) for dim in coordinate.dims),
            tuple(coordinate.values.ravel().tolist()),
            Description.of(coordinate.attrs),
        )
        for coordinate in chosen
        if {*coordinate.dims} <= {*space} and coordinate.dtype.kind in "fiu" and np.isfinite(coordinate.values).all()
    )


@contextmanager
def _naming_calendar(path: Path) -> Iterator[None]:
    """An error on times that xarray cannot read says what is missing."""
    try:
        yield
    except ValueError as error:
        said, advice, _ = " ".join(str(error).split()).partition(" Try opening")
        if not advice:
            raise
        raise ValueError(
            f"{path}: its times cannot be read ({said.rstrip('.')}): those of other calendars than ours need cftime "
            "(pip install cftime), others units such as 'days since 2000-01-01'"
        ) from error


def _is_time(coordinate: Any) -> bool:
    """Whether it holds dates, or says that it is time."""
    dates = coordinate.dtype.kind == "M" or "calendar" in coordinate.encoding  # the latter where xarray read them
    return dates or coordinate.attrs.get("standard_name") == "time"


def _is_place(coordinate: Any) -> bool:
    """Whether it holds latitudes or longitudes along axes."""
    place = Coordinate(str(coordinate.name), (), (), Description.of(coordinate.attrs)).place
    return bool(place and coordinate.dims)


def _bounds(variable: Any) -> list[str]:
    """The names of the variables that bound the cells of one."""
    said = variable.encoding | variable.attrs
    return [name for kind in ("bounds", "climatology") for name in text_of(said.get(kind, "")).split()]


def _clock(path: Path, data: Any, time: str, trajectory: str) -> Any | None:
    """The coordinate with the times of frames: that of their dimension, or another along it, (trajectory, time)."""
    along = [
        coordinate
        for coordinate in data.coords.values()
        if time in coordinate.dims and (coordinate.name in TIME or _is_time(coordinate))
    ]
    if time in data.coords:
        along = [data[time]]
    if not along:
        return None
    best = max(along, key=lambda coordinate: (coordinate.name in TIME, coordinate.attrs.get("standard_name") == "time"))
    if not {*best.dims} <= {trajectory, time}:
        raise ValueError(f"{path}: {best.name} is over {best.dims}; expected times over {time} alone")
    return best.transpose(..., time)


def _units(clock: Any | None) -> tuple[str, str]:
    """Units and calendar of times; dates are in hours. Both are empty where they are not said."""
    if clock is None:
        return "", ""
    units = text_of(clock.attrs.get("units", "")) if clock.dtype.kind in "fiu" else "hours"
    return units, calendar_of(clock.encoding.get("calendar", ""))


def _check_written(path: Path, data: Any, arrays: Iterable[str], coordinates: Iterable[str]) -> None:
    """Raises ValueError where pieces of variables or coordinates are missing.

    A chunk that holds the fill value alone need not be written: one number of a coordinate may be it.
    """
    unordered = [name for name in coordinates if not _in_order(data[name].values)]
    with _pieces_of(path) as pieces:
        for name in (*arrays, *unordered):
            check_written(f"{path}: {name}", *pieces(name), zarr=path.suffix == ".zarr")


@contextmanager
def _pieces_of(path: Path) -> Iterator[Callable[[str], tuple[int, int]]]:
    """A function that counts the missing pieces of a variable, and all of them."""
    if path.suffix == ".zarr":
        yield lambda name: missing_of_zarr(path / name)
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield lambda name: missing_of_hdf5(file[name if name in file else f"_nc4_non_coord_{name}"])


def _in_order(values: NDArray[Any]) -> bool:
    """Whether they are numbers or dates that all rise, or all fall."""
    before, after = values[:-1], values[1:]
    return values.dtype.kind in "fiuMm" and bool((before < after).all() or (before > after).all())


def _way(values: NDArray[Any]) -> str:
    if values.dtype.kind not in "fiu" or len(values) < 2:
        return ""
    return " (falling)" if values[0] > values[-1] else " (rising)"


# Writing


def check_writable(path: Path) -> None:
    """Raises ValueError for a file that is there or has another ending than .npz and .nc, ModuleNotFoundError for
    .nc without the extra."""
    if path.suffix not in (".npz", ".nc"):
        raise ValueError(f"{path} ends with {path.suffix!r}; expected .npz or .nc")
    if path.exists():
        raise ValueError(f"{path} is there already: name a new file, or remove it")
    if path.suffix == ".nc":
        with with_extra():
            import h5netcdf  # noqa: F401


def write_fields(
    path: Path,
    array: NDArray[Any],
    variables: Sequence[str],
    step: float | None = None,
    axes: Sequence[str] = (),
    metadata: Metadata | None = None,
) -> None:
    """Write trajectories (S, T, C, H, W) as they are read here, whole or not at all: .npz or NetCDF (.nc).

    axes, metadata: as of `FieldSource`; of NetCDF alone
    Raises ValueError for another shape, and what `check_writable` raises.
    """
    if array.ndim != 5 or array.shape[2] != len(variables):
        raise ValueError(f"fields are {array.shape} with {len(variables)} variables; expected (S, T, C, H, W)")
    check_writable(path)
    along = "trajectory", "time", *([axis.partition(" (")[0] for axis in axes] or ("y", "x"))
    if path.suffix == ".nc" and (taken := [name for name in variables if name in along or "/" in name]):
        raise ValueError(f"no variable of NetCDF can be called {', '.join(taken)}: name it otherwise, or write .npz")
    if path.suffix == ".npz":
        with whole(path) as aside, aside.open("wb") as file:
            np.savez(file, fields=array, variables=np.array(variables), step=np.array(np.nan if step is None else step))
        return
    sizes: dict[str, int] = dict(zip(along, (*array.shape[:2], *array.shape[3:]), strict=True))
    metadata = metadata or Metadata()
    units = {"units": metadata.time} if metadata.time else {}
    labels = {} if step is None else {"time": Labels(("time",), np.arange(array.shape[1]) * step, units)}
    for each in metadata.coordinates:
        dimensions = tuple(along[2 + i] for i in each.axes)
        values = np.reshape(each.values, [sizes[name] for name in dimensions])
        labels[each.name] = Labels(dimensions, values, each.description.attributes)
    described = metadata.variables or (Description(),) * len(variables)
    parts = {
        name: (tuple(sizes), lambda n, i=i: array[n, :, i], description.attributes)
        for i, (name, description) in enumerate(zip(variables, described, strict=True))
    }
    write_netcdf(path, sizes, labels, parts)


@dataclass(frozen=True, eq=False)
class Labels:
    """Numbers along dimensions, a coordinate of NetCDF."""

    dimensions: tuple[str, ...]
    values: NDArray[Any]
    attributes: Mapping[str, str] = field(default_factory=dict)


Part = Callable[[int], NDArray[Any]]  # number along the first dimension -> what a variable holds there


def write_netcdf(
    path: Path,
    sizes: Mapping[str, int],
    coordinates: Mapping[str, Labels],
    variables: Mapping[str, tuple[Sequence[str], Part, Mapping[str, str]]],
) -> None:
    """Write float32 variables over named dimensions, part by part, whole or not at all.

    sizes: of the dimensions; variables: by name, their dimensions, parts and attributes; coordinates: by name
    """
    import h5netcdf

    with whole(path) as aside, h5netcdf.File(aside, "w", locking=False) as file:  # `whole` holds a lock of its own
        file.dimensions, file.attrs["Conventions"] = dict(sizes), "CF-1.8"
        for name, labels in coordinates.items():
            file.create_variable(name, labels.dimensions, data=labels.values).attrs.update(labels.attributes)
        for name, (dims, part, attributes) in variables.items():
            variable = file.create_variable(name, tuple(dims), np.dtype(np.float32))
            variable.attrs.update(attributes)
            beside = [other for other, labels in coordinates.items() if other not in sizes]
            if beside := [other for other in beside if {*coordinates[other].dimensions} <= {*dims}]:
                variable.attrs["coordinates"] = " ".join(beside)
            for n in range(sizes[dims[0]]):
                variable[n] = part(n)
