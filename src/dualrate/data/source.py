"""A data source before decoding: files that identify it, and a reader of its raw images; NumPy archives.

Folders are read in folders.py, tars in tars.py, Parquet files in parquet.py. Nothing is ever unpacked. The splits are
those that folders or tars are named after (`split_named`), if that holds for every image; else a tenth is held out.
Hidden files and folders (`hidden`) are not read.

NumPy (.npz): `images` (or `arr_0`), uint8 NHWC, NCHW or NHW, and optional `labels` (or `arr_1`, or the array that is
asked for). What a member claims is checked before any memory is taken.

Whatever a reader leaves out, it says (`Raw.note`).

Files that users bring: only regular files are opened, no more is read than is expected, errors name the file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dualrate.config.ranges import as_path, many
from dualrate.system.files import MEMORY, check_regular, naming, read_bytes, shown
from dualrate.system.folders import some_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
DataProgress = Callable[[int, int, str], None]  # done, total, message
MAX_CLASSES = 100_000
NOTED = ("skipped", "without", "paired")  # begin a message that says what is not used of a source, or how it is read
ROW = "FILE[ROW]"  # stands for the column of what the rows of a file are called
HELD_OUT = ("test", "val", "valid", "validation", "dev", "eval")  # the first of them that exists is the test split
_SPLITS = ("train", *HELD_OUT, "unlabeled", "unlabelled", "unsupervised")
_SAME = {"training": "train", "testing": "test", "evaluation": "eval"}
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif")  # of images
_HIDDEN = ("__MACOSX", "@eaDir")  # of an archive made on macOS; previews of a Synology disk


def silent(done: int, total: int, message: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class Member:
    """An encoded image inside another file, `size` bytes from `offset`. fault: why it cannot be used, if so."""

    name: str
    file: Path
    offset: int
    size: int
    fault: str = ""

    def read(self) -> bytes:
        """Its bytes. Raises ValueError if it cannot be used or the file ends within it, OSError where reading fails."""
        if self.fault:
            raise ValueError(f"{self.name}: {self.fault}")
        with naming(self.file), self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"{self.name}: {self.file} ends within it")
        return content


Content = Path | bytes | Member | np.ndarray  # of an image: a file, its bytes, where they are, or (C, H, W) uint8
Item = tuple[str, Content]  # with a name for error messages


class Items(Protocol):
    """Undecoded images in order. Some of them, by a slice or ascending numbers, can be sent to another process."""

    def __iter__(self) -> Iterator[Item]: ...

    def __getitem__(self, part: Any, /) -> Items: ...


def names_of(items: list[Item] | Items) -> list[str]:
    """The names of images, in order. Of items that have `names` no image is read for them."""
    names = getattr(items, "names", None)
    return [name for name, _ in items] if names is None else names()


def without_ending(names: Sequence[str]) -> list[str]:
    """Names without the endings of pictures, as they compare: letters are composed, which macOS takes apart (NFC)."""
    names = [unicodedata.normalize("NFC", name) for name in names]
    return [name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name for name in names]


@dataclass(frozen=True, eq=False)
class Raw:
    """The undecoded images of one split.

    items:       `count` of them
    labels:      (count,) int64 in [0, len(class_names)), or None
    class_names: empty without labels
    note:        the parts of the source that are not used, beginning with one of `NOTED`; empty: all is used
    rows:        where a tenth of one split is held out here, which of its images these are; None: the source has two
    """

    items: Items
    count: int
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    note: str = ""
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """One split of a data source.

    name:  for reports
    files: whose absolute paths, sizes and times of change identify the content
    read:  called only when the decoded images are not in the cache yet
    label: the column or array of labels that was asked for, part of what identifies the content
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], Raw]
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Listed:
    """Images as a reader finds them.

    labels:  a number of each (an array) or a word of each; None: without labels
    by_name: whether names say which of them are held out, or numbers
    """

    items: list[Item] | Items
    count: int
    labels: np.ndarray | Sequence[str] | None
    by_name: bool = False

    def raw(
        self, train: Listed, place: str, hold: Split | None, class_names: tuple[str, ...] = (), note: str = ""
    ) -> Raw:
        """The images of a split, with numbers for classes.

        train: the training images: their labels define the classes
        place: for errors
        hold:  the split, if the source has none and a tenth is held out here; None: all images are of the split
        class_names: if the source declares them
        Raises ValueError as `class_numbers` and `hold_out`, and for classes that the training images do not have.
        """
        labels, reference = self.labels, train.labels
        if isinstance(labels, np.ndarray) and isinstance(reference, np.ndarray):
            labels, names = class_numbers(labels, place, self.count, reference=reference, class_names=class_names)
        elif labels is None and reference is None:
            names = ()
        elif labels is None or reference is None or isinstance(labels, np.ndarray) or isinstance(reference, np.ndarray):
            raise ValueError(f"images of {place} {MIXED}")
        else:
            numbers = {word: i for i, word in enumerate(sorted(set(reference)))}
            if unknown := sorted(set(labels) - numbers.keys()):
                raise ValueError(f"labels {unknown[:5]} of {place} do not occur in the training images")
            numbered = np.array([numbers[word] for word in labels], np.int64)
            labels, names = class_numbers(numbered, place, self.count, class_names=tuple(numbers))
        if hold is None:
            return Raw(self.items, self.count, labels, names, note)
        keys = names_of(self.items) if self.by_name else [str(i) for i in range(self.count)]
        rows = hold_out(keys, hold, place)
        items = [self.items[i] for i in rows] if isinstance(self.items, list) else self.items[rows]
        return Raw(items, len(rows), None if labels is None else labels[rows], names, note, rows)


MIXED = (
    "have classes and others have none, or some have numbers and others names: expected one kind for all, in both "
    "splits; give the training images alone, and a tenth of them is held out"
)


def split_named(name: str) -> str:
    """The split that a folder or file of this name, in any case, holds: "train", one of `HELD_OUT`, one that is never
    used ("unlabeled"); empty if no split is called so."""
    name = re.sub(r"[-_ ]?((19|20)[0-9]{2}|set|data|images)$", "", name.lower())  # train2017, as COCO's; test_set
    name = _SAME.get(name, name)
    return name if name in _SPLITS else ""


def test_split(names: Container[str]) -> str:
    """The name of the test split among some splits; empty if none is."""
    return next((name for name in HELD_OUT if name in names), "")


def hidden(name: str) -> bool:
    """Whether a program put a file or folder of this name there, so that it holds no image of the set."""
    return name in _HIDDEN or (name.startswith(".") and name not in (".", ".."))


def tables_in(folder: Path) -> list[Path]:
    """The Parquet files of a folder, sorted; not a metadata.parquet, which says what the images beside it show."""
    files = [file for file in folder.glob("*") if not hidden(file.name)]
    tables = sorted(file for file in files if file.name.lower().endswith(".parquet"))
    return [file for file in tables if file.name != "metadata.parquet" or len(files) == 1]


def skipped(names: Sequence[str], noun: str, which: str = "") -> str:
    """A note on things that are not used; empty without any."""
    return f"skipped {many(len(names), noun)}{which} ({some_of(names, 5)})" if names else ""


def skipped_files(counts: Mapping[str, int], nouns: str = "images") -> str:
    """A note on files that are no images by their endings, by ending; empty without any. nouns: what others are not"""
    return f"skipped the files {counted(counts)}, which are no {nouns}" if counts else ""


def counted(counts: Mapping[str, int]) -> str:
    """A text of the five most frequent names with their counts."""
    return ", ".join(f"{count} x {name}" for name, count in Counter(counts).most_common(5))


def hold_out(keys: Sequence[str], split: Split, name: str = "this source") -> np.ndarray:
    """Ascending positions of `split` in a source without a test split.

    The tenth (at least one) of the keys with the smallest sha256 is the test split; of one key it is empty. It depends
    on nothing but the keys, and a file added later moves few others. Raises ValueError for an empty split of `name`.
    """
    if len(keys) < (2 if split == "test" else 1):
        raise ValueError(f"{many(len(keys), 'image')} in {name} cannot be divided into splits: at least 2 are needed")
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in keys]  # keys may be file names
    ranked = sorted(range(len(keys)), key=digests.__getitem__)
    count = max(1, len(keys) // 10) if len(keys) > 1 else 0
    return np.sort(np.array(ranked[:count] if split == "test" else ranked[count:]))


def class_numbers(
    labels: np.ndarray, name: str, count: int, *, reference: np.ndarray | None = None, class_names: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(count,) int64 labels and the class names of labels that are integers.

    labels:      (count,) integers of any type
    name:        where they come from, for the errors
    reference:   the labels that say how many classes there are: those of the training images; None: `labels`
    class_names: if the source declares them; else classes are named by their numbers
    A class without images is allowed. A number of `MAX_CLASSES` or more is no class but a damaged or a foreign column.
    Raises ValueError for labels of another type or number, for one that is negative or too large, and for too many
    declared names.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"labels in {name} are {labels.dtype} {labels.shape}; expected {count} integers")
    if not class_names:
        defining = labels if reference is None else reference
        check_label_range(defining, MAX_CLASSES, name)
        class_names = tuple(str(i) for i in range(int(defining.max(initial=0)) + 1))
    if len(class_names) > MAX_CLASSES:
        raise ValueError(f"{name} declares {len(class_names):,} classes, more than the {MAX_CLASSES:,} accepted")
    check_label_range(labels, len(class_names), name)
    return labels.astype(np.int64), class_names


def check_label_range(labels: np.ndarray, classes: int, name: str) -> None:
    """Raises ValueError for a label that is none of so many classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()} in {name}, {labels[wrong[0]]} in row {wrong[0]}; "
            f"{classes} classes allow 0 to {classes - 1}"
        )


def resolved(source: str | Path) -> Path:
    """The place that a source names. Raises ValueError for one that is empty or no path."""
    place = as_path(source, "the data source")
    try:
        return place.resolve()
    except RuntimeError as error:  # a loop of links
        raise ValueError(f"the data source {str(source)!r} is no path ({error})") from error


def read_utf8(path: Path) -> str:
    """The content of a UTF-8 file, without a byte-order mark, whose lines end with a line feed alone.

    Raises what `read_bytes` raises, and ValueError for a file that is no text.
    """
    with reading(path, "text in UTF-8"):
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Around a decoder of untrusted bytes: every error becomes one line that names the file.

    An error of the operating system (OSError with a number: no permission, a read error) stays an OSError, and a lack
    of memory a MemoryError, unless a file claims more than this machine has. Any other becomes a ValueError, "PATH
    cannot be read as KIND: ...", unless it names the file already.
    """
    try:
        yield
    except Exception as error:  # decoders raise about ten kinds of exceptions
        text = shown(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno:
            if error.filename is not None:
                raise
            raise OSError(error.errno, " ".join((error.strerror or text).split()), str(path)) from error
        if isinstance(error, MemoryError) and _claimed(error) <= MEMORY:
            raise MemoryError(text if str(path) in text else f"{path}: {text}") from error
        if isinstance(error, ValueError) and str(path) in text:
            raise
        raise ValueError(f"{path} cannot be read as {kind}: {_instead_of_data(path) or text}") from error


def _instead_of_data(path: Path | str) -> str:
    """A clause on a file that stands in place of one with data, and how to get that; empty for others."""
    with suppress(OSError), open(path, "rb") as file:
        begin = file.read(512).lstrip().lower()
        if begin.startswith(b"version https://git-lfs"):
            return "it is a pointer of Git LFS: `git lfs pull` fetches the file that it stands for"
        if begin.startswith((b"<!doctype html", b"<html")):
            return "it is a page of HTML, as of a failed download or a login: fetch the file again"
    return ""


def _claimed(error: MemoryError) -> int:
    """The bytes that numpy was to allocate; 0 where another lacked memory."""
    dtype = getattr(error, "dtype", None)
    return 0 if dtype is None else math.prod(getattr(error, "shape", ())) * dtype.itemsize


def printable(name: str) -> str:
    r"""A file name in which bytes that are no UTF-8 are written as \xff, so that it can be printed and encoded."""
    return os.fsencode(name).decode(errors="backslashreplace")


# NumPy archives


_IMAGES, _LABELS = ("images", "arr_0"), ("labels", "arr_1")  # the first that there is


def npz_source(path: Path, split: Split, label: str | None = None) -> Source:
    """The images of a .npz file, a tenth of them held out as the test split (`hold_out`). label: the array of labels

    Classes are named by their numbers. Raises ValueError for other array names, types or shapes, for what
    `read_arrays` refuses, and for labels that `class_numbers` refuses.
    """
    unused = list[str]()

    def wanted(names: list[str]) -> list[str]:
        arrays = ", ".join(names) or "none"
        if not set(_IMAGES) & set(names):
            raise ValueError(f"{path} has the arrays {arrays}; expected images (or arr_0) and maybe labels (or arr_1)")
        if label is not None and label not in names:
            raise ValueError(f"{path} has the arrays {arrays}; --data.label {label} is none of them")
        chosen = [next(name for name in _IMAGES if name in names)]
        chosen += [name for name in ((label,) if label else _LABELS) if name in names][:1]
        unused[:] = [name for name in names if name not in chosen]
        return chosen

    def read() -> Raw:
        images, *labels = read_arrays(path, wanted).values()
        note = skipped(unused, "array")
        if unused and not labels:
            arrays = some_of(unused, 10)
            note = f"without labels: {path.name} has the arrays {arrays}; --data.label NAME takes one of integers"
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
        listed = Listed(items, len(images), labels[0] if labels else None)
        return listed.raw(listed, str(path), split, note=note)

    return Source(f"{printable(path.stem)}/{split}", (path,), read, label)


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
        claimed, size = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError(f"array {name} holds Python objects, which are never unpickled")
    if min(shape, default=0) < 0 or claimed != size:
        raise ValueError(f"array {name} claims {dtype} {shape}, {claimed:,} bytes; it has {size:,}")
    if claimed > MEMORY:
        raise ValueError(f"array {name} takes {claimed:,} bytes; this machine has {MEMORY:,} bytes of memory")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the archive compares its checksum when it meets the end
    return array
