"""Successive halving: few images tell bad plans from good ones, more of them the good ones apart.

Every round measures what is left on more images than the round before, and leaves the better half. All of a round are
measured on the same seeds: what is compared are differences, in which the noise that plans share cancels.

Source: Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits", 2013.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Candidate = TypeVar("Candidate")
FINAL = 2  # candidates of the last round, at least
FIRST = 8  # the last round has so many times the images of the first, where those are enough


@dataclass(frozen=True)
class Round(Generic[Candidate]):
    """The values of candidates on `count` images each, lower is better."""

    count: int
    values: dict[Candidate, float]

    @property
    def best(self) -> Candidate:
        """The first of those with the least value."""
        return min(self.values, key=self.values.__getitem__)


def counts(most: int, least: int) -> list[int]:
    """Images of a candidate in each round: an eighth of `most`, doubled up to it, and never less than `least`."""
    return sorted({max(most * 2**i // FIRST, min(least, most)) for i in range(FIRST.bit_length())})


def images_of(candidates: int, rounds: Sequence[int]) -> int:
    """Images that `halving` draws for so many candidates, one of which stays; those of a round before count once."""
    total, before = 0, 0
    for count in rounds:
        total += candidates * (count - before)
        candidates, before = 1 + _left(candidates - 1), count
    return total


def halving(
    candidates: Sequence[Candidate],
    stays: Candidate,
    rounds: Sequence[int],
    measure: Callable[[Candidate, int], float],
    *,
    after: Callable[[Round[Candidate]], None] = lambda _: None,
) -> list[Round[Candidate]]:
    """Rounds of so many images each, in ascending order. The last round's best is what is found.

    stays:   a candidate that is in every round, for comparison
    measure: a candidate's value on so many images, the same ones for all
    after:   called with every round
    """
    done, left = [], [candidate for candidate in candidates if candidate != stays]
    for count in rounds:
        done.append(Round(count, {candidate: measure(candidate, count) for candidate in (stays, *left)}))
        after(done[-1])
        left = sorted(left, key=done[-1].values.__getitem__)[: _left(len(left))]
    return done


def _left(candidates: int) -> int:
    """How many go on."""
    return max((candidates + 1) // 2, min(FINAL, candidates))
