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
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.loader import ByteBatch, TrainingSet
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
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.metrics.frechet import Interval, interval_of
from dualrate.planning.planner import FEWEST, Bend, Errors, Planned, Planner, measure_bend, measure_errors
from dualrate.planning.search import Round, counts, halving, members, shortlist
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.system.device import pays
from dualrate.system.files import read_json, write_whole
from dualrate.system.progress import Reporter, duration, image_progress, run_lock
from dualrate.system.workers import Mapper, in_turn

MINUTES = 2.0  # of measuring errors, where none are given
ROWS = 32  # images at a time: the contexts of all grid times are held for them
SEED = 1 << 40  # of the planner's noise; far from the seeds that images are sampled and scored with
PARTS = ".batches"  # suffix of the folder of what is measured, beside the file of all


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

    images: at most; all of them if there are fewer
    spacing: of the grid, as a sampler's (sampling/grids.py)
    mapper: measures batches of ROWS images
    A batch that is measured is kept, so that the next call goes on after an interruption.
    Raises what `require_plannable` and `every_call` raise.
    """
    require_plannable(model)
    source = model.experiment.data.load("train")
    images = min(images, len(source))
    file, t = _file(model, source, grid, images, spacing), grid_times(spacing, model.process.schedule, grid)
    if file.exists():
        return _read_errors(file, t)
    progress.note(
        f"measuring errors, once: {images} images at {grid} times; what is measured is kept in {file.parent}: if "
        "stopped, the same command goes on"
    )
    folder = file.with_suffix(PARTS)
    errors = _measured(model, source, t, images, folder, progress, mapper)
    _write_errors(file, errors)
    shutil.rmtree(folder, ignore_errors=True)
    return errors


def fitting_grid(
    model: Model, grids: Sequence[int], *, images: int, spacing: str, minutes: float | None, progress: Reporter
) -> int:
    """The finest of some grids whose errors are known, begun, or take at most so many minutes; else the coarsest.

    grids: the finest first; minutes: None: MINUTES, and one that is known or begun is taken though a finer one may fit
    Notes what the measuring takes.
    """
    if len(grids) == 1:
        return grids[0]
    source = model.experiment.data.load("train")
    images = min(images, len(source))
    files = {grid: _file(model, source, grid, images, spacing) for grid in grids}
    known = [grid for grid, file in files.items() if file.exists() or file.with_suffix(PARTS).exists()]
    if known and (minutes is None or known[0] == grids[0]):
        return known[0]
    cost = call_seconds(model, min(ROWS, images), seconds=0.2)
    calls = {grid: (2 * cost.heavy + cost.without) * grid + cost.light * grid * (grid + 1) / 2 for grid in grids}
    seconds = 60 * (MINUTES if minutes is None else minutes)
    chosen = next((grid for grid in grids if grid in known or images * calls[grid] <= seconds), grids[-1])
    note = f"a grid of {chosen} steps, whose errors take at most {duration(images * calls[chosen])} to measure"
    if chosen != grids[0]:
        note += f"; a finer one is measured by --grid {grids[0]}, in at most {duration(images * calls[grids[0]])}"
    progress.note(note)
    return chosen


def are_errors_kept(model: Model, *, grid: int, images: int) -> bool:
    """Whether `measured_errors` has nothing left to measure."""
    source = model.experiment.data.load("train")
    return _file(model, source, grid, min(images, len(source)), "t").exists()


def _file(model: Model, source: TrainingSet, grid: int, images: int, spacing: str) -> Path:
    of = [model.weights_hash, model.experiment.drawing, source.fingerprint, grid, images, pays(model.device)]
    of += ["bend"] + ["compiled"] * model.compiled + ["graphs"] * model.graphs + [spacing] * (spacing != "t")
    key = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
    return cache_dir() / "plans" / f"{key}.json"


def _write_errors(file: Path, errors: Errors) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    bend = errors.bend and {name: part.tolist() for name, part in vars(errors.bend).items()}
    write_whole(file, json.dumps({"t": errors.t, "errors": errors.errors.tolist(), "bend": bend}))


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


def _measured(
    model: Model,
    source: TrainingSet,
    t: tuple[float, ...],
    images: int,
    folder: Path,
    progress: Reporter,
    mapper: Mapper,
) -> Errors:
    """`images` spread over the data set; a mean over batches of ROWS images. folder: of a file for each batch."""
    grid = len(t) - 1
    batches = dict(zip(range(0, images, ROWS), real_batches(model, source, images, ROWS), strict=True))
    files = {start: folder / f"{start}.json" for start in batches}
    found = {start: _read_errors(file, t) for start, file in files.items() if file.exists()}

    def show(here: float = 0) -> None:
        done = sum(len(batches[start].x) for start in found) + here
        progress.update(round(done * grid), images * grid, {"images": done})

    job = partial(_errors_of, model, t, pays(model.device), show if mapper is in_turn else None)
    try:
        show()
        for (start, _), errors in mapper(job, [item for item in batches.items() if item[0] not in found]):
            found[start] = errors
            _write_errors(files[start], errors)
            show()
    finally:
        progress.close()
    shares = [(len(batch.x) / images, found[start]) for start, batch in batches.items()]  # whichever was first
    total = sum((share * one.errors for share, one in shares), np.zeros((grid, grid + 1)))
    bends = [(share, one.bend) for share, one in shares if one.bend is not None]
    if not bends:
        return Errors(t, total)
    means = {name: sum(share * getattr(bend, name) for share, bend in bends) for name in ("first", "second", "last")}
    return Errors(t, total, replace(bends[0][1], **means))


def _errors_of(
    model: Model,
    t: tuple[float, ...],
    bfloat16: bool,
    show: Callable[[float], None] | None,
    numbered: tuple[int, ByteBatch],
) -> Errors:
    """Means of a batch, whose first image has this number. show: called with the images done of this batch"""
    start, batch = numbered[0], numbered[1].to(model.device)
    draws = Draws(SEED, torch.arange(start, start + len(batch.x), device=model.device))

    cond = Cond(batch.label)

    def progress(rows: NDArray[np.float64]) -> None:
        if show is not None:
            show(len(batch.x) * len(rows) / (len(t) - 1))

    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        denoiser = model.ready(bfloat16=bfloat16).denoiser
        errors = measure_errors(denoiser, model.gaussian, t, batch.x, cond, draws, progress=progress)
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
        report = until(deadline, lambda before, now: shown(before + now, len(seeds)))
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
    reuses = heavy < steps and model.denoiser.reuse is Reuse.MARKOV
    family = members(steps, heavy, late=reuses and model.serves.drops)
    between = abilities(model.denoiser).between
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
