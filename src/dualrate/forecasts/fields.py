"""Fields of a source: trajectories of frames with their statistics, as a training set."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import DataProgress, Split, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.forecasts.clips import ClipReading
from dualrate.forecasts.geometry import Geometry, Mask, ordered
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.sources import AS_THEY_ARE, find_fields
from dualrate.forecasts.splits import check_frames, divided, pieces_of
from dualrate.forecasts.statistics import Statistics, as_float32, survey
from dualrate.forecasts.trajectories import Lazy, Trajectory
from dualrate.system.files import MEMORY

NO_GEOMETRY = Geometry()
HELD = 2**33  # bytes of frames of files that a process holds at most, and all of a machine an eighth of its memory


@dataclass(frozen=True, eq=False)
class Fields(TrainingSet):
    """One split of trajectories. As a training set its rows are single frames, normalised.

    trajectories: each (T, C, H, W), two frames at least
    variables:    names of the channels
    step:         time between frames, if it is known
    statistics:   by which rows are normalised
    axes:         names of those of space, as of `FieldSource`
    metadata:     as of `FieldSource`
    forced:       trajectories of the variables that are forcings, (T, V, H, W), beside those of frames
    hashed:       sha256 (hex) of variables and frames in float32, wherever they lie
    hidden:       (C, H, W) points that a mask hides, which hold the mean; None: none
    """

    name: str
    trajectories: Sequence[Trajectory]
    variables: tuple[str, ...]
    step: float | None
    statistics: Statistics
    hashed: str
    axes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    metadata: Metadata = Metadata()
    hidden: Mask | None = None
    forced: Sequence[Trajectory] = ()

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
        return np.cumsum([trajectory.shape[0] for trajectory in self.trajectories])

    def __len__(self) -> int:
        """Frames of all trajectories."""
        return int(self._ends[-1])

    def frames(self, trajectory: int, first: int, count: int) -> NDArray[np.float32]:
        """Frames (count, C, H, W) in a row, not normalised. Raises IndexError beyond the ends of a trajectory."""
        whole, end = self.trajectories[trajectory], first + count
        if not 0 <= first <= end <= whole.shape[0]:
            raise IndexError(f"{self.name}: frames {first} to {end - 1} of {whole.shape[0]} in trajectory {trajectory}")
        return self.statistics.filled(as_float32(self.name, whole[first:end]), self.hidden)

    def windows(self, count: int) -> NDArray[np.int64]:
        """(K, 2): trajectory and first frame of every window of `count` frames that follow one another.

        Raises ValueError if there is none.
        """
        pieces = [(i, *piece) for i, trajectory in enumerate(self.trajectories) for piece in pieces_of(trajectory)]
        windows = [(i, start) for i, first, stop in pieces for start in range(first, stop - count + 1)]
        if count < 1 or not windows:
            longest = max(stop - first for _, first, stop in pieces)
            raise ValueError(
                f"{self.name}: windows of {count} frames, expected 1 to {longest}, the most in a row in "
                "its trajectories: ask for fewer past or future frames, or give longer ones"
            )
        return np.array(windows, np.int64)

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """(B, C, H, W) float32: single frames, numbered through all trajectories."""
        if augment != Augment():
            raise ValueError(f"{self.name} holds fields of unknown symmetry: drop --data.augment.flip and .translate")
        which = np.searchsorted(self._ends, index, side="right")
        first = index - np.concatenate([[0], self._ends])[which]
        frames = [self.frames(int(i), int(j), 1) for i, j in zip(which, first, strict=True)]
        return self.statistics.normalised(torch.from_numpy(np.concatenate(frames)))

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows


def read_fields(
    source: str | Path,
    split: Split,
    statistics: Statistics | None = None,
    progress: DataProgress = silent,
    *,
    variables: Sequence[str] = (),
    levels: Sequence[float] = (),
    geometry: Geometry = NO_GEOMETRY,
    forcings: Sequence[str] = (),
    clips: ClipReading = AS_THEY_ARE,
) -> Fields:
    """One split of a source; every frame is read once for its fingerprint, the training frames for statistics too.

    statistics: those of a run, where the training frames need not be there
    variables, levels, clips: as of `find_fields`; geometry: with axes, frames are brought into the usual order of these
    forcings: variables that are no frames, but known ahead
    Raises ValueError for a source, a shape or numbers that cannot be used, FileNotFoundError where there is none,
    ModuleNotFoundError that names the extra, OSError for what cannot be read.
    """
    wanted = [*variables, *(each for each in forcings if each not in variables)] if variables else []
    name, fields = find_fields(source, progress, wanted, levels, clips)
    fields, hidden = ordered(fields)[0] if geometry.axes else fields, geometry.hidden
    aside, fields = fields.picked(forcings), fields.picked([each for each in fields.variables if each not in forcings])
    name, (train, chosen, place) = f"{name}/{split}", divided(str(source), fields, split, clips.least)
    if statistics is not None:
        train = chosen
    elif train is None:
        raise ValueError(
            f"{source} holds no training fields, of which the statistics are: name the folder that holds them beside "
            "these, or give those of a run"
        )
    for part in (train, chosen):
        check_frames(str(source), part, fields.variables)
    if hidden is not None and hidden.shape != chosen[0].shape[1:]:
        raise ValueError(f"{source} has frames of {chosen[0].shape[1:]} (C, H, W), and the mask hides {hidden.shape}")
    about = fields.metadata, len(fields.space)
    room = room_for(chosen) if clips is AS_THEY_ARE else []  # clips are mapped from where they were decoded to
    hashed, measured = survey(name, chosen, fields.variables, progress, place, hidden, about, room)
    forced = divided(str(source), aside, split)[1] if forcings else ()
    if forced:  # whose numbers are checked, and count in the fingerprint
        forced_room = room_for(forced)
        also = survey(name, forced, aside.variables, progress, place, about=about, into=forced_room)[0]
        forced = in_memory(forced, forced_room)
        hashed = sha256((hashed + also).encode()).hexdigest()
    if statistics is None:
        statistics = (
            measured if train is chosen else survey(str(source), train, fields.variables, hidden=hidden, about=about)[1]
        )
    elif len(statistics.mean) != len(fields.variables):
        raise ValueError(
            f"{source} has the channels {', '.join(fields.variables)}; the statistics are of "
            f"{len(statistics.mean)}: give fields with the channels that the run was trained on"
        )
    described = fields.variables, fields.step, statistics, hashed, fields.axes
    return Fields(name, in_memory(chosen, room), *described, metadata=fields.metadata, hidden=hidden, forced=forced)


def room_for(trajectories: Sequence[Trajectory]) -> list[NDArray[np.float32]]:
    """An array for the frames of each trajectory; none where some are arrays already, or more than may be held."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    room = 4 * sum(math.prod(each.shape) for each in trajectories) <= min(HELD, MEMORY // (8 * processes))
    lazy = all(isinstance(each, Lazy) for each in trajectories)
    return [np.empty(each.shape, np.float32) for each in trajectories] if room and lazy else []


def in_memory(trajectories: Sequence[Trajectory], arrays: Sequence[NDArray[np.float32]]) -> Sequence[Trajectory]:
    """The trajectories with the frames of these arrays; without arrays as they are."""
    if not arrays:
        return trajectories
    pairs = zip(trajectories, arrays, strict=True)
    return [replace(each, read=lambda i, j, array=array: array[i:j]) for each, array in pairs if isinstance(each, Lazy)]
