"""The best plan of a model for a budget: errors measured on data once, costs counted or timed, plans searched."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.loader import TrainingSet
from dualrate.data.source import read_text, reading
from dualrate.denoisers.catalogue import refreshing
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond, Reuse, shared_time
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import SubsetPart, subset_parts
from dualrate.drawing.measure import call_seconds, measure
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator
from dualrate.planning.planner import FEWEST, Bend, Errors, Planned, Planner, measure_bend, measure_errors
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.system.device import pays
from dualrate.system.files import read_json, write_whole
from dualrate.system.progress import Reporter, duration, image_progress
from dualrate.system.workers import Mapper, in_turn

MINUTES = 2.0  # of measuring errors, where none are given
ROWS = 32  # images at a time: the contexts of all grid times are held for them
KEEP_SECONDS = 2.0  # between two times that what is measured is kept
SEED = 1 << 40  # of the planner's noise; far from the seeds that images are sampled and scored with

PARTS = ".parts"  # suffix of the folder of what is measured, beside the file of all
UNIT = CallCost(1, 1)


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
        even = planner.objective(_even(planner, count, heavy))
        found.append(Candidate(planned, even if math.isfinite(even) else None, costs.of(count, heavy, alone)))
    if not found:
        cheapest = min(costs.of(count, *calls) for count in steps for calls in ((0, count), (1, 0), (count, 0)))
        raise ValueError(
            f"a budget of {budget:.4g} pays for none of {', '.join(map(str, steps))} steps; the cheapest plan costs "
            f"{cheapest:.4g}: raise the budget, or allow fewer steps"
        )
    return sorted(found, key=lambda candidate: candidate.planned.objective)


def _even(planner: Planner, steps: int, heavy: int) -> StepPlan:
    """So many equal parts of the planner's grid, heavy calls spread evenly."""
    return StepPlan.spread(planner.errors.t[:: planner.errors.num_steps // steps], heavy)


def require_plannable(model: Model) -> None:
    """Raises ValueError for a single network and a decoder, whose plans have nothing to choose, and for what is to be
    refreshed evenly, since more than its latest heavy call decides.
    """
    if model.experiment.networks.latent is not None:
        raise ValueError(
            f"{model.name} is a decoder, whose heavy call, if any, is of the latent alone: there is nothing to plan"
        )
    if not model.reuses_context:
        raise ValueError(
            f"{model.name} has a single network, which runs at every step: there is nothing to plan; have it called by "
            "shared-encoder, or another run make some of its steps (--denoiser)"
        )
    if not refreshing(model.called_by).planned:
        raise ValueError(
            f"what {model.called_by} makes of a step depends on more than its latest heavy call, which is all that a "
            "planner looks at: spread its heavy calls evenly (--heavy), or name another denoiser"
        )


def measured_errors(
    model: Model, *, grid: int, images: int, spacing: str = "t", progress: Reporter, mapper: Mapper = in_turn
) -> Errors:
    """Errors of the model on its training data, over a grid of so many steps, and its bend; kept in the user's cache.

    images: at most; all of them if there are fewer
    spacing: of the grid, as a sampler's (sampling/grids.py)
    mapper: measures parts of ROWS images
    What is measured is kept every few seconds and when it is interrupted, so that the next call goes on.
    Raises what `require_plannable` and `every_call` raise.
    """
    require_plannable(model)
    source = model.experiment.data.load("train")
    images = min(images, len(source))
    file, t = _file(model, source, grid, images, spacing), grid_times(spacing, model.process.schedule, grid)
    if file.exists():
        return _read_errors(file, t)
    calls = _Calls.of(model)
    progress.note(
        f"measuring errors, once: {images * calls.of_grid(grid):,.0f} calls, {images} images at {grid} times; what is "
        f"measured is kept in {file.parent}: if stopped, the same command goes on"
    )
    errors = _measured(model, source, t, images, calls, file.with_suffix(PARTS), progress, mapper)
    _write_errors(file, errors.errors, errors)
    shutil.rmtree(file.with_suffix(PARTS), ignore_errors=True)
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
    files = [(grid, _file(model, source, grid, images, spacing)) for grid in grids]
    known = [grid for grid, file in files if file.exists() or file.with_suffix(PARTS).exists()]
    if known and (minutes is None or known[0] == grids[0]):
        return known[0]
    calls = call_seconds(model, min(ROWS, images), seconds=0.2)
    made = _Calls.of(model)
    takes = {grid: images * made.of_grid(grid, calls) for grid in grids}
    seconds = 60 * (MINUTES if minutes is None else minutes)
    chosen = next((grid for grid in grids if grid in known or takes[grid] <= seconds), grids[-1])
    finer = f"; a finer one is measured by --grid {grids[0]}, in about {duration(takes[grids[0]])}"
    progress.note(
        f"a grid of {chosen} steps, whose errors take about {duration(takes[chosen])} to measure"
        + finer * (chosen != grids[0])
    )
    return chosen


@dataclass(frozen=True)
class _Calls:
    """Which calls a denoiser makes in a measurement of errors.

    keeps: whether a heavy call leaves a context behind; own: has denoised already; alone: may be left out
    """

    keeps: bool
    own: bool
    alone: bool

    @staticmethod
    @torch.no_grad()
    def of(model: Model) -> _Calls:
        label = torch.zeros(1, dtype=torch.int64, device=model.device) if model.num_classes else None
        z = torch.zeros(1, *model.shape, device=model.device)
        context = model.denoiser.encode(z, shared_time(0.5), Cond(label))
        return _Calls(bool(context.features), context.x_hat is not None, model.denoiser.reuse is not Reuse.SMOOTH)

    def until(self, times: int, cost: CallCost = UNIT) -> float:
        """Of an image, over the first so many times of a grid; what they come to, where they cost so much."""
        light = self.keeps * times * (times - 1) // 2 + (not self.own) * times
        return times * cost.heavy + light * cost.light + self.alone * times * cost.without

    def of_grid(self, grid: int, cost: CallCost = UNIT) -> float:
        """Of an image, over all of a grid and for its bend."""
        bend = grid * (cost.heavy + (not self.own) * cost.light) if grid >= FEWEST else 0
        return self.until(grid, cost) + bend


def _write_errors(file: Path, rows: NDArray[np.float64], errors: Errors) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    bend = errors.bend and {name: part.tolist() for name, part in vars(errors.bend).items()}
    write_whole(file, json.dumps({"t": errors.t, "errors": rows.tolist(), "bend": bend}))


def _read_errors(file: Path, t: tuple[float, ...]) -> Errors:
    """Errors as they were kept. Raises ValueError for a file that does not hold those of this grid."""
    rows, bend = _read_rows(file, t)
    if len(rows) < len(t) - 1:
        raise ValueError(_damaged(file, f"it is not of {len(t) - 1} steps"))
    return Errors(t, rows, bend)


def _read_rows(file: Path, t: tuple[float, ...]) -> tuple[NDArray[np.float64], Bend | None]:
    """The first rows of the errors of a grid, and its bend where that is known. Raises ValueError for anything else."""
    grid = len(t) - 1
    try:
        kept = read_json(file)
        bend = kept["bend"] and Bend(**{name: np.array(part, np.float64) for name, part in kept["bend"].items()})
        times, rows = tuple(map(float, kept["t"])), np.array(kept["errors"], dtype=np.float64)
        if not np.allclose(times, t, rtol=0, atol=1e-9) or rows.shape[1:] != (grid + 1,) or len(rows) > grid:
            raise ValueError(f"it is not of {grid} steps")
        return rows, bend
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(_damaged(file, str(error))) from error


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}): delete it, and the errors are measured again"


def are_errors_kept(model: Model, *, grid: int, images: int) -> bool:
    """Whether `measured_errors` has nothing left to measure."""
    source = model.experiment.data.load("train")
    return _file(model, source, grid, min(images, len(source)), "t").exists()


def _file(model: Model, source: TrainingSet, grid: int, images: int, spacing: str) -> Path:
    of = [model.weights_hash, model.experiment.drawing, source.fingerprint, grid, images, pays(model.device)]
    of += ["bend"] + ["compiled"] * model.compiled + ["graphs"] * model.graphs + [spacing] * (spacing != "t")
    key = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
    return cache_dir() / "plans" / f"{key}.json"


def _measured(
    model: Model,
    source: TrainingSet,
    t: tuple[float, ...],
    images: int,
    calls: _Calls,
    folder: Path,
    progress: Reporter,
    mapper: Mapper,
) -> Errors:
    """`images` spread over the data set; a mean over parts of ROWS images. folder: of a file for each part."""
    grid, each = len(t) - 1, calls.of_grid(len(t) - 1)
    numbered = list(zip(range(0, images, ROWS), subset_parts(model, source, images, ROWS), strict=True))
    found: dict[int, Errors] = {}
    begun: dict[int, NDArray[np.float64]] = {}
    for start, _ in numbered:
        if (file := folder / f"{start}.json").exists():
            rows, bend = _read_rows(file, t)
            if len(rows) == grid and (bend is not None or grid < FEWEST):
                found[start] = Errors(t, rows, bend)
            else:
                begun[start] = rows
    latest: tuple[int, NDArray[np.float64]] | None = None  # rows of a part that is being measured here
    kept_at = time.monotonic()

    def keep() -> None:
        nonlocal kept_at
        if latest is not None:
            _write_errors(folder / f"{latest[0]}.json", latest[1], Errors(t, np.full((grid, grid + 1), np.inf)))
        kept_at = time.monotonic()

    def known(start: int, count: int, rows: NDArray[np.float64]) -> None:
        nonlocal latest
        latest = start, rows
        tell(count * calls.until(len(rows)))
        if time.monotonic() - kept_at >= KEEP_SECONDS:
            keep()

    def tell(of_this: float = 0) -> None:
        done = sum(len(part) for start, part in numbered if start in found) * each + of_this
        progress.update(round(done), round(images * each), {"calls": done})

    job = partial(_errors_of, model, t, pays(model.device), begun, known if mapper is in_turn else None)
    try:
        tell()
        for (start, _), errors in mapper(job, [one for one in numbered if one[0] not in found]):
            found[start], latest = errors, None
            _write_errors(folder / f"{start}.json", errors.errors, errors)
            tell()
    finally:
        keep()
        progress.close()
    shares = [(len(part) / images, found[start]) for start, part in numbered]  # in one order, whichever was first
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
    begun: Mapping[int, NDArray[np.float64]],
    known: Callable[[int, int, NDArray[np.float64]], None] | None,
    part: tuple[int, SubsetPart],
) -> Errors:
    """Means of a part of the images, whose first has this number.

    begun: rows that are known, by that number; known: called with that number, the number of images and all rows so far
    """
    start, images = part
    batch = images.on(model.device)
    draws = Draws(SEED, torch.arange(start, start + len(batch), device=model.device))
    progress = None if known is None else partial(known, start, len(batch))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        denoiser = model.ready(bfloat16=bfloat16).denoiser
        how = {"begun": begun.get(start, ()), "progress": progress}
        errors = measure_errors(denoiser, model.gaussian, t, batch.x, batch.cond, draws, **how)
        if errors.num_steps < FEWEST:
            return errors
        normal = draws.normal("bend", *batch.x.shape[1:]).to(batch.x.dtype)
        return replace(errors, bend=measure_bend(denoiser, model.gaussian, t, normal, batch.cond))


@dataclass(frozen=True)
class Ranked:
    """A plan with what the planner expects of it and what was measured."""

    name: str
    plan: StepPlan
    objective: float
    score: float


def check_plans(planner: Planner, costs: CallCost) -> list[tuple[str, StepPlan]]:
    """Named plans of all kinds on the planner's grid, none twice: even, planned, crowded at one end. None that it knows
    no error of: of two single networks the light one first, in place of even. costs: those that are planned have the
    even ones'.
    """
    size = planner.errors.num_steps
    sizes = [(size // 4, h) for h in (2, 4, 8)] + [(size // 2, h) for h in (2, 4, 8)] + [(size, h) for h in (4, 8)]
    sizes = [(n, h) for n, h in sizes if 0 < h <= n and size % n == 0]
    plans = [(f"{n}/{h} even", _even(planner, n, h)) for n, h in sizes]
    if not all(math.isfinite(planner.objective(plan)) for _, plan in plans):
        plans += [(f"{n}/{h} light first", StepPlan.late(_even(planner, n, h).t, h, n - h)) for n, h in sizes]
    planned = {(n, h): planner.best(n, costs.affordable(n, costs.of(n, h))).plan for n, h in sizes if h > 2}
    plans += [(f"as {n}/{h}, planned", plan) for (n, h), plan in planned.items()]
    n, h = size if size % 2 else size // 2, min(4, size // 4)  # of the grid's times, the first and the last too
    times = _even(planner, n, h).t
    plans.append((f"{n}/{h} all early", StepPlan.at(times, range(h))))
    plans.append((f"{n}/{h} late", StepPlan.at(times, [0, *range(n - h + 1, n)])))
    known = [(name, plan) for name, plan in reversed(plans) if math.isfinite(planner.objective(plan))]
    return list({plan: (name, plan) for name, plan in known}.values())


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two lists without ties."""
    differences = np.argsort(np.argsort(first)) - np.argsort(np.argsort(second))
    return 1 - 6 * float(np.square(differences).sum()) / (len(differences) * (len(differences) ** 2 - 1))


def rank(
    model: Model,
    planner: Planner,
    judge: Evaluator[Any],
    *,
    count: int,
    progress: Reporter,
    mapper: Mapper = in_turn,
) -> list[Ranked]:
    """Draws `count` images under every plan of `check_plans` and scores them. Seeds are the planner's own."""
    ranked, plans = [], check_plans(planner, model.call_cost)
    for i, (name, plan) in enumerate(plans):
        progress.note(f"plan {i + 1} of {len(plans)}: {name}")
        drawer = Choice(sampler=ANCESTRAL if planner.order == 1 else None, plan=plan).drawer(model)
        how = {"progress": image_progress(progress), "mapper": mapper}
        row = measure(drawer, range(SEED, SEED + count), judge, **how).row
        progress.close()
        ranked.append(Ranked(name, plan, planner.objective(plan), row.score.value))
    return ranked


def read_plan(path: Path) -> StepPlan:
    """A plan from a JSON file. Raises OSError if it cannot be read; ValueError, naming the file, if it is no plan."""
    with reading(path, "a plan"):
        return StepPlan.from_json(read_text(path))
