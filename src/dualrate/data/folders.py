"""Folders of images.

Class sub-folders, images alone, or train/ and test/ sub-folders of either kind. One rule holds at every depth.
A link is followed as if its target stood there; one that leads back to a folder above it is refused.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from dualrate.data import source as sources
from dualrate.data.source import SUFFIXES, Item, Listed, Raw, Source, Split, counted, hidden, printable, split_named
from dualrate.system.folders import some_of

_FRACTION = re.compile(r"(?<![0-9.])[0-9]+\.([0-9]+)(?!\.?[0-9])")  # of a number with one point


def folder_source(path: Path, split: Split) -> Source:
    """The images of a folder.

    Sub-folders are classes, in sorted order; images directly in the folder have no labels. If all sub-folders are
    named like splits (`split_named`), they are the splits. Without a test split a tenth is held out (`hold_out`).
    Raises ValueError for a folder without images, for a mixture of layouts, for one folder around those of the splits,
    for splits of which none, or more than one, is to be trained on, and for a link back to a folder above it; OSError
    for a folder that cannot be read. Raises when read ValueError for a class that only the test split has.
    """
    splits = _splits(path)
    test = sources.test_split(splits)
    unused = [folder.name for kind, folder in splits.items() if kind not in ("train", test)]
    root = splits.get("train", path)
    files, train = _folder(root)
    chosen = train
    if test and split == "test":
        root = splits[test]
        more, chosen = _folder(root)
        files = dict.fromkeys((*files, *more))  # the training images say which classes there are

    def read() -> Raw:
        strange = [(suffix, count) for suffix, count in _suffixes(path).items() if suffix not in SUFFIXES]
        notes = sources.skipped(unused, "folder", " of other splits"), sources.skipped_files(dict(strange))
        return chosen.raw(train, str(root), None if test else split, note="; ".join(filter(None, notes)))

    return Source(f"{printable(path.name)}/{split}", tuple(files), read)


def _splits(path: Path) -> dict[str, Path]:
    """The sub-folders by split; none if they are classes. Raises ValueError if they are neither or cannot be used."""
    folders, files = _scan(path)
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        splits.setdefault(split_named(folder.name), []).append(folder)
    classes = [folder.name for folder in splits.pop("", [])]
    names = some_of([folder.name for same in splits.values() for folder in same])
    check_splits_alone(path, [folder.name for folder in folders])
    if splits and not classes and not _images(files) and "train" not in splits:
        raise ValueError(
            f"{path} holds folders of splits ({names}), and none to train on: expected one that is named train; to "
            f"train on one of these, name it: {folders[0]}"
        )
    if len(classes) == len(folders) == 1 and (inside := _splits(folders[0])):
        raise ValueError(f"{path} holds one folder, of splits ({', '.join(inside)}): name {folders[0]} instead")
    if classes or "train" not in splits:
        return {}
    for same in splits.values():
        if len(same) > 1:
            raise ValueError(f"{path} holds {some_of([f.name for f in same])}, which are the same split: keep one")
    return {kind: same[0] for kind, same in splits.items()}


def check_splits_alone(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError where a folder holds training data, another split and, by their names, others beside these; and
    where one of the others is a split with a number (test1), as it may be no class."""
    splits = {name: split_named(name) for name in names}
    beside = [name for name, split in splits.items() if not split]
    unsure = len({*splits.values()}) > 2 or any(split_named(name.rstrip("0123456789-_")) for name in beside)
    if beside and "train" in splits.values() and unsure:
        named_so = some_of([name for name, split in splits.items() if split])
        raise ValueError(
            f"{path} holds folders of splits ({named_so}) and others ({some_of(beside)}): move the others elsewhere, "
            "or name one folder as the source"
        )


def _folder(root: Path) -> tuple[list[Path], Listed]:
    """The image files of a folder of classes or of images alone, in order."""
    folders, files = _scan(root)
    flat = _images(files)
    by_class = {folder.name: images_below(folder, (root.resolve(),)) for folder in folders}
    if not flat and not any(by_class.values()):
        counts, hint = counted(_suffixes(root)), "convert other pictures, unpack archives, write Arrow as Parquet"
        endings = f"{counts}: {hint}" if counts else "no files at all"
        raise ValueError(
            f"no images in {root}: looked for {', '.join(SUFFIXES)} directly or in sub-folders, for .tar files "
            f"directly or in train/ and test/, for .parquet files directly or in data/; there are {endings}"
        )
    if flat and by_class:
        raise ValueError(
            f"{root} holds images ({flat[0].name}, ...) and folders ({some_of(list(by_class))}); expected either "
            "one sub-folder per class, or images alone"
        )
    if empty := [name for name, files in by_class.items() if not files]:
        raise ValueError(f"class folders without images in {root}: {some_of(empty)}; fill, convert or remove them")
    files = flat or [file for inside in by_class.values() for file in inside]
    labels = [printable(name) for name, inside in by_class.items() for _ in inside]
    return files, Listed(named(root, files), len(files), labels or None, by_name=True)


def _suffixes(root: Path) -> Counter[str]:
    """The number of files of each ending below a folder; hidden ones are not counted."""
    files: list[Path] = []
    for _, folders, names in os.walk(root):  # through no link: nothing below need be readable for a count
        folders[:] = (name for name in folders if not hidden(name))
        files += (Path(name) for name in names if not hidden(name))
    return endings_of(files)


def endings_of(files: Iterable[Path]) -> Counter[str]:
    """The number of files of each ending."""
    return Counter(printable(file.suffix.lower()) or "no suffix" for file in files)


def images_below(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """All image files below a folder, sorted. above: the real paths of those that it was reached through.

    Raises as `folder_source`.
    """
    return sorted(image for _, files in folders_below(folder, above) for image in _images(files))


def folders_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and all below it, each with its files, sorted; without hidden ones. above: as of `images_below`

    Raises as `folder_source`.
    """
    folders, files = _scan(folder, above)
    yield folder, files
    for inside in folders:
        yield from folders_below(inside, (*above, folder.resolve()))


def _images(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.name.lower().endswith(SUFFIXES)]


def _scan(folder: Path, above: tuple[Path, ...] = ()) -> tuple[list[Path], list[Path]]:
    """The sub-folders and files of a folder, sorted."""
    through = (*above, folder.resolve())
    folders, files = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if hidden(entry.name):
            continue
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            if entry.is_symlink() and any(upper.is_relative_to(path.resolve()) for upper in through):
                raise ValueError(f"{path} is a link to a folder above it, so that it holds itself; remove the link")
            folders.append(path)
        else:
            files.append(path)
    return folders, files


def by_number(names: Sequence[str]) -> list[int]:
    """Indices that bring paths into the order of the numbers in them, signs and decimals included: f1.5, f2, f10.

    A point between two numbers is a decimal one, unless fractions of several lengths end with 0 (v1.9, v1.10). A sign
    follows no letter or digit, but that of f-1 is one where f0 is there.
    """
    paths = [name.replace("/", "\0") for name in names]  # folders before what else begins as they do
    fractions = [last for path in paths for last in _FRACTION.findall(path)]
    decimal = len({*map(len, fractions)}) < 2 or not any(last.endswith("0") for last in fractions)
    number = re.compile(rf"[-+]?(?:{_FRACTION.pattern}|[0-9]+)" if decimal else "[-+]?[0-9]+")
    unsigned = {path[: at.start()] for path in paths for at in number.finditer(path) if at[0][0] not in "-+"}

    def key(path: str) -> list[str | Decimal]:
        parts: list[str | Decimal] = []
        end = 0
        for at in number.finditer(path):
            begin = at.start()
            if at[0][0] in "-+" and path[:begin][-1:].isalnum() and path[:begin] not in unsigned:
                begin += 1
            parts += [path[end:begin], Decimal(path[begin : at.end()])]
            end = at.end()
        return [*parts, path[end:]]

    keys = [*map(key, paths)]
    return sorted(range(len(paths)), key=lambda i: (keys[i], paths[i]))


def named(root: Path, files: Iterable[Path]) -> list[Item]:
    """Files as items, named by their places below a folder."""
    return [(printable(file.relative_to(root).as_posix()), file) for file in files]
