"""Images in folders and archives, read where they stand.

Nothing is ever unpacked, so no name in an archive is ever a path. The splits are those that folders or tars are named
after (`source.split_named`), if that holds for every image; else a tenth is held out. Hidden files and folders
(`source.hidden`) are not read.

Folder: class sub-folders, images alone, or train/ and test/ sub-folders of either kind. One rule holds at every depth.
A link is followed as if its target stood there; one that leads back to a folder above it is refused.

Tar: a .tar file or a folder of them, perhaps in train/ and test/ (or val/). An image is a regular file with an image's
ending. Its class is, by what there is
    key.cls or key.json beside key.jpg or key.image.jpg, as in webdataset's shards: a number or a name; in JSON that of
    "label"
    the folder in the archive that it is in
    the tar that it is in, of a tar of tars (ImageNet's) or of several; unless these are numbered on: a-0.tar, a-1.tar
Labels that belong to no image are counted. What has an image's name and is none (a link, a device, a sparse file), or
should not have it (the second of a name, one that leads out of the archive), is an image that cannot be used, like one
that cannot be decoded. Python's tarfile reads the headers; three things that it takes on trust are checked: that it
goes forwards, that a file is within the archive, that the archive has an end.

NumPy (.npz): `images` (or `arr_0`), uint8 NHWC, NCHW or NHW, and optional `labels` (or `arr_1`). What a member claims
is checked before any memory is taken.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from dualrate.data.decode import MAX_BYTES, SUFFIXES
from dualrate.data.source import (
    MIXED,
    DataProgress,
    Item,
    Listed,
    Member,
    Raw,
    Source,
    Split,
    hidden,
    printable,
    reading,
    skipped,
    some,
    split_named,
    test_split,
)
from dualrate.system.files import MEMORY, check_regular

Label = int | str
_MAX_HEADER = 2**20  # bytes of an extended header, of a label
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


# Folders


def folder_source(path: Path, split: Split) -> Source:
    """The images of a folder.

    Sub-folders are classes, in sorted order; images directly in the folder have no labels. If all sub-folders are
    named like splits (`split_named`), they are the splits. Without a test split a tenth is held out (`hold_out`).
    Raises ValueError for a folder without images, for a mixture of layouts, for splits of which none, or more than one,
    is to be trained on, and for a link back to a folder above it; OSError for a folder that cannot be read. Raises when
    read ValueError for a class that only the test split has.
    """
    splits = _splits(path)
    test = test_split(splits)
    unused = [folder.name for kind, folder in splits.items() if kind not in ("train", test)]
    root = splits.get("train", path)
    files, train = _folder(root)
    chosen = train
    if test and split == "test":
        root = splits[test]
        more, chosen = _folder(root)
        files = dict.fromkeys((*files, *more))  # the training images say which classes there are

    def read() -> Raw:
        note = skipped(unused, "folder(s) of other splits")
        return chosen.raw(train, str(root), None if test else split, note=note)

    return Source(f"{printable(path.name)}/{split}", tuple(files), read)


def _splits(path: Path) -> dict[str, Path]:
    """The sub-folders by split; none if they are classes. Raises ValueError if they are neither or cannot be used."""
    folders, images = _scan(path)
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        splits.setdefault(split_named(folder.name), []).append(folder)
    others = [folder.name for folder in splits.pop("", [])]
    names = some([folder.name for same in splits.values() for folder in same])
    if others and "train" in splits and len(splits) > 1:
        raise ValueError(
            f"{path} holds folders of splits ({names}) and others ({some(others)}): move the others elsewhere, or "
            "name one folder as the source"
        )
    if splits and not others and not images and "train" not in splits:
        raise ValueError(
            f"{path} holds folders of splits ({names}), and none to train on: expected one that is named train; to "
            f"train on one of these, name it: {folders[0]}"
        )
    if others or "train" not in splits:
        return {}
    for same in splits.values():
        if len(same) > 1:
            raise ValueError(f"{path} holds {some([one.name for one in same])}, which are the same split: keep one")
    return {kind: same[0] for kind, same in splits.items()}


def _folder(root: Path) -> tuple[list[Path], Listed]:
    """The image files of a folder of classes or of images alone, in order."""
    folders, flat = _scan(root)
    by_class = {folder.name: images_below(folder, (root.resolve(),)) for folder in folders}
    if not flat and not any(by_class.values()):
        inside = islice((name for _, _, names in os.walk(root) for name in names), 10_000)
        suffixes = Counter(printable(Path(name).suffix.lower()) or "no suffix" for name in inside)
        there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5)) or "no files at all"
        raise ValueError(
            f"no images in {root}: looked for {', '.join(SUFFIXES)} directly or in sub-folders, for .tar files "
            f"directly or in train/ and test/, for .parquet files directly or in data/; there are {there}"
        )
    if flat and by_class:
        raise ValueError(
            f"{root} holds images ({flat[0].name}, ...) and folders ({some(list(by_class))}); expected either "
            "one sub-folder per class, or images alone"
        )
    if empty := [name for name, files in by_class.items() if not files]:
        raise ValueError(f"class folders without images in {root}: {some(empty)}; remove or fill them")
    files = flat or [file for inside in by_class.values() for file in inside]
    labels = [printable(name) for name, inside in by_class.items() for _ in inside]
    return files, Listed(named(root, files), len(files), labels or None, by_name=True)


def images_below(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """All image files below a folder, sorted. above: the real paths of those that it was reached through.

    Raises as `folder_source`.
    """
    folders, images = _scan(folder, above)
    inner = (images_below(one, (*above, folder.resolve())) for one in folders)
    return sorted([*images, *(file for files in inner for file in files)])


def _scan(folder: Path, above: tuple[Path, ...] = ()) -> tuple[list[Path], list[Path]]:
    """The sub-folders and images of a folder, sorted."""
    through = (*above, folder.resolve())
    folders, images = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if hidden(entry.name):
            continue
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            if entry.is_symlink() and any(one.is_relative_to(path.resolve()) for one in through):
                raise ValueError(f"{path} is a link to a folder above it, so that it holds itself; remove the link")
            folders.append(path)
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(path)
    return folders, images


def named(root: Path, files: Iterable[Path]) -> list[Item]:
    """Files by their places below a folder."""
    return [(printable(file.relative_to(root).as_posix()), file) for file in files]


# Tar


@dataclass(slots=True)
class Found:
    """An image of an archive.

    folder: what holds it there, a folder or an inner tar; empty: nothing does
    split:  the one that its path names, as `split_named` calls it; empty: none
    label:  beside it; else by its place
    """

    image: Member
    folder: str
    split: str
    label: Label | None


def tar_files(folder: Path) -> list[Path]:
    """The .tar files of a folder that holds no other images, or of its sub-folders named like splits; or none."""
    entries = [folder / name for name in os.listdir(folder) if not hidden(name)]
    if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
        return []
    folders = [entry for entry in entries if entry.is_dir()]
    tars = [[file for file in place.glob("*.tar") if not hidden(file.name)] for place in folders or [folder]]
    usable = all(split_named(one.name) for one in folders) and all(tars)
    return sorted(file for files in tars for file in files) if usable else []


def tar_source(files: Sequence[Path], root: Path, split: Split, progress: DataProgress) -> Source:
    """The images of tar files below `root`, or of the one that `root` is.

    Raises, when read, OSError for files that cannot be opened or read; ValueError for one that is damaged or
    compressed, for labels of several kinds, for classes that only the test images have, and if there is no image.
    """

    def read() -> Raw:
        stamps = tuple((file.stat().st_size, file.stat().st_ctime_ns) for file in files)
        found, alone = _listing(tuple(files), root, stamps, progress)
        parts: dict[str, list[Found]] = defaultdict(list)
        for one in found:  # what cannot be used and names no split is among the training images
            parts[one.split or "train"].append(one)
        test = test_split(parts)
        unused = [one.image.name for kind in parts if kind not in ("train", test) for one in parts[kind]]
        notes = (
            skipped(unused, "image(s) of other splits"),
            skipped(alone, "label(s) (.cls or .json) that belong to no image"),
        )
        train = _listed(parts["train"], root)
        chosen = _listed(parts[test], root) if test and split == "test" else train
        return chosen.raw(train, str(root), None if test else split, note="; ".join(filter(None, notes)))

    return Source(f"{printable(root.stem if root in files else root.name)}/{split}", tuple(files), read)


@lru_cache(maxsize=1)  # for both splits
def _listing(
    files: tuple[Path, ...], root: Path, stamps: tuple[tuple[int, int], ...], progress: DataProgress
) -> tuple[list[Found], list[str]]:
    """The images of all tars, in order, and the names of labels that belong to none.

    stamps: of the files, since what was listed before may have changed
    """
    found, alone = [], []
    for i, file in enumerate(files):
        progress(i, len(files), "listing tars")
        images, unused = _images_of(file, file.name if file == root else file.relative_to(root).as_posix())
        found += images
        alone += unused
    progress(len(files), len(files), "listing tars")
    good = [one for one in found if not one.image.fault]
    if not good:
        said = f"; {found[0].image.name}: {found[0].image.fault}" if found else ""
        raise ValueError(f"no images in the tar archives of {root}: looked for {', '.join(SUFFIXES)}{said}")
    split = all(one.split for one in good) and any(one.split == "train" for one in good)
    labelled, shards = any(one.label is not None for one in good), _are_shards({one.image.file for one in good})
    for one in found:
        if labelled and one.label is None and not one.image.fault:
            one.image = replace(one.image, fault="it has no label beside it (.cls, or label in .json)")
        elif not labelled:
            tar = one.image.file.stem
            unnamed = shards or (split and any(map(split_named, _words(tar))))
            folder = "" if split and split_named(one.folder) else one.folder
            one.label = folder or (None if unnamed else printable(tar))
        one.split = one.split if split else ""
    return found, alone


def _are_shards(tars: Iterable[Path]) -> bool:
    """Whether in every folder there is one tar, or their names end in numbers one after the other: no classes, then."""
    there = Counter(tar.parent for tar in tars)
    runs: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for tar in tars:
        stem = tar.stem.rstrip("0123456789")
        runs[tar.parent, stem].append(int(tar.stem[len(stem) :][-18:] or -1))
    return all(
        there[folder] == 1 or (min(run) >= 0 and max(run) - min(run) + 1 == len(run))
        for (folder, _), run in runs.items()
    )


def _listed(found: Sequence[Found], root: Path) -> Listed:
    """What cannot be used has the label of another one, which nobody sees."""
    known = [one.label for one in found if not one.image.fault]
    labels = [known[0] if one.image.fault else one.label for one in found] if known else []
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        raise ValueError(f"images of {root} {MIXED}")
    items: list[Item] = [(one.image.name, one.image) for one in found]
    words = list(map(str, labels)) if kinds == {str} else None
    return Listed(items, len(found), np.array(labels, np.int64) if kinds == {int} else words, by_name=True)


def _images_of(file: Path, shown: str) -> tuple[list[Found], list[str]]:
    """The images of one tar with their labels, and the labels that belong to none. shown: its name in messages.

    A label is that of the image of the same name up to the last dot; else, as in webdataset, up to the first one.
    """
    check_regular(file)
    labels: dict[str, Label] = {}
    images: list[tuple[str, Member]] = []
    names: set[str] = set()
    with reading(file, "tar"), _Headers(file) as headers:
        if headers.read(8).startswith(_COMPRESSED):
            raise ValueError("it is compressed: unpack it to a plain .tar, in which images are read where they stand")
        for inside, entry, offset in _entries(headers, 0, file.stat().st_size, ""):
            name = inside + entry.name.removeprefix("./")
            stem, dot, suffix = name.rpartition(".")
            kind = dot + suffix.lower()
            if any(map(hidden, name.split("/"))):
                continue
            if kind in (".cls", ".json") and _is_file(entry) and entry.size <= _MAX_HEADER:
                headers.seek(offset)
                label = _label(headers.read(entry.size), kind == ".json")
                if label is not None and (kind == ".cls" or stem not in labels):
                    labels[stem] = label
            elif kind in (*SUFFIXES, ".tar"):
                fault = _fault(entry) or ("there is another file of this name before it" if name in names else "")
                images.append((name, Member(printable(f"{shown}/{name}"), file, offset, entry.size, fault)))
                names.add(name)
    found, used = [], set()
    for name, image in images:
        place, _, base = name.rpartition("/")
        keys = (name.rpartition(".")[0], name.removesuffix(base) + base.partition(".")[0])
        key = next((key for key in keys if key in labels), "")
        used.add(key)
        found.append(Found(image, *_place(f"{shown}/{place}", shown), labels.get(key)))
    return found, [printable(f"{shown}/{key}") for key in labels if key not in used]


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
            nested = entry.name.lower().endswith(".tar") and not any(map(hidden, entry.name.split("/")))
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
    """Why something with an image's name is not to be used."""
    if not _is_file(entry):
        return "it is a link, a device or a sparse file"
    if entry.name.lower().endswith(".tar"):
        return "a tar within a tar within a tar is not opened"
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        return "its name leads out of the archive"
    return f"it has {entry.size:,} bytes, more than the {MAX_BYTES:,} accepted" if entry.size > MAX_BYTES else ""


def _label(content: bytes, in_json: bool) -> Label | None:
    """What a .cls or .json file says; None if that is no label."""
    try:
        value = json.loads(content) if in_json else content.decode().strip()
    except (ValueError, RecursionError):
        return None
    if in_json:
        value = value.get("label") if isinstance(value, dict) else None
    elif re.fullmatch(r"\d{1,18}", value):
        return int(value)
    usable = 0 <= value < 10**18 if type(value) is int else isinstance(value, str) and bool(value)
    return value if usable else None


@lru_cache(maxsize=10_000)
def _place(path: str, shown: str) -> tuple[str, str]:
    """The folder or inner tar of images, empty if there is none, and the split that this path names, train first.

    path: that of their folder, with those of the tars, of which the outer one's is `shown`
    """
    parts = PurePosixPath(path).parts
    named = [*parts, *(word for part in parts if part.endswith(".tar") for word in _words(part))]
    splits = set(filter(None, map(split_named, named)))
    split = "train" if "train" in splits else test_split(splits) or next(iter(splits), "")
    folder = parts[-1].removesuffix(".tar") if len(parts) > len(PurePosixPath(shown).parts) else ""
    return printable(folder), split


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


class _Headers(io.FileIO):
    """A file of which little is read at a time: an archive's own word on the length of a header is not taken."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"it has a header of {size} bytes, more than the {_MAX_HEADER:,} accepted")
        return super().read(size) or b""


# NumPy archives


_NAMES = (("images", "arr_0"), ("labels", "arr_1"))  # of each, the first that there is


def npz_source(path: Path, split: Split) -> Source:
    """The images of a .npz file, a tenth of them held out as the test split (`hold_out`).

    Classes are named by their numbers. Raises ValueError for other array names, types or shapes, for what
    `read_arrays` refuses, and for labels that `class_numbers` refuses.
    """

    def wanted(found: list[str]) -> list[str]:
        if not set(_NAMES[0]) & set(found):
            there = ", ".join(found) or "none"
            raise ValueError(f"{path} has the arrays {there}; expected images (or arr_0) and maybe labels (or arr_1)")
        return [next(name for name in names if name in found) for names in _NAMES if set(names) & set(found)]

    def read() -> Raw:
        images, *labels = read_arrays(path, wanted).values()
        if images.dtype != np.uint8:
            raise ValueError(f"images in {path} are {images.dtype}; expected uint8, 0 to 255")
        shape = images.shape
        if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 4 and not {1, 3} & {shape[1], shape[3]}):
            raise ValueError(
                f"images in {path} have shape {shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3, "
                "none of them 0"
            )
        if images.ndim == 3:
            images = images[:, None]
        elif shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        items: list[Item] = [(f"{printable(path.name)}[{i}]", image) for i, image in enumerate(images)]
        found = Listed(items, len(images), labels[0] if labels else None)
        return found.raw(found, str(path), split)

    return Source(f"{printable(path.stem)}/{split}", (path,), read)


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path, wanted: Callable[[list[str]], Iterable[str]], kind: str = ".npz") -> dict[str, np.ndarray]:
    """Some arrays of a .npz file; nothing is ever unpickled.

    wanted: the names to read, given those that there are
    kind:   what the file should be, for the error
    Raises OSError for a file that cannot be opened or read; ValueError, naming the file, for one that is no archive
    or damaged, and for an array that holds objects, is not as large as it claims, or is larger than all memory.
    """
    check_regular(path)
    with reading(path, kind), open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is a single array (.npy), not an archive, which numpy.savez makes")
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            return {name: _array(archive, members[name], name) for name in wanted(list(members))}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(
                f"array {name} is of .npy version {version}; expected one of {', '.join(map(str, _HEADERS))}"
            )
        shape, _, dtype = _HEADERS[version](stream)
        claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError(f"array {name} holds Python objects, which are never unpickled")
    if min(shape, default=0) < 0 or claimed != there:
        raise ValueError(f"array {name} claims {dtype} {shape}, {claimed:,} bytes; it has {there:,}")
    if claimed > MEMORY:
        raise ValueError(f"array {name} takes {claimed:,} bytes; this machine has {MEMORY:,} bytes of memory")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the archive compares its checksum when it meets the end
    return array
