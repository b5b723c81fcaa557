"""Packed rows: images, or moments of latents, in shards that are memory-mapped.

    FOLDER/prepare.json       of `prepare`: what it is made of, and how; of `encode` it is encode.json, of prompts
                              prompts.json; the image cache has none
    FOLDER/train-00000.bin    one row after the other: C x H x W bytes of an image; test-00000.bin, ... alike
    FOLDER/train-00000.json   of a finished shard: how many images, CRC-32 of its blocks, ...
    FOLDER/train-labels.npy   (N,) int64 over all shards, if there are labels
    FOLDER/dataset.json       once all is there: names, counts, fingerprints, and the shards without their labels
    FOLDER/MANIFEST.json      size and sha256 of dataset.json and the labels, which are checked at every start

A block of a shard is compared with its CRC-32 before the first of its rows is used (shards.py). The fingerprint is that
of the images themselves, so no pixel is read for it at a start.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.serial import from_plain
from dualrate.data.shards import AGAIN, Shards, block_sums
from dualrate.data.source import SPLITS, DataProgress, Item, Items, Raw, Source, Split, reading
from dualrate.system.files import (
    blaming,
    check_regular,
    check_room,
    naming,
    read_json,
    when_seen,
    whole,
    write_whole,
    written_aside,
)
from dualrate.system.folders import MANIFEST, Damaged, Manifest, some_of
from dualrate.system.launch import timeout
from dualrate.system.progress import run_lock
from dualrate.system.workers import Mapper

FORMAT = 1
PREPARED, ENCODED, PROMPTED, DATASET = "prepare.json", "encode.json", "prompts.json", "dataset.json"
SHARD_BYTES = 2**28  # of one, about


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

    def __post_init__(self) -> None:
        """Raises ValueError, naming dataset.json, for a record of a split that no command wrote."""
        with blaming(self.rows.folder / DATASET):
            for shard in self.part["shards"]:
                _check_record(shard)
            _check_record(self.part)
            if sum(shard["images"] for shard in self.part["shards"]) != self.part["images"]:
                raise ValueError(f"its shards have other images than its {self.part['images']}")


def read_packed(folder: Path, split: Split) -> Packed:
    """One split, memory-mapped. Reads labels and sizes of files, and no row.

    Raises ValueError for a folder that is not finished, Damaged (an OSError) for what is not as it was written.
    """
    try:
        manifest = Manifest.read(folder, [DATASET])
        if manifest is None and not any((folder / name).is_file() for name in (PREPARED, ENCODED, PROMPTED)):
            raise ValueError(f"{folder} is no folder that dualrate data prepare or encode wrote")
        if manifest is None:
            raise ValueError(f"{folder} is not finished: it has no {MANIFEST}; {AGAIN}")
        record = manifest.content(DATASET)
        with reading(folder / DATASET, "what dualrate data prepare or encode wrote"):
            dataset, sizes = _parsed(record, folder, split)
        part = dataset["splits"][split]
        for file, size in sizes.items():
            if not file.exists():
                raise Damaged(f"{file} is missing")
            check_regular(file)
            if (actual := file.stat().st_size) != size:
                raise Damaged(f"{file} has {actual:,} bytes, expected {size:,}; remove it")
        content = manifest.content(labels_file(split)) if part["labelled"] else None
    except Damaged as error:
        raise Damaged(f"{error}; {AGAIN}") from error
    labels = None if content is None else np.load(io.BytesIO(content), allow_pickle=False)
    return Packed(Shards(folder, dataset["row"], part["shards"]), labels, dataset, part)


def _parsed(content: bytes, folder: Path, split: Split) -> tuple[dict[str, Any], dict[Path, int]]:
    """The content of dataset.json, and the sizes of the files of a split. Raises any error for another content."""
    dataset = json.loads(content)
    if dataset["format"] != FORMAT:
        raise ValueError(f"{folder} has format {dataset['format']}, expected {FORMAT}: make it anew, elsewhere")
    if "row" not in dataset:  # images, as v0.1 prepared them
        shape = [dataset["channels"], dataset["size"], dataset["size"]]
        dataset["row"] = {"shape": shape, "dtype": "uint8", "each": 1}
    part, row = dataset["splits"][split], dataset["row"]
    if np.dtype(row["dtype"]).kind not in "uf" or not all(
        type(n) is int and n > 0 for n in (row["each"], *row["shape"])
    ):
        raise ValueError(f"its rows are {row}; expected a shape of whole numbers and a dtype of numbers")
    for shard in part["shards"]:
        _check_record(shard)
    if outside := [shard["file"] for shard in part["shards"] if Path(shard["file"]).name != shard["file"]]:
        raise ValueError(f"it names {outside[0]!r}, which is no file of its folder")
    if not isinstance(part["name"], str) or not all(isinstance(name, str) for name in part["class_names"]):
        raise ValueError("its name and those of its classes are not all texts")
    return dataset, {folder / shard["file"]: shard["images"] * _bytes_of(row) for shard in part["shards"]}


# of a split and of a shard, where it has them
RECORD: dict[str, Any] = {
    **dict.fromkeys(("name", "file", "blocks", "fingerprint", "sha256"), str),
    **dict.fromkeys(("class_names", "notes", "rejects"), tuple[str, ...]),
    "images": int,
    "labels": tuple[int, ...] | None,
}


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError for a value of another kind than `RECORD` has."""
    for name in record.keys() & RECORD.keys():
        from_plain(RECORD[name], record[name], name)
    if not all(0 <= number < 2**62 for number in (record["images"], *(record.get("labels") or ()))):
        raise ValueError("its images and labels are not all numbers from 0 on")


def packed_source(folder: Path, split: Split) -> Source:
    """One split of packed images as a source. Raises what `read_packed` raises."""
    stored = read_packed(folder, split)
    name, class_names = stored.part["name"], tuple(stored.part["class_names"])
    return Source(name, (folder / DATASET,), lambda: raw_rows(name, stored.rows, stored.labels, class_names))


def raw_rows(name: str, images: np.ndarray | Shards, labels: np.ndarray | None, class_names: tuple[str, ...]) -> Raw:
    """Decoded images as those of a source."""
    return Raw(_Rows(name, images, range(len(images))), len(images), labels, class_names)


@dataclass(frozen=True, eq=False)
class _Rows:
    name: str
    images: np.ndarray | Shards
    rows: range

    def __iter__(self) -> Iterator[Item]:
        return ((f"{self.name}[{i}]", self.images[i]) for i in self.rows)

    def __getitem__(self, part: slice, /) -> _Rows:
        return _Rows(self.name, self.images, self.rows[part])


def verify(folder: Path, mapper: Mapper, progress: DataProgress) -> int:
    """Read every shard and compare its blocks; the number of images.

    Raises Damaged that names the shards that are not what was written, and what `read_packed` raises.
    """
    parts = [read_packed(folder, split).part for split in SPLITS]
    by_file = {folder / shard["file"]: shard for part in parts for shard in part["shards"]}
    total = sum(part["images"] for part in parts)
    done, wrong = 0, []
    for file, sums in mapper(block_sums, list(by_file)):
        done += by_file[file]["images"]
        wrong += [file.name] if sums != by_file[file]["blocks"] else []
        progress(done, total, "verifying")
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {len(by_file)} shards in {folder} are not what was written: "
            f"{some_of(sorted(wrong), 10)}; remove them, then {AGAIN}"
        )
    return total


def is_finished(folder: Path, splits: Sequence[Split] = SPLITS) -> bool:
    """Whether these splits are complete by their manifest and the sizes of their files; no row is read."""
    try:
        for split in splits:
            read_packed(folder, split)
    except (ValueError, Damaged):
        return False
    return True


# Writing


@dataclass(frozen=True, eq=False)
class Shard:
    """The work of one shard: `items`, `count` of them, of the source called `name`, with their labels, to `file`."""

    file: str
    name: str
    items: Items
    count: int
    labels: np.ndarray | None


def write_shard(
    folder: Path, shard: Shard, rows: Iterable[tuple[int, NDArray[Any]]], record: Mapping[str, Any]
) -> None:
    """Write a shard, then its record, whole or not at all.

    rows:   of each image, with its number among the shard's
    record: more entries for the record, complete once all rows are written
    """
    numbers, path = [], folder / shard.file
    with whole(path) as aside, aside.open("wb") as file:
        for number, row in rows:
            numbers.append(number)
            file.write(row.tobytes())
    labels = None if shard.labels is None else shard.labels[numbers].tolist()
    content = {"images": len(numbers), "labels": labels, **record, "blocks": block_sums(path)}
    write_whole(path.with_suffix(".json"), json.dumps(content))


def write_encoded(
    folder: Path, shard: Shard, encode: Callable[[list[Any]], NDArray[np.float16]], batch_size: int
) -> None:
    """Encode the items of a shard, `batch_size` at a time, and write a row for each. Raises what `encode` raises.

    The record has the sha256 of all rows.
    """
    record = {"sha256": ""}

    def rows() -> Iterator[tuple[int, NDArray[np.float16]]]:
        digest, items, first = hashlib.sha256(), iter(shard.items), 0
        while batch := [content for _, content in islice(items, batch_size)]:
            encoded = encode(batch)
            digest.update(encoded.tobytes())
            yield from enumerate(encoded, first)
            first += len(batch)
        record["sha256"] = digest.hexdigest()

    write_shard(folder, shard, rows(), record)


def halves(x: Tensor, what: str) -> NDArray[np.float16]:
    """Numbers in float16, on the CPU. Raises ValueError for those that float16 has not. what: made them"""
    x = x.cpu()
    if not (x.isfinite().all() and x.abs().max() <= torch.finfo(torch.float16).max):
        raise ValueError(f"the {what} gives numbers that are not finite, or too large for float16")
    return x.half().numpy()


def _is_done(shard: Path, row: int) -> bool:
    """Whether a shard is there with its record, which says how many rows it has."""
    try:
        record = read_json(shard.with_suffix(".json"))
        _check_record(record)
        return record.keys() >= {"blocks", "labels"} and shard.stat().st_size == record["images"] * row
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):  # no record: the shard is made again
        return False


def pack(
    folder: Path,
    splits: Mapping[Split, tuple[str, Raw]],
    job: Callable[[Shard], object],
    row: Mapping[str, Any],
    *,
    shard_bytes: int,
    mapper: Mapper,
    progress: DataProgress,
    what: str,
) -> dict[Split, dict[str, Any]]:
    """Do the job for every missing shard of these splits, and write their labels; returns their parts of dataset.json.

    row: as of `finish_dataset`; shard_bytes: of a file at most, but for an image at least; what: goes with progress
    Raises OSError, before hours of work, where the disk has no room.
    """
    size = _bytes_of(row)
    shards: dict[Split, list[Shard]] = {split: [] for split in splits}
    for split, (name, raw) in splits.items():
        each = max(1, shard_bytes // size)
        for i, first in enumerate(range(0, raw.count, each)):
            part = slice(first, min(first + each, raw.count))
            labels = None if raw.labels is None else raw.labels[part]
            shards[split].append(Shard(f"{split}-{i:05}.bin", name, raw.items[part], part.stop - first, labels))
    missing = [shard for listed in shards.values() for shard in listed if not _is_done(folder / shard.file, size)]
    left, total = sum(shard.count for shard in missing), sum(raw.count for _, raw in splits.values())
    check_room(folder, left * size, "ask for a smaller size; the same command goes on")
    done = total - left
    progress(done, total, what)
    for shard, _ in mapper(job, missing):
        when_seen((folder / shard.file).with_suffix(".json"), timeout())
        done += shard.count
        progress(done, total, what)
    parts: dict[Split, dict[str, Any]] = {}
    for split, (name, raw) in splits.items():
        records = [read_json((folder / shard.file).with_suffix(".json")) for shard in shards[split]]
        labels = [label for record in records for label in record.pop("labels") or ()]
        if raw.labels is not None:
            with whole(folder / labels_file(split)) as aside, aside.open("wb") as file:
                np.save(file, np.array(labels, np.int64), allow_pickle=False)
        parts[split] = {
            "name": name,
            "images": sum(record["images"] for record in records),
            "labelled": raw.labels is not None,
            "class_names": list(raw.class_names),
            "shards": [{"file": shard.file, **record} for shard, record in zip(shards[split], records, strict=True)],
        }
    return parts


def finish_dataset(folder: Path, row: Mapping[str, Any], splits: Mapping[Split, Any], **more: Any) -> dict[str, Any]:
    """Write dataset.json, then the manifest, which finishes a folder; returns the content of dataset.json.

    row: shape, dtype and how many rows an image has
    """
    dataset = {"format": FORMAT, "row": row, **more, "splits": splits}
    write_whole(folder / DATASET, json.dumps(dataset, indent=1))
    Manifest.write(folder, [DATASET, *(labels_file(split) for split in splits if splits[split]["labelled"])])
    return dataset


@contextmanager
def begun(folder: Path, file: str, plan: dict[str, Any]) -> Iterator[bool]:
    """Hold a folder that is empty, new, or of the same plan; yields whether something is left to do.

    file: that holds the plan, whose "content" is the source's
    Raises ValueError for any other folder; one in which bad images ended it may leave them out now.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / file).is_file():
        content = read_json(folder / file)
        before = content if isinstance(content, dict) else {}
        before |= {"on_bad": plan["on_bad"]} if before.get("on_bad") == "fail" else {}
        if names := [name for name in plan if name not in ("source", "content") and before.get(name) != plan[name]]:
            differ = "; ".join(f"{name} {before.get(name)}, now {plan[name]}" for name in names)
            raise ValueError(f"{folder} was made with {differ}: ask for the same, or give another folder")
        if before.get("content") != plan["content"]:
            raise ValueError(
                f"{folder} was made from other files ({before.get('source')}): their names, sizes or times of change "
                f"are not those of {plan['source']} now; give another folder"
            )
    elif present := sorted(name for name in os.listdir(folder) if name != ".lock" and not written_aside(name)):
        raise ValueError(f"{folder} is not empty ({present[0]}, ...): give a new folder")
    with run_lock(folder, "written"):
        unfinished = not is_finished(folder)
        if unfinished:
            for left in folder.iterdir():  # half written, or the manifest of what is to be mended
                if written_aside(left.name) or left.name == MANIFEST:
                    with naming(left):
                        left.unlink()
            write_whole(folder / file, json.dumps(plan, indent=1))
        try:
            yield unfinished
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: finished shards are kept in {folder}; the same command goes on"
            ) from None


def labels_file(split: Split) -> str:
    """The name of the file of a split's labels, which `pack` writes."""
    return f"{split}-labels.npy"


def _bytes_of(row: Mapping[str, Any]) -> int:
    """The number of bytes of the rows of an image."""
    return row["each"] * math.prod(row["shape"]) * np.dtype(row["dtype"]).itemsize


def cache_dir() -> Path:
    """$DUALRATE_CACHE, else $XDG_CACHE_HOME/dualrate, else ~/.cache/dualrate."""
    if folder := os.environ.get("DUALRATE_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dualrate"
