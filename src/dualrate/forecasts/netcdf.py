"""Fields in NetCDF, zarr and GRIB, read through xarray, and what writes NetCDF and .npz.

FILE.nc, .nc4, .cdf   NetCDF 4, which is HDF5, and NetCDF 3
FILE.zarr             a store of either format
FILE.grib, ...        where cfgrib is installed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading
from dualrate.forecasts.datasets import fields_of
from dualrate.forecasts.file_checks import (
    check_netcdf,
    check_written,
    check_zarr,
    is_classic,
    missing_of_hdf5,
    missing_of_zarr,
    open_members,
    with_extra,
)
from dualrate.forecasts.metadata import Description, Metadata
from dualrate.forecasts.trajectories import FieldSource
from dualrate.system.files import check_regular, naming, whole

NETCDF, GRIB = (".nc", ".nc4", ".cdf"), (".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2")
LABELLED = (*NETCDF, ".zarr", *GRIB)  # endings


def read_labelled(path: Path, names: Sequence[str] = (), levels: Sequence[float] = ()) -> FieldSource:
    """The fields of a file or store: all, or those of these names and at these levels."""
    ending = path.suffix.lower()
    kind = "zarr" if ending == ".zarr" else "GRIB" if ending in GRIB else "NetCDF"
    how = _engine(path, kind)
    with naming(path), reading(path, kind), _naming_calendar(path):
        data = _opened(path, kind, how)
        return fields_of(data, path, names, levels, lambda *read: _check_written(path, data, *read))


def _engine(path: Path, kind: str) -> dict[str, Any]:
    """How xarray opens a file. Raises ModuleNotFoundError that says what to install."""
    if kind == "GRIB":
        _import_cfgrib(path)
        return {"engine": "cfgrib", "indexpath": ""}  # an index would be a pickle beside the file
    with with_extra():
        import xarray  # noqa: F401

        if kind == "zarr":
            import zarr  # noqa: F401  xarray says of a missing one that it cannot guess the engine

            return {"engine": "zarr", "consolidated": False}  # else it warns of what it did not find
        if is_classic(path):
            import scipy  # noqa: F401

            return {"engine": "scipy"}
        import h5netcdf  # noqa: F401

        return {"engine": "h5netcdf"}


def _opened(path: Path, kind: str, how: Mapping[str, Any]) -> Any:
    import xarray

    if kind == "zarr":
        check_zarr(path)
        open_members(path)
        data = xarray.open_dataset(path, **how)
        return data[sorted(data.variables, key=str)]  # a store keeps no order of its arrays
    if how["engine"] == "h5netcdf":
        check_netcdf(path)
    check_regular(path)
    try:
        return xarray.open_dataset(path, **how)
    except ValueError as error:  # of a climatology, whose year is 0, times are numbers
        if "decode_times" not in str(error):
            raise
        try:
            import cftime  # noqa: F401
        except ImportError:
            raise error from None
        return xarray.open_dataset(path, **how, decode_times=False)


def _import_cfgrib(path: Path) -> None:
    try:
        import cfgrib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # the latter where the library below it is missing
        raise ModuleNotFoundError(
            f'{path} is GRIB, which wants the extra `grib` ({error}): pip install "dualrate[grib]", or '
            "turn it into NetCDF (cdo -f nc4 copy IN.grib OUT.nc)"
        ) from error


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
    if path.suffix.lower() in GRIB or is_classic(path):  # which have no pieces: a short file is an error
        yield lambda name: (0, 1)
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield lambda name: missing_of_hdf5(file[name if name in file else f"_nc4_non_coord_{name}"])


def _in_order(values: NDArray[Any]) -> bool:
    """Whether they are numbers or dates that all rise, or all fall."""
    before, after = values[:-1], values[1:]
    return values.dtype.kind in "fiuMm" and bool((before < after).all() or (before > after).all())


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
