"""What every kind of data source reduces to before decoding: files that identify it, and a reader of raw images.

Files that users bring: only regular files are opened, no more is read than is expected, errors name the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dualrate.config.ranges import as_path
from dualrate.system.files import check_regular, check_size, naming

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
    """An image that stands in another file as it is, `size` bytes from `offset`; or why it cannot be used."""

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


@dataclass(frozen=True)
class Each:
    """Items that are made when they are asked for: one of each of `of`, by a function that can be pickled."""

    make: Callable[[Any], Item]
    of: Sequence[Any]

    def __iter__(self) -> Iterator[Item]:
        return map(self.make, self.of)

    def __getitem__(self, part: slice, /) -> Each:
        return Each(self.make, self.of[part])


@dataclass(frozen=True, eq=False)
class Raw:
    """The undecoded images of one split.

    items:       `count` of them
    labels:      (count,) int64 in [0, len(class_names)), or None
    class_names: empty without labels
    note:        what is not used of the source, beginning with one of `NOTED`; empty if all is
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
    note:  as in `Raw`, where it is known before anything is read
    label: the column of labels that was asked for, part of what identifies the content
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], Raw]
    note: str = ""
    label: str | None = None


def split_named(name: str) -> str:
    """The split that a folder or file of this name, in any case, holds: "train", one of `HELD_OUT`, one that is never
    used ("unlabeled"); empty if no split is called so."""
    name = _SAME.get(name.lower(), name.lower())
    return name if name in _SPLITS else ""


def hidden(name: str) -> bool:
    """Whether a file or folder of this name was put there by a program, and holds no image of the set."""
    return name in _HIDDEN or (name.startswith(".") and name not in (".", ".."))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def hold_out(keys: Sequence[str], split: Split, name: str = "this source") -> np.ndarray:
    """Ascending positions of `split` in a source that has no test split of its own.

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
        _check_range(known, allowed, f"class numbers of {len(known)} images are 0 to {allowed - 1}", name)
        class_names = tuple(str(i) for i in range(int(known.max(initial=0)) + 1))
    if len(class_names) > MAX_CLASSES:
        raise ValueError(f"{name} declares {len(class_names):,} classes, more than the {MAX_CLASSES:,} accepted")
    high = len(class_names) - 1
    _check_range(labels, high + 1, f"{high + 1} class names allow 0 to {high}", name)
    return labels.astype(np.int64), class_names


def class_words(words: Sequence[str], known: Collection[str], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 labels of words, and the class names: `known`, those of the training images, sorted.

    Raises ValueError for a word that the training images do not have, and for too many of them.
    """
    numbers = {word: i for i, word in enumerate(sorted(known))}
    if unknown := sorted(set(words) - numbers.keys()):
        raise ValueError(f"labels {unknown[:5]} of {name} do not occur in the training images")
    labels = np.array([numbers[word] for word in words], np.int64)
    return class_numbers(labels, name, len(labels), class_names=tuple(numbers))


def _check_range(labels: np.ndarray, classes: int, expected: str, name: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()} in {name}, {labels[wrong[0]]} in row {wrong[0]}; "
            f"{expected}"
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


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file; raises what `check_regular` raises."""
    check_regular(path, limit)
    with open(path, "rb") as file:
        data = file.read(limit + 1)  # a file may grow, or say that it has no size
    check_size(path, len(data), limit)
    return data


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; raises what `check_regular` raises, and ValueError for a file that is no text."""
    with reading(path, "text"):
        return read_limited(path, MAX_TEXT).decode()


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Around a decoder of untrusted bytes: whatever it raises becomes one line that names the file.

    What the operating system says (OSError with a number: no permission, a read error) stays what it is. All else is
    a ValueError, "PATH cannot be read as KIND: ...", unless it names the file already.
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
    """What an exception says, or else its type, in one line of bounded length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _MAX_MESSAGE else said[:_MAX_MESSAGE] + " ..."


def printable(name: str) -> str:
    r"""A file name in which bytes that are no UTF-8 are written as \xff, so that it can be printed and encoded."""
    return os.fsencode(name).decode(errors="backslashreplace")
