"""A family of plans of N steps and H heavy calls with two parameters, small enough to be searched by measuring.

    blend   share of equal steps in log-SNR in the grid of times, `sampling/grids.py`: 0 equal in t, 1 in log-SNR
    alone   steps before the first heavy call, which the light network makes alone; the heavy calls are spread evenly
            over the steps after them, so their times are of the same grid

One network has the first parameter alone, as every step is a heavy call. Where the family is larger than what can be
measured, those are that differ from the usual plan in one parameter. The planner's objective does not choose: over the
family at 16 steps and 4 heavy calls it ranks blends nearly the wrong way round (dev/LOG.md).

The search is by successive halving: few images tell bad plans from good ones, more of them the good ones apart. Every
round measures what is left on more images than the round before, and leaves the better half. All of a round are
measured on the same seeds: what is compared are differences, in which the noise that plans share cancels.

Source: Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits", 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dualrate.config.ranges import HeavyCalls, Probability, Ranged
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import Schedule
from dualrate.sampling.grids import BLEND, blended

BLENDS = tuple(i / 10 for i in range(11))
EIGHTHS = range(6)  # of the steps, before the first heavy call


@dataclass(frozen=True)
class Member(Ranged):
    """One of the family."""

    blend: Probability
    alone: HeavyCalls = 0

    def plan(self, schedule: Schedule, steps: int, heavy: int) -> StepPlan:
        """Raises ValueError where the heavy calls do not leave so many steps alone."""
        return StepPlan.late(blended(schedule, steps, self.blend), heavy, self.alone)

    def __str__(self) -> str:
        return f"{BLEND}{self.blend:g}" + (f", {self.alone} alone" if self.alone else "")


def members(steps: int, heavy: int, *, late: bool) -> list[Member]:
    """The family. late: whether the first steps may go without a context."""
    alone = {steps * eighths // 8 for eighths in EIGHTHS} if late and heavy else {0}
    return [Member(blend, first) for first in sorted(alone) if first <= steps - heavy for blend in BLENDS]


def shortlist(family: Sequence[Member], usual: Member | None, most: int) -> list[Member]:
    """At most so many: those that share a parameter with the usual one; where it is none of the family, every k-th."""
    if usual is None:
        return list(family[:: math.ceil(len(family) / most)])
    return [one for one in family if one.blend == usual.blend or one.alone == usual.alone][:most]


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
        left = sorted(left, key=done[-1].values.__getitem__)[: max((len(left) + 1) // 2, FINAL)]
    return done
