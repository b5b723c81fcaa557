"""Decoded images on disk: every source is decoded once, then memory-mapped.

An entry is a folder images/<key>/ with images.npy (N, C, H, W) uint8, labels.npy (N,) int64 if there are labels, and
info.json. The key is a sha256 of the files' paths, sizes and times of change and of all options, so an entry is never
updated. It is written aside and renamed: an interrupted run leaves no half entry. Who may read it, the umask says.

An entry holds the fingerprint of its images, which is made again when a process first opens it: what has changed on the
disk is found before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from dualrate.data.decode import MAX_BYTES, decode, resize
from dualrate.data.shards import Shards
from dualrate.data.source import Content, DataProgress, Item, Member, Raw, Source, one_line, read_limited
from dualrate.system.files import ABSENT, naming, read_json
from dualrate.system.folders import new_folder

VERSION = 3  # of the entry's format and of the decoding rules: part of every key
_checked: set[tuple[object, ...]] = set()  # entries that this process has compared with their fingerprint
_LOOK_ON = 1000  # images still looked at, to describe the shapes that occur, after two were found to differ

OnBad = Literal["fail", "skip"]


@dataclass(frozen=True)
class Options:
    """How images are decoded, as in `load_images`. Its repr, name and all, is part of every key."""

    size: int | None
    channels: int | None
    on_bad: OnBad


@dataclass(frozen=True, eq=False)
class Entry:
    """A cache entry: images are memory-mapped; `notes` say what was left out of the source, if anything was.

    fingerprint: `fingerprint_of` what it holds
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str


def cache_dir() -> Path:
    """$DUALRATE_CACHE, else $XDG_CACHE_HOME/dualrate, else ~/.cache/dualrate."""
    if own := os.environ.get("DUALRATE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dualrate"


def decoded(source: Source, options: Options, cache: Path, progress: DataProgress) -> Entry:
    """The decoded images of a source, from the cache or decoded now.

    Raises ValueError for bad images (unless they are skipped), images of several shapes, and a damaged entry; OSError
    for files that cannot be read or written.
    """
    folder = cache / "images" / identity(source, options, changes=True)
    if not folder.is_dir():
        try:
            with new_folder(folder) as aside:
                _write(source.read(), options, aside, source.name, progress)
        except OSError:
            if not folder.is_dir():  # else another process has just published the same entry
                raise
    return _open(folder)


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


def _open(folder: Path) -> Entry:
    try:
        info = read_json(folder / "info.json")
        with naming(folder / "images.npy"):
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with naming(folder / "labels.npy"):
            labels = np.load(folder / "labels.npy", allow_pickle=False) if info["labelled"] else None
        entry = Entry(images, labels, tuple(info["class_names"]), tuple(info["notes"]), info["fingerprint"])
        stats = [file.stat() for file in sorted(folder.iterdir())]
        state = (folder, *((stat.st_ino, stat.st_size, stat.st_ctime_ns) for stat in stats))
        if state not in _checked:
            if fingerprint_of(entry.images, entry.labels, entry.class_names) != entry.fingerprint:
                raise ValueError("its images are not those that were written")
            _checked.add(state)
        return entry
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        raise _damaged(folder, error) from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise _damaged(folder, error) from error


def fingerprint_of(images: np.ndarray | Shards, labels: np.ndarray | None, class_names: tuple[str, ...]) -> str:
    """sha256 (hex) of images (N, C, H, W), labels and class names."""
    digest = hashlib.sha256(repr((images.shape, class_names)).encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"the cache entry {folder} is damaged ({error}); delete that folder and run again")


def _write(raw: Raw, options: Options, folder: Path, name: str, progress: DataProgress) -> None:
    with naming(folder / "images.npy"), open(folder / "images.npy", "wb") as file:
        kept, bad = _write_images(raw, options, file, name, progress)
    if bad and (options.on_bad == "fail" or not kept):
        advice = "pass --data.on-bad skip to leave them out" if kept else "no image is left"
        raise ValueError(f"{summary(bad)} of {raw.count} images in {name} cannot be used; {advice}")
    if not kept:
        raise ValueError(f"{name} has no images")
    labels = None if raw.labels is None else raw.labels[kept]
    if labels is not None:
        with naming(folder / "labels.npy"):
            np.save(folder / "labels.npy", labels, allow_pickle=False)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    notes = [f"skipped {summary(bad)} of {raw.count} images"] if bad else []
    notes += [raw.note] if raw.note else []
    names = [str(one) for one in raw.class_names]
    info = {"name": name, "labelled": labels is not None, "class_names": names, "notes": notes}
    info["fingerprint"] = fingerprint_of(images, labels, tuple(names))
    with naming(folder / "info.json"):
        (folder / "info.json").write_text(json.dumps(info, indent=1))


def _write_images(
    raw: Raw, options: Options, file: BinaryIO, name: str, progress: DataProgress
) -> tuple[list[int], list[str]]:
    """Write the .npy file image by image; the numbers of the images kept, and what was wrong with the others.

    Plain writes rather than a memory map: a full disk then raises OSError instead of killing the process.
    """
    kept: list[int] = []
    bad: list[str] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for i, (label, item) in enumerate(_read(raw, name)):
        if i % 256 == 0:
            progress(i, raw.count, f"decoding {name}")
        image = image_or_fault(label, item, options)
        if isinstance(image, str):
            bad.append(image)
            continue
        if not shapes:
            _header(file, (raw.count, *image.shape))
        shapes[image.shape] += 1
        if len(shapes) > 1:
            if shapes.total() > len(kept) + _LOOK_ON:
                break
            continue
        file.write(image.tobytes())
        kept.append(i)
    if len(shapes) > 1:
        raise ValueError(_mixed(shapes, name))
    if len(kept) + len(bad) != raw.count:
        raise ValueError(f"{name} gave {len(kept) + len(bad)} images, expected {raw.count}; did its files change?")
    if bad and kept:
        _header(file, (len(kept), *next(iter(shapes))))
    progress(raw.count, raw.count, f"decoding {name}")
    return kept, bad


def _read(raw: Raw, name: str) -> Iterator[Item]:
    """The items; trouble with them is not that of the file that is written meanwhile."""
    with naming(name):
        yield from raw.items


def image_of(name: str, item: Content, options: Options) -> np.ndarray:
    """(C, H, W) uint8. Raises ValueError, naming it, for what is no image, OSError for a file that cannot be read."""
    if isinstance(item, np.ndarray):
        return resize(item, size=options.size, channels=options.channels)
    if isinstance(item, Path):
        item = read_limited(item, MAX_BYTES)
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


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write, or rewrite in place, the .npy header: NumPy pads it so that the first axis may grow and shrink."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def summary(bad: list[str]) -> str:
    """Their number, and the first of them."""
    listed = "; ".join(bad[:5]) + ("; ..." if len(bad) > 5 else "")
    return f"{len(bad)} ({listed})"


def _mixed(shapes: Counter[tuple[int, ...]], name: str) -> str:
    listed = ", ".join(f"{n} x {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(8))
    more = f" and {len(shapes) - 8} more" if len(shapes) > 8 else ""
    return (
        f"the images of {name} differ in channels x height x width: {listed}{more} among the first {shapes.total()}; "
        "pass --data.size (and --data.channels 1 or 3) to bring them to one shape"
    )
