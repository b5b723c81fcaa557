"""A cache inside the heavy network of a dual-rate model: what calls are worth of which the outer levels alone run.

    OMP_NUM_THREADS=1 .venv/bin/python studies/partial_calls.py --images 256

A partial call at t_i runs the encoder's levels above the middle, adds what the middle added to its input at the latest
whole call, t_j (denoisers/feature_cache.py), and hands a new context over. Three actions at a step with a context, and
what an image pays for each:

    keep      the light network, with the context that there is
    partial   a partial call, then the light network
    full      a whole call, whose own x_hat serves the step

Errors |x - x_hat|^2 of all of them are measured once, on forward paths of training images, at every step t_i, with the
middle of every t_j, in contexts handed over at every t_k between. Then the best plan of all actions (and none: the
light network alone) is found for each budget, exactly, with and without partial calls, by the planner's terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from common import command, load, markdown, on_one_thread
from numpy.typing import NDArray
from torch import Tensor, nn

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.denoisers.denoiser import DualRate
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond, Context, shared_time
from dualrate.drawing.drawer import SubsetBatch, subset_batches
from dualrate.networks.dual import ContextEncoder
from dualrate.sampling.cost import macs_of
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import Reporter

SEED = 1 << 42  # of the noise
Held = tuple[int, int] | None  # a context: the step k that handed it over, the step j of its middle
State = tuple[Held, int, int]  # and how many whole and partial calls were made


class Cached(nn.Module):
    """The middle of a U-ViT. `added`: what it is to add without running; None: it runs, and says so in `last`."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.middle = middle
        self.added: Tensor | None = None
        self.last: Tensor | None = None

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        if self.added is not None:
            return h + self.added
        out = self.middle(h, emb)
        self.last = out - h
        return out


@dataclass(frozen=True)
class Errors:
    """Mean |x - x_hat|^2 per pixel at the N steps.

    context: (N, N, N), [i, k, j]: the light network at t_i, a context handed over at t_k with the middle of t_j;
             j <= k <= i, and k < i where j = k
    full, none: (N,), a whole call's own x_hat; the light network alone
    shallow: (N, N), [i, j]: x_hat of a partial call itself, as DeepCache takes it
    """

    context: NDArray[np.float64]
    full: NDArray[np.float64]
    none: NDArray[np.float64]
    shallow: NDArray[np.float64]


@contextmanager
def caching(model: dr.Model) -> Iterator[tuple[DualRate, Cached]]:
    """A dual-rate model's denoiser, and the middle of its heavy network, which remembers while this lasts."""
    if not isinstance(model.denoiser, DualRate) or not isinstance(model.denoiser.encoder, ContextEncoder):
        raise SystemExit(f"{model.name} is not dual-rate: name a run that is")
    net = cast(Any, model.denoiser.encoder.net)
    net.middle = cached = Cached(net.middle)
    try:
        yield model.denoiser, cached
    finally:
        net.middle = cached.middle


@torch.no_grad()
def measured(model: dr.Model, times: tuple[float, ...], images: int, progress: Reporter) -> Errors:
    process, steps = model.gaussian, len(times) - 1
    total = Errors(np.zeros((steps,) * 3), np.zeros(steps), np.zeros(steps), np.zeros((steps, steps)))
    with caching(model) as (denoiser, cached):
        done = 0
        for batch in subset_batches(model, model.experiment.data.load("train"), images, 64):
            add_errors(total, denoiser, cached, batch, path(process, times, batch.x, Draws(SEED, batch.row)))
            progress.update(done := done + len(batch), images, {"images": done})
    progress.close()
    return Errors(*(part / images for part in (total.context, total.full, total.none, total.shallow)))


def add_errors(
    total: Errors, denoiser: DualRate, cached: Cached, batch: SubsetBatch, states: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Add the sums over a batch."""
    x, cond = batch.x, batch.cond
    middles: list[Tensor] = []
    contexts: dict[tuple[int, int], Context] = {}

    def error(x_hat: Tensor) -> float:
        return (x - x_hat).double().square().mean().item() * len(x)

    for i, (z, t) in enumerate(states):
        total.none[i] += error(denoiser.denoise(z, t, Context(), cond))
        for (k, j), context in contexts.items():
            total.context[i, k, j] += error(denoiser.denoise(z, t, context, cond))
        for j, cached.added in enumerate(middles):
            context = denoiser.encode(z, t, cond)
            total.shallow[i, j] += error(denoiser.denoise(z, t, context, cond))
            contexts[i, j] = context.aged()
            total.context[i, i, j] += error(denoiser.denoise(z, t, contexts[i, j], cond))
        cached.added = None
        context = denoiser.encode(z, t, cond)
        total.full[i] += error(denoiser.denoise(z, t, context, cond))
        contexts[i, i] = context.aged()
        middles.append(cast(Tensor, cached.last))


def path(
    process: GaussianProcess, times: tuple[float, ...], x: Tensor, draws: Draws
) -> Iterator[tuple[Tensor, Tensor]]:
    """(z, t) at every step's start, along one forward path of each image."""
    shape, now = x.shape[1:], shared_time(times[0], len(x))
    z = process.add_noise(x, now, draws.normal("partial start", *shape).to(x.dtype))
    for i, following in enumerate(times[1:]):
        yield z, now
        if i + 2 < len(times):
            before, now = now, shared_time(following, len(x))
            z = process.posterior(z, x, before, now).sample(draws.normal(f"partial {i}", *shape).to(x.dtype))


def best_plans(errors: Errors, weights: NDArray[np.float64], partial: bool) -> dict[tuple[int, int], tuple[float, str]]:
    """By the numbers of whole and of partial calls: the least sum of terms, and what each step does: F, p, . or -.

    weights: (N,), of the steps' errors; partial: whether there are partial calls
    """
    states: dict[State, tuple[float, str]] = {(None, 0, 0): (0.0, "")}
    for i, weight in enumerate(weights):
        arrived: dict[State, tuple[float, str]] = {}
        for (held, full, part), (value, actions) in states.items():
            steps = [("F", (i, i), full + 1, part, errors.full[i]), ("-", None, full, part, errors.none[i])]
            if held is not None:
                k, j = held
                steps.append((".", held, full, part, errors.context[i, k, j]))
                if partial:
                    steps.append(("p", (i, j), full, part + 1, errors.context[i, i, j]))
            for action, *to, error in steps:
                state, found = cast(State, tuple(to)), (value + weight * error, actions + action)
                arrived[state] = min(arrived.get(state, found), found)
        states = arrived
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for (_, full, part), found in states.items():
        best[full, part] = min(best.get((full, part), found), found)
    return best


def partial_macs(model: dr.Model) -> int:
    """Multiply-adds of a partial call."""
    z, t = torch.zeros(1, *model.shape), torch.full((1,), 0.5, dtype=torch.float64)
    cond = Cond(torch.zeros(1, dtype=torch.int64) if model.num_classes else None)
    with caching(model) as (denoiser, cached):
        denoiser.encode(z, t, cond)
        cached.added = cached.last
        return macs_of(lambda: denoiser.encode(z, t, cond))


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--run", default="weights/fashion-mnist-retrofit")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    on_one_thread()
    model = load(asked.run)
    times = grid_times("log-snr", model.gaussian.schedule, asked.steps)
    errors = measured(model, times, asked.images, reporter())
    steps, places = asked.steps, np.arange(asked.steps)
    lines = []
    for age in (1, 2, 4, 8):
        i, j = places[age:], places[:-age]
        full = errors.full[age:]
        kinds = (errors.none[age:], errors.context[i, j, j], errors.context[i, i, j], errors.shallow[i, j])
        for name, share in (("first half", i < steps // 2), ("second half", i >= steps // 2)):
            if share.any():
                excess = (f"{1e4 * (kind - full)[share].mean():.2f}" for kind in kinds)
                lines.append([str(age), name, f"{1e4 * full[share].mean():.2f}", *excess])
    print("mean error of whole calls, and what others add to it, in 1e-4\n")
    print(markdown(["age in steps", "at", "full", "none", "keep", "partial", "its own x_hat"], lines, texts=2))

    log_snr = model.gaussian.schedule.log_snr(torch.tensor(times, dtype=torch.float64))
    weights = 0.5 * model.experiment.method.weighting.integral(log_snr[:-1], log_snr[1:]).numpy()
    cost, partial = model.call_cost, partial_macs(model)
    calls = {"full": cost.heavy, "partial": partial, "light": cost.light}
    print(f"millions of MACs: {', '.join(f'{name} {macs / 1e6:.1f}' for name, macs in calls.items())}\n")
    with_partial, without = (best_plans(errors, weights, whether) for whether in (True, False))

    def cost_of(full: int, part: int) -> float:
        return full * cost.heavy + part * partial + (steps - full) * cost.light

    lines = []
    for heavy in (1, 2, 3, 4, 6, 8, 12):
        budget = cost_of(heavy, 0)
        found = []
        for plans in (without, with_partial):
            value, actions = min(one for counts, one in plans.items() if cost_of(*counts) <= budget)
            found += [f"{value:.5f}", f"`{actions}`"]
        lines.append([f"{budget / 1e9:.3f}", *found])
    print(markdown(["GMACs", "objective", "without partial calls", "objective", "with them"], lines, texts=0))


if __name__ == "__main__":
    main()
