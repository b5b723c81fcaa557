"""A folder of images: class sub-folders, a flat folder, or train/ and test/ sub-folders of either kind.

One rule holds at every depth. A link is followed as if its target stood there; one that leads back to a folder above it
is refused. Hidden files and folders (`source.hidden`) are not read.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from dualrate.data.decode import SUFFIXES
from dualrate.data.source import HELD_OUT, Each, Raw, Source, Split, hidden, hold_out, printable, some, split_named


@dataclass(frozen=True)
class _Listing:
    """Image files in order; classes[i] is the sub-folder of files[i]. classes is empty for a flat folder."""

    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]


def folder_source(path: Path, split: Split) -> Source:
    """The images of a folder.

    Sub-folders are classes, in sorted order; images directly in the folder have no labels. If all sub-folders are
    named like splits (`split_named`), they are the splits. Without a test split a tenth is held out (`hold_out`).
    Raises ValueError for a folder without images, for a mixture of layouts, for splits of which none, or more than one,
    is to be trained on, for a class that only the test split has, and for a link back to a folder above it; OSError for
    a folder that cannot be read.
    """
    name, splits = printable(path.name), _splits(path)
    train = _listing(_only(splits["train"]) if splits else path)
    test = next((kind for kind in HELD_OUT if kind in splits), "")
    unused = [folder.name for kind in splits if kind not in ("train", test) for folder in splits[kind]]
    note = f"skipped {len(unused)} folder(s) of other splits ({some(unused)}) in {name}" if unused else ""
    if test:
        chosen = train if split == "train" else _listing(_only(splits[test]))
    else:
        keys = [file.relative_to(train.root).as_posix() for file in train.files]
        positions = hold_out(keys, split, str(train.root))
        classes = tuple(train.classes[i] for i in positions) if train.classes else ()
        chosen = _Listing(train.root, tuple(train.files[i] for i in positions), classes)
    class_names = tuple(sorted(set(train.classes)))
    unknown = sorted(set(chosen.classes) - set(class_names))
    if unknown or bool(chosen.classes) != bool(class_names):
        raise ValueError(
            f"{chosen.root} has the classes {unknown or 'none'}, the training images {class_names or 'none'}; "
            "both splits need the same class sub-folders"
        )

    def read() -> Raw:
        labels = np.searchsorted(class_names, chosen.classes).astype(np.int64) if class_names else None
        items = Each(partial(named, chosen.root), chosen.files)
        return Raw(items, len(chosen.files), labels, tuple(map(printable, class_names)))

    files = tuple(dict.fromkeys((*train.files, *chosen.files)))  # the training images say which classes there are
    return Source(f"{name}/{split}", files, read, note)


def _splits(path: Path) -> dict[str, list[Path]]:
    """The sub-folders by split; none if they are classes. Raises ValueError if they are neither or cannot be used."""
    folders, images = _scan(path)
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        splits.setdefault(split_named(folder.name), []).append(folder)
    others = splits.pop("", [])
    names = some([folder.name for kind in splits for folder in splits[kind]])
    if others and "train" in splits and len(splits) > 1:
        raise ValueError(
            f"{path} holds folders of splits ({names}) and others ({some([folder.name for folder in others])}): move "
            "the others elsewhere, or name one folder as the source"
        )
    if splits and not others and not images and "train" not in splits:
        raise ValueError(
            f"{path} holds folders of splits ({names}), and none to train on: expected one that is named train; to "
            f"train on one of these, name it: {folders[0]}"
        )
    return splits if "train" in splits and not others else {}


def _only(folders: list[Path]) -> Path:
    if len(folders) > 1:
        raise ValueError(
            f"{folders[0].parent} holds {some([folder.name for folder in folders])}, which are the same split: keep one"
        )
    return folders[0]


def _listing(root: Path) -> _Listing:
    folders, flat = _scan(root)
    by_class = {folder.name: images_below(folder, (root.resolve(),)) for folder in folders}
    if not flat and not any(by_class.values()):
        raise ValueError(_nothing_found(root))
    if flat and by_class:
        raise ValueError(
            f"{root} holds images ({flat[0].name}, ...) and folders ({some(list(by_class))}); expected either "
            "one sub-folder per class, or images alone"
        )
    if empty := [name for name, files in by_class.items() if not files]:
        raise ValueError(f"class folders without images in {root}: {some(empty)}; remove or fill them")
    if flat:
        return _Listing(root, tuple(flat), ())
    files, classes = zip(*((file, name) for name, files in by_class.items() for file in files), strict=True)
    return _Listing(root, files, classes)


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
        if is_folder(entry):
            if entry.is_symlink() and any(one.is_relative_to(path.resolve()) for one in through):
                raise ValueError(f"{path} is a link to a folder above it, so that it holds itself; remove the link")
            folders.append(path)
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(path)
    return folders, images


def named(root: Path, file: Path) -> tuple[str, Path]:
    return printable(file.relative_to(root).as_posix()), file


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _nothing_found(root: Path) -> str:
    names = islice((name for _, _, names in os.walk(root) for name in names), 10_000)
    suffixes = Counter(printable(Path(name).suffix.lower()) or "no suffix" for name in names)
    there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5)) or "no files at all"
    return (
        f"no images in {root}: looked for {', '.join(SUFFIXES)} directly or in sub-folders, for .tar files "
        f"directly or in train/ and test/, for .parquet files directly or in data/; there are {there}"
    )
