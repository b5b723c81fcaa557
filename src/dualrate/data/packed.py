"""Packed rows: images, or moments of latents, in shards that are memory-mapped. The one format of decoded images.

    FOLDER/prepare.json       of `prepare`: what it is made of, and how; of `encode` it is encode.json; the image cache
                              has neither
    FOLDER/train-00000.bin    one row after the other: C x H x W bytes of an image; test-00000.bin, ... alike
    FOLDER/train-00000.json   of a finished shard: how many images, CRC-32 of its blocks, ...
    FOLDER/train-labels.npy   (N,) int64 over all shards, if there are labels
    FOLDER/dataset.json       once all is there: names, counts, fingerprints, and the shards without their labels
    FOLDER/MANIFEST.json      size and sha256 of dataset.json and the labels, which are checked at every start

A block of a shard is compared with its CRC-32 before the first of its rows is used. The fingerprint is that of the
images themselves, so no pixel is read for it at a start.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualrate.data.source import SPLITS, DataProgress, Each, Raw, Source, Split
from dualrate.system.files import naming, read_json, whole, write_whole
from dualrate.system.folders import MANIFEST, Damaged, Manifest, some_of
from dualrate.system.workers import Mapper

FORMAT = 1
PREPARED, ENCODED, DATASET = "prepare.json", "encode.json", "dataset.json"
SHARD_BYTES = 2**28  # of one, about
BLOCK = 2**18  # bytes that a CRC-32 is of
_OPEN = 256  # shards mapped at a time: each holds a file open, of which a process may have 1024
AGAIN = "run the same command again: it makes what is missing, and nothing else"


class Shards:
    """Rows in files as one array that is only read: (N, *shape), indexed by a slice or by numbers of rows.

    counts: rows in each of the files; shape: of a row, (C, H, W) of an image
    blocks: `block_sums` of each file
    """

    def __init__(
        self, files: Sequence[Path], counts: Sequence[int], shape: Sequence[int], dtype: str, blocks: Sequence[str]
    ) -> None:
        self._made_of = files, counts, shape, dtype, blocks
        self.files, self.blocks, self.dtype = tuple(files), tuple(blocks), np.dtype(dtype)
        self.starts = np.array([0, *accumulate(counts)])
        self.shape = (int(self.starts[-1]), *shape)
        self._good: dict[tuple[int, ...], NDArray[np.bool_]] = {}  # blocks, by file, inode, size and time of change
        self._mapped = lru_cache(maxsize=_OPEN)(self._map)

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


def block_sums(file: Path) -> str:
    """The CRC-32 of every block of a file, 8 hex digits each."""
    with naming(file), file.open("rb") as opened:
        return "".join(_sum(block) for block in iter(partial(opened.read, BLOCK), b""))


def _sum(block: Any) -> str:
    return f"{zlib.crc32(block):08x}"


def fingerprint_of(images: np.ndarray | Shards, labels: np.ndarray | None, class_names: tuple[str, ...]) -> str:
    """sha256 (hex) of images (N, C, H, W), labels and class names."""
    digest = hashlib.sha256(repr((images.shape, class_names)).encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()


# Reading


@dataclass(frozen=True, eq=False)
class Packed:
    """One split of a packed folder.

    rows:    all of them
    dataset: what dataset.json holds; part: of it, this split's
    """

    rows: Shards
    labels: np.ndarray | None
    dataset: dict[str, Any]
    part: dict[str, Any]


def is_prepared(folder: Path) -> bool:
    """Whether a folder is `prepare`'s, finished or not."""
    return (folder / PREPARED).is_file()


def read_packed(folder: Path, split: Split) -> Packed:
    """One split, memory-mapped. Reads labels and sizes of files, and no row.

    Raises ValueError for a folder that is not finished, Damaged (an OSError) for what is not as it was written.
    """
    try:
        manifest = Manifest.read(folder, [DATASET])
        if manifest is None and not any((folder / name).is_file() for name in (PREPARED, ENCODED)):
            raise ValueError(f"{folder} is no folder that dualrate data prepare or encode wrote")
        if manifest is None:
            raise ValueError(f"{folder} is not finished: it has no {MANIFEST}; {AGAIN}")
        dataset = json.loads(manifest.content(DATASET))
        if dataset["format"] != FORMAT:
            raise ValueError(f"{folder} has format {dataset['format']}, expected {FORMAT}: make it anew, elsewhere")
        if "row" not in dataset:  # images, as v0.1 prepared them
            shape = [dataset["channels"], dataset["size"], dataset["size"]]
            dataset["row"] = {"shape": shape, "dtype": "uint8", "each": 1}
        part, row = dataset["splits"][split], dataset["row"]
        size = row["each"] * math.prod(row["shape"]) * np.dtype(row["dtype"]).itemsize
        for shard in part["shards"]:
            _check_size(folder / shard["file"], shard["images"] * size)
        content = manifest.content(_labels_file(split)) if part["labelled"] else None
    except Damaged as error:
        raise Damaged(f"{error}; {AGAIN}") from error
    labels = None if content is None else np.load(io.BytesIO(content), allow_pickle=False)
    return Packed(shards_of(folder, row, part["shards"]), labels, dataset, part)


def _check_size(file: Path, size: int) -> None:
    if not file.exists():
        raise Damaged(f"{file} is missing")
    if (found := file.stat().st_size) != size:
        raise Damaged(f"{file} has {found:,} bytes, expected {size:,}; remove it")


def shards_of(folder: Path, row: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> Shards:
    """row, shards: as dataset.json has them."""
    return Shards(
        files=[folder / shard["file"] for shard in shards],
        counts=[shard["images"] * row["each"] for shard in shards],
        shape=row["shape"],
        dtype=row["dtype"],
        blocks=[shard["blocks"] for shard in shards],
    )


def packed_source(folder: Path, split: Split) -> Source:
    """One split of images as a source, for whoever looks at them before use. Raises what `read_packed` raises."""
    found = read_packed(folder, split)
    name, count = found.part["name"], len(found.rows)

    def read() -> Raw:
        items = Each(partial(_row, name, found.rows), range(count))
        return Raw(items, count, found.labels, tuple(found.part["class_names"]))

    return Source(name, (folder / DATASET,), read)


def _row(name: str, images: Shards, number: int) -> tuple[str, NDArray[Any]]:
    return f"{name}[{number}]", images[number]


def verify(folder: Path, mapper: Mapper, progress: DataProgress) -> int:
    """Read every shard and compare its blocks; the number of images.

    Raises Damaged that names the shards that are not what was written, and what `read_packed` raises.
    """
    parts = [read_packed(folder, split).part for split in SPLITS]
    by_file = {folder / shard["file"]: shard for part in parts for shard in part["shards"]}
    total = sum(part["images"] for part in parts)
    done, wrong = 0, []
    for file, found in mapper(block_sums, list(by_file)):
        done += by_file[file]["images"]
        wrong += [file.name] if found != by_file[file]["blocks"] else []
        progress(done, total, "verifying")
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {len(by_file)} shards in {folder} are not what was written: "
            f"{some_of(sorted(wrong), 10)}; remove them, then {AGAIN}"
        )
    return total


def is_finished(folder: Path, splits: Sequence[Split] = SPLITS) -> bool:
    """Whether nothing is left to be done or mended, as far as can be told without reading the rows."""
    try:
        for split in splits:
            read_packed(folder, split)
    except (ValueError, Damaged):
        return False
    return True


# Writing


@dataclass(frozen=True, eq=False)
class Shard:
    """The work of one shard: `count` images to be written to `file`."""

    file: str
    count: int


Work = TypeVar("Work", bound=Shard)


def write_shard(path: Path, rows: Iterable[NDArray[Any]], record: Callable[[], dict[str, Any]]) -> None:
    """Write a shard, then its record, whole or not at all. record: called once all rows are written."""
    with whole(path) as aside, aside.open("wb") as file:
        for row in rows:
            file.write(row.tobytes())
    write_whole(_record(path), json.dumps({**record(), "blocks": block_sums(path)}))


def _record(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _is_done(shard: Path, row: int) -> bool:
    """Whether a shard is there with its record, which says how many rows it has."""
    if not (shard.is_file() and _record(shard).is_file()):
        return False
    try:
        record = read_json(_record(shard))
        return record.keys() >= {"blocks", "labels"} and shard.stat().st_size == record["images"] * row
    except (ValueError, KeyError, TypeError, AttributeError):  # no record: the shard is made again
        return False


def make_shards(
    folder: Path,
    job: Callable[[Work], object],
    blocks: Sequence[Work],
    row: int,
    mapper: Mapper,
    progress: Callable[[int, int], None],
) -> None:
    """Do the job for every shard that is missing. row: bytes of an image's rows; progress: (images done, total).

    Raises OSError, before hours of work, where the disk has no room.
    """
    missing = [block for block in blocks if not _is_done(folder / block.file, row)]
    left, total = (sum(block.count for block in part) for part in (missing, blocks))
    needed, free = left * row, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} is to hold {needed:,} bytes more, and {free:,} are free there: make room for "
            f"{needed - free:,}, or ask for a smaller size; the same command goes on"
        )
    done = total - left
    progress(done, total)
    for block, _ in mapper(job, missing):
        done += block.count
        progress(done, total)


def finish_split(
    folder: Path, split: Split, name: str, class_names: Sequence[str], files: Sequence[str]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """A split's part of dataset.json, from the records of its shards, and its labels, which are written."""
    records = [read_json(_record(folder / file)) for file in files]
    parts = [record.pop("labels") for record in records]
    labels = None if None in parts else np.concatenate([np.array(part, np.int64) for part in parts])
    if labels is not None:
        with whole(folder / _labels_file(split)) as aside, aside.open("wb") as file:
            np.save(file, labels, allow_pickle=False)
    part = {
        "name": name,
        "images": sum(record["images"] for record in records),
        "labelled": labels is not None,
        "class_names": list(class_names),
        "shards": [{"file": file, **record} for file, record in zip(files, records, strict=True)],
    }
    return part, labels


def write_dataset(folder: Path, row: Mapping[str, Any], splits: Mapping[Split, Any], **more: Any) -> dict[str, Any]:
    """dataset.json, and the manifest, which finishes a folder. row: shape, dtype and how many an image has."""
    dataset = {"format": FORMAT, "row": row, **more, "splits": splits}
    write_whole(folder / DATASET, json.dumps(dataset, indent=1))
    Manifest.write(folder, [DATASET, *(_labels_file(split) for split in splits if splits[split]["labelled"])])
    return dataset


def _labels_file(split: Split) -> str:
    return f"{split}-labels.npy"
