"""Fields in time: trajectories of frames (C, H, W) from arrays, simulations and folders of pictures. 1-D fields: H = 1.

Sources, of which the large ones are read where they lie, frame by frame:

    kuramoto-sivashinsky, kolmogorov   made on the spot and kept in the cache (simulations.py)
    FILE.npz     `fields` (S, T, C, H, W) or (S, T, C, X), and maybe `variables` (C) and `step`
    FILE.npy     the same array alone, memory-mapped
    FILE.h5      {train,valid,test}/pde_{nt}-{nx} (S, T, X) or (S, T, C, X) and dt, as of PDEArena; or t0_fields/NAME
                 (S, T, *space), t1_fields and t2_fields with their components last, as of The Well: fields of one or
                 two dimensions that vary in time are read
    FOLDER       of such HDF5 files, in folders of splits, or with the split in their names (KS_train_64.h5)
    FILE.nc, FILE.zarr   through xarray: dimensions trajectory (or sample, ...), time, maybe channel, and space; without
                 channel each variable is one
    frames:FOLDER    a folder of pictures a trajectory, in the order of their names; as floats in [-1, 1]

Where the source names splits, they are those; else the last tenth of the trajectories is the test split, of a single
one the last tenth of its frames. The extra `forecast` reads HDF5, NetCDF and zarr.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.cache import cache_dir
from dualrate.data.decode import Options, image_of
from dualrate.data.images import to_float
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.simulations import SIMULATIONS
from dualrate.data.source import (
    DataProgress,
    Split,
    hidden,
    images_below,
    named,
    printable,
    read_arrays,
    reading,
    resolved,
    silent,
    split_named,
    test_split,
)
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape
from dualrate.system.files import check_regular, naming, whole

FRAMES = "frames:"  # begins a source that is a folder of folders of pictures
HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".nc", ".zarr", *HDF5)  # and .npz, if it holds `fields`
FIELDS = "fields"  # the array of a .npz file
TRAJECTORY = ("trajectory", "sample", "member", "realization", "run", "batch", "simulation")  # names of dimensions
TIME = ("time", "t", "frame", "step", "lead_time")
CHANNEL = ("channel", "channels", "variable", "field")
AT_A_TIME = 2**22  # numbers that are read at once
EXTRA = 'pip install "dualrate[forecast]"'
EXPECTED = "(trajectory, time, channel, space) or (trajectory, time, channel, y, x), none of them 0"


class Trajectory(Protocol):
    """Frames that are read when asked for: an array (T, C, H, W), or what looks like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Lazy:
    """read: (first, last) -> frames (last - first, C, H, W)"""

    shape: tuple[int, int, int, int]
    read: Callable[[int, int], NDArray[Any]]

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        first, last, _ = part.indices(self.shape[0])
        return self.read(first, last)


@dataclass(frozen=True)
class Statistics:
    """Of the training split, one number a channel: mean and standard deviation of states, and the standard deviation of
    differences from frame to frame. A deviation is 1 where nothing changes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    difference: tuple[float, ...]

    def normalised(self, frames: Tensor) -> Tensor:
        """(..., C, H, W) of mean 0 and deviation 1."""
        return (frames - _column(self.mean, frames)) / _column(self.std, frames)

    def restored(self, frames: Tensor) -> Tensor:
        """The inverse."""
        return frames * _column(self.std, frames) + _column(self.mean, frames)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True, eq=False)
class Fields(TrainingSet):
    """One split of trajectories. As a training set its rows are single frames, normalised.

    trajectories: each (T, C, H, W), two frames at least
    variables:    names of the channels
    step:         time between frames, if it is known
    statistics:   by which rows are normalised
    hashed:       sha256 (hex) of variables and frames in float32, wherever they lie
    """

    name: str
    trajectories: Sequence[Trajectory]
    variables: tuple[str, ...]
    step: float | None
    statistics: Statistics
    hashed: str
    labels: None = None
    class_names: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return self.hashed

    @property
    def shape(self) -> Shape:
        """(C, H, W)"""
        _, channels, height, width = self.trajectories[0].shape
        return channels, height, width

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([one.shape[0] for one in self.trajectories])

    def __len__(self) -> int:
        """Frames of all trajectories."""
        return int(self._ends[-1])

    def frames(self, trajectory: int, first: int, count: int) -> NDArray[np.float32]:
        """(count, C, H, W), not normalised. Raises IndexError for frames that there are not."""
        if not 0 <= first <= first + count <= self.trajectories[trajectory].shape[0]:
            there = self.trajectories[trajectory].shape[0]
            raise IndexError(
                f"{self.name}: frames {first} to {first + count - 1} of {there} in trajectory {trajectory}"
            )
        return _float32(self.trajectories[trajectory][first : first + count])

    def windows(self, count: int) -> NDArray[np.int64]:
        """(K, 2): trajectory and first frame of every window of `count` frames that follow one another.

        Raises ValueError if there is none.
        """
        starts = [range(one.shape[0] - count + 1) for one in self.trajectories]
        found = [(i, first) for i, here in enumerate(starts) for first in here]
        if count < 1 or not found:
            longest = max(one.shape[0] for one in self.trajectories)
            raise ValueError(
                f"{self.name}: windows of {count} frames, expected 1 to {longest}, the frames of the longest of "
                f"{len(self.trajectories)} trajectories: ask for fewer past or future frames, or give longer ones"
            )
        return np.array(found, np.int64)

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """(B, C, H, W) float32: single frames, numbered through all trajectories."""
        if augment != Augment():
            raise ValueError(
                f"{self.name} holds fields, whose symmetries nobody stated: drop --data.augment.flip and .translate"
            )
        which = np.searchsorted(self._ends, index, side="right")
        first = index - np.concatenate([[0], self._ends])[which]
        frames = [self.frames(int(i), int(j), 1) for i, j in zip(which, first, strict=True)]
        return self.statistics.normalised(torch.from_numpy(np.concatenate(frames)))

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows


def _float32(frames: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(frames, np.float32, order="C")  # a copy: memory maps are only read


def survey(
    name: str, trajectories: Sequence[Trajectory], variables: tuple[str, ...], progress: DataProgress = silent
) -> tuple[str, Statistics]:
    """The fingerprint and the statistics of trajectories, of which each frame is read once.

    Moments are in float64, of parts, joined as by Chan, Golub and LeVeque (COMPSTAT 1982).
    Raises ValueError for a number that is not finite, and says where it is.
    """
    digest = hashlib.sha256(repr((variables, [one.shape for one in trajectories])).encode())
    channels, total = len(variables), sum(one.shape[0] for one in trajectories)
    states, differences, done = _Moments(channels), _Moments(channels), 0
    for i, trajectory in enumerate(trajectories):
        last: NDArray[np.float32] | None = None
        each = max(1, AT_A_TIME // int(np.prod(trajectory.shape[1:])))
        for first in range(0, trajectory.shape[0], each):
            with np.errstate(over="ignore"):
                part = _float32(trajectory[first : first + each])
            if len(wrong := np.argwhere(~np.isfinite(part))):
                frame, channel, *_ = wrong[0].tolist()
                raise ValueError(
                    f"{name}: trajectory {i}, frame {first + frame}, channel {channel} ({variables[channel]}) holds "
                    f"{part[tuple(wrong[0])]}, and so do {len(wrong) - 1} more numbers of these {len(part)} frames; "
                    "expected finite numbers of float32: fill what is missing, say by 0 beside a channel that says "
                    "where it was, or leave these trajectories out"
                )
            digest.update(part.astype("<f4", copy=False).tobytes())
            states.add(part.astype(np.float64))
            joined = part if last is None else np.concatenate([last, part])
            if len(joined) > 1:
                differences.add(np.diff(joined.astype(np.float64), axis=0))
            last, done = part[-1:], done + len(part)
            progress(done, total, "reading fields")
    return digest.hexdigest(), Statistics(tuple(states.mean.tolist()), states.std, differences.std)


class _Moments:
    """Count, mean and sum of squared deviations a channel."""

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, part: NDArray[np.float64]) -> None:
        """part: (N, C, H, W)"""
        origin = part[:1, :, :1, :1]  # a constant has deviations of exactly 0
        mean = (part - origin).mean((0, 2, 3)) + origin[0, :, 0, 0]
        squares = np.square(part - mean[:, None, None]).sum((0, 2, 3))
        count = part.size // len(mean)
        both, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * (self.count * count / both)
        self.mean += apart * (count / both)
        self.count = both

    @property
    def std(self) -> tuple[float, ...]:
        found = np.sqrt(self.squares / max(1, self.count))
        return tuple(np.where(found > 0, found, 1.0).tolist())


# Reading


@dataclass(frozen=True, eq=False)
class _Found:
    """splits: by their names; of a source that names none, one without a name."""

    splits: Mapping[str, Sequence[Trajectory]]
    variables: tuple[str, ...]
    step: float | None


def is_fields(source: str | Path) -> bool:
    """Whether a source is one of these: by its name, of .npz also by the names of its arrays."""
    if str(source) in SIMULATIONS or str(source).startswith(FRAMES):
        return True
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return f"{FIELDS}.npy" in archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return False
    return path.suffix in SUFFIXES or (path.is_dir() and bool(_hdf5_files(path)))


def read_fields(
    source: str | Path, split: Split, statistics: Statistics | None = None, progress: DataProgress = silent
) -> Fields:
    """One split of a source; every frame is read once for its fingerprint, the training frames for statistics too.

    statistics: those of a run, where the training frames need not be there
    Raises ValueError for a source, a shape or numbers that cannot be used, FileNotFoundError where there is none,
    ModuleNotFoundError that names the extra, OSError for what cannot be read.
    """
    text = str(source)
    if text in SIMULATIONS:
        name, found = text, _simulated(text, progress)
    elif text.startswith(FRAMES):
        path = resolved(text.removeprefix(FRAMES))
        name, found = printable(path.name), _pictures(path)
    else:
        path = resolved(source)
        if not path.exists():
            raise FileNotFoundError(f"there are no fields {path}: name a file or folder, or {' or '.join(SIMULATIONS)}")
        name, found = printable(path.stem), _read(path)
    name, (train, chosen) = f"{name}/{split}", _divided(str(source), found, split)
    parts = [chosen] if statistics is not None or train is None else [train, chosen]
    for part in parts:
        _check(str(source), part, found.variables)
    if statistics is None and train is None:
        raise ValueError(
            f"{source} holds no training fields, of which the statistics are: name the folder that holds them beside "
            "these, or give those of a run"
        )
    hashed, own = survey(name, chosen, found.variables, progress)
    if statistics is None:
        statistics = own if train is chosen or train is None else survey(str(source), train, found.variables)[1]
    elif len(statistics.mean) != len(found.variables):
        raise ValueError(
            f"{source} has {len(found.variables)} channels ({', '.join(found.variables)}); the statistics are of "
            f"{len(statistics.mean)}: give fields with the channels that the run was trained on"
        )
    return Fields(name, chosen, found.variables, found.step, statistics, hashed)


def _divided(source: str, found: _Found, split: Split) -> tuple[Sequence[Trajectory] | None, Sequence[Trajectory]]:
    """The training trajectories, if there are any, and those of the split."""
    splits = {split_named(name): part for name, part in found.splits.items()}
    test = test_split(splits)
    if test:
        train = splits.get("train")
        if split == "train" and train is None:
            raise ValueError(f"{source} holds only the split {test}: name a source that has training fields")
        return train, train if split == "train" and train is not None else splits[test]
    every = next(iter(splits.values()))
    if len(every) > 1:
        held = max(1, len(every) // 10)
        train, rest = every[:-held], every[-held:]
    else:
        frames = every[0].shape[0]
        held = max(2, frames // 10)
        if frames < held + 2:
            raise ValueError(
                f"{source} holds one trajectory of {frames} frames; expected 4 or more, of which the last tenth is "
                "held out"
            )
        train, rest = [_part(every[0], 0, frames - held)], [_part(every[0], frames - held, frames)]
    return train, train if split == "train" else rest


def _part(whole: Trajectory, first: int, last: int) -> Trajectory:
    return Lazy((last - first, *whole.shape[1:]), lambda i, j: whole[first + i : first + j])  # pyright: ignore[reportArgumentType]


def _check(source: str, trajectories: Sequence[Trajectory], variables: tuple[str, ...]) -> None:
    """Raises ValueError unless there are trajectories of frames of one shape."""
    if not trajectories:
        raise ValueError(f"{source} holds no trajectories; expected {EXPECTED}")
    expected = (len(variables), *trajectories[0].shape[2:])
    for i, one in enumerate(trajectories):
        if one.shape[0] < 2 or one.shape[1:] != expected or 0 in expected:
            raise ValueError(
                f"{source}: trajectory {i} is (time, channel, y, x) = {one.shape}; expected two frames or more, each "
                f"{expected}, as its {len(variables)} variables and trajectory 0 say"
            )


def _read(path: Path) -> _Found:
    if path.is_dir() and path.suffix != ".zarr":
        return _hdf5(_hdf5_files(path), path)
    if path.suffix in HDF5:
        return _hdf5([("", path)], path)
    if path.suffix in (".nc", ".zarr"):
        return _labelled(path)
    check_regular(path)
    if path.suffix == ".npz":

        def wanted(there: list[str]) -> list[str]:
            if FIELDS not in there:
                raise ValueError(f"{path} has the arrays {', '.join(there) or 'none'}; expected {FIELDS}: {EXPECTED}")
            return [name for name in (FIELDS, "variables", "step") if name in there]

        arrays = read_arrays(path, wanted)
        step = float(arrays["step"]) if "step" in arrays else None
        names = tuple(map(str, arrays["variables"].tolist())) if "variables" in arrays else None
        return _of_array(str(path), arrays[FIELDS], names, None if step is None or np.isnan(step) else step)
    if path.suffix == ".npy":
        with reading(path, ".npy"):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return _of_array(str(path), mapped, None, None)
    endings = ", ".join((".npz", *SUFFIXES))
    raise ValueError(
        f"{path} is no source of fields; expected a file that ends with {endings}, a folder of HDF5 files, "
        f"{FRAMES}FOLDER of pictures, or {' or '.join(SIMULATIONS)}"
    )


def _of_array(source: str, array: NDArray[Any], names: tuple[str, ...] | None, step: float | None) -> _Found:
    shape = array.shape
    if len(shape) not in (4, 5) or 0 in shape or array.dtype.kind not in "fiu":
        raise ValueError(f"{source} is {array.dtype} {shape}; expected numbers {EXPECTED}")
    if names is not None and len(names) != shape[2]:
        raise ValueError(f"{source} has {len(names)} variables ({', '.join(names)}) and {shape[2]} channels: {shape}")
    whole = array if len(shape) == 5 else array[:, :, :, None]
    return _Found({"": list(whole)}, names or _numbered(shape[2]), step)


def _numbered(channels: int) -> tuple[str, ...]:
    return ("u",) if channels == 1 else tuple(f"u{i}" for i in range(channels))


def _simulated(name: str, progress: DataProgress) -> _Found:
    """Made with seed 0, or read from the cache."""
    system, trajectories, frames = SIMULATIONS[name]
    made_as = json.dumps([1, name, asdict(system), trajectories, frames])
    file = cache_dir() / FIELDS / f"{name}-{hashlib.sha256(made_as.encode()).hexdigest()[:16]}.npy"
    if not file.is_file():
        array = system.simulate(trajectories, frames, 0, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as aside, aside.open("wb") as opened:
            np.save(opened, array)
    with reading(file, "a simulation that was kept; delete it and run again"):
        return _of_array(name, np.load(file, mmap_mode="r", allow_pickle=False), system.variables, system.every)


def _pictures(path: Path) -> _Found:
    """A trajectory a folder, or the pictures of one folder; all of the channels of the first."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path} of pictures")
    folders = sorted(one for one in path.iterdir() if one.is_dir() and not hidden(one.name))
    listed = [images_below(folder) for folder in folders] if folders else [images_below(path)]
    if empty := [folder.name for folder, files in zip(folders, listed, strict=bool(folders)) if not files]:
        raise ValueError(f"{path} has folders without pictures ({', '.join(empty[:5])}): remove or fill them")
    if not listed[0]:
        raise ValueError(f"{path} holds no pictures; expected a folder of frames, or of folders of them")
    first = image_of(str(listed[0][0]), listed[0][0], Options(None, None, "fail"))
    options = Options(None, 1 if len(first) == 1 else 3, "fail")

    def trajectory(files: list[Path]) -> Lazy:
        def read(start: int, end: int) -> NDArray[np.float32]:
            pictures = [image_of(name, item, options) for name, item in named(path, files[start:end])]
            if odd := [files[start + i] for i, one in enumerate(pictures) if one.shape != first.shape]:
                raise ValueError(f"{odd[0]} is not {first.shape[2]} x {first.shape[1]} pixels, as {listed[0][0]} is")
            return to_float(np.stack(pictures)).numpy()

        return Lazy((len(files), *first.shape), read)  # pyright: ignore[reportArgumentType]

    return _Found(
        {"": [trajectory(files) for files in listed]}, ("grey",) if len(first) == 1 else ("red", "green", "blue"), None
    )


# HDF5


@contextmanager
def _with_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"HDF5, NetCDF and zarr want the extra `forecast` ({error}): {EXTRA}") from error


def _hdf5_files(folder: Path) -> list[tuple[str, Path]]:
    """(split or "", file) of the HDF5 files in a folder, or in its folders of splits."""
    found = [(folder, "")] + [
        (one, one.name) for one in sorted(folder.iterdir()) if one.is_dir() and split_named(one.name)
    ]
    files = [(name, file) for place, name in found for file in sorted(place.iterdir()) if file.suffix in HDF5]
    return [(name or next(filter(split_named, re.split("[^A-Za-z]+", file.stem)), ""), file) for name, file in files]


def _hdf5(files: Sequence[tuple[str, Path]], source: Path) -> _Found:
    with _with_extra():
        import h5py
    splits: dict[str, list[Trajectory]] = {}
    known: tuple[tuple[str, ...], float | None] | None = None
    for name, path in files:
        check_regular(path)
        with naming(path), reading(path, "HDF5"):
            file = h5py.File(path, "r")  # stays open: frames are read from it later
        own = _pdearena(file, path) or _well(file, path, name)
        if own is None:
            raise ValueError(
                f"{path} holds {', '.join(file) or 'nothing'}; expected the groups train, valid or test with pde_*, or "
                "t0_fields, t1_fields"
            )
        if known is not None and known[0] != own.variables:
            raise ValueError(f"{path} has the variables {own.variables}, another file of {source} has {known[0]}")
        known = (own.variables, own.step if known is None or known[1] == own.step else None)
        for split, part in own.splits.items():
            splits.setdefault(split, []).extend(part)
    if known is None or (len(splits) > 1 and "" in splits):
        names = ", ".join(file.name for _, file in files)
        raise ValueError(
            f"{source}: some of its HDF5 files name a split and others do not, or there are none ({names})"
        )
    return _Found(splits, *known)


def _pdearena(file: Any, path: Path) -> _Found | None:
    splits: dict[str, list[Trajectory]] = {}
    variables, step = ("u",), None
    for split in filter(split_named, file):
        group = file[split]
        if (key := next((key for key in group if key.startswith("pde_")), None)) is None:
            continue
        data = group[key]
        if data.ndim not in (3, 4, 5) or 0 in data.shape:
            raise ValueError(f"{path}: {split}/{key} is {data.shape}; expected (trajectory, time, x) or {EXPECTED}")
        shape = (
            (1, 1, *data.shape[2:])
            if data.ndim == 3
            else (*data.shape[2:3], 1, *data.shape[3:])
            if data.ndim == 4
            else data.shape[2:]
        )
        variables = _numbered(shape[0])
        times = np.unique(group["dt"][()].round(9)) if "dt" in group else np.zeros(0)
        step = float(times[0]) if len(times) == 1 else None
        splits[split] = [_of_hdf5(data, i, shape) for i in range(len(data))]
    return _Found(splits, variables, step) if splits else None


def _of_hdf5(data: Any, number: int, shape: tuple[int, ...]) -> Lazy:
    return Lazy((data.shape[1], *shape), lambda i, j: data[number, i:j].reshape(-1, *shape))  # pyright: ignore[reportArgumentType]


def _well(file: Any, path: Path, split: str) -> _Found | None:
    groups = [file[name] for name in ("t0_fields", "t1_fields", "t2_fields") if name in file]
    if not groups:
        return None
    axes = [_text(name) for name in file["dimensions"].attrs["spatial_dims"]]
    parts: list[tuple[Any, bool]] = []  # dataset, and whether it differs from trajectory to trajectory
    variables: list[str] = []
    for group in groups:
        for name in map(_text, group.attrs.get("field_names", list(group))):
            data = group[name]
            if not data.attrs.get("time_varying", True):
                continue
            parts.append((data, bool(data.attrs.get("sample_varying", True))))
            components = int(np.prod(data.shape[1 + parts[-1][1] + len(axes) :]))
            ends = (
                axes
                if components == len(axes) and group.name.endswith("t1_fields")
                else [a + b for a in axes for b in axes]
            )
            variables += [name] if components == 1 else [f"{name}_{end}" for end in ends[:components]]
    if not parts or len(axes) > 2:
        raise ValueError(
            f"{path} has {len(parts)} fields that vary in time, over {axes}; expected fields of one or two axes"
        )
    samples = {len(data) for data, varies in parts if varies} or {1}
    spaces = {data.shape[varies : 1 + varies + len(axes)] for data, varies in parts}
    if len(samples) > 1 or len(spaces) > 1:
        raise ValueError(
            f"{path}: its fields are {spaces} (time, space) of {samples} trajectories; expected the same for all"
        )
    frames, *space = spaces.pop()
    grid = (1, *space) if len(space) == 1 else tuple(space)

    def trajectory(number: int) -> Lazy:
        def read(first: int, last: int) -> NDArray[Any]:
            found = [data[number, first:last] if varies else data[first:last] for data, varies in parts]
            wide = [one.reshape(last - first, *grid, -1) for one in found]
            return np.moveaxis(np.concatenate(wide, -1), -1, 1)

        return Lazy((frames, len(variables), *grid), read)  # pyright: ignore[reportArgumentType]

    times = file["dimensions"]["time"][()] if "time" in file["dimensions"] else np.zeros(0)
    return _Found(
        {split: [trajectory(i) for i in range(samples.pop())]},
        tuple(variables),
        _even(times.reshape(-1, times.shape[-1])[0]),
    )


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _even(times: NDArray[Any]) -> float | None:
    """The step between times, of dates in hours; None if it is not one."""
    if times.dtype.kind == "M":
        times = (times - times[:1]) / np.timedelta64(1, "h")
    elif times.dtype.kind == "m":
        times = times / np.timedelta64(1, "h")
    if len(times) < 2 or times.dtype.kind not in "fiu":
        return None
    steps = np.diff(times.astype(np.float64))
    return float(steps.mean()) if np.allclose(steps, steps[0], rtol=1e-3) else None


# NetCDF and zarr


def _labelled(path: Path) -> _Found:
    with _with_extra():
        import xarray

        if path.suffix == ".zarr":
            import zarr  # noqa: F401  xarray says of a missing one that it cannot guess the engine
        else:
            import h5netcdf  # noqa: F401
        engine = "zarr" if path.suffix == ".zarr" else "h5netcdf"
        with naming(path), reading(path, "zarr" if path.suffix == ".zarr" else "NetCDF"):
            data = xarray.open_dataset(path, engine=engine, **({"consolidated": False} if engine == "zarr" else {}))
    arrays = {str(name): one for name, one in data.data_vars.items() if set(one.dims) & set(TIME)}
    if not arrays:
        raise ValueError(
            f"{path} has the variables {list(data.data_vars)}, none with a dimension called {' or '.join(TIME)}"
        )
    if len(kinds := {tuple(one.sizes.items()) for one in arrays.values()}) > 1:
        raise ValueError(f"{path}: its variables have different dimensions, {kinds}; expected the same for all")
    first = next(iter(arrays.values()))
    called = {kind: next((str(dim) for dim in first.dims if dim in names), None) for kind, names in _DIMENSIONS.items()}
    space = [str(dim) for dim in first.dims if dim not in called.values()]
    if len(space) not in (1, 2) or 0 in first.shape or (called["channel"] and len(arrays) > 1):
        raise ValueError(
            f"{path}: its variables {list(arrays)} have the dimensions {dict(first.sizes)}; expected {EXPECTED}, or "
            f"without channel, with one or two of space; trajectories are called {' or '.join(TRAJECTORY)}"
        )
    sizes, time = dict(first.sizes), str(called["time"])
    grid = tuple(sizes[dim] for dim in space) if len(space) == 2 else (1, sizes[space[0]])
    if channel := called["channel"]:
        names = first[channel].values.tolist() if channel in first.coords else _numbered(sizes[channel])
        variables = tuple(map(str, names))
    else:
        variables = tuple(arrays)
    order = [time, *([channel] if channel else []), *space]

    def trajectory(number: int) -> Lazy:
        at = {called["trajectory"]: number} if called["trajectory"] else {}

        def read(i: int, j: int) -> NDArray[Any]:
            found = [one.isel({**at, time: slice(i, j)}).transpose(*order).values for one in arrays.values()]
            return (found[0] if channel else np.stack(found, 1)).reshape(j - i, len(variables), *grid)

        return Lazy((sizes[time], len(variables), *grid), read)  # pyright: ignore[reportArgumentType]

    count = sizes[called["trajectory"]] if called["trajectory"] else 1
    times = data[time].values if time in data.coords else np.zeros(0)
    return _Found({"": [trajectory(i) for i in range(count)]}, variables, _even(times))


_DIMENSIONS = {"trajectory": TRAJECTORY, "time": TIME, "channel": CHANNEL}


# Writing


def write_fields(path: Path, array: NDArray[Any], variables: Sequence[str], step: float | None = None) -> None:
    """Write trajectories (S, T, C, H, W) so that `read_fields` reads them, whole or not at all: .npz or NetCDF (.nc).

    Raises ValueError for another shape or ending, ModuleNotFoundError that names the extra for NetCDF.
    """
    if array.ndim != 5 or array.shape[2] != len(variables):
        raise ValueError(f"fields are {array.shape} with {len(variables)} variables; expected (S, T, C, H, W)")
    if path.suffix == ".npz":
        with whole(path) as aside, aside.open("wb") as file:
            np.savez(file, fields=array, variables=np.array(variables), step=np.array(np.nan if step is None else step))
    elif path.suffix == ".nc":
        with _with_extra():
            import xarray

            dims = ("trajectory", "time", "y", "x")
            time = {} if step is None else {"time": np.arange(array.shape[1]) * step}
            data = xarray.Dataset({name: (dims, array[:, :, i]) for i, name in enumerate(variables)}, coords=time)
            with whole(path) as aside:
                data.to_netcdf(aside, engine="h5netcdf")
    else:
        raise ValueError(f"{path} ends with {path.suffix!r}; expected .npz or .nc")
