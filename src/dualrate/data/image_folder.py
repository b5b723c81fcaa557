"""A folder of images: class sub-folders, a flat folder, or train/ and test/ sub-folders of either kind.

One rule holds at every depth. A link is followed as if its target stood there; one that leads back to a folder above it
is refused. Hidden files and folders (`source.hidden`) are not read. These, and links that lead nowhere, are counted.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from dualrate.data.decode import SUFFIXES
from dualrate.data.source import HELD_OUT, Each, Raw, Source, Split, hidden, hold_out, printable, some, split_named

_LOOKED_AT = 10_000  # files whose suffixes are counted to say what is there instead of images


@dataclass(frozen=True)
class _Listing:
    """Image files in order; classes[i] is the sub-folder of files[i]. classes is empty for a flat folder."""

    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """A folder; through: the real paths of those that it was reached through, its own the last."""

    path: Path
    through: tuple[Path, ...]

    def inner(self, entry: os.DirEntry[str]) -> _Folder:
        path = self.path / entry.name
        real = path.resolve() if entry.is_symlink() else self.through[-1] / entry.name
        if any(above.is_relative_to(real) for above in self.through):
            raise ValueError(f"{path} is a link to a folder above it, so that it holds itself; remove the link")
        return _Folder(path, (*self.through, real))


@dataclass(frozen=True)
class _Unread:
    """What is not read below a folder."""

    root: Path
    hidden: set[Path] = field(default_factory=set)
    dead: set[Path] = field(default_factory=set)
    splits: set[Path] = field(default_factory=set)

    @property
    def note(self) -> str:
        """As in `Source`."""
        kinds = {
            "hidden file(s) or folder(s)": self.hidden,
            "link(s) that lead nowhere": self.dead,
            "folder(s) of other splits": self.splits,
        }
        said = [
            f"{len(paths)} {kind} ({some([named(self.root, path)[0] for path in sorted(paths)])})"
            for kind, paths in kinds.items()
            if paths
        ]
        return f"skipped {', '.join(said)} in {printable(self.root.name)}" if said else ""


def folder_source(path: Path, split: Split) -> Source:
    """The images of a folder.

    Sub-folders are classes, in sorted order; images directly in the folder have no labels. If all sub-folders are
    named like splits (`split_named`), they are the splits. Without a test split a tenth is held out (`hold_out`).
    Raises ValueError for a folder without images, for a mixture of layouts, for splits of which none, or more than one,
    is to be trained on, for a class that only the test split has, and for a link back to a folder above it; OSError for
    a folder that cannot be read.
    """
    unread, name = _Unread(path), printable(path.name)
    splits = _splits(path, unread)
    if not splits:
        return _held_out(_listing(path, unread), name, split, unread)
    test = next((kind for kind in HELD_OUT if kind in splits), "")
    unread.splits.update(folder for kind in splits if kind not in ("train", test) for folder in splits[kind])
    train = _listing(_only(splits["train"]), unread)
    if not test:
        return _held_out(train, name, split, unread)
    held_out = _listing(_only(splits[test]), unread)
    return _source(train if split == "train" else held_out, train, f"{name}/{split}", unread)


def _splits(path: Path, unread: _Unread) -> dict[str, list[Path]]:
    """The sub-folders by split; none if they are classes. Raises ValueError if they are neither or cannot be used."""
    folders, images = _scan(_top(path), unread)
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        splits.setdefault(split_named(folder.path.name), []).append(folder.path)
    others = splits.pop("", [])
    if others and not _alike(splits):
        return {}
    named = some([folder.name for kind in splits for folder in splits[kind]])
    if splits and others:
        raise ValueError(
            f"{path} holds folders of splits ({named}) with the same classes, and others "
            f"({some([folder.name for folder in others])}): move the others elsewhere, or name one folder as the source"
        )
    if splits and not images and "train" not in splits:
        raise ValueError(
            f"{path} holds folders of splits ({named}), and none to train on: expected one that is named train; to "
            f"train on one of these, name it: {path / folders[0].path.name}"
        )
    return splits if "train" in splits else {}


def _alike(splits: dict[str, list[Path]]) -> bool:
    """Whether there are images to train on and others, with a class in common."""

    def classes(kind: str) -> set[str]:
        return {one.path.name for folder in splits[kind] for one in _scan(_top(folder), _Unread(folder))[0]}

    return "train" in splits and any(classes("train") & classes(kind) for kind in splits if kind != "train")


def _only(folders: list[Path]) -> Path:
    if len(folders) > 1:
        raise ValueError(
            f"{folders[0].parent} holds {some([folder.name for folder in folders])}, which are the same split: keep one"
        )
    return folders[0]


def _held_out(listing: _Listing, name: str, split: Split, unread: _Unread) -> Source:
    keys = [file.relative_to(listing.root).as_posix() for file in listing.files]
    positions = hold_out(keys, split, str(listing.root))
    files = tuple(listing.files[i] for i in positions)
    classes = tuple(listing.classes[i] for i in positions) if listing.classes else ()
    return _source(_Listing(listing.root, files, classes), listing, f"{name}/{split}", unread)


def _source(listing: _Listing, reference: _Listing, name: str, unread: _Unread) -> Source:
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

    files = tuple(dict.fromkeys((*reference.files, *listing.files)))
    return Source(name, files, read, unread.note)


def named(root: Path, file: Path) -> tuple[str, Path]:
    return printable(file.relative_to(root).as_posix()), file


def _top(path: Path) -> _Folder:
    return _Folder(path, (path.resolve(),))


def _scan(folder: _Folder, unread: _Unread) -> tuple[list[_Folder], list[Path]]:
    """The sub-folders and images of a folder, sorted; what is not read is added to `unread`."""
    folders, images = [], []
    for entry in sorted(os.scandir(folder.path), key=lambda entry: entry.name):
        path, within = folder.path / entry.name, is_folder(entry)
        if hidden(entry.name):
            unread.hidden.update([path] if within or is_image(entry.name) else [])
        elif within:
            folders.append(folder.inner(entry))
        elif is_image(entry.name):
            images.append(path)
        elif entry.is_symlink() and not os.path.exists(path):
            unread.dead.add(path)
    return folders, images


def _listing(root: Path, unread: _Unread) -> _Listing:
    folders, flat = _scan(_top(root), unread)
    by_class = {folder.path.name: _below(folder, unread) for folder in folders}
    if not flat and not any(by_class.values()):
        raise ValueError(_nothing_found(root))
    if flat and by_class:
        raise ValueError(
            f"{root} holds images ({flat[0].name}, ...) and folders ({some(list(by_class))}); expected either "
            "one sub-folder per class, or images alone"
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise ValueError(f"class folders without images in {root}: {some(empty)}; remove or fill them")
    if flat:
        return _Listing(root, tuple(flat), ())
    pairs = [(file, name) for name, files in by_class.items() for file in files]
    return _Listing(root, tuple(file for file, _ in pairs), tuple(name for _, name in pairs))


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, by the rule of links and hidden files. Raises as `folder_source`."""
    return _below(_top(folder), _Unread(folder))


def _below(folder: _Folder, unread: _Unread) -> list[Path]:
    folders, images = _scan(folder, unread)
    return sorted([*images, *(file for inner in folders for file in _below(inner, unread))])


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _nothing_found(root: Path) -> str:
    names = islice((name for _, _, names in os.walk(root) for name in names), _LOOKED_AT)
    suffixes = Counter(printable(Path(name).suffix.lower()) or "no suffix" for name in names)
    there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5)) or "no files at all"
    return (
        f"no images in {root}: looked for {', '.join(SUFFIXES)} directly or in sub-folders, for .tar files "
        f"directly or in train/ and test/, for .parquet files directly or in data/; there are {there}"
    )
