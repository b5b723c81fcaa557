"""Prepared images: one size, packed into shards that are memory-mapped; what `prepare` writes, and its reader.

    FOLDER/prepare.json       what it is made of, and how: who finds this file takes the folder for prepared images
    FOLDER/train-00000.bin    N x C x H x W bytes, one image after the other; test-00000.bin, ... alike
    FOLDER/train-00000.json   of a finished shard: how many images, their labels, sha256, CRC-32 of its blocks, what was
                              left out and why
    FOLDER/train-labels.npy   (N,) int64 over all shards, if there are labels
    FOLDER/dataset.json       once all is there: names, counts, fingerprints, and the shards without their labels
    FOLDER/MANIFEST.json      size and sha256 of dataset.json and the labels, which are checked at every start

The fingerprint is that of the images read from their source directly: a run or a judge cannot tell the two apart, and
no pixel is read for it at a start. A block of a shard is compared with its CRC-32 before the first of its rows is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.data.source import DataProgress, Each, Raw, Source, Split
from dualrate.system.files import naming
from dualrate.system.folders import MANIFEST, Damaged, Manifest, some_of
from dualrate.system.workers import Mapper

FORMAT = 1
PLAN, DATASET = "prepare.json", "dataset.json"
ENCODED = "encode.json"  # in place of PLAN, where the rows are latents
SHARD_BYTES = 2**28  # of one, about
BLOCK = 2**18  # bytes that a CRC-32 is of
_OPEN = 256  # shards mapped at a time: each holds a file open, of which a process may have 1024
AGAIN = "run the same `dualrate data prepare` (or encode) again: it makes what is missing, and nothing else"


class Shards:
    """Rows in files as one array that is only read: (N, *shape), indexed by a slice or by numbers of rows.

    counts: rows in each of the files; shape: of a row, (C, H, W) of an image
    blocks: `block_sums` of each file; empty: of a file that an earlier version wrote, which is not checked
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        shape: Sequence[int],
        dtype: str = "uint8",
        blocks: Sequence[str] = (),
    ) -> None:
        self.files, self.dtype = tuple(files), np.dtype(dtype)
        self.blocks = tuple(blocks) or ("",) * len(self.files)
        self._good: dict[tuple[int, ...], NDArray[np.bool_]] = {}  # blocks, by file, inode, size and time of change
        self.starts = np.array([0, *accumulate(counts)])
        self.shape = (int(self.starts[-1]), *shape)
        self._mapped = lru_cache(maxsize=_OPEN)(self._map)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """A copy of these rows. Raises IndexError for rows that there are not, Damaged for a block that has changed."""
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index, np.int64)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} images")
        rows = np.where(rows < 0, rows + len(self), rows)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        images = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(shard):
            here = shard == number
            mapped, good = self._mapped(int(number))
            own = rows[here] - self.starts[number]
            self._check(int(number), mapped, good, own)
            images[here] = mapped[own]
        return images

    def _map(self, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A file's rows, and which of its blocks are known to be good."""
        count, file = int(self.starts[number + 1] - self.starts[number]), self.files[number]
        with naming(file):
            stat = file.stat()
            mapped = np.memmap(file, self.dtype, "r", shape=(count, *self.shape[1:]))
        state = (number, stat.st_ino, stat.st_size, stat.st_ctime_ns)
        return mapped, self._good.setdefault(state, np.zeros(-(-mapped.nbytes // BLOCK), bool))

    def _check(self, number: int, mapped: NDArray[Any], good: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        """Raises Damaged unless the blocks of these rows are what was written; each is read for it once."""
        sums, row = self.blocks[number], mapped.nbytes // len(mapped)
        if not sums:
            return
        first, last = rows * row // BLOCK, (rows * row + row - 1) // BLOCK
        wanted = np.unique(np.concatenate([np.minimum(first + i, last) for i in range(int((last - first).max()) + 1)]))
        content = mapped.reshape(-1).view(np.uint8)
        for block in wanted[~good[wanted]].tolist():
            if _sum(content[block * BLOCK : (block + 1) * BLOCK]) != sums[8 * block : 8 * block + 8]:
                raise Damaged(
                    f"{self.files[number]} is not what was written (block {block} of {BLOCK:,} bytes): remove it, "
                    f"then {AGAIN}"
                )
            good[block] = True


@dataclass(frozen=True, eq=False)
class Prepared:
    """One split of a prepared folder. fingerprint: `ImageSet.fingerprint`"""

    images: Shards
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    name: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Packed:
    """One split of a folder of shards.

    rows:    all of them
    dataset: what dataset.json holds; part: of it, this split's
    """

    rows: Shards
    labels: np.ndarray | None
    dataset: dict[str, Any]
    part: dict[str, Any]


def labels_file(split: Split) -> str:
    return f"{split}-labels.npy"


def is_prepared(folder: Path) -> bool:
    """Whether a folder is `prepare`'s, finished or not."""
    return (folder / PLAN).is_file()


def read_packed(folder: Path, split: Split) -> Packed:
    """One split, memory-mapped. Reads labels and sizes of files, and no row.

    Raises ValueError for a folder that is not finished, Damaged (an OSError) for what is not as it was written.
    """
    manifest, dataset = _dataset(folder)
    part = dataset["splits"][split]
    images = {"shape": [dataset.get("channels"), dataset.get("size"), dataset.get("size")], "dtype": "uint8", "each": 1}
    row = dataset.get("row", images)
    files = [folder / shard["file"] for shard in part["shards"]]
    counts = [shard["images"] * row["each"] for shard in part["shards"]]
    size = math.prod(row["shape"]) * np.dtype(row["dtype"]).itemsize
    for file, count in zip(files, counts, strict=True):
        check_size(file, count * size)
    labels = None
    if part["labelled"]:
        labels = np.load(io.BytesIO(_content(manifest, labels_file(split))), allow_pickle=False)
    blocks = [shard.get("blocks", "") for shard in part["shards"]]
    return Packed(Shards(files, counts, row["shape"], row["dtype"], blocks), labels, dataset, part)


def read_prepared(folder: Path, split: Split) -> Prepared:
    """Prepared images of one split. Raises what `read_packed` raises."""
    found = read_packed(folder, split)
    part = found.part
    return Prepared(found.rows, found.labels, tuple(part["class_names"]), part["name"], part["fingerprint"])


def shards_source(folder: Path, split: Split) -> Source:
    """One split as a source of images, for whoever looks at them before use. Raises what `read_prepared` raises."""
    found = read_prepared(folder, split)

    def read() -> Raw:
        items = Each(partial(_row, found.name, found.images), range(len(found.images)))
        return Raw(items, len(found.images), found.labels, found.class_names)

    return Source(found.name, (folder / DATASET,), read)


def verify(folder: Path, mapper: Mapper, progress: DataProgress) -> int:
    """Read every shard and compare it with its sha256; the number of images. Raises Damaged that names those that are
    not what was written, and what `read_packed` raises."""
    images = sum(part["images"] for part in (read_packed(folder, split).part for split in ("train", "test")))
    shards = [shard for part in _dataset(folder)[1]["splits"].values() for shard in part["shards"]]
    by_file = {folder / shard["file"]: shard for shard in shards}
    done, wrong = 0, []
    for file, found in mapper(sha256_of, list(by_file)):
        done += by_file[file]["images"]
        wrong += [file.name] if found != by_file[file]["sha256"] else []
        progress(done, images, "verifying")
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {len(shards)} shards in {folder} are not what was written: {some_of(sorted(wrong), 10)}; "
            f"remove them, then {AGAIN}"
        )
    return images


def sha256_of(file: Path) -> str:
    """In hex."""
    with naming(file), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def block_sums(file: Path) -> str:
    """The CRC-32 of every block of a file, 8 hex digits each."""
    with naming(file), file.open("rb") as opened:
        return "".join(_sum(block) for block in iter(partial(opened.read, BLOCK), b""))


def _sum(block: Any) -> str:
    return f"{zlib.crc32(block):08x}"


def check_size(file: Path, size: int) -> None:
    """Raises Damaged unless a file has so many bytes, or OSError if the system does not tell."""
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise Damaged(f"{file} is missing; {AGAIN}") from None
    if found != size:
        raise Damaged(f"{file} has {found:,} bytes, expected {size:,}; remove it, then {AGAIN}")


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to be done or mended, as far as can be told without reading the images."""
    try:
        for split in ("train", "test"):
            read_packed(folder, split)
    except (ValueError, Damaged):
        return False
    return True


def _dataset(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    if not any((folder / name).is_file() for name in (PLAN, ENCODED)):
        raise ValueError(f"{folder} is no folder that dualrate data prepare or encode wrote")
    try:
        manifest = Manifest.read(folder, [DATASET])
    except Damaged as error:
        raise Damaged(f"{error}; {AGAIN}") from error
    if manifest is None:
        raise ValueError(f"{folder} is not finished: it has no {MANIFEST}; {AGAIN}")
    dataset = json.loads(_content(manifest, DATASET))
    if dataset["format"] != FORMAT:
        raise ValueError(f"{folder} has format {dataset['format']}, expected {FORMAT}: make it anew, elsewhere")
    return manifest, dataset


def _content(manifest: Manifest, name: str) -> bytes:
    try:
        return manifest.content(name)
    except Damaged as error:
        raise Damaged(f"{error}; {AGAIN}") from error


def _row(name: str, images: Shards, number: int) -> tuple[str, np.ndarray]:
    return f"{name}[{number}]", images[[number]][0]
