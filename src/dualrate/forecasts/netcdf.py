"""Fields in NetCDF, zarr and GRIB, read through xarray, and what writes them.

FILE.nc, .nc4, .cdf   NetCDF 4, which is HDF5, and NetCDF 3
FILE.zarr             a store of either format
FILE.grib, ...        where cfgrib is installed
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import reading
from dualrate.forecasts.datasets import NoFields, NoLevels, fields_of, times_of
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
from dualrate.forecasts.metadata import Description, Metadata, text_of
from dualrate.forecasts.several import channels_of_all
from dualrate.forecasts.trajectories import FieldSource
from dualrate.system.files import check_regular, check_room, naming, whole
from dualrate.system.folders import new_folder

NETCDF, GRIB = (".nc", ".nc4", ".cdf"), (".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2")
LABELLED = (*NETCDF, ".zarr", *GRIB)  # endings
AT_A_TIME = 2**20  # numbers that are written at once, a chunk of a store


def read_labelled(path: Path, names: Sequence[str] = (), levels: Sequence[float] = ()) -> FieldSource:
    """The fields of a file or store: all, or those of these names and at these levels."""
    return _read(path, lambda data, check: fields_of(data, path, names, levels, check))


def _read(path: Path, read: Callable[[Any, Callable[..., None]], FieldSource]) -> FieldSource:
    """The fields that a function makes of a dataset, and of what checks that variables and coordinates were written."""
    ending = path.suffix.lower()
    kind = "zarr" if ending == ".zarr" else "GRIB" if ending in GRIB else "NetCDF"
    how = _engine(path, kind)
    with naming(path), reading(path, kind):
        with warnings.catch_warnings(action="ignore"):  # of dates before 1582, and of several fill values
            datasets = _opened_grib(path) if kind == "GRIB" else [_opened(path, kind, how)]
        parts: list[tuple[Path, FieldSource]] = []
        for data in datasets:
            try:
                parts.append((path, read(data, lambda *names, data=data: _check_written(path, data, *names))))
            except (NoFields, NoLevels):
                if not parts and data is datasets[-1]:
                    raise
        fields, varying = channels_of_all(parts)[1], (str(name) for data in datasets for name in data.data_vars)
        return fields if len(datasets) == 1 else replace(fields, varying=tuple(varying))


def read_static(path: Path, name: str) -> FieldSource:
    """A variable over space alone, or with one number along all other dimensions but time, as a frame or several."""

    def read(data: Any, check: Callable[..., None]) -> FieldSource:
        if name not in data:
            raise NoFields(f"{path} has no variable {name}: it has {', '.join(map(str, data.data_vars))}")
        data = data[[name]].squeeze(drop=True)
        data = data if times_of(data) & {*data[name].dims} else data.expand_dims("time")
        return fields_of(data, path, (name,), (), check)

    return _read(path, read)


def _engine(path: Path, kind: str) -> dict[str, Any]:
    """How xarray opens a file. Raises ModuleNotFoundError that says what to install."""
    if kind == "GRIB":
        try:
            import cfgrib  # noqa: F401  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as error:  # the latter where the library below it is missing
            raise ModuleNotFoundError(
                f'{path} is GRIB, which wants the extra `grib` ({error}): pip install "dualrate[grib]", or '
                "turn it into NetCDF (cdo -f nc4 copy IN.grib OUT.nc)"
            ) from error
        return {}
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
    """The dataset of a file or store. Times that are no dates, as of a climatology of year 0, are numbers."""
    from xarray import conventions, open_dataset

    if kind == "zarr":
        check_zarr(path)
        open_members(path)
    else:
        if how["engine"] == "h5netcdf":
            check_netcdf(path)
        check_regular(path)
    try:
        data = open_dataset(path, **how)
    except ValueError as error:
        problem, advice, _ = " ".join(str(error).split()).partition(" Try opening")
        if not advice:
            raise
        try:
            import cftime  # noqa: F401
        except ImportError:
            way = "those of other calendars than ours need cftime (pip install cftime)"
            raise ValueError(f"{path}: its times cannot be read ({problem.rstrip('.')}): {way}") from error
        data = open_dataset(path, **how, decode_times=False)
        for name, each in data.variables.items():
            if " since " in text_of(each.attrs.get("units", "")):
                with suppress(ValueError):
                    data = data.assign({name: conventions.decode_cf_variable(str(name), each)})
    return data[sorted(data.variables, key=str)] if kind == "zarr" else data  # a store keeps no order of its arrays


def _opened_grib(path: Path) -> list[Any]:
    """The dataset of a file; where its messages do not fit in one, a dataset of each kind of level, step and grid."""
    import cfgrib  # pyright: ignore[reportMissingImports]

    check_regular(path)
    how = {"indexpath": "", "errors": "raise"}
    try:
        return [cfgrib.open_dataset(str(path), backend_kwargs=how)]
    except ValueError:
        with TemporaryDirectory() as folder:  # of an index, a pickle, by which the file is looked through once
            how["indexpath"] = f"{folder}/{{short_hash}}"
            return cfgrib.open_datasets(str(path), backend_kwargs=how)


def _check_written(path: Path, data: Any, arrays: Iterable[str], coordinates: Iterable[str]) -> None:
    """Raises ValueError where pieces of variables or coordinates are missing.

    A chunk that holds the fill value alone need not be written: one number of a coordinate may be it.
    """
    unordered = [name for name in coordinates if not _in_order(np.atleast_1d(data[name].values))]
    with _pieces_of(path) as pieces:
        for name in (*arrays, *unordered):
            check_written(f"{path}: {name}", *pieces(name), zarr=path.suffix.lower() == ".zarr")


@contextmanager
def _pieces_of(path: Path) -> Iterator[Callable[[str], tuple[int, int]]]:
    """A function that counts the missing pieces of a variable, and all of them."""
    if path.suffix.lower() == ".zarr":
        yield lambda name: missing_of_zarr(path / name)
    elif path.suffix.lower() in GRIB or is_classic(path):  # which have no pieces: a short file is an error
        yield lambda name: (0, 1)
    else:
        import h5py

        with h5py.File(path, "r") as file:
            yield lambda name: missing_of_hdf5(file[name if name in file else f"_nc4_non_coord_{name}"])


def _in_order(values: NDArray[Any]) -> bool:
    """Whether they are numbers or dates that all rise, or all fall."""
    before, after = values[:-1], values[1:]
    return values.dtype.kind in "fiuMm" and bool((before < after).all() or (before > after).all())


# Writing


def check_writable(path: Path) -> None:
    """Raises ValueError for a file that is there or has another ending than .npz, .nc and .zarr, ModuleNotFoundError
    for the latter two without the extra."""
    if path.suffix not in (".npz", ".nc", ".zarr"):
        raise ValueError(f"{path} ends with {path.suffix!r}; expected .npz, .nc or .zarr")
    if path.exists():
        raise ValueError(f"{path} is there already: name a new file, or remove it")
    if path.suffix != ".npz":
        with with_extra():
            import h5netcdf  # noqa: F401
            import zarr  # noqa: F401


def write_fields(
    path: Path,
    array: NDArray[Any],
    variables: Sequence[str],
    step: float | None = None,
    axes: Sequence[str] = (),
    metadata: Metadata | None = None,
) -> None:
    """Write trajectories (S, T, C, H, W) as they are read here, whole or not at all: .npz, NetCDF (.nc) or zarr.

    axes, metadata: as of `FieldSource`; of .npz neither
    Raises ValueError for another shape, and what `check_writable` raises.
    """
    if array.ndim != 5 or array.shape[2] != len(variables):
        raise ValueError(f"fields are {array.shape} with {len(variables)} variables; expected (S, T, C, H, W)")
    check_writable(path)
    along = "trajectory", "time", *([axis.partition(" (")[0] for axis in axes] or ("y", "x"))
    if path.suffix != ".npz" and (taken := [name for name in variables if name in along or "/" in name]):
        raise ValueError(f"no variable of NetCDF can be called {', '.join(taken)}: name it otherwise, or write .npz")
    if path.suffix == ".npz":
        with whole(path) as aside, aside.open("wb") as file:
            np.savez(file, fields=array, variables=np.array(variables), step=np.array(np.nan if step is None else step))
        return
    import xarray

    metadata = metadata or Metadata()
    units = {"units": metadata.time} if metadata.time else {}
    labels: dict[str, Any] = {} if step is None else {"time": ("time", np.arange(array.shape[1]) * step, units)}
    sizes = dict(zip(along, (*array.shape[:2], *array.shape[3:]), strict=True))
    for each in metadata.coordinates:
        dimensions = [along[2 + i] for i in each.axes]
        values = np.reshape(each.values, [sizes[name] for name in dimensions])
        labels[each.name] = dimensions, values, each.description.attributes
    described = metadata.variables or (Description(),) * len(variables)
    parts = {
        name: (along, array[:, :, i], description.attributes)
        for i, (name, description) in enumerate(zip(variables, described, strict=True))
    }
    write_dataset(path, xarray.Dataset(parts, labels, {"Conventions": "CF-1.8"}), "time")


def write_dataset(path: Path, data: Any, time: str) -> None:
    """Write a dataset of float32 variables as .nc or .zarr, whole or not at all, a few frames in memory at a time.

    time: the dimension of frames: what lies before it, such as members, is written one after the other
    """
    from xarray.conventions import encode_cf_variable

    coordinates = {str(name): encode_cf_variable(data[name].variable, name=name) for name in data.coords}
    beside = [name for name in coordinates if name not in data.sizes]
    needed = 4 * sum(variable.size for variable in data.data_vars.values())
    with naming(path), _new_file(path) as (file, create):
        if path.suffix == ".nc":  # a store is smaller than its numbers
            check_room(path.absolute().parent, needed, "write .zarr, which is packed")
        file.attrs.update(data.attrs)
        for name, labels in coordinates.items():
            attributes = {key: value for key, value in labels.attrs.items() if key != "_FillValue"}
            create(file, name, labels.sizes, labels.dtype, attributes)[...] = labels.values
        together: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}  # by shape: frames hold all variables
        for name, variable in data.data_vars.items():
            dims, at = variable.dims, variable.dims.index(time)
            attributes = dict(variable.attrs)
            if along := [each for each in beside if {*data[each].dims} <= {*dims}]:
                attributes["coordinates"] = " ".join(along)
            frames, *space = variable.shape[at:]
            chunks = *[1] * at, min(frames, max(1, AT_A_TIME // math.prod(space))), *space
            written = create(file, str(name), variable.sizes, np.dtype(np.float32), attributes, chunks)
            together.setdefault(variable.shape[: at + 1] + chunks[at : at + 1], []).append((variable, written))
        for (*before, frames, each), variables in together.items():
            for *place, first in product(*map(range, before), range(0, frames, each)):
                part = *place, slice(first, min(first + each, frames))
                for variable, written in variables:
                    written[part] = variable[part].values


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """A file of NetCDF, or a store of zarr in the format that older readers know too, whole or not at all; and what
    makes a variable in it."""
    if path.suffix == ".nc":
        import h5netcdf

        with whole(path) as aside:
            file = h5netcdf.File(aside, "w", locking=False)  # `whole` holds a lock of its own
            try:
                yield file, _create_in_netcdf
            except BaseException:
                with suppress(RuntimeError):  # that of what could not be written says less
                    file.close()
                raise
            file.close()
        return
    import zarr

    with new_folder(path, replace=True) as aside:
        yield zarr.open_group(aside, mode="w", zarr_format=2), _create_in_zarr
        zarr.consolidate_metadata(aside)


Sizes = Mapping[Any, int]  # of dimensions, of a variable in their order


def _create_in_netcdf(
    file: Any, name: str, sizes: Sizes, dtype: Any, attributes: Mapping[str, Any], chunks: Any = None
) -> Any:
    """An empty variable. chunks: of frames, whose points may be missing; None: it is a coordinate"""
    file.dimensions.update({dim: size for dim, size in sizes.items() if dim not in file.dimensions})
    fill = None if chunks is None else np.float32(np.nan)
    variable = file.create_variable(name, tuple(sizes), dtype, fillvalue=fill)
    variable.attrs.update(attributes)
    return variable


def _create_in_zarr(
    file: Any, name: str, sizes: Sizes, dtype: Any, attributes: Mapping[str, Any], chunks: Any = None
) -> Any:
    shape = tuple(sizes.values())
    return file.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks or shape,
        fill_value=None if chunks is None else np.float32(np.nan),
        attributes={"_ARRAY_DIMENSIONS": list(sizes), **attributes},
        config={"write_empty_chunks": True},  # one that is left out cannot be told from one that was never written
    )
