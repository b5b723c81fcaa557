"""Pairs of images: the condition of one is the other, which has the same name in another source.

The name is the path in the source without the picture's ending; of Parquet files it is the file and the row. So two
folders make pairs, and so do two columns of the same files. The targets' split holds for both: the partner of a
held-out image is held out, whatever its own ending would say.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Literal

import torch
from torch import Tensor

from dualrate.config.ranges import Ranged, Side
from dualrate.data.cache import cache_dir
from dualrate.data.condition_rows import Make
from dualrate.data.conditions import OfPicture
from dualrate.data.decode import Options, decode, sides_of
from dualrate.data.finding import named_splits
from dualrate.data.images import ImageSet, Look, decoded_source, look_at, to_float
from dualrate.data.loader import Augment
from dualrate.data.source import SPLITS, Item, Raw, Source, Split, names_of, silent, without_ending
from dualrate.diffusion.context import Shape
from dualrate.system.folders import some_of

MOST_SIDE = 256  # of the other images of pairs, unless the images themselves are larger


@dataclass(frozen=True)
class Pairs(OfPicture, Ranged):
    """The other image of a pair."""

    source: str
    """Where they are: a folder whose pictures have the names of --data.source, or FILE.parquet#COLUMN."""
    size: Side = 32
    """Side that they are brought to."""
    channels: Literal[1, 3] = 3
    """1 grey, 3 colours."""

    def shape(self, image: Shape) -> Shape:
        return self.channels, self.size, self.size

    def build(self, device: torch.device | str) -> Make:
        return lambda x, draws: x

    def fitted(self, targets: Look, image: Shape) -> Pairs:
        """Fits the size: as large beside x as they are beside the targets, by a power of 2, which all networks take."""
        sizes = look_at(self.source).shapes
        mine, target = (median_low(min(shape[1:]) for shape in shapes) for shapes in (sizes, targets.shapes))
        ratio, size = mine / target, image[1]
        while ratio >= 2**0.5 and 2 * size <= max(image[1], MOST_SIDE):
            ratio, size = ratio / 2, 2 * size
        while ratio < 0.5**0.5 and size % 2 == 0:
            ratio, size = ratio * 2, size // 2
        return replace(self, size=size, channels=1 if all(shape[0] == 1 for shape in sizes) else 3)

    def read(self, data: bytes, name: str, channels: int) -> Tensor:
        """Cropped and resized as in training."""
        return to_float(decode(data, name, size=self.size, channels=channels))

    def check(self, image: Shape, augment: Augment) -> None:
        if augment.translate and image[1:] != (self.size, self.size):
            raise ValueError(
                f"images of {image[1]} x {image[2]} and their partners of {self.size} x {self.size} cannot be shifted "
                "by the same pixels: drop --data.augment.translate"
            )

    def partners(self, targets: str, split: Split, *, label: str | None, on_bad: str) -> ImageSet:
        """Raises ValueError for names that one source lacks, or has twice, for partners of another aspect ratio than
        their targets, since both are cropped to squares, and what `load_images` raises."""
        if on_bad != "fail":
            raise ValueError("an image cannot be left out without its partner: drop --data.on-bad, repair the images")
        source = partner_source(self.source, targets, split, label)
        return decoded_source(source, split, Options(self.size, self.channels, on_bad), cache_dir(), silent)


def partner_source(source: str | Path, targets: str | Path, split: Split, label: str | None) -> Source:
    """The partners of the targets of a split, in their order. label: the column of labels of the targets

    Raises ValueError for a prepared source, and when read for names that one source lacks, or has twice, and for
    partners of another aspect ratio than their targets.
    """
    partner_splits, target_splits = named_splits(source, "pairs"), named_splits(targets, "pairs", label)

    def read() -> Raw:
        items = {part: split_source.read().items for part, split_source in partner_splits.items()}
        names = {part: without_ending(names_of(some)) for part, some in items.items()}
        aims = {part: split_source.read().items for part, split_source in target_splits.items()}
        wanted = {part: without_ending(names_of(some)) for part, some in aims.items()}
        _check_paired(names, wanted, source, targets)
        partners = items[split]
        if names[split] != wanted[split]:
            by_name: dict[str, Item] = {}
            for part in sorted(SPLITS, key=lambda part: part == split):  # a name of both splits is of this one
                by_name |= zip(names[part], items[part], strict=True)
            partners = [by_name[name] for name in wanted[split]]
        for (name, partner), (_, target) in zip(partners, aims[split], strict=True):
            _check_aspects(name, (sides_of(partner), source), (sides_of(target), targets))
        return Raw(partners, len(wanted[split]), None, ())  # pyright: ignore[reportArgumentType]  # a list is sliced, too

    sources = (*partner_splits.values(), *target_splits.values())
    files = dict.fromkeys(file for split_source in sources for file in split_source.files)
    return Source(f"{partner_splits[split].name} beside {target_splits[split].name}", tuple(files), read)


def _check_aspects(name: str, *pair: tuple[tuple[int, int] | None, str | Path]) -> None:
    """Raises ValueError for two aspect ratios, up to a pixel of rounding. pair: height and width, and the source"""
    (mine, source), (target, targets) = pair
    if mine is None or target is None:  # what is no image is refused where it is decoded
        return
    (height, width), (high, wide) = mine, target
    if abs(height * wide - width * high) > max(height, width, high, wide):
        raise ValueError(
            f"{name}: the pictures of a pair are {height} x {width} in {source} beside {high} x {wide} in {targets}: "
            "cropped to squares they would show different parts. Crop the two of a pair alike"
        )


def _check_paired(
    names: dict[str, list[str]], wanted: dict[str, list[str]], source: str | Path, targets: str | Path
) -> None:
    mine, other = (Counter(name for part in SPLITS for name in some[part]) for some in (names, wanted))
    for lacks, where, has, elsewhere in ((other - mine, source, other, targets), (mine - other, targets, mine, source)):
        if lacks:
            raise ValueError(
                f"{where} lacks {lacks.total()} of the {has.total()} images of {elsewhere}: {some_of(sorted(lacks))}. "
                "Give the two of a pair the same name, whatever their endings"
            )
    for some, where in ((names, source), (wanted, targets)):
        if twice := [name for part in SPLITS for name, count in Counter(some[part]).items() if count > 1]:
            raise ValueError(f"{where} has several images of one name, without its ending: {some_of(sorted(twice))}")
