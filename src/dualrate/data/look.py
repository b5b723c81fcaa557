"""A look at a data source before it is decoded: how many images, of which sizes and colours, in how many classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from dualrate.data.cache import cache_dir
from dualrate.data.decode import shape_of
from dualrate.data.images import find_source
from dualrate.data.source import Member, Raw

MOST = 1000  # images whose headers are read


@dataclass(frozen=True, eq=False)
class Look:
    """What the training images of a source are like.

    raw: before decoding
    """

    name: str
    raw: Raw

    @property
    def count(self) -> int:
        """Training images."""
        return self.raw.count

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return len(self.raw.class_names)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of up to `MOST` images, spread evenly over all of them; files that are no images are passed over.

        Raises ValueError if nothing is left. May be read once, and reads all of a Parquet file.
        """
        found, problem = [], ""
        for name, item in islice(self.raw.items, 0, None, -(-self.count // MOST)):
            try:
                item = item.read() if isinstance(item, Member) else item
                found.append(item.shape if isinstance(item, np.ndarray) else shape_of(item, name))
            except ValueError as error:
                problem = problem or str(error)
        if not found:
            raise ValueError(f"no image of {self.name} can be opened; the first one: {problem}")
        return tuple(found)


def look_at(source: str | Path, label: str | None = None) -> Look:
    """Look at the training split of a source (see `load_images`), with the labels of a column.

    Raises ValueError for content that cannot be used, FileNotFoundError if there is no such source.
    """
    found = find_source(source, "train", cache_dir(), lambda done, total, message: None, label)
    return Look(found.name, found.read())
