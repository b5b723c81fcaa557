"""Images of any source, decoded into packed shards: into the cache, where each is decoded once, or where one asks.

An entry of the cache is a packed folder of one split (packed.py), images/<key>/. The key is a sha256 of the files'
paths, sizes and times of change and of all options, so an entry is never updated. It is written aside and renamed: an
interrupted run leaves no half entry. One that is not whole is made again. Who may read it, the umask says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualrate.data.decode import MAX_BYTES, decode, resize
from dualrate.data.packed import (
    Packed,
    Shard,
    fingerprint_of,
    is_finished,
    pack,
    read_labels,
    read_packed,
    shards_of,
    write_dataset,
    write_shard,
)
from dualrate.data.source import Content, DataProgress, Member, Raw, Source, Split, one_line
from dualrate.system.files import ABSENT, naming, read_bytes
from dualrate.system.folders import new_folder
from dualrate.system.workers import Mapper, in_turn

VERSION = 3  # of the decoding rules: part of every key
_SHARD_BYTES = 2**24  # of the cache: few, so that progress is seen
_PROBED = 100  # images looked at for one that can be read, before it is given up

OnBad = Literal["fail", "skip"]


@dataclass(frozen=True)
class Options:
    """How images are decoded, as in `load_images`. Its repr, name and all, is part of every key."""

    size: int | None
    channels: int | None
    on_bad: OnBad


def cache_dir() -> Path:
    """$DUALRATE_CACHE, else $XDG_CACHE_HOME/dualrate, else ~/.cache/dualrate."""
    if own := os.environ.get("DUALRATE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dualrate"


def decoded(source: Source, split: Split, options: Options, cache: Path, progress: DataProgress) -> Packed:
    """The decoded images of a source, from the cache or decoded now.

    Raises ValueError for bad images (unless they are skipped) and images of several shapes; OSError for files that
    cannot be read or written.
    """
    folder = cache / "images" / identity(source, options, changes=True)
    if not is_finished(folder, [split]):
        try:
            with new_folder(folder, replace=True) as aside:
                pack_images({split: source}, aside, options, progress=progress, what=f"decoding {source.name}")
        except OSError:
            if not is_finished(folder, [split]):  # else another process has just published the same entry
                raise
    return read_packed(folder, split)


def identity(source: Source, options: Options, *, changes: bool = False) -> str:
    """sha256 (hex) of what decoded images depend on: files by path, size and time of modification, and options.

    changes: also by the time of change, which nobody can set: a file put in the place of another is another one,
             whatever time it was given
    """
    digest = hashlib.sha256(repr((VERSION, source.name, source.label, options)).encode())
    for file in source.files:
        try:
            stat = file.stat()
            changed = (stat.st_ctime_ns,) if changes else ()
            digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns, *changed)).encode())
        except OSError as error:  # a link that leads nowhere: bad, once it is read
            digest.update(repr((str(file), error.errno)).encode())
    return digest.hexdigest()


def pack_images(
    sources: Mapping[Split, Source],
    folder: Path,
    options: Options,
    *,
    progress: DataProgress,
    what: str,
    shard_bytes: int = _SHARD_BYTES,
    mapper: Mapper = in_turn,
) -> dict[str, Any]:
    """Decode what is missing of these splits into a packed folder; what dataset.json holds then. Arguments as `pack`'s.

    Raises ValueError for images that cannot be used, or are of several shapes; OSError for what cannot be read or
    written.
    """
    raws = {split: (source.name, source.read()) for split, source in sources.items()}
    shape = _shape(*next(iter(raws.values())), options)
    row = {"shape": shape, "dtype": "uint8", "each": 1}
    job = partial(decode_shard, folder, options, shape)
    splits = pack(folder, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=what)
    for split, part in splits.items():
        name, raw = raws[split]
        rejects = [reject for shard in part["shards"] for reject in shard["rejects"]]
        if not part["images"]:
            raise ValueError(f"none of the {raw.count} images of {name} can be used: {rejects[0]}")
        labels = read_labels(folder, split) if part["labelled"] else None
        part["fingerprint"] = fingerprint_of(shards_of(folder, row, part["shards"]), labels, raw.class_names)
        part["rejected"] = len(rejects)
        part["notes"] = [f"skipped {summary(rejects)} of {raw.count} images"] if rejects else []
        part["notes"] += [raw.note] if raw.note else []
    return write_dataset(folder, row, splits, size=options.size, channels=shape[0])


def decode_shard(folder: Path, options: Options, shape: tuple[int, ...], shard: Shard) -> None:
    """Raises ValueError for images that cannot be used, unless they are left out, and for one of another shape.

    shape: (C, H, W) of every image
    """
    rejects: list[str] = []

    def images() -> Iterator[tuple[int, np.ndarray]]:
        number = -1
        with naming(shard.name):
            for number, (name, item) in enumerate(shard.items):
                image = image_or_fault(name, item, options)
                if isinstance(image, str):
                    rejects.append(image)
                    continue
                if image.shape != shape:
                    raise ValueError(
                        f"{name} is {_times(image.shape)} (channels, height, width), the first image of {shard.name} "
                        f"{_times(shape)}: pass --data.size (and --data.channels 1 or 3) for one shape"
                    )
                yield number, image
        if number + 1 != shard.count:
            raise ValueError(f"{shard.name} gave {number + 1} images, expected {shard.count}; did its files change?")
        if rejects and options.on_bad == "fail":
            raise ValueError(
                f"{summary(rejects)} of {shard.count} images of {shard.name} cannot be used; pass --data.on-bad skip "
                "to leave them out"
            )

    write_shard(folder, shard, images(), {"rejects": rejects})


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _shape(name: str, raw: Raw, options: Options) -> tuple[int, ...]:
    """(C, H, W) of the first image that can be read."""
    faults: list[str] = []
    for label, item in raw.items[:_PROBED]:
        image = image_or_fault(label, item, options)
        if not isinstance(image, str):
            return image.shape
        faults.append(image)
    if not faults:
        raise ValueError(f"{name} has no images")
    raise ValueError(f"none of the first {len(faults)} images of {name} can be used: {faults[0]}")


def image_of(name: str, item: Content, options: Options) -> np.ndarray:
    """(C, H, W) uint8. Raises ValueError, naming it, for what is no image, OSError for a file that cannot be read."""
    if isinstance(item, np.ndarray):
        return resize(item, size=options.size, channels=options.channels)
    if isinstance(item, Path):
        item = read_bytes(item, MAX_BYTES)
    data = item.read() if isinstance(item, Member) else item
    return decode(data, name, size=options.size, channels=options.channels)


def image_or_fault(name: str, item: Content, options: Options) -> np.ndarray | str:
    """`image_of`, or a line that says why the image cannot be used.

    Raises OSError where the system did not give the file: the image may be good.
    """
    try:
        return image_of(name, item, options)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in ABSENT:
            raise
        return one_line(error)


def summary(bad: list[str]) -> str:
    """Their number, and the first of them."""
    return f"{len(bad)} ({'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''})"
