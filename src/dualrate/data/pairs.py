"""Images in pairs: each image of one source, the target, has a partner of the same name in another.

A name is the path in the source without the picture's ending; of Parquet files it is the file and the row. So two
folders make pairs, and so do two columns of the same files. The targets' split holds for both: the partner of a
held-out image is held out, whatever its own ending would say. A name that one source lacks, or has twice, is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dualrate.data.cache import cache_dir
from dualrate.data.decode import Options
from dualrate.data.images import ImageSet, decoded_source, find_source, prepared_folder
from dualrate.data.source import SPLITS, SUFFIXES, DataProgress, Item, Items, Raw, Source, Split, names_of, silent
from dualrate.system.folders import some_of


def load_partners(
    source: str | Path,
    targets: str | Path,
    split: Split,
    *,
    size: int,
    channels: Literal[1, 3],
    label: str | None = None,
    progress: DataProgress = silent,
) -> ImageSet:
    """The partners of the targets of a split, in their order, decoded as `load_images` does.

    source, targets: as in `load_images`; label: the column of labels of the targets
    Raises what `load_images` raises, and ValueError for names that one source lacks, or has twice.
    """
    for one in (source, targets):
        if prepared_folder(one):
            raise ValueError(f"{one} was prepared, which keeps no names to find pairs by: name its images themselves")
    cache = cache_dir()
    own: dict[Split, Source] = {part: find_source(source, part, cache, progress) for part in SPLITS}
    theirs: dict[Split, Source] = {part: find_source(targets, part, cache, progress, label) for part in SPLITS}
    files = dict.fromkeys(file for one in (*own.values(), *theirs.values()) for file in one.files)

    def read() -> Raw:
        mine: dict[Split, Items] = {part: one.read().items for part, one in own.items()}
        items = _partners(mine, _names(theirs), split, source, targets)
        return Raw(items, len(names_of(items)), None, ())

    found = Source(f"{own[split].name} beside {theirs[split].name}", tuple(files), read)
    return decoded_source(found, split, Options(size, channels, "fail"), cache, progress)


def _names(sources: dict[Split, Source]) -> dict[Split, list[str]]:
    return {part: without_ending(names_of(one.read().items)) for part, one in sources.items()}


def without_ending(names: Sequence[str]) -> list[str]:
    """Names without the endings of pictures."""
    return [name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name for name in names]


def _partners(
    items: dict[Split, Items], wanted: dict[Split, list[str]], split: Split, source: str | Path, targets: str | Path
) -> Items:
    """Those of `items` that have the names wanted in a split, in their order."""
    names = {part: without_ending(names_of(items[part])) for part in SPLITS}
    mine, other = (Counter(name for part in SPLITS for name in some[part]) for some in (names, wanted))
    for lacks, where, has, there in ((other - mine, source, other, targets), (mine - other, targets, mine, source)):
        if lacks:
            raise ValueError(
                f"{where} lacks {lacks.total()} of the {has.total()} images of {there}: {some_of(sorted(lacks))}. Give "
                "the two of a pair the same name, whatever their endings"
            )
    for some, where in ((names, source), (wanted, targets)):
        if twice := [name for part in SPLITS for name, count in Counter(some[part]).items() if count > 1]:
            raise ValueError(f"{where} has several images of one name, without its ending: {some_of(sorted(twice))}")
    if names[split] == wanted[split]:
        return items[split]
    found: dict[str, Item] = {}
    for part in sorted(SPLITS, key=lambda part: part == split):  # a name of both splits is of this one
        found |= zip(names[part], items[part], strict=True)
    return [found[name] for name in wanted[split]]  # pyright: ignore[reportReturnType]  # a list gives slices, too
