"""A plan found by measuring: the family of `planning/search.py`, by successive halving, confirmed on fresh seeds.

Every candidate is drawn from the same seeds, so that scores are compared as differences of paired samples. The least of
many noisy scores flatters its plan; so what is found, and the usual plan that it is compared with, are measured once
more on seeds that the search never saw, and both scores are told. A single network is searched in the same way, over
the grid alone: the usual plan of either kind takes part in every round.

Features are kept as images are drawn (metrics/store.py): the same search goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.denoisers.denoiser import abilities
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Reuse
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import Measurement, OutOfTime, measure, until
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.metrics.frechet import Interval, interval_of
from dualrate.planning.search import (
    Round,
    counts,
    halving,
    images_of,
    members,
    shortlist,
)
from dualrate.system.progress import ImageProgress, Reporter, run_lock
from dualrate.system.workers import Mapper, in_turn

SEARCH_SEED, FRESH_SEED = 5 << 40, 6 << 40  # of the first image; far from each other, and from all other seeds
SHORT = 24  # members of the family that are measured, at most
SHARD = 128  # images that are kept at a time
USUAL = "usual"

Names = dict[StepPlan, str]


@dataclass(frozen=True, eq=False)
class Compared:
    """Scores of the plan that was found and of the usual one on the same seeds.

    differences: (R,) replicates of found less usual, paired
    """

    found: Score
    usual: Score
    differences: NDArray[np.float64]

    @property
    def difference(self) -> float:
        """Found less usual: below 0 is better."""
        return self.found.value - self.usual.value

    @property
    def interval(self) -> Interval:
        """Of the difference."""
        return Interval(*interval_of(self.differences))


@dataclass(frozen=True, eq=False)
class Findings:
    """names: of all plans that were measured; search, fresh: on the seeds of the search, and on others."""

    names: Names
    rounds: Sequence[Round[StepPlan]]
    usual: StepPlan
    search: Compared
    fresh: Compared

    @property
    def plan(self) -> StepPlan:
        """The one that was found."""
        return self.rounds[-1].best


def search(
    model: Model,
    choice: Choice,
    judge: Evaluator[Any],
    keep: Path,
    *,
    num: int = 1000,
    batch_size: int = 64,
    seconds: float = math.inf,
    progress: Reporter,
    mapper: Mapper = in_turn,
) -> Findings:
    """The best plan of the family for a model, at the steps, heavy calls and sampler of a choice, the usual plan.

    keep:         a directory that holds the features as images are drawn; the same search goes on from it
    num:          images of a plan in the last round, and of the fresh ones
    mapper:       draws
    seconds:      after which it stops with an OutOfTime that says how far it came, as a KeyboardInterrupt does
    Raises ValueError, before anything is drawn, for what cannot be searched or scored; OSError for a directory that
    another process is filling, and for files.
    """
    deadline = time.monotonic() + seconds
    if not model.serves.any_plan:
        raise ValueError(f"{model.name} is a distilled student, whose plan was set before it was trained")
    judge.check_count(num)
    usual = choice.step_plan(model)

    def drawer(plan: StepPlan) -> Drawer:
        of_plan = Choice(sampler=choice.sampler, gamma=choice.gamma, eta=choice.eta, plan=plan)
        return of_plan.drawer(model, batch_size=batch_size)

    _ = drawer(usual).cost  # refuses what cannot be drawn
    names = candidates(model, usual)
    rounds = counts(num, 2 * judge.net.dim)
    keep.mkdir(parents=True, exist_ok=True)
    with run_lock(keep, "filled by a search"):
        total = images_of(len(names), rounds) + 2 * num
        bench = _Bench(drawer, judge, keep, progress, mapper, total, deadline)
        try:
            return _found(bench, names, usual, rounds)
        except (KeyboardInterrupt, OutOfTime) as stop:
            why = "interrupted" if isinstance(stop, KeyboardInterrupt) else "out of time"
            raise type(stop)(
                f"{why}: {bench.drawn} of about {bench.total} images were drawn, whose features are in {keep}; the "
                "same command goes on"
            ) from None
        finally:
            progress.close()


def candidates(model: Model, usual: StepPlan) -> Names:
    """The plans to measure, the usual one first."""
    steps, heavy, schedule = usual.num_steps, usual.num_heavy, model.process.schedule
    reuses = heavy < steps and model.denoiser.reuse is Reuse.MARKOV
    family = members(steps, heavy, late=reuses and model.serves.drops)
    plans = {
        member.plan(schedule, steps, heavy).renewing(abilities(model.denoiser).between): member for member in family
    }
    if len(family) > SHORT:
        family = shortlist(family, plans.get(usual), SHORT)
    names = {plan: str(member) for plan, member in plans.items() if member in family and plan != usual}
    return {usual: f"{USUAL}, {plans[usual]}" if usual in plans else USUAL} | names


def searched(num: int) -> range:
    """The seeds of a round of the search."""
    return range(SEARCH_SEED, SEARCH_SEED + num)


def fresh(num: int) -> range:
    """Seeds that no search has seen."""
    return range(FRESH_SEED, FRESH_SEED + num)


def _found(bench: _Bench, names: Names, usual: StepPlan, rounds: Sequence[int]) -> Findings:
    def after(one: Round[StepPlan]) -> None:
        bench.progress.note(
            f"{len(one.values)} plans, {one.count} images each: the best is {names[one.best]}, "
            f"{bench.judge.metric} {one.values[one.best]:.3f}; {USUAL} {one.values[usual]:.3f}"
        )

    def score(plan: StepPlan, count: int) -> float:
        return bench.measured(plan, searched(count)).row.score.value

    def compared(found: StepPlan, seeds: range) -> Compared:
        pair = [bench.measured(plan, seeds) for plan in (found, usual)]
        of_found, of_usual = (one.replicates[bench.judge.metric] for one in pair)
        return Compared(pair[0].row.score, pair[1].row.score, of_found - of_usual)

    done = halving(list(names), usual, rounds, score, after=after)
    best = done[-1].best
    return Findings(names, done, usual, compared(best, searched(rounds[-1])), compared(best, fresh(rounds[-1])))


@dataclass
class _Bench:
    """Measures plans, and counts the images of the whole search on one display, but for those of an earlier one.

    deadline: on the monotonic clock
    """

    drawer: Callable[[StepPlan], Drawer]
    judge: Evaluator[Any]
    keep: Path
    progress: Reporter
    mapper: Mapper
    total: int
    deadline: float
    drawn: int = 0
    start: float = field(default_factory=time.monotonic)
    _seen: dict[tuple[StepPlan, int], int] = field(default_factory=dict)  # images of this search, by plan, first seed

    def measured(self, plan: StepPlan, seeds: range) -> Measurement:
        """Raises OutOfTime after the deadline, once what was drawn is kept."""
        drawer = self.drawer(plan)
        place = self.keep / drawer.origin(self.judge.net.identity).digest
        report = self._reporting(self._seen.get((plan, seeds.start), 0))
        self._seen[plan, seeds.start] = len(seeds)
        how = {"shard_size": SHARD, "progress": report, "mapper": self.mapper}
        return measure(drawer, seeds, self.judge, keep=place, **how)

    def _reporting(self, seen: int) -> ImageProgress:
        drawn, total = self.drawn, self.total

        def tell(before: int, now: int) -> None:
            self.total = total - (before - seen)  # what an earlier search has drawn
            self.drawn = drawn + now
            logs = {"images": self.drawn, "seconds": time.monotonic() - self.start}
            self.progress.update(self.drawn, self.total, logs)

        return until(self.deadline, tell)
