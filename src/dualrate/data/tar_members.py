"""The images of one tar archive of unknown origin: where they stand in it, and what it says of them.

Headers are read by Python's tarfile, one after the other; what that takes on trust is checked: that it goes forwards,
that what is said to be there is, that the archive has an end. Nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from dualrate.data.decode import MAX_BYTES, SUFFIXES
from dualrate.data.source import Member, hidden, split_named
from dualrate.data.untrusted import printable, reading
from dualrate.machine.files import check_regular

Label = int | str
_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 2**20  # bytes of an extended header, of a label
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Found:
    """An image of an archive. folder: what holds it there, a folder or an inner tar; empty: nothing does. splits: those
    that its path names, as `split_named` calls them."""

    image: Member
    tar: Path
    folder: str
    splits: frozenset[str]
    label: Label | None


@dataclass(frozen=True, slots=True)
class Listed:
    """The images of an archive; hidden: the names of images that are not read; alone: of labels without an image."""

    images: list[Found]
    hidden: list[str]
    alone: list[str]


def images_of(file: Path, shown: str) -> Listed:
    """The images of one tar with their labels. shown: its name in messages.

    A label is that of the image of the same name up to the last dot; else, as in webdataset, up to the first one.
    """
    check_regular(file)
    labels: dict[str, Label] = {}
    used: set[str] = set()
    passed: list[str] = []
    images: list[tuple[str, Member]] = []
    names: set[str] = set()
    with reading(file, "tar"), _Headers(file) as headers:
        if headers.read(8).startswith(_COMPRESSED):
            raise ValueError("it is compressed: unpack it to a plain .tar, in which images are read where they stand")
        for inside, entry, offset in _entries(headers, 0, file.stat().st_size, ""):
            name = inside + entry.name.removeprefix("./")
            stem, dot, suffix = name.rpartition(".")
            kind = dot + suffix.lower()
            if _hidden(name):
                passed += [printable(f"{shown}/{name}")] if kind in SUFFIXES else []
            elif kind in (".cls", ".json") and entry.type in _REGULAR and entry.size <= _MAX_HEADER:
                headers.seek(offset)
                label = _label(headers.read(entry.size), kind == ".json")
                if label is not None and (kind == ".cls" or stem not in labels):
                    labels[stem] = label
            elif kind in (*SUFFIXES, ".tar"):
                said = printable(f"{shown}/{name}")
                images.append((name, Member(said, file, offset, entry.size, _fault(entry, name in names))))
                names.add(name)

    def found(name: str, image: Member) -> Found:
        folder, splits = _place(f"{shown}/{name.rpartition('/')[0]}", shown)
        inside, slash, base = name.rpartition("/")
        keys = (name.rpartition(".")[0], inside + slash + base.partition(".")[0])
        key = next((key for key in keys if key in labels), "")
        used.add(key)
        return Found(image, file, folder, splits, labels.get(key))

    every = [found(name, image) for name, image in images]
    return Listed(every, passed, [printable(f"{shown}/{key}") for key in labels if key not in used])


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
            inner = entry.offset_data + (entry.size if entry.type in _REGULAR and not entry.issparse() else 0)
            if not (begin <= entry.offset < entry.offset_data <= inner <= end <= stop):
                raise ValueError(
                    f"{inside}{entry.name} is said to be at {entry.offset_data:,}, of {entry.size:,} bytes"
                )
            if entry.isdir():
                continue
            nested = entry.name.lower().endswith(".tar") and not _hidden(entry.name)
            if nested and entry.type in _REGULAR and not inside:
                yield from _entries(headers, entry.offset_data, end, f"{entry.name}/")
            else:
                yield inside, entry, entry.offset_data
    headers.seek(end)
    if end + _BLOCK > stop or headers.read(_BLOCK).strip(b"\0"):
        raise ValueError(f"{inside or 'it'} is damaged or cut off at byte {end:,}: the mark of its end is not there")


def _fault(entry: tarfile.TarInfo, again: bool) -> str:
    """Why something with an image's name is not to be used."""
    if entry.issparse() or entry.type not in _REGULAR:
        return f"it is {_KINDS.get(entry.type, 'a sparse file')}"
    if entry.name.lower().endswith(".tar"):
        return "a tar within a tar within a tar is not opened"
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        return "its name leads out of the archive"
    if again:
        return "there is another file of this name before it"
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
def _place(path: str, shown: str) -> tuple[str, frozenset[str]]:
    """The folder or inner tar of images, empty if there is none, and the splits that this path names.

    path: that of their folder, with those of the tars, of which the outer one's is `shown`
    """
    parts = PurePosixPath(path).parts
    named = [*parts, *(word for part in parts if part.endswith(".tar") for word in words(part))]
    splits = frozenset(filter(None, map(split_named, named)))
    folder = parts[-1].removesuffix(".tar") if len(parts) > len(PurePosixPath(shown).parts) else ""
    return printable(folder), splits


def words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


def _hidden(name: str) -> bool:
    return any(map(hidden, name.split("/")))


class _Headers(io.FileIO):
    """A file of which little is read at a time: an archive's own word on the length of a header is not taken."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"it has a header of {size} bytes, more than the {_MAX_HEADER:,} accepted")
        return super().read(size) or b""
