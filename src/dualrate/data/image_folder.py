"""A folder of images: class sub-folders, a flat folder, or train/ and test/ sub-folders of either kind.

One rule holds at every depth. A link is followed as if its target stood there; one that leads back to a folder above it
is refused. Hidden files and folders (`source.hidden`) are not read.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

from dualrate.data.decode import SUFFIXES
from dualrate.data.source import (
    Each,
    Item,
    Listed,
    Raw,
    Source,
    Split,
    hidden,
    printable,
    skipped,
    some,
    split_named,
    test_split,
)


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
    files, train = _listed(root)
    chosen = train
    if test and split == "test":
        root = splits[test]
        more, chosen = _listed(root)
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


def _listed(root: Path) -> tuple[list[Path], Listed]:
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
    keys = [file.relative_to(root).as_posix() for file in files]
    return files, Listed(Each(partial(named, root), files), len(files), labels or None, keys)


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


def named(root: Path, file: Path) -> Item:
    return printable(file.relative_to(root).as_posix()), file
