"""Every kind of data source, before decoding: files that identify it, and a reader of raw images.

Files that users bring: only regular files are opened, no more is read than is expected, errors name the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dualrate.config.ranges import as_path
from dualrate.system.files import naming, read_bytes

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
DataProgress = Callable[[int, int, str], None]  # done, total, message
MAX_CLASSES = 100_000
NOTED = ("skipped", "without labels")  # begin a message that says what is not used of a source
HELD_OUT = ("test", "val", "valid", "validation", "dev", "eval")  # the first of them that exists is the test split
_SPLITS = ("train", *HELD_OUT, "unlabeled", "unlabelled", "unsupervised")
_SAME = {"training": "train", "testing": "test", "evaluation": "eval"}
_HIDDEN = ("__MACOSX", "@eaDir")  # of an archive made on macOS; previews of a Synology disk


@dataclass(frozen=True, slots=True)
class Member:
    """An encoded image inside another file, `size` bytes from `offset`. fault: why it cannot be used, if so."""

    name: str
    file: Path
    offset: int
    size: int
    fault: str = ""

    def read(self) -> bytes:
        """Its bytes. Raises ValueError if it cannot be used or the file ends within it, OSError if it is not given."""
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
    """Undecoded images in order. A slice of them, from one number to another, can be sent to a worker."""

    def __iter__(self) -> Iterator[Item]: ...

    def __getitem__(self, part: slice, /) -> Items: ...


class Rows(Items, Protocol):
    """Items that are read when they are asked for."""

    def at(self, rows: np.ndarray, /) -> Items:
        """Those of these numbers, which ascend."""
        ...


@dataclass(frozen=True, eq=False)
class Raw:
    """The undecoded images of one split.

    items:       `count` of them
    labels:      (count,) int64 in [0, len(class_names)), or None
    class_names: empty without labels
    note:        the parts of the source that are not used, beginning with one of `NOTED`; empty: all is used
    """

    items: Items
    count: int
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Source:
    """One split of a data source.

    name:  for reports
    files: whose absolute paths, sizes and times of change identify the content
    read:  called only when the decoded images are not in the cache yet
    label: the column of labels that was asked for, part of what identifies the content
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

    items: list[Item] | Rows
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
        labels, known = self.labels, train.labels
        if isinstance(labels, np.ndarray) and isinstance(known, np.ndarray):
            labels, names = class_numbers(labels, place, self.count, reference=known, class_names=class_names)
        elif labels is None and known is None:
            names = ()
        elif labels is None or known is None or isinstance(labels, np.ndarray) or isinstance(known, np.ndarray):
            raise ValueError(f"images of {place} {MIXED}")
        else:
            numbers = {word: i for i, word in enumerate(sorted(set(known)))}
            if unknown := sorted(set(labels) - numbers.keys()):
                raise ValueError(f"labels {unknown[:5]} of {place} do not occur in the training images")
            found = np.array([numbers[word] for word in labels], np.int64)
            labels, names = class_numbers(found, place, self.count, class_names=tuple(numbers))
        if hold is None:
            return Raw(self.items, self.count, labels, names, note)
        keys = [name for name, _ in self.items] if self.by_name else [str(i) for i in range(self.count)]
        rows = hold_out(keys, hold, place)
        items = [self.items[i] for i in rows] if isinstance(self.items, list) else self.items.at(rows)
        return Raw(items, len(rows), None if labels is None else labels[rows], names, note)


MIXED = (
    "have classes and others have none, or some have numbers and others names: expected one kind for all, in both "
    "splits; give the training images alone, and a tenth of them is held out"
)


def split_named(name: str) -> str:
    """The split that a folder or file of this name, in any case, holds: "train", one of `HELD_OUT`, one that is never
    used ("unlabeled"); empty if no split is called so."""
    name = _SAME.get(name.lower(), name.lower())
    return name if name in _SPLITS else ""


def test_split(names: Container[str]) -> str:
    """The one of some splits that is the test split; empty if none is."""
    return next((name for name in HELD_OUT if name in names), "")


def hidden(name: str) -> bool:
    """Whether a program put a file or folder of this name there, so that it holds no image of the set."""
    return name in _HIDDEN or (name.startswith(".") and name not in (".", ".."))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def skipped(names: Sequence[str], what: str) -> str:
    """A note on things that are not used; empty without any."""
    return f"skipped {len(names)} {what} ({some(names)})" if names else ""


def hold_out(keys: Sequence[str], split: Split, name: str = "this source") -> np.ndarray:
    """Ascending positions of `split` in a source without a test split.

    The tenth (at least one) of the keys with the smallest sha256 is the test split. It depends on nothing but the
    keys, and a file added later moves few others. Raises ValueError for fewer than two keys; `name` is for the error.
    """
    if len(keys) < 2:
        raise ValueError(f"{len(keys)} image(s) in {name} cannot be divided into train and test; at least 2 are needed")
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in keys]  # keys may be file names
    ranked = sorted(range(len(keys)), key=digests.__getitem__)
    count = max(1, len(keys) // 10)
    return np.sort(np.array(ranked[:count] if split == "test" else ranked[count:]))


def class_numbers(
    labels: np.ndarray,
    name: str,
    count: int,
    *,
    reference: np.ndarray | None = None,
    class_names: tuple[str, ...] = (),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(count,) int64 labels and the class names of labels that are integers.

    labels:      (count,) integers of any type
    name:        where they come from, for the errors
    reference:   the labels that say how many classes there are: those of the training images; None: `labels`
    class_names: if the source declares them; else classes are named by their numbers
    A class without images is allowed, but numbers stay below 1000 or ten times the number of images, whichever is
    more, and below `MAX_CLASSES`: a larger one is no class but a damaged or a foreign column.
    Raises ValueError for labels of another type or number, for one that is negative or too large, and for too many
    declared names.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"labels in {name} are {labels.dtype} {labels.shape}; expected {count} integers")
    if not class_names:
        known = labels if reference is None else reference
        allowed = min(MAX_CLASSES, max(1000, 10 * len(known)))
        check_labels(known, allowed, name, f"class numbers of {len(known)} images are")
        class_names = tuple(str(i) for i in range(int(known.max(initial=0)) + 1))
    if len(class_names) > MAX_CLASSES:
        raise ValueError(f"{name} declares {len(class_names):,} classes, more than the {MAX_CLASSES:,} accepted")
    check_labels(labels, len(class_names), name)
    return labels.astype(np.int64), class_names


def check_labels(labels: np.ndarray, classes: int, name: str, rule: str = "") -> None:
    """Raises ValueError for a label that is none of so many classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()} in {name}, {labels[wrong[0]]} in row {wrong[0]}; "
            f"{rule or f'{classes} class names allow'} 0 to {classes - 1}"
        )


MAX_TEXT = 10_000_000  # bytes of a text file, such as a plan
_MAX_MESSAGE = 500  # characters of what a decoder says


def resolved(source: str | Path) -> Path:
    """The place that a source names. Raises ValueError for one that is empty or no path."""
    place = as_path(source, "the data source")
    try:
        return place.resolve()
    except RuntimeError as error:  # a loop of links
        raise ValueError(f"the data source {str(source)!r} is no path ({error})") from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; raises what `read_bytes` raises, and ValueError for a file that is no text."""
    with reading(path, "text"):
        return read_bytes(path, MAX_TEXT).decode()


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Around a decoder of untrusted bytes: every error becomes one line that names the file.

    An error of the operating system (OSError with a number: no permission, a read error) stays an OSError. Any other
    becomes a ValueError, "PATH cannot be read as KIND: ...", unless it names the file already.
    """
    try:
        yield
    except Exception as error:  # decoders raise about ten kinds of exceptions
        if isinstance(error, OSError) and error.errno:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        said = one_line(error)
        if isinstance(error, ValueError) and str(path) in said:
            raise
        raise ValueError(f"{path} cannot be read as {kind}: {said}") from error


def one_line(error: Exception) -> str:
    """The message of an exception, or else its type, in one line of bounded length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _MAX_MESSAGE else said[:_MAX_MESSAGE] + " ..."


def printable(name: str) -> str:
    r"""A file name in which bytes that are no UTF-8 are written as \xff, so that it can be printed and encoded."""
    return os.fsencode(name).decode(errors="backslashreplace")
