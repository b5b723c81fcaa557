"""Images in tar archives, read in place: nothing is unpacked, so no name in one is ever a path.

A source is a .tar file or a folder of them, perhaps in train/ and test/ (or val/). An image is a regular file with an
image's ending. Its class is, by what there is
    key.cls or key.json beside key.jpg or key.image.jpg, as in webdataset's shards: a number or a name; in JSON that of
    "label"
    the folder in the archive that it is in
    the tar that it is in, of a tar of tars (ImageNet's) or of several; unless these are numbered on: a-0.tar, a-1.tar.
    Of cats_train.tar, dogs_train.tar, cats_test.tar it is what is left of the name without its split
What has an image's name and is none (a link, a device, a sparse file), or
should not have it (the second of a name, one that leads out of the archive), is an image that cannot be used, like one
that cannot be decoded. Python's tarfile reads the headers; three things that it takes on trust are checked: that it
goes forwards, that a file is within the archive, that the archive has an end.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from dualrate.data import source
from dualrate.data.decode import MAX_BYTES
from dualrate.data.source import DataProgress, Item, Listed, Member, Raw, Source, Split
from dualrate.system.files import check_regular
from dualrate.system.folders import some_of

Label = int | str
_MAX_HEADER = 2**20  # bytes of an extended header, of a label
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(slots=True)
class TarImage:
    """An image of an archive.

    folder: what holds it there, a folder or an inner tar; empty: nothing does
    split:  the one that its path names, as `split_named` calls it; empty: none
    label:  beside it; else by its place
    """

    member: Member
    folder: str
    split: str
    label: Label | None


def tar_files(folder: Path) -> list[Path]:
    """The .tar files of a folder that holds no other images, or of its sub-folders named like splits; or none."""
    entries = [folder / name for name in os.listdir(folder) if not source.hidden(name)]
    if any(entry.name.lower().endswith(source.SUFFIXES) for entry in entries):
        return []
    folders = [entry for entry in entries if entry.is_dir()]
    tars = [[file for file in place.glob("*.tar") if not source.hidden(file.name)] for place in folders or [folder]]
    usable = all(source.split_named(entry.name) for entry in folders) and all(tars)
    return sorted(file for files in tars for file in files) if usable else []


def tar_source(files: Sequence[Path], root: Path, split: Split, progress: DataProgress) -> Source:
    """The images of tar files below `root`, or of the one that `root` is.

    Raises, when read, OSError for files that cannot be opened or read; ValueError for one that is damaged or
    compressed, for labels of several kinds, for classes that only the test images have, and if there is no image.
    """

    def read() -> Raw:
        stamps = tuple((file.stat().st_size, file.stat().st_ctime_ns) for file in files)
        images, note = _listing(tuple(files), root, stamps, progress)
        parts: dict[str, list[TarImage]] = defaultdict(list)
        for image in images:  # what cannot be used and names no split is among the training images
            parts[image.split or "train"].append(image)
        test = source.test_split(parts)
        unused = [image.member.name for kind in parts if kind not in ("train", test) for image in parts[kind]]
        train = _listed(parts["train"], root)
        chosen = _listed(parts[test], root) if test and split == "test" else train
        notes = source.skipped(unused, "image", " of other splits"), note
        return chosen.raw(train, str(root), None if test else split, note="; ".join(filter(None, notes)))

    return Source(f"{source.printable(root.stem if root in files else root.name)}/{split}", tuple(files), read)


@lru_cache(maxsize=1)  # for both splits
def _listing(
    files: tuple[Path, ...], root: Path, stamps: tuple[tuple[int, int], ...], progress: DataProgress
) -> tuple[list[TarImage], str]:
    """The images of all tars, in order, and a note on what else there is.

    stamps: of the files, since what was listed before may have changed
    """
    images, strange = [], Counter[str]()
    for i, file in enumerate(files):
        progress(i, len(files), "listing tars")
        images += _images_of(file, file.name if file == root else file.relative_to(root).as_posix(), strange)
    progress(len(files), len(files), "listing tars")
    good = [image for image in images if not image.member.fault]
    if not good:
        remark = f"; {images[0].member.name}: {images[0].member.fault}" if images else ""
        raise ValueError(f"no images in the tar archives of {root}: looked for {', '.join(source.SUFFIXES)}{remark}")
    split = all(image.split for image in good) and any(image.split == "train" for image in good)
    labelled = any(image.label is not None for image in good)
    shards = _are_shards({image.member.file for image in good})
    words = {} if shards or not split else _class_words(good)
    for image in images:
        if labelled and image.label is None and not image.member.fault:
            image.member = replace(image.member, fault="it has no label beside it (.cls, or label in .json)")
        elif not labelled:
            tar = image.member.file.stem
            unnamed = shards or (split and any(map(source.split_named, _words(tar))))
            folder = "" if split and source.split_named(image.folder) else image.folder
            image.label = folder or words.get(tar) or (None if unnamed else source.printable(tar))
        image.split = image.split if split else ""
    return images, source.skipped_files(strange)


def _are_shards(tars: Iterable[Path]) -> bool:
    """Whether in every folder there is one tar, or their names end in numbers one after the other: no classes, then."""
    counts = Counter(tar.parent for tar in tars)
    runs: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for tar in tars:
        stem = tar.stem.rstrip("0123456789")
        runs[tar.parent, stem].append(int(tar.stem[len(stem) :][-18:] or -1))
    return all(
        counts[folder] == 1 or (min(run) >= 0 and max(run) - min(run) + 1 == len(run))
        for (folder, _), run in runs.items()
    )


def _class_words(images: Iterable[TarImage]) -> dict[str, str]:
    """The words of each tar's name without its split, if these are several classes, the same in each split; else empty.

    Numbers are no words: tars that are told apart by numbers have no classes.
    """
    words: dict[str, str] = {}
    splits: dict[str, set[str]] = defaultdict(set)
    for image in images:
        tar = image.member.file.stem
        words[tar] = " ".join(word for word in _words(tar) if not source.split_named(word))
        splits[image.split].add(words[tar])
    apart = len(splits["train"]) > 1 and all(words.values()) and len(words) == sum(map(len, splits.values()))
    return words if apart and all(of_split <= splits["train"] for of_split in splits.values()) else {}


def _listed(images: Sequence[TarImage], root: Path) -> Listed:
    """Images with labels for a reader. An image that cannot be used gets any label, which nobody sees."""
    usable = [image.label for image in images if not image.member.fault]
    labels = [usable[0] if image.member.fault else image.label for image in images] if usable else []
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        raise ValueError(f"images of {root} {source.MIXED}")
    items: list[Item] = [(image.member.name, image.member) for image in images]
    words = list(map(str, labels)) if kinds == {str} else None
    return Listed(items, len(images), np.array(labels, np.int64) if kinds == {int} else words, by_name=True)


def _images_of(file: Path, shown: str, strange: Counter[str]) -> list[TarImage]:
    """The images of one tar with their labels. shown: its name in messages; strange: counts what is not used, by ending


    A label is that of the image of the same name up to the last dot; else, as in webdataset, up to the first one.
    """
    check_regular(file)
    labels: dict[str, Label] = {}
    images: list[tuple[str, Member]] = []
    names: set[str] = set()
    with source.reading(file, "tar"), _Headers(file) as headers:
        if headers.read(8).startswith(_COMPRESSED):
            raise ValueError("it is compressed: unpack it to a plain .tar, in which images are read where they stand")
        for inside, entry, offset in _entries(headers, 0, file.stat().st_size, ""):
            name = inside + entry.name.removeprefix("./")
            stem, dot, suffix = name.rpartition(".")
            kind = dot + suffix.lower()
            if any(map(source.hidden, name.split("/"))):
                continue
            if kind in (".cls", ".json") and _is_file(entry) and entry.size <= _MAX_HEADER:
                headers.seek(offset)
                content = headers.read(entry.size)
                label = _label(content, kind == ".json")
                if label is None:
                    strange[f"{kind} without label" + _keys(content)] += 1
                elif kind == ".cls" or stem not in labels:
                    labels[stem] = label
            elif kind in (*source.SUFFIXES, ".tar"):
                fault = _fault(entry) or ("there is another file of this name before it" if name in names else "")
                images.append((name, Member(source.printable(f"{shown}/{name}"), file, offset, entry.size, fault)))
                names.add(name)
            else:
                strange[source.printable(PurePosixPath(name).suffix.lower()) or "no suffix"] += 1
    tar_images = []
    for name, member in images:
        place, _, base = name.rpartition("/")
        keys = (name.rpartition(".")[0], name.removesuffix(base) + base.partition(".")[0])
        label = next((labels[key] for key in keys if key in labels), None)
        tar_images.append(TarImage(member, *_place(f"{shown}/{place}", shown), label))
    return tar_images


def _entries(headers: _Headers, start: int, stop: int, inside: str) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Everything but folders, in order: the inner tar that it is in, with a slash, its header, its offset in the file.

    Raises ValueError for an archive that is damaged or cut off.
    """
    headers.seek(start)
    end = start
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps every header
            begin, end = end, tar.offset
            inner = entry.offset_data + (entry.size if _is_file(entry) else 0)
            if not (begin <= entry.offset < entry.offset_data <= inner <= end <= stop):
                raise ValueError(
                    f"{inside}{entry.name} is said to be at {entry.offset_data:,}, of {entry.size:,} bytes"
                )
            if entry.isdir():
                continue
            nested = entry.name.lower().endswith(".tar") and not any(map(source.hidden, entry.name.split("/")))
            if nested and _is_file(entry) and not inside:
                yield from _entries(headers, entry.offset_data, end, f"{entry.name}/")
            else:
                yield inside, entry, entry.offset_data
    headers.seek(end)
    if end + tarfile.BLOCKSIZE > stop or headers.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise ValueError(f"{inside or 'it'} is damaged or cut off at byte {end:,}: the mark of its end is not there")


def _is_file(entry: tarfile.TarInfo) -> bool:
    return entry.isreg() and not entry.issparse()


def _fault(entry: tarfile.TarInfo) -> str:
    """Why an entry with an image's name is not used; empty if it is."""
    if not _is_file(entry):
        return "it is a link, a device or a sparse file"
    if entry.name.lower().endswith(".tar"):
        return "a tar within a tar within a tar is not opened"
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        return "its name leads out of the archive"
    return f"it has {entry.size:,} bytes, more than the {MAX_BYTES:,} accepted" if entry.size > MAX_BYTES else ""


def _label(content: bytes, in_json: bool) -> Label | None:
    """The label that a .cls or .json file holds; None if there is none."""
    try:
        value = json.loads(content) if in_json else content.decode().strip()
    except (ValueError, RecursionError):
        return None
    if in_json:
        value = value.get("label") if isinstance(value, dict) else None
    elif re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    usable = 0 <= value < 10**18 if type(value) is int else isinstance(value, str) and bool(value)
    return value if usable else None


def _keys(content: bytes) -> str:
    """The names of values in JSON, for a note; empty where it is something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    return f" ({some_of(sorted(value), 10)})" if isinstance(value, dict) else ""


@lru_cache(maxsize=10_000)
def _place(path: str, shown: str) -> tuple[str, str]:
    """The folder or inner tar of images, empty if there is none, and the split that this path names, train first.

    path: that of their folder, with those of the tars, of which the outer one's is `shown`
    """
    parts = PurePosixPath(path).parts
    named = [*parts, *(word for part in parts if part.endswith(".tar") for word in _words(part))]
    splits = set(filter(None, map(source.split_named, named)))
    split = "train" if "train" in splits else source.test_split(splits) or next(iter(splits), "")
    folder = parts[-1].removesuffix(".tar") if len(parts) > len(PurePosixPath(shown).parts) else ""
    return source.printable(folder), split


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name)  # of letters


class _Headers(io.FileIO):
    """A file of which little is read at a time: an archive's own word on the length of a header is not taken."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"it has a header of {size} bytes, more than the {_MAX_HEADER:,} accepted")
        return super().read(size) or b""
