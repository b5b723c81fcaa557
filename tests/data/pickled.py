"""Blocks of work as other processes do them, without the seconds in which one imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any


def by_pickle(job: Callable[[Any], Any], blocks: Sequence[Any], /) -> Iterator[tuple[Any, Any]]:
    """The job and its blocks are sent by value, as to a process, and done in another order; so are the results."""
    for block in [*blocks[1::2], *blocks[::2]]:
        sent, given = ForkingPickler.loads(ForkingPickler.dumps((job, block)))
        yield block, ForkingPickler.loads(ForkingPickler.dumps(sent(given)))
