"""Where two models change over: which steps the light one makes, from errors of x_hat measured once.

Both are judged on z_t of data by the planner's terms (planning/planner.py): of a step that the light model makes its
error counts, of the others the heavy one's. `Planner.best` then places any number of heavy calls, and `switched_plan`
finds the fewest that come after all light ones.

Source: ours. DuoDiff (arXiv 2410.09633) and T-Stitch (arXiv 2402.14167) try shares of the steps by drawing images, as
`dualrate compare HEAVY+LIGHT` does. The terms are those of a training loss, which need not rank plans as images do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dualrate.denoisers.switched import Switched
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.times import shared_time
from dualrate.diffusion.values import Cond, Context
from dualrate.planning.planner import NO_CONTEXT, Errors, Planner


@torch.no_grad()
def switching_errors(
    pair: Switched, process: GaussianProcess, t: Sequence[float], x: Tensor, cond: Cond, draws: Draws
) -> Errors:
    """Errors at the times of a grid (M + 1, the last is no step's start), of both models on the same z_t; KEEP is none.

    x: (B, ...) data. Costs M calls of each network an image, where `measure_errors` would make M^2 / 2 light ones.
    """
    steps = len(t) - 1
    errors = np.full((steps, steps + 1), np.inf)
    for i, time in enumerate(t[:-1]):
        now = shared_time(time, len(x))
        z = process.add_noise(x, now, draws.normal(f"switch {i}", *x.shape[1:]).to(x.dtype))
        for column, context in ((i, pair.encode(z, now, cond)), (NO_CONTEXT, Context())):
            errors[i, column] = (x - pair.denoise(z, now, context, cond)).double().square().mean().item()
    return Errors(tuple(t), errors)


def switched_plan(planner: Planner, loss: float) -> StepPlan:
    """The plan with most light steps, then heavy ones, whose terms sum to at most 1 + loss times those of heavy alone.

    The steps are those of the planner's grid. Raises ValueError for a loss below 0.
    """
    if not loss >= 0:
        raise ValueError(
            f"the loss is what light steps may add, a share of the heavy model's own: 0 or more, got {loss}"
        )
    times, steps = planner.errors.t, planner.errors.num_steps
    most = (1 + loss) * planner.objective(StepPlan.spread(times))
    alone = max(k for k in range(steps + 1) if planner.objective(StepPlan.late(times, steps - k, k)) <= most)
    return StepPlan.late(times, steps - alone, alone)
