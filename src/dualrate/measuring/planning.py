"""The best plan of a model for a budget: errors measured on data once, costs counted or timed, plans searched."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualrate.data.cache import cache_dir
from dualrate.data.loader import TrainingSet
from dualrate.data.untrusted import read_text, reading
from dualrate.denoisers.catalogue import refreshing
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Model
from dualrate.machine.device import pays
from dualrate.machine.files import read_json, write_whole
from dualrate.machine.progress import ImageProgress, Reporter, image_progress
from dualrate.machine.workers import Mapper, in_turn
from dualrate.measuring.choosing import Choice
from dualrate.measuring.measure import measure
from dualrate.measuring.subset import SubsetPart, subset_parts
from dualrate.metrics.evaluate import Evaluator
from dualrate.planning.bend import FEWEST, Bend, measure_bend
from dualrate.planning.planner import Errors, Planned, Planner, measure_errors
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times

ROWS = 32  # images at a time: the contexts of all grid times are held for them
SEED = 1 << 40  # of the planner's noise; far from the seeds that images are sampled and scored with


@dataclass(frozen=True)
class Candidate:
    """The best plan of one number of steps; `even`: the objective of as many heavy calls spread evenly, on the grid,
    with contexts kept between them.
    """

    planned: Planned
    even: float | None
    cost: float


def candidates(
    planner: Planner, costs: CallCost, budget: float, steps: Sequence[int], *, free_times: bool = False
) -> list[Candidate]:
    """The best plan within the budget for each number of steps that fits it, best first.

    Raises ValueError if none does.
    """
    found = []
    for count in steps:
        affordable = costs.affordable(count, budget)
        if not affordable.any():
            continue
        planned = planner.best(count, affordable, free_times=free_times)
        heavy, alone = planned.plan.num_heavy, planned.plan.num_alone
        on_grid = planner.errors.num_steps % count == 0
        even = planner.objective(_even(planner, count, heavy)) if on_grid else math.inf
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
    if refreshing(model.called_by).even:
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
    Raises what `require_plannable` and `every_call` raise.
    """
    require_plannable(model)
    source = model.experiment.data.load("train")
    images = min(images, len(source))
    file, t = _file(model, source, grid, images, spacing), grid_times(spacing, model.process.schedule, grid)
    if file.exists():
        return _read_errors(file, t)
    progress.note(
        f"measuring the errors of at most {grid} x {grid} / 2 calls on {images} images, once; they are kept in {file}"
    )
    errors = _measured(model, source, t, images, progress, mapper)
    file.parent.mkdir(parents=True, exist_ok=True)
    bend = errors.bend and {name: part.tolist() for name, part in vars(errors.bend).items()}
    write_whole(file, json.dumps({"t": errors.t, "errors": errors.errors.tolist(), "bend": bend}))
    return errors


def _read_errors(file: Path, t: tuple[float, ...]) -> Errors:
    """Errors as they were kept. Raises ValueError for a file that does not hold those of this grid."""
    grid = len(t) - 1
    try:
        kept = read_json(file)
        bend = kept["bend"] and Bend(**{name: np.array(part, np.float64) for name, part in kept["bend"].items()})
        errors = Errors(tuple(map(float, kept["t"])), np.array(kept["errors"], dtype=np.float64), bend)
        if not np.allclose(errors.t, t, rtol=0, atol=1e-9) or errors.errors.shape != (grid, grid + 1):
            raise ValueError(f"it is not of {grid} steps")
        return errors
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and the errors are measured again") from error


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
    model: Model, source: TrainingSet, t: tuple[float, ...], images: int, progress: Reporter, mapper: Mapper
) -> Errors:
    """`images` spread over the data set; a mean over parts of ROWS images."""
    grid, done = len(t) - 1, 0
    parts = list(subset_parts(model, source, images, ROWS))
    numbered = [(ROWS * i, part) for i, part in enumerate(parts)]
    found: dict[int, Errors] = {}

    def tell(at: int, grid: int) -> None:
        progress.update(done * grid + at, images * grid, {"images": done + at // grid})

    here = tell if mapper is in_turn else None  # a worker tells of whole parts
    for (start, part), errors in mapper(partial(_errors_of, model, t, pays(model.device), here), numbered):
        found[start], done = errors, done + len(part)
        tell(0, grid)
    progress.close()
    each = [(len(part) / images, found[start]) for start, part in numbered]  # in one order, whichever was done first
    total = sum((share * one.errors for share, one in each), np.zeros((grid, grid + 1)))
    bends = [(share, one.bend) for share, one in each if one.bend is not None]
    if not bends:
        return Errors(t, total)
    means = {name: sum(share * getattr(bend, name) for share, bend in bends) for name in ("first", "second", "last")}
    return Errors(t, total, replace(bends[0][1], **means))


def _errors_of(
    model: Model,
    t: tuple[float, ...],
    bfloat16: bool,
    tell: ImageProgress | None,
    part: tuple[int, SubsetPart],
) -> Errors:
    """Means of a part of the images, whose first has this number. tell: called with (image times done, grid)."""
    start, images = part
    batch = images.on(model.device)
    draws = Draws(SEED, torch.arange(start, start + len(batch), device=model.device))
    progress = None if tell is None else lambda done, grid: tell(len(batch) * done, grid)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        denoiser = model.ready(bfloat16=bfloat16).denoiser
        errors = measure_errors(denoiser, model.gaussian, t, batch.x, batch.cond, draws, progress=progress)
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
