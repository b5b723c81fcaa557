"""What every kind of data source reduces to before decoding: files that identify it, and a reader of raw images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "test"]
Progress = Callable[[int, int, str], None]  # done, total, message


@dataclass(frozen=True, eq=False)
class Raw:
    """The undecoded images of one split.

    items:       `count` pairs of a name for error messages and an image: a file, a file's bytes, or (C, H, W) uint8
    labels:      (count,) int64 in [0, len(class_names)), or None
    class_names: empty without labels
    """

    items: Iterable[tuple[str, Path | bytes | np.ndarray]]
    count: int
    labels: np.ndarray | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One split of a data source.

    name:  for reports
    files: whose absolute paths, sizes and times of change identify the content
    read:  called only when the decoded images are not in the cache yet
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], Raw]


def hold_out(keys: Sequence[str], split: Split) -> np.ndarray:
    """Ascending positions of `split` in a source that has no test split of its own.

    The tenth (at least one) of the keys with the smallest sha256 is the test split. It depends on nothing but the
    keys, and a file added later moves few others. Raises ValueError for fewer than two keys.
    """
    if len(keys) < 2:
        raise ValueError(f"{len(keys)} image(s) cannot be divided into train and test; at least 2 are needed")
    ranked = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    count = max(1, len(keys) // 10)
    return np.sort(np.array(ranked[:count] if split == "test" else ranked[count:]))
