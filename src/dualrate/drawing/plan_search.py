"""The best plan of a model: by errors measured on data once, for a budget; or by measuring images.

By errors: those of every pair of a grid time and a context are measured once and kept in the user's cache, costs are
counted or timed, and `planning/planner.py` finds the best plan within a budget for each number of steps.

By images: `search` measures the family of `planning/search.py` by successive halving, and confirms what it finds on
fresh seeds. Every candidate is drawn from the same seeds, so that scores are compared as differences of paired samples.
The least of many noisy scores flatters its plan; so what is found, and the usual plan that it is compared with, are
measured once more on seeds that the search never saw. A single network is searched in the same way, over the grid
alone. The usual plan takes part in every round. Features are kept as images are drawn (metrics/store.py): the same
search goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.loader import ByteBatch
from dualrate.data.source import read_text, reading
from dualrate.denoisers.catalogue import UNPLANNED
from dualrate.denoisers.denoiser import abilities
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond, Reuse
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer, real_batches
from dualrate.drawing.measure import Measurement, OutOfTime, call_seconds, measure, until
from dualrate.experiment.experiment import Model
from dualrate.metrics.distances import Interval, interval_of
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.planning.planner import FEWEST, Bend, Errors, Planned, Planner, measure_bend, measure_errors
from dualrate.planning.search import Round, counts, halving, members, shortlist
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.system.device import pays
from dualrate.system.files import read_json, write_whole
from dualrate.system.progress import Reporter, duration, image_progress, run_lock
from dualrate.system.workers import Mapper, in_turn

ROWS = 16  # images at a time: the contexts of all grid times are held for them
SEED = 1 << 40  # of the planner's noise; far from the seeds that images are sampled and scored with


@dataclass(frozen=True)
class Candidate:
    """The best plan of one number of steps; `even`: the objective of as many heavy calls spread evenly, on the grid,
    with contexts kept between them.
    """

    planned: Planned
    even: float | None
    cost: float


def candidates(planner: Planner, costs: CallCost, budget: float, steps: Sequence[int]) -> list[Candidate]:
    """The best plan within the budget for each number of steps that fits it, best first.

    Raises ValueError if none does.
    """
    found = []
    for count in steps:
        affordable = costs.affordable(count, budget)
        if not affordable.any():
            continue
        planned = planner.best(count, affordable)
        heavy, alone = planned.plan.num_heavy, planned.plan.num_alone
        even = planner.objective(StepPlan.spread(planner.errors.t[:: planner.errors.num_steps // count], heavy))
        found.append(Candidate(planned, even if math.isfinite(even) else None, costs.of(count, heavy, alone)))
    if not found:
        cheapest = min(costs.of(count, *calls) for count in steps for calls in ((0, count), (1, 0), (count, 0)))
        raise ValueError(
            f"a budget of {budget:.4g} pays for none of {', '.join(map(str, steps))} steps; the cheapest plan costs "
            f"{cheapest:.4g}: raise the budget, or allow fewer steps"
        )
    return sorted(found, key=lambda candidate: candidate.planned.objective)


def read_plan(path: Path) -> StepPlan:
    """A plan from a JSON file. Raises OSError if it cannot be read; ValueError, naming the file, if it is no plan."""
    with reading(path, "a plan"):
        return StepPlan.from_json(read_text(path))


def require_plannable(model: Model) -> None:
    """Raises ValueError for a single network and a decoder, whose plans have nothing to choose, and for what is to be
    refreshed evenly, since more than its latest heavy call decides.
    """
    if model.experiment.networks.latent is not None:
        raise ValueError(f"{model.name} is a decoder, whose heavy call is of the latent alone: nothing to plan")
    if not model.reuses_context:
        raise ValueError(
            f"{model.name} has a single network, which runs at every step: there is nothing to plan; have it called by "
            "shared-encoder, or another run make some of its steps (--denoiser)"
        )
    if model.called_by in UNPLANNED:
        raise ValueError(
            f"what {model.called_by} makes of a step depends on more than its latest heavy call, which is all that a "
            "planner looks at: spread its heavy calls evenly (--heavy), or name another denoiser"
        )


# Errors


def measured_errors(
    model: Model, *, grid: int, images: int, spacing: str = "t", progress: Reporter, mapper: Mapper = in_turn
) -> Errors:
    """Errors of the model on its training data, over a grid of so many steps, and its bend; kept in the user's cache.

    images: spread over the data set; all of them if there are fewer
    spacing: of the grid, as a sampler's (sampling/grids.py)
    mapper: measures batches of ROWS images
    Raises what `require_plannable` and `every_call` raise; ValueError for a damaged file.
    """
    require_plannable(model)
    source, t = model.experiment.data.load("train"), grid_times(spacing, model.process.schedule, grid)
    images, file = min(images, len(source)), _file(model, grid, images, spacing)
    if file.exists():
        return _read_errors(file, t)
    progress.note(f"measuring errors, once: {images} images at {grid} times; they are kept in {file.parent}")
    found: list[tuple[float, Errors]] = []
    batches = [*zip(range(0, images, ROWS), real_batches(model, source, images, ROWS), strict=True)]
    try:
        for (start, batch), errors in mapper(partial(_errors_of, model, t, pays(model.device)), batches):
            found.append((len(batch.x) / images, errors))
            done = start + len(batch.x)
            progress.update(done, images, {"images": done})
    finally:
        progress.close()
    total = sum((share * one.errors for share, one in found), np.zeros((grid, grid + 1)))
    bend = None
    if found[0][1].bend is not None:
        parts = [(share, vars(one.bend)) for share, one in found]
        bend = Bend(**{name: np.sum([share * part[name] for share, part in parts], 0) for name in parts[0][1]})
    kept = {"t": t, "errors": total.tolist(), "bend": bend and {name: x.tolist() for name, x in vars(bend).items()}}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(kept))
    return Errors(t, total, bend)


def fitting_grid(
    model: Model, grids: Sequence[int], *, images: int, spacing: str, minutes: float, progress: Reporter
) -> int:
    """The finest of some grids whose errors are kept, or take at most so many minutes; else the coarsest.

    grids: the finest first
    Notes what the measuring takes.
    """
    if len(grids) == 1:
        return grids[0]
    images = min(images, len(model.experiment.data.load("train")))
    cost = call_seconds(model, min(ROWS, images), seconds=0.2)
    times = {n: images * ((2 * cost.heavy + cost.without) * n + cost.light * n * (n + 1) / 2) for n in grids}
    fits = (n for n in grids if times[n] <= 60 * minutes or _file(model, n, images, spacing).exists())
    chosen = next(fits, grids[-1])
    note = f"a grid of {chosen} steps, whose errors take at most {duration(times[chosen])} to measure"
    if chosen != grids[0]:
        note += f"; a finer one is measured by --grid {grids[0]}, in at most {duration(times[grids[0]])}"
    progress.note(note)
    return chosen


def _file(model: Model, grid: int, images: int, spacing: str) -> Path:
    source = model.experiment.data.load("train")
    of = [model.weights_hash, model.experiment.drawing, source.fingerprint, grid, min(images, len(source)), spacing]
    of += [pays(model.device), model.compiled, model.graphs]
    return cache_dir() / "plans" / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}.json"


def _read_errors(file: Path, t: tuple[float, ...]) -> Errors:
    """Errors as they were kept. Raises ValueError for a file that does not hold those of this grid."""
    grid = len(t) - 1
    try:
        kept = read_json(file)
        bend = kept["bend"] and Bend(**{name: np.array(part, np.float64) for name, part in kept["bend"].items()})
        times, rows = tuple(map(float, kept["t"])), np.array(kept["errors"], dtype=np.float64)
        if not np.allclose(times, t, rtol=0, atol=1e-9) or rows.shape != (grid, grid + 1):
            raise ValueError(f"it is not of {grid} steps")
        return Errors(t, rows, bend)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and the errors are measured again") from error


def _errors_of(model: Model, t: tuple[float, ...], bfloat16: bool, numbered: tuple[int, ByteBatch]) -> Errors:
    """Means of a batch, whose first image has this number."""
    start, batch = numbered[0], numbered[1].to(model.device)
    draws, cond = Draws(SEED, torch.arange(start, start + len(batch.x), device=model.device)), Cond(batch.label)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        denoiser = model.ready(bfloat16=bfloat16).denoiser
        errors = measure_errors(denoiser, model.gaussian, t, batch.x, cond, draws)
        if errors.num_steps < FEWEST:
            return errors
        normal = draws.normal("bend", *batch.x.shape[1:]).to(batch.x.dtype)
        return replace(errors, bend=measure_bend(denoiser, model.gaussian, t, normal, cond))


# By images

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
        return interval_of(self.differences)


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
    evaluator: Evaluator[Any],
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
    seconds:      after which it stops with an OutOfTime
    Raises ValueError, before anything is drawn, for what cannot be searched or scored; OSError for a directory that
    another process is filling, and for files.
    """
    deadline = time.monotonic() + seconds
    if not model.serves.any_plan:
        raise ValueError(f"{model.name} is a distilled student, whose plan was set before it was trained")
    evaluator.check_count(num)
    usual, shown = choice.step_plan(model), image_progress(progress)

    def drawer(plan: StepPlan) -> Drawer:
        of_plan = Choice(sampler=choice.sampler, gamma=choice.gamma, eta=choice.eta, plan=plan)
        return of_plan.drawer(model, batch_size=batch_size)

    def measured(plan: StepPlan, seeds: range) -> Measurement:
        one = drawer(plan)
        report = until(deadline, shown)
        place = keep / one.origin(evaluator.net.identity).digest
        return measure(one, seeds, evaluator, keep=place, shard_size=SHARD, progress=report, mapper=mapper)

    def after(one: Round[StepPlan]) -> None:
        progress.note(
            f"{len(one.values)} plans, {one.count} images each: the best is {names[one.best]}, "
            f"{evaluator.metric} {one.values[one.best]:.3f}; {USUAL} {one.values[usual]:.3f}"
        )

    def compared(found: StepPlan, seeds: range) -> Compared:
        pair = [measured(plan, seeds) for plan in (found, usual)]
        of_found, of_usual = (one.replicates[evaluator.metric] for one in pair)
        return Compared(pair[0].row.score, pair[1].row.score, of_found - of_usual)

    _ = drawer(usual).cost  # refuses what cannot be drawn
    names = plans_to_measure(model, usual)
    keep.mkdir(parents=True, exist_ok=True)
    with run_lock(keep, "filled by a search"):
        try:
            rounds = halving(
                list(names),
                usual,
                counts(num, 2 * evaluator.net.dim),
                lambda plan, count: measured(plan, searched(count)).row.score.value,
                after=after,
            )
            best, last = rounds[-1].best, rounds[-1].count
            return Findings(names, rounds, usual, compared(best, searched(last)), compared(best, fresh(last)))
        except (KeyboardInterrupt, OutOfTime) as stop:
            why = "interrupted" if isinstance(stop, KeyboardInterrupt) else "out of time"
            raise type(stop)(f"{why}: features of what was drawn are in {keep}; the same command goes on") from None
        finally:
            progress.close()


def plans_to_measure(model: Model, usual: StepPlan) -> Names:
    """The plans of the family, the usual one first."""
    steps, heavy, schedule = usual.num_steps, usual.num_heavy, model.process.schedule
    late = heavy < steps and model.denoiser.reuse is Reuse.MARKOV and model.serves.drops
    family, between = members(steps, heavy, late=late), abilities(model.denoiser).between
    plans = {member.plan(schedule, steps, heavy).renewing(between): member for member in family}
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
