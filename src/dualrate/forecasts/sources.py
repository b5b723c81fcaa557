"""Sources of trajectories of frames (C, H, W), each by its reader: arrays, simulations, folders of pictures and files.

Sources, of which the large ones are read where they lie, frame by frame:

    kuramoto-sivashinsky, kolmogorov, ...   made on the spot and kept in the cache (simulations.py)
    FILE.npz     `fields` (S, T, C, H, W) or (S, T, C, X), and maybe `variables` (C) and `step`
    FILE.npy     the same array alone, memory-mapped
    FILE.h5      of PDEArena or The Well (hdf5.py)
    FOLDER       of such HDF5 files, in folders of splits, or with the split in their names (KS_train_64.h5)
    FILE.nc, FILE.zarr   through xarray (netcdf.py)
    frames:FOLDER    a folder of pictures a trajectory, in the order of the numbers in their names; as floats in
                 [-1, 1]

The extra `forecast` reads HDF5, NetCDF and zarr, once file_checks.py has looked at what they hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
)
from dualrate.forecasts.file_checks import check_count, check_size
from dualrate.forecasts.hdf5 import HDF5, hdf5_files, read_hdf5
from dualrate.forecasts.netcdf import read_labelled
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.trajectories import EXPECTED, FRAMES, FieldSource, Lazy, numbered
from dualrate.system.files import check_regular, whole

SUFFIXES = (".npy", ".nc", ".zarr", *HDF5)  # and .npz, if it holds `fields`
FIELDS = "fields"  # the array of a .npz file


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
    return path.suffix in SUFFIXES or (path.is_dir() and bool(hdf5_files(path)))


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
        return read_hdf5(hdf5_files(path), path)
    if path.suffix in HDF5:
        return read_hdf5([("", path)], path)
    if path.suffix in (".nc", ".zarr"):
        return read_labelled(path)
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
        fields = _of_array(name, np.load(file, mmap_mode="r", allow_pickle=False), system.variables, system.every)
    return replace(fields, axes=system.axes, metadata=system.metadata)


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
