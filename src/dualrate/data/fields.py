"""Fields over time: trajectories of arrays (T, C, H, W)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import Split
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape
from dualrate.system.files import whole


@dataclass(frozen=True)
class Statistics:
    mean: tuple[float, ...]
    std: tuple[float, ...]
    difference: tuple[float, ...]


class Fields(TrainingSet):
    def __init__(
        self,
        name: str,
        trajectories: Sequence[NDArray[np.float32]],
        variables: tuple[str, ...],
        step: float | None = None,
    ) -> None:
        self.name, self.trajectories, self.variables, self.step = name, trajectories, variables, step
        self.labels, self.class_names = None, ()

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for one in self.trajectories:
            digest.update(np.ascontiguousarray(one).tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> Shape:
        return tuple(self.trajectories[0].shape[1:])

    def __len__(self) -> int:
        return sum(map(len, self.trajectories))

    @cached_property
    def statistics(self) -> Statistics:
        x = np.concatenate([one.astype(np.float64) for one in self.trajectories])
        d = np.concatenate([np.diff(one.astype(np.float64), axis=0) for one in self.trajectories])
        return Statistics(
            tuple(x.mean((0, 2, 3)).tolist()), tuple(x.std((0, 2, 3)).tolist()), tuple(d.std((0, 2, 3)).tolist())
        )

    def windows(self, count: int) -> NDArray[np.int64]:
        return np.array(
            [(i, k) for i, one in enumerate(self.trajectories) for k in range(len(one) - count + 1)], np.int64
        ).reshape(-1, 2)

    def frames(self, trajectory: int, first: int, count: int) -> NDArray[np.float32]:
        return np.asarray(self.trajectories[trajectory][first : first + count], np.float32)

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        raise NotImplementedError


def is_fields(source: str | Path) -> bool:
    return str(source).endswith("fields.npz") or str(source) == "kuramoto-sivashinsky"


def read_fields(source: str | Path, split: Split) -> Fields:
    array = np.load(source)["fields"]
    if array.ndim == 4:
        array = array[:, :, :, None]
    held = max(1, len(array) // 10)
    return Fields(
        f"{source} ({split})",
        list(array[:-held] if split == "train" else array[-held:]),
        tuple(map(str, range(array.shape[2]))),
    )


@dataclass(frozen=True, eq=False)
class Found:
    splits: Mapping[str, Sequence[NDArray[np.float32]]]
    variables: tuple[str, ...]
    step: float | None


def read_file(path: Path) -> Found:
    raise ValueError(f"{path} is no source of fields")


def check_writable(path: Path) -> None:
    """Raises ValueError for a file that is there."""
    if path.exists():
        raise ValueError(f"{path} is there already: name a new file, or remove it")


def write_fields(path: Path, array: NDArray[np.float32], variables: Sequence[str], step: float | None = None) -> None:
    """Write trajectories (S, T, C, H, W)."""
    assert array.ndim == 5
    check_writable(path)
    with whole(path) as aside, aside.open("wb") as file:
        np.savez(file, fields=array, variables=np.array(variables), step=np.array(np.nan if step is None else step))
