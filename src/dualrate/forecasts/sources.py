"""Sources of trajectories of frames (C, H, W), each by its reader: arrays, simulations, clips and files.

Sources, of which the large ones are read where they lie, frame by frame:

    kuramoto-sivashinsky, kolmogorov, ...   made on the spot and kept in the cache (simulations.py)
    FILE.npz     `fields` (S, T, C, H, W) or (S, T, C, X), and maybe `variables` (C) and `step`
    FILE.npy     the same array alone, memory-mapped
    FILE.h5      of PDEArena, The Well or PDEBench (hdf5.py)
    FOLDER       of such HDF5 files, in folders of splits, or with the split in their names (KS_train_64.h5)
    FILE.nc, FILE.zarr, FILE.grib   through xarray (netcdf.py)
    FOLDER, *.nc of such files, joined by their times and variables (several.py)
    clips:PLACE  a clip, or a folder of them: animations, videos, folders of pictures; from 0 to 255 (clips.py)

The extra `forecast` reads HDF5, NetCDF and zarr, once file_checks.py has looked at what they hold.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.source import DataProgress, hidden, printable, read_arrays, reading, resolved, silent, split_named
from dualrate.forecasts.clips import CLIPS, ClipReading, read_clips
from dualrate.forecasts.datasets import NoFields
from dualrate.forecasts.file_checks import check_claim, check_size
from dualrate.forecasts.hdf5 import HDF5, read_hdf5
from dualrate.forecasts.metadata import level_of
from dualrate.forecasts.netcdf import LABELLED, read_labelled
from dualrate.forecasts.several import fullest, joined
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.trajectories import EXPECTED, FieldSource, numbered
from dualrate.system.files import check_regular, whole
from dualrate.system.folders import some_of

SUFFIXES = (".npy", *LABELLED, *HDF5)  # and .npz, if it holds `fields`
FIELDS, BESIDE = "fields", ("variables", "step")  # arrays of a .npz file
AS_THEY_ARE = ClipReading()


def is_fields(source: str | Path) -> bool:
    """Whether a source is one of these: by its name, of .npz also by the names of its arrays."""
    if str(source) in SIMULATIONS or str(source).startswith(CLIPS):
        return True
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return f"{FIELDS}.npy" in archive.namelist()
        except Exception:  # its reader says what it is
            return False
    return path.suffix.lower() in SUFFIXES or bool(_members(str(source)))


def find_fields(
    source: str | Path,
    progress: DataProgress = silent,
    names: Sequence[str] = (),
    levels: Sequence[float] = (),
    clips: ClipReading = AS_THEY_ARE,
) -> tuple[str, FieldSource]:
    """The name of a source, and its trajectories, whose frames are not read yet.

    names: of the variables, or of their channels (`t_850`); levels: of those that have some; none: all
    clips: how clips are read
    Raises as `forecast.read_fields`.
    """
    text = str(source)
    if text in SIMULATIONS:
        return text, _chosen(text, _simulated(text, progress), names, levels)
    if text.startswith(CLIPS):
        path = resolved(text.removeprefix(CLIPS))
        return printable(path.stem), _chosen(text, read_clips(path, clips, progress), names, levels)
    path, members = resolved(text), _members(text)
    if not (path.exists() or members):
        raise FileNotFoundError(f"no such file or folder of fields: {path}: name one, or {' or '.join(SIMULATIONS)}")
    if not members and path.is_dir() and path.suffix.lower() != ".zarr":
        raise ValueError(
            f"{path} holds no files of fields; expected some that end with {', '.join((*LABELLED, *HDF5))}, or "
            f"{CLIPS}FOLDER for one of pictures; a pattern ('FOLDER/**/*.nc') names those in folders below"
        )
    files = members or [("", path)]
    if (ending := files[0][1].suffix.lower()) in LABELLED:
        fields = _in_order(path, _read_several(files, names, levels), names)
    else:
        fields = _chosen(text, read_hdf5(files, path) if ending in HDF5 else _read_file(path), names, levels)
    named = [level for _, level in map(level_of, fields.variables) if level is not None]
    if levels and not np.isclose(np.array(named)[:, None], levels, 1e-4).any():
        raise ValueError(f"{path}: its variables {', '.join(fields.variables)} have no levels: drop --data.levels")
    for trajectory in fields.trajectories[:1]:
        check_variable_names(str(path), fields.variables, trajectory.shape[1])
        check_size(f"{path}: a frame {trajectory.shape[1:]}", 4 * math.prod(trajectory.shape[1:]))
    return printable(path.stem), fields


def _read_file(path: Path) -> FieldSource:
    check_regular(path)
    if path.suffix.lower() == ".npz":
        unread: list[str] = []

        def wanted(members: list[str]) -> list[str]:
            if FIELDS not in members:
                raise ValueError(f"{path} has the arrays {', '.join(members) or 'none'}; expected {FIELDS}: {EXPECTED}")
            unread.extend(name for name in members if name not in (FIELDS, *BESIDE))
            return [name for name in (FIELDS, *BESIDE) if name in members]

        arrays = read_arrays(path, wanted)
        names = tuple(map(str, np.atleast_1d(arrays["variables"]))) if "variables" in arrays else None
        fields = _of_array(str(path), arrays[FIELDS], names, step_of(path, arrays.get("step")))
        note = f"its arrays {some_of(unread)} are not read: times and coordinates can be told by NetCDF" * bool(unread)
        return replace(fields, note="; ".join(filter(None, (fields.note, note))))
    if path.suffix.lower() == ".npy":
        with reading(path, ".npy"):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return _of_array(str(path), mapped, None, None)
    raise ValueError(
        f"{path} is no source of fields; expected a file that ends with .npz, {', '.join(SUFFIXES)}, a folder "
        f"of them (not of .npz or .npy), {CLIPS}PLACE of pictures or videos, or {' or '.join(SIMULATIONS)}; of a "
        "table by times and places pandas makes one: table.set_index([...]).to_xarray().to_netcdf"
    )


def _members(source: str) -> list[tuple[str, Path]]:
    """(split or "", file) of the files of fields in a folder, in its folders of splits, or of a pattern such as *.nc.

    All of one kind, HDF5 or what xarray reads.
    """
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        files = [("", Path(name)) for name in sorted(glob.glob(source, recursive=True))]
    elif path.is_dir() and path.suffix.lower() != ".zarr":
        places = [(path, "")]
        places += [(each, each.name) for each in sorted(path.iterdir()) if each.is_dir() and split_named(each.name)]
        files = [(split, file) for place, split in places for file in sorted(place.iterdir())]
    else:
        return []
    of_fields = [(split, file) for split, file in files if not hidden(file.name)]
    kinds = [[each for each in of_fields if each[1].suffix.lower() in endings] for endings in (HDF5, LABELLED)]
    if all(kinds):
        h5, nc = (kind[0][1] for kind in kinds)
        divided = any(split for kind in kinds for split, _ in kind)  # into folders, which no pattern names
        way = "move one kind elsewhere" if divided else f"name one kind, such as '{nc.parent}/*{nc.suffix}'"
        raise ValueError(f"{source} holds {h5} and {nc}: {way}")
    return [(split or _split_in(file.stem), file.resolve()) for kind in kinds for split, file in kind]


def _split_in(stem: str) -> str:
    """The split that a word of a file's name names; empty: none."""
    return next(filter(split_named, re.split("[^A-Za-z]+", stem)), "")


def _read_several(members: Sequence[tuple[str, Path]], names: Sequence[str], levels: Sequence[float]) -> FieldSource:
    """The files of each split, joined; those without fields, or without these, are left out and named."""
    parts: dict[str, list[tuple[Path, FieldSource]]] = {}
    without: list[Path] = []
    for split, file in members:
        try:
            parts.setdefault(split, []).append((file, read_labelled(file, names, levels)))
        except NoFields:
            without.append(file)
            if len(without) == len(members):
                raise
    splits = {split: joined(files) for split, files in parts.items() if files}
    first = next(iter(splits.values()))[1]
    metadata, note = fullest([*splits.values()], first.variables, splits=True)
    notes = [note, f"without fields: {some_of([file.name for file in without])}" * bool(without)]
    more: dict[str, Any] = {"metadata": metadata, "note": "; ".join(filter(None, notes))}
    return replace(first, splits={split: fields.splits[""] for split, (_, fields) in splits.items()}, **more)


def _in_order(path: Path, fields: FieldSource, names: Sequence[str]) -> FieldSource:
    """The fields in the order of these names: each of a variable, or of all its levels (NAME_NUMBER).

    A single name may be that of an array whose channels these are.
    """
    channels: list[str] = []
    for name in names:
        levels = [each for each in fields.variables if re.fullmatch(rf"{re.escape(name)}_[-+.\de]+", each)]
        channels += [name] if name in fields.variables else levels
        if name not in fields.variables and not levels and len(names) > 1:
            raise ValueError(f"{path} has no variable {name}: it has {', '.join(fields.variables)}")
    return fields.picked(channels or fields.variables)


def _chosen(source: str, fields: FieldSource, names: Sequence[str], levels: Sequence[float]) -> FieldSource:
    """These variables of a source without levels."""
    if levels:
        raise ValueError(f"{source} says nothing of levels: drop --data.levels")
    return fields.picked(names) if names else fields


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
    check_claim(source, shape[0] if shape else 0, "trajectories")
    if len(shape) not in (4, 5) or 0 in shape or array.dtype.kind not in "fiu":
        single = "; of one trajectory give array[None], without channels array[None, :, None]" * (len(shape) == 3)
        raise ValueError(f"{source} is {array.dtype} {shape}; expected numbers {EXPECTED}{single}")
    if len(shape) == 5:
        return FieldSource({"": list(array)}, names or numbered(shape[2]), step)
    note = (
        f"its axes {shape} are read as (trajectory, time, channel, x); if they are (trajectory, time, y, x), give "
        "array[:, :, None]"
    ) * (shape[2] != 1 and not names)
    return FieldSource({"": list(array[:, :, :, None])}, names or numbered(shape[2]), step, note=note)


def check_variable_names(source: str, names: tuple[str, ...] | None, channels: int) -> None:
    """Raises ValueError for names of variables that are not as many as the channels, or not distinct."""
    if names and not len(names) == len(set(names)) == channels:
        raise ValueError(
            f"{source} has the variables {', '.join(names)}: expected {channels}, a name for each channel, all of them "
            "different"
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
