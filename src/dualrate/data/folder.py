"""A folder of images: class sub-folders, a flat folder, or train/ and test/ sub-folders of either kind."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from dualrate.data.decode import SUFFIXES
from dualrate.data.source import Each, Raw, Source, Split, hold_out
from dualrate.data.untrusted import printable

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split
_LOOKED_AT = 10_000  # files whose suffixes are counted to say what is there instead of images


@dataclass(frozen=True)
class _Listing:
    """Image files in order; classes[i] is the sub-folder of files[i]. classes is empty for a flat folder."""

    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]


def folder_source(path: Path, split: Split) -> Source:
    """The images of a folder.

    Sub-folders are classes, in sorted order; images directly in the folder have no labels. If all sub-folders are
    named like splits, one of them train, they are the splits; otherwise a tenth is held out (`hold_out`).
    Raises ValueError for a folder without images, for a mixture of layouts, for a class that only test/ has, and for
    a class folder that is a link back to a folder above it; OSError for a folder that cannot be read.
    """
    names = _subfolders(path)
    if "train" not in names or not set(names) <= {"train", *TEST_NAMES}:
        return _held_out(_listing(path), printable(path.name), split)
    train = _listing(path / "train")
    test = next((name for name in TEST_NAMES if name in names), None)
    if test is None:
        return _held_out(train, printable(path.name), split)
    chosen = train if split == "train" else _listing(path / test)
    return _source(chosen, train, f"{printable(path.name)}/{split}")


def _held_out(listing: _Listing, name: str, split: Split) -> Source:
    keys = [file.relative_to(listing.root).as_posix() for file in listing.files]
    positions = hold_out(keys, split, str(listing.root))
    files = tuple(listing.files[i] for i in positions)
    classes = tuple(listing.classes[i] for i in positions) if listing.classes else ()
    return _source(_Listing(listing.root, files, classes), listing, f"{name}/{split}")


def _source(listing: _Listing, reference: _Listing, name: str) -> Source:
    """The images of `listing` with the classes of `reference`, whose files therefore are part of the identity."""
    class_names = tuple(sorted(set(reference.classes)))
    unknown = sorted(set(listing.classes) - set(class_names))
    if unknown or bool(listing.classes) != bool(class_names):
        raise ValueError(
            f"{listing.root} has the classes {unknown or 'none'}, the training images {class_names or 'none'}; "
            "both splits need the same class sub-folders"
        )

    def read() -> Raw:
        number = {name: i for i, name in enumerate(class_names)}
        labels = np.array([number[name] for name in listing.classes], dtype=np.int64) if class_names else None
        items = Each(partial(named, listing.root), listing.files)
        return Raw(items, len(listing.files), labels, tuple(map(printable, class_names)))

    return Source(name, tuple(dict.fromkeys((*reference.files, *listing.files))), read)


def named(root: Path, file: Path) -> tuple[str, Path]:
    return printable(file.relative_to(root).as_posix()), file


def _subfolders(path: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(path) if _is_folder(entry) and not entry.name.startswith("."))
    for name in names:
        if path.resolve().is_relative_to((path / name).resolve()):
            raise ValueError(f"{path / name} is a link to a folder above it, so that it holds itself; remove the link")
    return names


def _listing(root: Path) -> _Listing:
    by_class = {name: images_below(root / name) for name in _subfolders(root)}
    flat = [root / entry.name for entry in os.scandir(root) if _is_image(entry.name) and not _is_folder(entry)]
    if not flat and not any(by_class.values()):
        raise ValueError(_nothing_found(root))
    if flat and by_class:
        raise ValueError(
            f"{root} holds images ({flat[0].name}, ...) and folders ({', '.join(list(by_class)[:5])}); expected either "
            "one sub-folder per class, or images alone"
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise ValueError(f"class folders without images in {root}: {', '.join(empty[:5])}; remove or fill them")
    if flat:
        return _Listing(root, tuple(sorted(flat)), ())
    pairs = [(file, name) for name, files in by_class.items() for file in files]
    return _Listing(root, tuple(file for file, _ in pairs), tuple(name for _, name in pairs))


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""

    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=refuse)
    return sorted(Path(at, name) for at, _, names in walk for name in names if _is_image(name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _nothing_found(root: Path) -> str:
    names = islice((name for _, _, names in os.walk(root) for name in names), _LOOKED_AT)
    suffixes = Counter(printable(Path(name).suffix.lower()) or "no suffix" for name in names)
    there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5)) or "no files at all"
    return (
        f"no images in {root}: looked for {', '.join(SUFFIXES)} directly or in sub-folders, for .tar files "
        f"directly or in train/ and test/, for .parquet files directly or in data/; there are {there}"
    )
