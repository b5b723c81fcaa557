"""What a comparison has time for: where time is short fewer images, then fewer contenders, the most useful first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

from dualrate.compare.contender import Contender
from dualrate.sampling.catalogue import sampler_named

INCREMENT = 250  # images by which a contender has more or fewer
FEWEST = 2  # contenders that are measured however short the time is
Item = TypeVar("Item")


def levels(most: int, fewest: int) -> list[int]:
    """Numbers of images to choose from, in descending order: `most`, and multiples of INCREMENT from `fewest` on."""
    return [most, *reversed([n for n in range(INCREMENT, most, INCREMENT) if n >= fewest])]


def affordable(
    contenders: Sequence[Contender],
    seconds_of: Callable[[Contender, int], float],
    seconds: float,
    images: Sequence[int],
    *,
    wanted: int,
) -> tuple[list[Contender], int]:
    """Whom to measure, and on how many images: on the most that leave time for `wanted` contenders, else the fewest.

    contenders: the most useful first; FEWEST of them are among the result whatever it takes
    seconds_of: what so many images of a contender take
    images:     to choose from, in descending order
    """
    chosen: list[Contender] = []
    for count in images:
        chosen, spent = [], 0.0
        for contender in contenders:
            takes = seconds_of(contender, count)
            if spent + takes <= seconds or len(chosen) < FEWEST:
                chosen, spent = [*chosen, contender], spent + takes
        if len(chosen) >= wanted and spent <= seconds:
            return chosen, count
    return chosen, images[-1]


def useful_first(contenders: Sequence[Contender], macs: Mapping[str, int]) -> list[Contender]:
    """What the user named; then the runs in turns, each under the best samplers first, at costs spread out.

    macs: of an image, by a contender's key
    """

    def kind(one: Contender) -> tuple[int, str, float]:
        return sampler_named(one.sampler).rank, one.sampler, -one.gamma

    def usual(run: Path) -> list[Contender]:
        own = sorted((one for one in contenders if one.run == run and not one.named), key=lambda one: macs[one.key])
        alike = ([one for one in own if kind(one) == found] for found in sorted(set(map(kind, own))))
        return [one for group in alike for one in middles_first(group)]

    named = [one for one in contenders if one.named]
    return [*named, *round_robin([usual(run) for run in dict.fromkeys(one.run for one in contenders)])]


def middles_first(items: Sequence[Item]) -> list[Item]:
    """The middle one, then the middles of both halves in turns: however few are taken, they are spread out."""
    if not items:
        return []
    middle = len(items) // 2
    return [items[middle], *round_robin([middles_first(items[:middle]), middles_first(items[middle + 1 :])])]


def round_robin(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of every list, the second of every list, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]
