"""Fields in HDF5, of PDEArena, The Well and PDEBench.

{train,valid,test}/pde_{nt}-{nx} (S, T, X) or (S, T, C, X), or {train,valid,test}/NAME (S, T, Y, X), and maybe dt
and t, (T) or (S, T), as of PDEArena
t0_fields/NAME (S, T, *space), t1_fields and t2_fields with their components last, as of The Well: fields of one or
two dimensions that vary in time are read
NAME (S, T, *space) beside t-coordinate, a group a trajectory with data (T, *space, C) and grid/t, or velocity and
particles (S, T, *space, C) beside t, as of PDEBench
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading, split_named
from dualrate.forecasts.file_checks import (
    array_of,
    check_claim,
    check_hdf5,
    check_written,
    missing_of_hdf5,
    whole_of,
    with_extra,
)
from dualrate.forecasts.metadata import SAME_AXIS, Coordinate, Description, Metadata, text_of, with_radians
from dualrate.forecasts.packing import physical
from dualrate.forecasts.several import fullest
from dualrate.forecasts.trajectories import (
    EXPECTED,
    FieldSource,
    Lazy,
    Timing,
    Trajectory,
    common_step,
    grid_of,
    numbered,
    timings_of,
)
from dualrate.system.files import naming
from dualrate.system.folders import some_of

HDF5 = (".h5", ".hdf5")


def read_hdf5(files: Sequence[tuple[str, Path]], source: Path) -> FieldSource:
    """The fields of files, (split or "", path) each, one or more."""
    with with_extra():
        import h5py
    splits: dict[str, list[Trajectory]] = {}
    all_fields: list[tuple[Path, FieldSource]] = []
    for name, path in files:
        with naming(path), reading(path, "HDF5"):
            check_hdf5(path)
            fields = _of_file(h5py.File(path, "r"), path, name)  # stays open: frames are read from it later
        all_fields.append((path, fields))
        for split, part in fields.splits.items():
            splits.setdefault(split, []).extend(part)
    if len(splits) > 1 and "" in splits:
        names = ", ".join(file.name for _, file in files)
        raise ValueError(f"{source}: some of its HDF5 files name a split and others do not ({names})")
    first, step = all_fields[0][1], common_step(fields.step for _, fields in all_fields)
    metadata, note = fullest(all_fields, first.variables, splits=True)
    return replace(first, splits=splits, step=step, metadata=metadata, note=note)


def _of_file(file: Any, path: Path, split: str) -> FieldSource:
    fields = _pdearena(file, path) or _well(file, path, split) or _pdebench(file, path, split)
    if fields is None:
        inside: list[str] = []
        file.visit(lambda name: inside.append(name) or (len(inside) > 12 or None))
        raise ValueError(
            f"{path} holds {some_of(inside, 12) or 'nothing'}; expected the groups train, valid or test with pde_* "
            "or fields (trajectory, time, y, x), t0_fields, t1_fields, or t-coordinate: write an array (trajectory, "
            "time, channel, y, x) as `fields` to an .npz, or a group of NetCDF (Grid of IMERG) to a file of its own "
            "(xarray: open_dataset(FILE, group=NAME).to_netcdf(OTHER))"
        )
    return fields


def _check_parts(path: Path, parts: Sequence[Any]) -> None:
    """Raises ValueError for datasets of which pieces were never written."""
    for part in parts:
        check_written(f"{path}: {part.name}", *missing_of_hdf5(part))


def _pdearena(file: Any, path: Path) -> FieldSource | None:
    splits: dict[str, list[Trajectory]] = {}
    kinds: set[tuple[str, ...]] = set()
    steps: set[float | None] = set()
    notes: list[str] = []
    metadata: list[Metadata] = []
    space: list[int] = []
    for split in filter(split_named, file):
        if not isinstance(group := file[split], Mapping):
            continue
        names = [key for key in group if key.startswith("pde_")]
        if len(names) > 1:
            raise ValueError(f"{path}: {split} holds {', '.join(names)}; expected one of them: write each to its file")
        planes = [key for key in group if getattr(group[key], "ndim", 0) > 3]  # of fields in two dimensions, by name
        if not (names or planes):
            continue
        parts = [array_of(path, group, key) for key in names or planes]
        frames, *inner = parts[0].shape[1:] or (0,)
        allowed = (3, 4, 5) if names else (4,)
        if parts[0].ndim not in allowed or 0 in parts[0].shape or len({part.shape for part in parts}) > 1:
            shapes = ", ".join(f"{split}/{key} {group[key].shape}" for key in names or planes)
            raise ValueError(f"{path}: {shapes}; expected one shape, (trajectory, time, x) or {EXPECTED}")
        check_claim(path, len(parts[0]), "trajectories")
        _check_parts(path, parts)
        channels, *space = inner if names and len(inner) > 1 else (len(parts), *inner)
        shape = channels, *grid_of(space)
        kinds.add(numbered(channels) if names else tuple(planes))
        times, count = whole_of(path, group, "t") if "t" in group else None, len(parts[0])
        timings = timings_of(path, f"{split}/t", times, count, frames)
        each = np.unique(whole_of(path, group, "dt")) if "dt" in group else np.ones(0)
        if each.dtype.kind not in "fiu" or not ((each > 0) & (each < np.inf)).all():
            raise ValueError(f"{path}: {split}/dt is {each[:3]}; expected numbers above 0, the time between frames")
        each = np.unique(each.round(9))
        described = tuple(Description.of(part.attrs) for part in parts)
        points = _coordinates(path, group, dict.fromkeys((*SAME_AXIS, *SAME_AXIS.values())), count, space)
        clock = text_of(group["t"].attrs.get("units", "")) if "t" in group else ""
        metadata.append(Metadata(described if len(parts) == channels else described * channels, points, clock))
        steps.add(float(each[0]) if len(each) == 1 else common_step(timing.step for timing in timings))
        notes += [timing.note for timing in timings if timing.note]
        splits[split] = [_of_hdf5(path, parts, i, (frames, *shape), timing) for i, timing in enumerate(timings)]
    if len(kinds) > 1:
        raise ValueError(f"{path}: its splits have the variables {' and '.join(map(str, sorted(kinds)))}")
    if not splits:
        return None
    variables, most = kinds.pop(), max(metadata, key=lambda each: each.said)
    for mine, theirs in (pair for each in metadata for pair in each.differences(most, variables)):
        raise ValueError(f"{path}: its splits have {theirs} and {mine}: bring them to one")
    named = {each.axes: each.name for each in most.coordinates}
    axes = tuple(named.get((i,), "") for i in range(len(space)))
    return FieldSource(splits, variables, common_step(steps), axes if all(axes) else (), next(iter(notes), ""), most)


def _of_hdf5(path: Path, parts: Sequence[Any], number: int, shape: tuple[int, ...], timing: Timing) -> Lazy:
    """A trajectory of one array of all channels, or of an array for each."""

    def read(i: int, j: int) -> NDArray[Any]:
        return np.stack([physical(part[number, i:j], part) for part in parts], 1).reshape(j - i, *shape[1:])

    return Lazy(shape, read, timing, path)  # pyright: ignore[reportArgumentType]


def _of_components(
    path: Path, parts: Sequence[tuple[Any, int | None]], timing: Timing, shape: tuple[int, int, int, int]
) -> Lazy:
    """A trajectory of arrays, each with its number there, or None where it is the only one; components stand last."""

    def read(first: int, last: int) -> NDArray[Any]:
        arrays = [physical(data[first:last] if i is None else data[i, first:last], data) for data, i in parts]
        wide = [array.reshape(last - first, *shape[2:], -1) for array in arrays]
        return np.moveaxis(np.concatenate(wide, -1), -1, 1)

    return Lazy(shape, read, timing, path)


def _coordinates(
    path: Path, group: Any, names: Mapping[str, int | None], count: int, space: Sequence[int]
) -> tuple[Coordinate, ...]:
    """Coordinates in HDF5 that are the same for all trajectories.

    names: of these and the axis of space of each; None: the axis of their size
    """
    coordinates: list[Coordinate] = []
    for name, axis in names.items():
        if name not in group or group[name].ndim not in (1, 2) or group[name].dtype.kind not in "fiu":
            continue
        values = np.atleast_2d(whole_of(path, group, name))
        axes = [i for i, size in enumerate(space) if size == values.shape[1] and axis in (None, i)]
        if axes and len(values) in (1, count) and np.isfinite(values).all() and (values == values[:1]).all():
            along = tuple(axes) if len(axes) == 1 else ()
            coordinates.append(Coordinate(name, along, tuple(values[0].tolist()), Description.of(group[name].attrs)))
    return with_radians(coordinates)


def _well(file: Any, path: Path, split: str) -> FieldSource | None:
    groups = [file[name] for name in ("t0_fields", "t1_fields", "t2_fields") if name in file]
    if not groups:
        return None
    if "dimensions" not in file or "spatial_dims" not in file["dimensions"].attrs:
        raise ValueError(f"{path} has fields and no `dimensions` with `spatial_dims`, as files of The Well have")
    axes = [*map(text_of, file["dimensions"].attrs["spatial_dims"])]
    parts: list[tuple[Any, bool]] = []  # dataset, and whether it differs from trajectory to trajectory
    statics: dict[str, Callable[[], NDArray[Any]]] = {}
    variables: list[str] = []
    described: list[Description] = []
    for group in groups:
        for name in map(text_of, group.attrs.get("field_names", list(group))):
            data = array_of(path, group, name)
            if not data.attrs.get("time_varying", True):
                if data.ndim == len(axes) and not data.attrs.get("sample_varying", True):
                    statics[name] = lambda data=data: _static(path, data)
                continue
            parts.append((data, bool(data.attrs.get("sample_varying", True))))
            components = int(np.prod(data.shape[1 + parts[-1][1] + len(axes) :]))
            vector = components == len(axes) and group.name.endswith("t1_fields")
            ends = axes if vector else [a + b for a in axes for b in axes]
            variables += [name] if components == 1 else [f"{name}_{end}" for end in ends[:components]]
            described += [Description.of(data.attrs)] * components
    if not parts or len(axes) not in (1, 2):
        raise ValueError(
            f"{path}: the fields that vary in time, {len(parts)}, are over {axes}; expected fields of one or two axes"
        )
    samples = {len(data) for data, varies in parts if varies} or {1}
    spaces = {data.shape[varies : 1 + varies + len(axes)] for data, varies in parts}
    if len(samples) > 1 or len(spaces) > 1:
        raise ValueError(f"{path}: its fields are {spaces} (time, space) of {samples} trajectories; expected one shape")
    _check_parts(path, [data for data, _ in parts])
    frames, *space = spaces.pop()
    count, dimensions = samples.pop(), file["dimensions"]
    check_claim(path, count, "trajectories")
    times = whole_of(path, dimensions, "time") if "time" in dimensions else None
    timings = timings_of(path, "dimensions/time", times, count, frames)
    step = common_step(timing.step for timing in timings)
    note = next((timing.note for timing in timings if timing.note), "")
    clock = "" if times is None else text_of(dimensions["time"].attrs.get("units", ""))
    points = _coordinates(path, dimensions, {name: i for i, name in enumerate(axes)}, count, space)
    shape, metadata = (frames, len(variables), *grid_of(space)), Metadata(tuple(described), points, clock)
    places = [[(data, i if varies else None) for data, varies in parts] for i in range(count)]
    trajectories = [_of_components(path, *each, shape) for each in zip(places, timings, strict=True)]
    return FieldSource({split: trajectories}, tuple(variables), step, tuple(axes), note, metadata, statics)


def _static(path: Path, data: Any) -> NDArray[Any]:
    _check_parts(path, [data])
    return physical(data[...], data).reshape(grid_of(data.shape))


def _pdebench(file: Any, path: Path, split: str) -> FieldSource | None:
    groups = [each for each in file.values() if isinstance(each, Mapping) and "data" in each]
    names = [name for name, each in file.items() if getattr(each, "ndim", 0) > 2] if "t-coordinate" in file else []
    flow = [name for name in ("velocity", "particles") if name in file] if {"velocity", "t"} <= {*file} else []
    if names:
        axes_of, clocks, groups = slice(1, None), [(file, "t-coordinate")], []
    elif flow:
        axes_of, clocks, groups = slice(1, -1), [(file, "t")], []
    elif any("grid" in each for each in groups):
        axes_of, clocks = slice(0, -1), [(group, "grid/t") for group in groups]
    else:
        return None
    places = [(group, "data") for group in groups] or [(file, name) for name in names or flow]
    parts = [array_of(path, *place) for place in places]
    frames, *space = parts[0].shape[axes_of] or (0,)
    shapes = {part.shape[:-1] if flow else part.shape for part in parts}
    strange = flow and [part.shape[-1:] for part in parts] != [(2,), (1,)][: len(parts)]  # of a vector, and of a number
    if len(shapes) > 1 or strange or len(space) not in (1, 2) or 0 in parts[0].shape:
        listed = some_of([f"{part.name} {part.shape}" for part in {part.shape: part for part in parts}.values()])
        raise ValueError(
            f"{path}: {listed}; expected one shape, (trajectory, time, x) or (trajectory, time, x, y), of a group for "
            "each trajectory (time, x, channel) or (time, x, y, channel); of `velocity` (trajectory, time, x, y, 2)"
        )
    check_claim(path, count := len(groups) or len(parts[0]), "trajectories")
    _check_parts(path, parts)
    timings: list[Timing] = []
    for clock in clocks:
        times = whole_of(path, *clock)
        times = times[:-1] if times.shape == (frames + 1,) else times  # of the ends of steps
        timings += timings_of(path, array_of(path, *clock).name, times, 1 if groups else count, frames)
    axes, ending = ("x", "y")[: len(space)], "" if groups else "-coordinate"
    along = {f"{name}{ending}": i for i, name in enumerate(axes)}
    grids = [each["grid"] for each in groups] or [file]
    first, *rest = (_coordinates(path, grid, along, count, space) for grid in grids)
    points = tuple(each for each in first if all(each in those for those in rest))
    variables = numbered(parts[0].shape[-1]) if groups else tuple(names) or ("velocity_x", "velocity_y", *flow[1:])
    described = tuple(Description.of(part.attrs) for part in parts[: len(names)]) or (Description(),) * len(variables)
    notes = [each.note for each in timings if each.note][:1]
    notes += ["left out, as it has no times: force"] * bool(flow and "force" in file)
    rows = [[(part, None)] for part in parts] if groups else [[(part, i) for part in parts] for i in range(count)]
    shape = frames, len(variables), *grid_of(space)
    trajectories = [_of_components(path, *each, shape) for each in zip(rows, timings, strict=True)]
    step, metadata = common_step(each.step for each in timings), Metadata(described, points)
    return FieldSource({split: trajectories}, variables, step, axes, "; ".join(notes), metadata)
