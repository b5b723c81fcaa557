"""Rows in files as one array, memory-mapped. A block is compared with its CRC-32 before its first row is used."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualrate.system.files import naming
from dualrate.system.folders import Damaged

BLOCK = 2**18  # bytes that a CRC-32 is of
_OPEN = 256  # shards mapped at a time: each holds a file open, of which a process may have 1024
AGAIN = "run the same command again: it makes what is missing, and nothing else"


class Shards:
    """Rows in files as one array that is only read: (N, *shape), indexed by a slice or by numbers of rows.

    row, shards: as dataset.json has them
    """

    def __init__(self, folder: Path, row: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self._made_of, self.dtype = folder, (folder, row, shards), np.dtype(row["dtype"])
        self.starts = np.array([0, *accumulate(shard["images"] * row["each"] for shard in shards)])
        self.shape = (int(self.starts[-1]), *row["shape"])
        self._mapped = lru_cache(maxsize=_OPEN)(self._map)
        self._good: dict[int, NDArray[np.bool_]] = {}  # of each file, which blocks are known to be good

    def __reduce__(self) -> tuple[type[Shards], tuple[Any, ...]]:
        return Shards, self._made_of

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: slice | ArrayLike) -> NDArray[Any]:
        """A copy of these rows. Raises IndexError for rows that there are not, Damaged for a block that has changed."""
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index, np.int64)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} images")
        rows = np.where(rows < 0, rows + len(self), rows)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        images = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(shard):
            here = shard == number
            mapped, local = self._mapped(int(number)), rows[here] - self.starts[number]
            self._check(int(number), mapped, local)
            images[here] = mapped[local]
        return images

    @property
    def sums(self) -> str:
        """The CRC-32 of every block of all files."""
        return "".join(shard["blocks"] for shard in self._made_of[2])

    def _file(self, number: int) -> Path:
        folder, _, shards = self._made_of
        return folder / shards[number]["file"]

    def _map(self, number: int) -> NDArray[Any]:
        """A file's rows."""
        count, file = int(self.starts[number + 1] - self.starts[number]), self._file(number)
        with naming(file):
            return np.memmap(file, self.dtype, "r", shape=(count, *self.shape[1:]))

    def _check(self, number: int, mapped: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Check the blocks of these rows, each once. Raises Damaged for one that is not as it was written."""
        sums, row = self._made_of[2][number]["blocks"], mapped.nbytes // len(mapped)
        good = self._good.setdefault(number, np.zeros(len(sums) // 8, bool))
        first, last = rows * row // BLOCK, (rows * row + row - 1) // BLOCK
        wanted = np.unique(np.concatenate([np.minimum(first + i, last) for i in range(int((last - first).max()) + 1)]))
        content = mapped.reshape(-1).view(np.uint8)
        for block in wanted[~good[wanted]].tolist():
            if _sum(content[block * BLOCK : (block + 1) * BLOCK]) != sums[8 * block : 8 * block + 8]:
                raise Damaged(
                    f"{self._file(number)} is not what was written (block {block} of {BLOCK:,} bytes): remove it, "
                    f"then {AGAIN}"
                )
            good[block] = True


def block_sums(file: Path) -> str:
    """The CRC-32 of every block of a file, 8 hex digits each."""
    with naming(file), file.open("rb") as opened:
        return "".join(_sum(block) for block in iter(partial(opened.read, BLOCK), b""))


def _sum(block: Any) -> str:
    return f"{zlib.crc32(block):08x}"
