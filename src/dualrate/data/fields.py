"""Fields in time as a training set, its statistics and its windows. What sources there are, field_files.py says.

Where a source names splits, they are those; else the last tenth of its trajectories is the test split, of a single one
the last tenth of its frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.field_files import EXPECTED, Found, Lazy, Trajectory, find_fields
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import DataProgress, Split, silent, split_named, test_split
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape

AT_A_TIME = 2**22  # numbers that are read at once


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
    labels: NDArray[np.int64] | None = None
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
                    f"{part[tuple(wrong[0])]}, and {len(wrong)} number(s) of these {len(part)} frames are not finite "
                    "in float32: fill what is missing, say by 0 beside a channel that says where it was, or leave "
                    "these trajectories out"
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


def read_fields(
    source: str | Path, split: Split, statistics: Statistics | None = None, progress: DataProgress = silent
) -> Fields:
    """One split of a source; every frame is read once for its fingerprint, the training frames for statistics too.

    statistics: those of a run, where the training frames need not be there
    Raises ValueError for a source, a shape or numbers that cannot be used, FileNotFoundError where there is none,
    ModuleNotFoundError that names the extra, OSError for what cannot be read.
    """
    name, found = find_fields(source, progress)
    name, (train, chosen) = f"{name}/{split}", _divided(str(source), found, split)
    if statistics is not None:
        train = chosen
    elif train is None:
        raise ValueError(
            f"{source} holds no training fields, of which the statistics are: name the folder that holds them beside "
            "these, or give those of a run"
        )
    for part in (train, chosen):
        _check(str(source), part, found.variables)
    hashed, own = survey(name, chosen, found.variables, progress)
    if statistics is None:
        statistics = own if train is chosen else survey(str(source), train, found.variables)[1]
    elif len(statistics.mean) != len(found.variables):
        raise ValueError(
            f"{source} has {len(found.variables)} channels ({', '.join(found.variables)}); the statistics are of "
            f"{len(statistics.mean)}: give fields with the channels that the run was trained on"
        )
    return Fields(name, chosen, found.variables, found.step, statistics, hashed)


def _divided(source: str, found: Found, split: Split) -> tuple[Sequence[Trajectory] | None, Sequence[Trajectory]]:
    """The training trajectories, if there are any, and those of the split."""
    splits = {split_named(name): part for name, part in found.splits.items()}
    test = test_split(splits)
    if test:
        train = splits.get("train")
        if split == "train" and train is None:
            raise ValueError(f"{source} holds only the split {test}: name a source that has training fields")
        return train, train if split == "train" and train is not None else splits[test]
    every = splits["train"] if "train" in splits else next(iter(splits.values()))
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
