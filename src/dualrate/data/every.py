"""Every image of a source, one by one and by its name: for those who bring images to be encoded, not trained on.

A picture is a source here too, and a folder is all pictures below it, in the order of their paths. Of other sources
come the training images, then the others; where a tenth was held out, all in their own order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualrate.data.cache import Options, cache_dir, image_of
from dualrate.data.decode import SUFFIXES
from dualrate.data.folder import images_below, named
from dualrate.data.images import find_source
from dualrate.data.source import SPLITS, Each, Item, Items, Source, Split
from dualrate.data.untrusted import printable, resolved


@dataclass(frozen=True)
class Everything:
    """items: of the source, not decoded yet; options: how they are"""

    items: list[Item] | Items
    count: int
    options: Options

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and image, (C, H, W). Raises ValueError, naming it, for what is no image, OSError as `image_of`."""
        for name, item in self.items:
            yield name, image_of(name, item, self.options)


def every_image(
    source: str | Path, size: int | None = None, channels: int | None = None, *, without: Collection[Path] = ()
) -> Everything:
    """The images of a picture, a folder of pictures, or anything that `load_images` takes.

    size, channels: as there, but images may have several shapes; without: pictures of a folder that are left out
    Raises ValueError for a source without images, FileNotFoundError for none, and what `find_source` raises.
    """
    options, path = Options(size, channels, "fail"), resolved(source)
    if path.is_file() and path.name.lower().endswith(SUFFIXES):
        return Everything([(printable(path.name), path)], 1, options)
    files = [file for file in images_below(path) if file not in without] if path.is_dir() else []
    if files:
        return Everything(Each(partial(named, path), files), len(files), options)
    raw = [_found(source, split).read() for split in SPLITS]
    items = sorted((item for one in raw for item in one.items), key=_place)
    return Everything(items, len(items), options)


def _found(source: str | Path, split: Split) -> Source:
    return find_source(source, split, cache_dir(), lambda done, total, message: None)


def _place(item: Item) -> list[tuple[int, str]]:
    """Numbers in a name as numbers: row 10 after row 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", item[0])]
