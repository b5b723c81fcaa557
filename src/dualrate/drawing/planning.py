"""The best plans of a model for a budget.

The errors of every pair of a grid time and a context are measured once and kept in the user's cache. Then
`sampling/planner.py` finds the best plan within a budget for each number of steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dualrate.data.cache import cache_dir
from dualrate.data.condition_rows import HeldOut
from dualrate.data.loader import ByteBatch
from dualrate.denoisers.denoiser import read
from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import measured_on, real_batches
from dualrate.experiment.model import Model
from dualrate.sampling import planner as search
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.sampling.planner import Errors, Planned, Planner
from dualrate.system.device import pays
from dualrate.system.files import read_json, write_whole
from dualrate.system.progress import Reporter
from dualrate.system.workers import Mapper, in_turn

ROWS = 16  # images at a time: the contexts of all grid times are held for them
SEED = 1 << 40  # of the planner's noise; far from the seeds that images are sampled and scored with


@dataclass(frozen=True)
class BestPlan:
    """The best plan of one number of steps; `even`: the objective of as many heavy calls spread evenly, on the grid,
    with contexts kept between them.
    """

    planned: Planned
    even: float | None
    cost: float


def candidates(planner: Planner, costs: CallCost, budget: float, steps: Sequence[int]) -> list[BestPlan]:
    """The best plan within the budget for each number of steps that fits it, best first.

    Raises ValueError if none does.
    """
    plans, known_alone = [], bool(np.isfinite(planner.errors.errors[:, search.NO_CONTEXT]).all())
    for count in steps:
        affordable = costs.affordable(count, budget)
        affordable[0] &= known_alone
        if not affordable.any():
            continue
        planned = planner.best(count, affordable)
        heavy, alone = planned.plan.num_heavy, planned.plan.num_alone
        even = planner.objective(StepPlan.spread(planner.errors.t[:: planner.errors.num_steps // count], heavy))
        plans.append(BestPlan(planned, even if math.isfinite(even) else None, costs.of(count, heavy, alone)))
    if not plans:
        least = [(count, *calls) for count in steps for calls in ((0, count), (1, 0), (count, 0))]
        cheapest = min(costs.of(*calls) for calls in least if known_alone or calls[1])
        raise ValueError(
            f"a budget of {budget:.4g} pays for none of {', '.join(map(str, steps))} steps; the cheapest plan costs "
            f"{cheapest:.4g}: raise the budget, or allow fewer steps"
        )
    return sorted(plans, key=lambda candidate: candidate.planned.objective)


def require_plannable(model: Model) -> None:
    """Raises ValueError for a student and a single network, whose plans have nothing to choose."""
    if not model.serves.any_plan:
        raise ValueError(f"{model.name} was trained for the steps that it makes, so there is no plan to choose")
    if not (model.reuses_context or model.call_cost.heavy):
        raise ValueError(
            f"{model.name} has a single network, which runs at every step: there is nothing to plan; have it called by "
            "shared-encoder, or another run make some of its steps (--denoiser)"
        )


def measured_errors(
    model: Model, *, grid: int, images: int, spacing: str = "t", progress: Reporter, mapper: Mapper = in_turn
) -> Errors:
    """Errors of the model on its training data, over a grid of so many steps, and its bend; kept in the user's cache.

    A conditional model's are of held-out images with their conditions. Those without a context are infinite where no
    such step was trained, so that no plan has one.
    images: spread over the data set; all of them if there are fewer
    spacing: of the grid, as a sampler's (sampling/grids.py)
    mapper: measures batches of ROWS images
    Raises what `require_plannable`, `measured_on` and `every_call` raise; ValueError for a damaged file.
    """
    require_plannable(model)
    conditions, source = model.given, measured_on(model)
    images, t = min(images, len(source)), grid_times(spacing, model.process.schedule, grid)
    of = [model.identity, model.experiment.drawing, source.fingerprint, grid, images, spacing, pays(model.device)]
    of += ["untrained alone"] * model.untrained_alone
    of += [conditions.of.fingerprint] if isinstance(conditions, HeldOut) else []
    file = cache_dir() / "plans" / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}.json"
    if file.exists():
        return _read_errors(file, t)
    progress.note(f"measuring errors, once: {images} images at {grid} times; they are kept in {file.parent}")
    total, done = dict[str, search.Numbers](), 0
    batches = [*real_batches(model, source, images, ROWS)]
    try:
        for batch, means in mapper(partial(_means, model, t, pays(model.device)), batches):
            total = {name: total.get(name, 0) + mean * len(batch.x) / images for name, mean in means.items()}
            done += len(batch.x)
            progress.update(done, images, {"images": done})
    finally:
        progress.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"t": t} | {name: mean.tolist() for name, mean in total.items()}))
    return _errors(t, total)


def _errors(t: tuple[float, ...], means: Mapping[str, search.Numbers]) -> Errors:
    """Errors from the arrays of a file: the errors, and those of a bend, if any."""
    bend = {name: mean for name, mean in means.items() if name != "errors"}
    return Errors(t, means["errors"], search.Bend(**bend) if bend else None)


def _read_errors(file: Path, t: tuple[float, ...]) -> Errors:
    """Errors as they were kept. Raises ValueError for a file that does not hold those of this grid."""
    try:
        means = {name: np.array(part, np.float64) for name, part in read_json(file).items()}
        if not np.allclose(means.pop("t"), t, rtol=0, atol=1e-9):
            raise ValueError("it is of other times")
        return _errors(t, means)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and the errors are measured again") from error


def _means(model: Model, t: tuple[float, ...], bfloat16: bool, images: ByteBatch) -> dict[str, search.Numbers]:
    """Means over a batch: the errors, and the bend of x_hat where the grid shows it."""
    batch = images.to(model.device)
    draws, cond = Draws(SEED, batch.sample), Cond(batch.label, model.given and model.given(batch.sample))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        denoiser = model.ready(bfloat16=bfloat16).denoiser
        with torch.no_grad():
            cond = read(denoiser, cond)
        means = {"errors": search.measure_errors(denoiser, model.gaussian, t, batch.x, cond, draws).errors}
        if model.untrained_alone:
            means["errors"][:, search.NO_CONTEXT] = np.inf
        if len(t) <= search.FEWEST:
            return means
        normal = draws.normal("bend", *batch.x.shape[1:]).to(batch.x.dtype)
        return means | vars(search.measure_bend(denoiser, model.gaussian, t, normal, cond))
