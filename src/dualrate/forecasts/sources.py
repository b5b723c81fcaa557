"""Trajectories of frames (C, H, W), found and written: arrays, simulations, folders of pictures. 1-D fields: H = 1.

Sources, of which the large ones are read where they lie, frame by frame:

    kuramoto-sivashinsky, kolmogorov, moving-fashion-mnist   made on the spot and kept in the cache (simulations.py)
    FILE.npz     `fields` (S, T, C, H, W) or (S, T, C, X), and maybe `variables` (C) and `step`
    FILE.npy     the same array alone, memory-mapped
    FILE.h5      {train,valid,test}/pde_{nt}-{nx} (S, T, X) or (S, T, C, X), or {train,valid,test}/NAME (S, T, Y, X),
                 and maybe dt and t, (T) or (S, T), as of PDEArena; or t0_fields/NAME (S, T, *space), t1_fields and
                 t2_fields with their components last, as of The Well: fields of one or two dimensions that vary in
                 time are read
    FOLDER       of such HDF5 files, in folders of splits, or with the split in their names (KS_train_64.h5)
    FILE.nc, FILE.zarr   through xarray: dimensions trajectory (or sample, ...), time, maybe channel, and space after
                 them; without channel each variable is one, those of .zarr by their names
    frames:FOLDER    a folder of pictures a trajectory, in the order of the numbers in their names; as floats in
                 [-1, 1]

Frames on two sides of a gap in time do not follow each other: `Timing.breaks` says where the gaps are.

The extra `forecast` reads HDF5, NetCDF and zarr, once file_checks.py has looked at what they hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.decode import Options, holds_colours, image_of
from dualrate.data.images import to_float
from dualrate.data.source import (
    DataProgress,
    by_number,
    hidden,
    images_below,
    named,
    printable,
    read_arrays,
    reading,
    resolved,
    silent,
    split_named,
)
from dualrate.forecasts.file_checks import (
    array_of,
    check_count,
    check_hdf5,
    check_netcdf,
    check_size,
    check_written,
    check_zarr,
    missing_of_hdf5,
    missing_of_zarr,
    open_members,
    whole_of,
)
from dualrate.forecasts.metadata import SAME_AXIS, Coordinate, Description, Metadata, text_of
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.system.files import check_regular, naming, whole
from dualrate.system.folders import some_of

FRAMES = "frames:"  # begins a source that is a folder of folders of pictures
HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".nc", ".zarr", *HDF5)  # and .npz, if it holds `fields`
FIELDS = "fields"  # the array of a .npz file
# names of dimensions
TRAJECTORY = ("trajectory", "start", "sample", "member", "ensemble", "number", "realization", "realisation", "run")
TRAJECTORY += ("batch", "simulation")
TIME = ("time", "t", "frame", "step", "lead_time", "valid_time")
CHANNEL = ("channel", "channels", "variable", "field")
EXTRA = 'pip install "dualrate[forecast]"'
GAP = 1.5  # times the usual step between frames
EXPECTED = "(trajectory, time, channel, space) or (trajectory, time, channel, y, x), none of them 0"


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
    """

    shape: tuple[int, int, int, int]
    read: Callable[[int, int], NDArray[Any]]
    timing: Timing = Timing()
    source: str | Path = ""

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
    """

    splits: Mapping[str, Sequence[Trajectory]]
    variables: tuple[str, ...]
    step: float | None
    axes: tuple[str, ...] = ()
    note: str = ""
    metadata: Metadata = Metadata()

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trajectories of all splits."""
        return [trajectory for part in self.splits.values() for trajectory in part]


def is_fields(source: str | Path) -> bool:
    """Whether a source is one of these: by its name, of .npz also by the names of its arrays."""
    if str(source) in SIMULATIONS or str(source).startswith(FRAMES):
        return True
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return f"{FIELDS}.npy" in archive.namelist()
        except Exception:  # its reader says what it is
            return False
    return path.suffix in SUFFIXES or (path.is_dir() and bool(_hdf5_files(path)))


def find_fields(source: str | Path, progress: DataProgress = silent) -> tuple[str, FieldSource]:
    """The name of a source, and its trajectories, whose frames are not read yet.

    Raises as `forecast.read_fields`.
    """
    text = str(source)
    if text in SIMULATIONS:
        return text, _simulated(text, progress)
    path = resolved(text.removeprefix(FRAMES))
    if text.startswith(FRAMES):
        return printable(path.name), _pictures(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no fields {path}: name a file or folder, or {' or '.join(SIMULATIONS)}")
    fields = _read_file(path)
    for trajectory in fields.trajectories[:1]:
        check_variable_names(str(path), fields.variables, trajectory.shape[1])
        check_size(f"{path}: a frame {trajectory.shape[1:]}", 4 * math.prod(trajectory.shape[1:]))
    return printable(path.stem), fields


def _read_file(path: Path) -> FieldSource:
    if path.is_dir() and path.suffix != ".zarr":
        return _hdf5(_hdf5_files(path), path)
    if path.suffix in HDF5:
        return _hdf5([("", path)], path)
    if path.suffix in (".nc", ".zarr"):
        return _labelled(path)
    check_regular(path)
    if path.suffix == ".npz":

        def wanted(members: list[str]) -> list[str]:
            if FIELDS not in members:
                raise ValueError(f"{path} has the arrays {', '.join(members) or 'none'}; expected {FIELDS}: {EXPECTED}")
            return [name for name in (FIELDS, "variables", "step") if name in members]

        arrays = read_arrays(path, wanted)
        names = tuple(map(str, np.atleast_1d(arrays["variables"]))) if "variables" in arrays else None
        return _of_array(str(path), arrays[FIELDS], names, step_of(path, arrays.get("step")))
    if path.suffix == ".npy":
        with reading(path, ".npy"):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return _of_array(str(path), mapped, None, None)
    endings = ", ".join((".npz", *SUFFIXES))
    raise ValueError(
        f"{path} is no source of fields; expected a file that ends with {endings}, a folder of HDF5 files, "
        f"{FRAMES}FOLDER of pictures, or {' or '.join(SIMULATIONS)}"
    )


def step_of(path: Path, step: NDArray[Any] | None) -> float | None:
    """The time between frames that an archive names `step`; None if it does not say it, or NaN.

    Raises ValueError for what is none.
    """
    if step is None:
        return None
    if step.size != 1 or step.dtype.kind not in "fiu" or step.item() <= 0:
        raise ValueError(f"{path}: `step` is {step}; expected a number above 0, the time between frames, or NaN")
    return None if np.isnan(step.item()) else float(step.item())


def _of_array(source: str, array: NDArray[Any], names: tuple[str, ...] | None, step: float | None) -> FieldSource:
    shape = array.shape
    check_count(source, shape[0] if shape else 0)
    if len(shape) not in (4, 5) or 0 in shape or array.dtype.kind not in "fiu":
        single = "; of one trajectory give array[None], without channels array[None, :, None]" * (len(shape) == 3)
        raise ValueError(f"{source} is {array.dtype} {shape}; expected numbers {EXPECTED}{single}")
    if len(shape) == 5:
        return FieldSource({"": list(array)}, names or numbered(shape[2]), step)
    note = (
        f"its axes {shape} are read as (trajectory, time, channel, x); if they are (trajectory, time, y, x), give "
        "array[:, :, None]"
    )
    note = "" if shape[2] == 1 or names else note
    return FieldSource({"": list(array[:, :, :, None])}, names or numbered(shape[2]), step, note=note)


def check_variable_names(source: str, names: tuple[str, ...] | None, channels: int) -> None:
    """Raises ValueError for names of variables that are not as many as the channels, or not distinct."""
    if names and not len(names) == len(set(names)) == channels:
        raise ValueError(
            f"{source} has the variables {', '.join(names)} and {channels} channels: expected a name for each, all of "
            "them different"
        )


def _grid(space: Sequence[int]) -> tuple[int, int]:
    """(H, W); 1-D fields have one row."""
    height, width = (1, *space) if len(space) == 1 else space
    return height, width


def numbered(channels: int) -> tuple[str, ...]:
    """The names of variables that have none."""
    return ("u",) if channels == 1 else tuple(f"u{i}" for i in range(channels))


def _simulated(name: str, progress: DataProgress) -> FieldSource:
    """A simulation with seed 0, from the cache where it is there."""
    system, trajectories, frames = SIMULATIONS[name]
    made_as = json.dumps([1, name, asdict(system), trajectories, frames])  # pyright: ignore[reportArgumentType]
    file = cache_dir() / FIELDS / f"{name}-{hashlib.sha256(made_as.encode()).hexdigest()[:16]}.npy"
    if not file.is_file():
        array = system.simulate(trajectories, frames, 0, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as aside, aside.open("wb") as opened:
            np.save(opened, array)
    with reading(file, "a simulation that was kept; delete it and run again"):
        return _of_array(name, np.load(file, mmap_mode="r", allow_pickle=False), system.variables, system.every)


def _pictures(path: Path) -> FieldSource:
    """A trajectory a folder, or the pictures of one folder; all in colours where any picture is."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name one of a folder of pictures for each trajectory")
    folders = _by_number(path, [entry for entry in path.iterdir() if entry.is_dir() and not hidden(entry.name)])
    listed = [_by_number(folder, images_below(folder)) for folder in folders or [path]]
    if empty := [folder.name for folder, files in zip(folders, listed, strict=bool(folders)) if not files]:
        raise ValueError(f"{path} has folders without pictures ({', '.join(empty[:5])}): remove or fill them")
    if not listed[0]:
        raise ValueError(f"{path} holds no pictures; expected a folder of frames, or of folders of them")
    in_colours = [holds_colours(file) for files in listed for file in files]
    options = Options(None, 3 if any(in_colours) else 1, "fail")
    first = image_of(str(listed[0][0]), listed[0][0], options)

    def trajectory(files: list[Path]) -> Lazy:
        def read(start: int, end: int) -> NDArray[np.float32]:
            pictures = [image_of(name, item, options) for name, item in named(path, files[start:end])]
            if wrong := [files[start + i] for i, picture in enumerate(pictures) if picture.shape != first.shape]:
                raise ValueError(f"{wrong[0]} is not {first.shape[2]} x {first.shape[1]} pixels, as {listed[0][0]} is")
            return to_float(np.stack(pictures)).numpy()

        return Lazy((len(files), *first.shape), read, source=path)  # pyright: ignore[reportArgumentType]

    variables, note = ("red", "green", "blue") if any(in_colours) else ("grey",), ""
    if 0 < (grey := in_colours.count(False)) < len(in_colours):
        note = f"{grey} of its {len(in_colours)} pictures are grey, and read as colours"
    return FieldSource({"": [trajectory(files) for files in listed]}, variables, None, note=note)


def _by_number(folder: Path, paths: Sequence[Path]) -> list[Path]:
    return [paths[i] for i in by_number([path.relative_to(folder).as_posix() for path in paths])]


# HDF5


@contextmanager
def _with_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"HDF5, NetCDF and zarr want the extra `forecast` ({error}): {EXTRA}") from error


def _hdf5_files(folder: Path) -> list[tuple[str, Path]]:
    """(split or "", file) of the HDF5 files in a folder, or in its folders of splits."""
    places = [(folder, "")] + [
        (entry, entry.name) for entry in sorted(folder.iterdir()) if entry.is_dir() and split_named(entry.name)
    ]
    files = [(name, file) for place, name in places for file in sorted(place.iterdir()) if file.suffix in HDF5]
    return [(name or next(filter(split_named, re.split("[^A-Za-z]+", file.stem)), ""), file) for name, file in files]


def _hdf5(files: Sequence[tuple[str, Path]], source: Path) -> FieldSource:
    with _with_extra():
        import h5py
    splits: dict[str, list[Trajectory]] = {}
    all_fields: list[FieldSource] = []
    for name, path in files:
        with naming(path), reading(path, "HDF5"):
            check_hdf5(path)
            fields = _of_file(h5py.File(path, "r"), path, name)  # stays open: frames are read from it later
        all_fields.append(fields)
        for what, mine, expected in (
            ("variables", fields.variables, all_fields[0].variables),
            ("axes of space", fields.axes, all_fields[0].axes),
        ):
            if mine != expected:
                raise ValueError(f"{path} has the {what} {mine}, another file of {source} has {expected}")
        for mine, expected in fields.metadata.differences(all_fields[0].metadata, fields.variables):
            raise ValueError(f"{path} has {mine}, another file of {source} has {expected}: bring them to one")
        for split, part in fields.splits.items():
            splits.setdefault(split, []).extend(part)
    if not all_fields:
        raise ValueError(f"{source} holds no HDF5 files: name a folder of them, or {FRAMES}FOLDER for one of pictures")
    if len(splits) > 1 and "" in splits:
        names = ", ".join(file.name for _, file in files)
        raise ValueError(f"{source}: some of its HDF5 files name a split and others do not ({names})")
    note, first = next((fields.note for fields in all_fields if fields.note), ""), all_fields[0]
    return FieldSource(
        splits, first.variables, _common(fields.step for fields in all_fields), first.axes, note, first.metadata
    )


def _of_file(file: Any, path: Path, split: str) -> FieldSource:
    fields = _pdearena(file, path) or _well(file, path, split)
    if fields is None:
        inside: list[str] = []
        file.visit(lambda name: inside.append(name) or (len(inside) > 12 or None))
        raise ValueError(
            f"{path} holds {some_of(inside, 12) or 'nothing'}; expected the groups train, valid or test with pde_* "
            "or fields (trajectory, time, y, x), or t0_fields, t1_fields"
        )
    return fields


def _check_parts(path: Path, parts: Sequence[Any]) -> None:
    """Raises ValueError for datasets of which pieces were never written."""
    for part in parts:
        check_written(f"{path}: {part.name}", *missing_of_hdf5(part))


def _common(steps: Iterable[float | None]) -> float | None:
    """The step that all have; None if they differ."""
    distinct = set(steps)
    return distinct.pop() if len(distinct) == 1 else None


def _pdearena(file: Any, path: Path) -> FieldSource | None:
    splits: dict[str, list[Trajectory]] = {}
    kinds: set[tuple[str, ...]] = set()
    steps: set[float | None] = set()
    notes: list[str] = []
    said: list[Metadata] = []
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
        check_count(path, len(parts[0]))
        _check_parts(path, parts)
        channels, *space = inner if names and len(inner) > 1 else (len(parts), *inner)
        shape = channels, *_grid(space)
        kinds.add(numbered(channels) if names else tuple(planes))
        times, count = whole_of(path, group, "t") if "t" in group else None, len(parts[0])
        timings = _timings(path, f"{split}/t", times, count, frames)
        each = np.unique(whole_of(path, group, "dt")) if "dt" in group else np.ones(0)
        if each.dtype.kind not in "fiu" or not ((each > 0) & (each < np.inf)).all():
            raise ValueError(f"{path}: {split}/dt is {each[:3]}; expected numbers above 0, the time between frames")
        each = np.unique(each.round(9))
        described = tuple(Description.of(part.attrs) for part in parts)
        points = _coordinates(path, group, dict.fromkeys((*SAME_AXIS, *SAME_AXIS.values())), count, space)
        clock = text_of(group["t"].attrs.get("units", "")) if "t" in group else ""
        said.append(Metadata(described if len(parts) == channels else described * channels, points, clock))
        steps.add(float(each[0]) if len(each) == 1 else _common(timing.step for timing in timings))
        notes += [timing.note for timing in timings if timing.note]
        splits[split] = [_of_hdf5(path, parts, i, (frames, *shape), timing) for i, timing in enumerate(timings)]
    if len(kinds) > 1:
        raise ValueError(f"{path}: its splits have the variables {' and '.join(map(str, sorted(kinds)))}")
    if not splits:
        return None
    variables = kinds.pop()
    for mine, first in (each for other in said for each in other.differences(said[0], variables)):
        raise ValueError(f"{path}: its splits have {first} and {mine}: bring them to one")
    named = {each.axes: each.name for each in said[0].coordinates}
    axes = [named.get((i,), "") for i in range(len(space))]
    return FieldSource(
        splits, variables, _common(steps), tuple(axes) if all(axes) else (), next(iter(notes), ""), said[0]
    )


def _of_hdf5(path: Path, parts: Sequence[Any], number: int, shape: tuple[int, ...], timing: Timing) -> Lazy:
    """A trajectory of one array of all channels, or of an array for each."""

    def read(i: int, j: int) -> NDArray[Any]:
        return np.stack([part[number, i:j] for part in parts], 1).reshape(j - i, *shape[1:])

    return Lazy(shape, read, timing, path)  # pyright: ignore[reportArgumentType]


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
    return tuple(coordinates)


def _well(file: Any, path: Path, split: str) -> FieldSource | None:
    groups = [file[name] for name in ("t0_fields", "t1_fields", "t2_fields") if name in file]
    if not groups:
        return None
    if "dimensions" not in file or "spatial_dims" not in file["dimensions"].attrs:
        raise ValueError(f"{path} has fields and no `dimensions` with `spatial_dims`, as files of The Well have")
    axes = [_text(name) for name in file["dimensions"].attrs["spatial_dims"]]
    parts: list[tuple[Any, bool]] = []  # dataset, and whether it differs from trajectory to trajectory
    variables: list[str] = []
    described: list[Description] = []
    for group in groups:
        for name in map(_text, group.attrs.get("field_names", list(group))):
            data = array_of(path, group, name)
            if not data.attrs.get("time_varying", True):
                continue
            parts.append((data, bool(data.attrs.get("sample_varying", True))))
            components = int(np.prod(data.shape[1 + parts[-1][1] + len(axes) :]))
            vector = components == len(axes) and group.name.endswith("t1_fields")
            ends = axes if vector else [a + b for a in axes for b in axes]
            variables += [name] if components == 1 else [f"{name}_{end}" for end in ends[:components]]
            described += [Description.of(data.attrs)] * components
    if not parts or len(axes) not in (1, 2):
        raise ValueError(
            f"{path} has {len(parts)} fields that vary in time, over {axes}; expected fields of one or two axes"
        )
    samples = {len(data) for data, varies in parts if varies} or {1}
    spaces = {data.shape[varies : 1 + varies + len(axes)] for data, varies in parts}
    if len(samples) > 1 or len(spaces) > 1:
        raise ValueError(
            f"{path}: its fields are {spaces} (time, space) of {samples} trajectories; expected the same for all"
        )
    _check_parts(path, [data for data, _ in parts])
    frames, *space = spaces.pop()
    grid = _grid(space)

    def trajectory(number: int, timing: Timing) -> Lazy:
        def read(first: int, last: int) -> NDArray[Any]:
            arrays = [data[number, first:last] if varies else data[first:last] for data, varies in parts]
            wide = [array.reshape(last - first, *grid, -1) for array in arrays]
            return np.moveaxis(np.concatenate(wide, -1), -1, 1)

        return Lazy((frames, len(variables), *grid), read, timing, path)

    count, dimensions = samples.pop(), file["dimensions"]
    check_count(path, count)
    times = whole_of(path, dimensions, "time") if "time" in dimensions else None
    timings = _timings(path, "dimensions/time", times, count, frames)
    step = _common(timing.step for timing in timings)
    note = next((timing.note for timing in timings if timing.note), "")
    clock = "" if times is None else text_of(dimensions["time"].attrs.get("units", ""))
    points = _coordinates(path, dimensions, {name: i for i, name in enumerate(axes)}, count, space)
    return FieldSource(
        {split: [trajectory(*each) for each in enumerate(timings)]},
        tuple(variables),
        step,
        tuple(axes),
        note,
        Metadata(tuple(described), points, clock),
    )


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _timings(path: Path, name: str, times: NDArray[Any] | None, count: int, frames: int) -> list[Timing]:
    """The timing of each of `count` trajectories. times: (T), of all of them, or (1 or count, T); one number is ignored

    Raises ValueError for other shapes.
    """
    if times is None:
        return [Timing()] * count
    if not times.ndim:
        return [Timing(note=f"{name} is one number, and says nothing of {frames} frames")] * count
    if times.shape not in ((frames,), (1, frames), (count, frames)):
        raise ValueError(f"{path}: {name} is {times.shape}; expected ({frames},) or ({count}, {frames})")
    rows = [_timing(path, row) for row in np.atleast_2d(times)]
    return rows * count if len(rows) == 1 else rows


def _timing(path: Path, times: NDArray[Any]) -> Timing:
    """A gap is a step that is not within a factor `GAP` of the usual one, so a month is none.

    The usual one is the lower quartile, since every second step may be a gap.
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
    if times.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: its times are {times.dtype}, the first is {str(times[0])[:40]!r}; expected numbers or dates: "
            "write them as those, or leave them out"
        )
    if len(times) < 2:
        return Timing(times=dates)
    steps = np.diff(times.astype(np.float64))
    if not np.isfinite(steps).all() or (steps < 0).any() or (steps.any() and not steps.all()):
        raise ValueError(
            f"{path}: its times do not rise, from {times[0]:g} to {times[-1]:g}, or one is missing or comes twice: "
            "bring them into order"
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


# NetCDF and zarr


def _labelled(path: Path) -> FieldSource:
    how: dict[str, Any]
    with _with_extra():
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
    grid = _grid([sizes[dim] for dim in space])

    def one_of(number: int, timing: Timing) -> Lazy:
        at = {trajectory: number} if trajectory else {}

        def read(i: int, j: int) -> NDArray[Any]:
            parts = [variable.isel({**at, time: slice(i, j)}).transpose(*order).values for variable in arrays.values()]
            return (parts[0] if channel else np.stack(parts, 1)).reshape(j - i, len(variables), *grid)

        return Lazy((sizes[time], len(variables), *grid), read, timing, path)

    count = sizes.get(trajectory, 1)
    dates, called = (None, "") if clock is None else (clock.values, str(clock.name))
    timings = _timings(path, called, dates, count, sizes[time])
    axes = tuple(dim + (_way(data[dim].values) if dim in data.coords else "") for dim in space)
    described = tuple(Description.of(variable.attrs) for variable in arrays.values())
    described *= len(variables) if channel else 1
    points = _points(data, space, {*TRAJECTORY, *times, *bounds})
    notes = [f"left out, as they bound coordinates: {left_out}"] * bool(left_out)
    notes += list(dict.fromkeys(timing.note for timing in timings if timing.note))[:1]
    return FieldSource(
        {"": [one_of(*each) for each in enumerate(timings)]},
        variables,
        _common(timing.step for timing in timings),
        axes,
        "; ".join(notes),
        Metadata(described, points, "" if clock is None else _units(clock)),
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


def _units(clock: Any) -> str:
    return text_of(clock.attrs.get("units", "")) if clock.dtype.kind in "fiu" else "hours"


def _check_written(path: Path, data: Any, arrays: Iterable[str], coordinates: Iterable[str]) -> None:
    """Raises ValueError where pieces of variables or coordinates are missing.

    A chunk that holds the fill value alone need not be written: one number of a coordinate may be it.
    """
    with _pieces_of(path) as pieces:
        for name in arrays:
            check_written(f"{path}: {name}", *pieces(name))
        for name in coordinates:
            if not _in_order(data[name].values):
                check_written(f"{path}: {name}", *pieces(name))


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
        with _with_extra():
            import h5netcdf  # noqa: F401


def write_fields(path: Path, array: NDArray[Any], variables: Sequence[str], step: float | None = None) -> None:
    """Write trajectories (S, T, C, H, W) as they are read here, whole or not at all: .npz or NetCDF (.nc).

    Raises ValueError for another shape, and what `check_writable` raises.
    """
    if array.ndim != 5 or array.shape[2] != len(variables):
        raise ValueError(f"fields are {array.shape} with {len(variables)} variables; expected (S, T, C, H, W)")
    check_writable(path)
    along = "trajectory", "time", "y", "x"
    if path.suffix == ".nc" and (taken := [name for name in variables if name in along or "/" in name]):
        raise ValueError(f"no variable of NetCDF can be called {', '.join(taken)}: name it otherwise, or write .npz")
    if path.suffix == ".npz":
        with whole(path) as aside, aside.open("wb") as file:
            np.savez(file, fields=array, variables=np.array(variables), step=np.array(np.nan if step is None else step))
        return
    sizes: dict[str, int] = dict(zip(along, (*array.shape[:2], *array.shape[3:]), strict=True))
    times = {} if step is None else {"time": Labels(("time",), np.arange(array.shape[1]) * step)}
    parts = {name: (tuple(sizes), lambda n, i=i: array[n, :, i], {}) for i, name in enumerate(variables)}
    write_netcdf(path, sizes, times, parts)


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
