"""Images in tar archives, read where they stand: nothing is ever unpacked, so no name in an archive is ever a path.

A .tar file or a folder of them, perhaps in train/ and test/ (or val/). An image is a regular file with an image's
ending. Its class is, by what there is
    key.cls or key.json beside key.jpg or key.image.jpg, as in webdataset's shards: a number or a name; in JSON that of
    "label"
    the folder in the archive that it is in
    the tar that it is in, of a tar of tars (ImageNet's) or of several; unless these are numbered on: a-0.tar, a-1.tar
The splits are those that folders or tars are named after (`source.split_named`), if that holds for every image; else a
tenth is held out. Hidden files and folders (`source.hidden`) are not read; labels that belong to no image are counted.

What has an image's name and is none (a link, a device, a sparse file), or should not have it (the second of a name, one
that leads out of the archive), is an image that cannot be used, like one that cannot be decoded.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from dualrate.data.decode import SUFFIXES
from dualrate.data.folder import is_folder
from dualrate.data.source import (
    HELD_OUT,
    DataProgress,
    Each,
    Member,
    Raw,
    Source,
    Split,
    class_numbers,
    hidden,
    hold_out,
    some,
    split_named,
)
from dualrate.data.tar_members import Found, Listed, images_of, words
from dualrate.data.untrusted import printable


def tar_files(folder: Path) -> list[Path]:
    """The .tar files of a folder that holds no other images, or of its sub-folders named like splits; or none."""
    entries = [entry for entry in os.scandir(folder) if not hidden(entry.name)]
    if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
        return []
    folders = [folder / entry.name for entry in entries if is_folder(entry)]
    if not folders:
        return _tars_in(folder)
    inner = [_tars_in(one) for one in folders]
    named = all(split_named(one.name) for one in folders) and all(inner)
    return sorted(file for files in inner for file in files) if named else []


def _tars_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if not hidden(file.name))


def tar_source(files: Sequence[Path], root: Path, split: Split, progress: DataProgress) -> Source:
    """The images of tar files below `root`, or of the one that `root` is.

    Raises, when read, OSError for files that cannot be opened or read; ValueError for one that is damaged or
    compressed, for labels of several kinds, for classes that only the test images have, and if there is no image.
    """

    def read() -> Raw:
        stamps = tuple((file.stat().st_size, file.stat().st_ctime_ns) for file in files)
        return _raw(_listing(tuple(files), root, stamps, progress), root, split)

    return Source(f"{printable(root.stem if root in files else root.name)}/{split}", tuple(files), read)


def _raw(listed: Listed, root: Path, split: Split) -> Raw:
    found = listed.images
    good = [one for one in found if not one.image.fault]
    if not good:
        said = f"; {found[0].image.name}: {found[0].image.fault}" if found else ""
        said += f"; {len(listed.hidden)} are hidden ({some(listed.hidden)})" if listed.hidden else ""
        raise ValueError(f"no images in the tar archives of {root}: looked for {', '.join(SUFFIXES)}{said}")
    named = all(one.splits for one in good) and any("train" in one.splits for one in good)
    train, test = (_named(found, name) for name in ("train", "test")) if named else (found, ())
    note = _note(listed, len(found) - len(train) - len(test), root)
    if any(one.label is not None for one in good):
        train, test = ([_with_label(one) for one in part] for part in (train, test))
    else:
        shards = _numbered_on(sorted({one.tar for one in good}))
        train, test = ([_with_class(one, shards, named) for one in part] for part in (train, test))
    if test:
        chosen = test if split == "test" else train
    else:
        positions = hold_out([one.image.name for one in train], split, str(root))
        chosen = [train[i] for i in positions]
    labels, names = _numbers(chosen, train, str(root))
    return Raw(Each(_item, [one.image for one in chosen]), len(chosen), labels, names, note)


def _note(listed: Listed, elsewhere: int, root: Path) -> str:
    """What is not used of the archives, as in `Raw`. elsewhere: images of other splits than are used."""
    said = [
        f"{len(names)} {what} ({some(names)})"
        for what, names in (
            ("hidden image(s)", listed.hidden),
            ("label(s) (.cls or .json) that belong to no image", listed.alone),
        )
        if names
    ]
    said += [f"{elsewhere} image(s) of other splits"] if elsewhere else []
    return f"skipped {', '.join(said)} in {printable(root.name)}" if said else ""


def _named(found: Sequence[Found], split: Split) -> list[Found]:
    """Those of a split; what cannot be used is among the training images, unless it is elsewhere."""
    if split == "train":
        return [one for one in found if not one.splits or "train" in one.splits]
    test = next((name for name in HELD_OUT if any(name in one.splits - {"train"} for one in found)), "")
    return [one for one in found if "train" not in one.splits and test in one.splits]


def _with_label(one: Found) -> Found:
    if one.label is not None or one.image.fault:
        return one
    return replace(one, image=replace(one.image, fault="it has no label beside it (.cls, or label in .json)"))


def _with_class(one: Found, shards: bool, named: bool) -> Found:
    """The folder for a label, or the tar."""
    folder = "" if named and split_named(one.folder) else one.folder
    of_split = named and any(map(split_named, words(one.tar.stem)))
    tar = "" if shards or of_split else printable(one.tar.stem)
    return replace(one, label=folder or tar or None)


def _numbers(chosen: Sequence[Found], train: Sequence[Found], name: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels of the chosen images and the names of classes, which the training images say; 0 for what is no image."""
    known, own = ([one.label for one in part if not one.image.fault] for part in (train, chosen))
    kinds = {type(label) for label in (*known, *own)}
    if kinds <= {type(None)}:
        return None, ()
    if len(kinds) > 1:
        raise ValueError(
            f"in {name} some images have classes and others none, or some have numbers and others names: expected one "
            "kind for all, in both splits; give the training archive alone, and a tenth of it is held out"
        )
    usable = np.array([not one.image.fault for one in chosen])
    labels = np.zeros(len(chosen), np.int64)
    if kinds == {int}:
        numbers, names = class_numbers(np.array(own, np.int64), name, len(own), reference=np.array(known, np.int64))
    else:
        words = sorted({str(label) for label in known})
        if unknown := sorted({str(label) for label in own} - set(words)):
            raise ValueError(f"classes {unknown[:5]} of {name} do not occur in the training images")
        number = {word: i for i, word in enumerate(words)}
        numbers, names = class_numbers(
            np.array([number[str(label)] for label in own], np.int64), name, len(own), class_names=tuple(words)
        )
    labels[usable] = numbers
    return labels, names


def _numbered_on(tars: Sequence[Path]) -> bool:
    """Whether in every folder there is one tar, or their names end in numbers one after the other: no classes, then."""
    numbers: dict[Path, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for tar in tars:
        parts = re.fullmatch(r"(.*?)(\d{1,18})", tar.stem)
        numbers[tar.parent][parts[1] if parts else tar.stem].append(int(parts[2]) if parts else -1)

    def numbered(runs: list[list[int]]) -> bool:
        alone = [len(run) for run in runs] == [1]
        return alone or all(run[0] >= 0 and run == list(range(run[0], run[0] + len(run))) for run in runs)

    return all(numbered([sorted(run) for run in found.values()]) for found in numbers.values())


def _item(image: Member) -> tuple[str, Member]:
    return image.name, image


@lru_cache(maxsize=1)  # for both splits
def _listing(
    files: tuple[Path, ...], root: Path, stamps: tuple[tuple[int, int], ...], progress: DataProgress
) -> Listed:
    """All images of some tars, in order. stamps: of the files, since what was listed before may have changed."""
    every = Listed([], [], [])
    for i, file in enumerate(files):
        progress(i, len(files), "listing tars")
        one = images_of(file, file.name if file == root else file.relative_to(root).as_posix())
        every.images.extend(one.images)
        every.hidden.extend(one.hidden)
        every.alone.extend(one.alone)
    progress(len(files), len(files), "listing tars")
    return every
