"""The best plan for a budget: where heavy calls go, on measured errors and measured costs.

The objective of a plan sums terms of its steps, each an error e of x_hat with the weight of the training loss,

    term(t -> s; tau) = 1/2 e * integral of e^log_snr w dlog_snr over [t, s]

    ancestral         e = E|x - x_hat(z_t, t; context of tau)|^2 / d
    second order      e = e(context of tau) - e(context of t) + bend(t, s)

The least sum over the steps is found by dynamic programming: a state is (step, step of the latest heavy call, heavy
calls made), so the best plan of N steps and at most H heavy calls takes O(N M H) additions. Where a step without a
context has another cost, since another network makes it (denoisers/duodiff.py), these are counted in the state too: N
times as many.

The error of an ancestral step is all that z_t does not determine of x, so more steps always help. A solver of second
order is free of that: its error is what its context lacks, and the length of its steps.

The sum is not a likelihood: with the sigmoid weight it is a training loss, and with the weight 1 the last step alone
would decide (`sampling/bound.py` has the likelihood). It ranks plans that end at the same time. Whether it ranks them
as a Frechet distance does was measured (docs/results/tried.md).

`Bend` is what a solver's step gets wrong though every x_hat is right, since x_hat changes along the probability-flow
ODE. With h half the log-SNR, a step from h to h + l by DPM-Solver++ puts one x_hat in place of its mean over the step,
weighted by e^h, which is x_hat + (l / 2 + l^2 / 12) x' + l^2 / 6 x'' + O(l^3) with derivatives in h at its start:

    first order   x_hat                                                   off by   l / 2 x'
    2M            x_hat + (x_hat - x_hat of the step before) / 2          off by   l^2 (5 x'' + x') / 12

for a step as long as the one before. The first step of 2M is of first order, and a step into t = 0 ends in its x_hat,
off by what x_hat is from that of the path's last time. Derivatives are differences between the times of a grid, along
one path from noise for each image.

Source: the orders are those of DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095); the constants are Taylor's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser, abilities, posterior_mean
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse, shared_time
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.sampling.step import move

Numbers = NDArray[np.float64]
FEWEST = 3  # steps of a grid that says how x_hat bends


@dataclass(frozen=True)
class Bend:
    """Mean squared errors per element of a step of length 1 in h, at K + 1 increasing log-SNR.

    first:  (K,), of first order, in the middles between them
    second: (K - 1,), of 2M, at all but the ends
    last:   (K + 1,), of a step into t = 0, whatever its length
    """

    log_snr: Numbers
    first: Numbers
    second: Numbers
    last: Numbers

    def __post_init__(self) -> None:
        sizes = [len(part) for part in (self.log_snr, self.last, self.first, self.second)]
        if sizes[3] < 1 or sizes != [sizes[3] + 2, sizes[3] + 2, sizes[3] + 1, sizes[3]]:
            raise ValueError(f"K + 1 log-SNR, K >= 2, go with K + 1, K and K - 1 squares, got {sizes}")

    def at_the_end(self, start: Numbers) -> Numbers:
        """The mean squared error per element of steps from these log-SNR into t = 0."""
        return np.interp(start, self.log_snr, self.last)

    def error(self, start: Numbers, end: Numbers, *, first: bool) -> Numbers:
        """The mean squared error per element of steps between these log-SNR. first: of first order."""
        length, middle = (end - start) / 2, (start + end) / 2
        if first:
            return length**2 * np.interp(middle, (self.log_snr[1:] + self.log_snr[:-1]) / 2, self.first)
        return length**4 * np.interp(middle, self.log_snr[1:-1], self.second)


@torch.no_grad()
def measure_bend(
    denoiser: Denoiser, process: GaussianProcess, t: tuple[float, ...], normal: Tensor, cond: Cond
) -> Bend:
    """The bend between the times t (but the last), by DDIM with a heavy call at each.

    t: (M + 1,), M of FEWEST steps or more; normal: noise to begin with, (B, ...), standard normal
    Costs M heavy calls an image.
    """
    times = [shared_time(time) for time in t[:-1]]
    z, x_hats = normal, []
    for now, then in zip(times, [*times[1:], None], strict=True):
        x_hats.append(posterior_mean(denoiser, z, now, cond))
        z = z if then is None else move(process, z, x_hats[-1], now, then)
    log_snr = process.schedule.log_snr(torch.tensor(t[:-1], dtype=torch.float64))
    x, h = torch.stack(x_hats).double().flatten(1).cpu(), log_snr[:, None] / 2
    slope, middle = x.diff(dim=0) / h.diff(dim=0), (h[1:] + h[:-1]) / 2
    curvature, between = slope.diff(dim=0) / middle.diff(dim=0), (slope[1:] + slope[:-1]) / 2
    first, second = (slope / 2).square().mean(1), ((5 * curvature + between) / 12).square().mean(1)
    last = (x - x[-1]).square().mean(1)
    return Bend(log_snr.numpy(), first.numpy(), second.numpy(), last.numpy())


NO_CONTEXT = -1  # the column of a step without context


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of x_hat per element, measured on the M steps of a grid.

    t:      (M + 1,) times, decreasing; a step may start at any but the last
    errors: (M, M + 1): [i, j] at t_i with the context of t_j, j <= i; [i, i] at a heavy call; [i, -1] without context;
            infinite for j > i, and where a heavy call leaves no context behind
    bend:   of x_hat with a heavy call at every step; None: not measured
    """

    t: tuple[float, ...]
    errors: NDArray[np.float64]
    bend: Bend | None = None

    def __post_init__(self) -> None:
        steps = len(self.t) - 1
        if self.errors.shape != (steps, steps + 1):
            raise ValueError(f"{steps} steps need errors of shape {(steps, steps + 1)}, got {self.errors.shape}")

    @property
    def num_steps(self) -> int:
        return len(self.t) - 1


@dataclass(frozen=True)
class GridCall:
    """A denoiser's call at t_i with the context of t_j: j = i at a heavy call, NO_CONTEXT without a context.

    z: (B, ...); t: (B,)
    """

    i: int
    j: int
    z: Tensor
    t: Tensor
    context: Context


@torch.no_grad()
def every_call(
    denoiser: Denoiser, process: GaussianProcess, t: tuple[float, ...], x: Tensor, cond: Cond, draws: Draws
) -> Iterator[GridCall]:
    """Yields all pairs of a grid time (t: (M + 1,), but the last) and a context; at each time NO_CONTEXT comes last.

    They lie along one forward path of x: (B, ...), without gradient. Encodes M times; the calls themselves are the
    caller's. Those of a cache, whose path is to be smooth, have the same noise, and none is without a context, which
    would be a heavy call. If contexts never age, there is the heavy call alone.
    Raises ValueError for a denoiser whose context is of more than one time.
    """
    steps, times = len(t) - 1, [shared_time(time) for time in t[:-1]]
    contexts: dict[int, Context] = {}
    start = draws.normal("plan start", *x.shape[1:]).to(x.dtype)
    z = process.add_noise(x, times[0], start)
    for i in range(steps):
        now = times[i]
        fresh = denoiser.encode(z, now, cond)
        if fresh.keeps or abilities(denoiser).between != (Refresh.KEEP,):
            raise ValueError(
                f"what {type(denoiser).__name__} makes of a step depends on more than its latest heavy call, which is "
                "all that a planner looks at: spread its heavy calls evenly (--heavy), or name another denoiser"
            )
        for j, context in contexts.items():
            yield GridCall(i, j, z, now, context)
        yield GridCall(i, i, z, now, fresh)
        ageless = denoiser.reuse is Reuse.FREE and bool(fresh.features)
        if denoiser.reuse is not Reuse.SMOOTH and not ageless:
            yield GridCall(i, NO_CONTEXT, z, now, Context())
        if fresh.features and not ageless:
            contexts[i] = fresh.aged()
        if i + 1 < steps:
            if denoiser.reuse is Reuse.SMOOTH:
                z = process.add_noise(x, times[i + 1], start)
            else:
                noise = draws.normal(f"plan step {i}", *x.shape[1:]).to(x.dtype)
                z = process.posterior(z, x, now, times[i + 1]).sample(noise)


def measure_errors(
    denoiser: Denoiser, process: GaussianProcess, t: tuple[float, ...], x: Tensor, cond: Cond, draws: Draws
) -> Errors:
    """Errors on data x: (B, ...), along one forward path each; every pair of a grid time and a context.

    Costs M heavy calls and M^2 / 2 light ones per image, or M where a context never ages.
    """
    steps = len(t) - 1
    errors = np.full((steps, steps + 1), np.inf)
    with torch.no_grad():
        for call in every_call(denoiser, process, t, x, cond, draws):
            x_hat = denoiser.denoise(call.z, call.t, call.context, cond)
            ageless = denoiser.reuse is Reuse.FREE and call.context.features  # older contexts are the same
            columns = slice(call.i + 1) if ageless else call.j
            errors[call.i, columns] = (x - x_hat).double().square().mean().item()
    return Errors(t, errors)


@dataclass(frozen=True)
class Planned:
    """A plan and the sum of its terms."""

    plan: StepPlan
    objective: float


@dataclass(frozen=True)
class Planner:
    """Best plans on measured errors, for a schedule and the weight that the model was trained with.

    order: of the sampler: 1, ancestral; 2, which needs the bend
    """

    errors: Errors
    process: GaussianProcess
    weighting: Weighting = Sigmoid()
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.order == 2 and self.errors.bend is None:
            raise ValueError(
                f"plans for a sampler of second order want a grid of {FEWEST} steps or more, to see x_hat bend, "
                f"got {self.errors.num_steps}: raise --grid, or plan for ancestral sampling"
            )

    def objective(self, plan: StepPlan) -> float:
        """The sum of the plan's terms. Raises ValueError for times that are not the grid's, and for partial steps."""
        at = [self._index(t) for t in plan.t]
        total = 0.0
        for here, following, step in zip(at[:-1], at[1:], plan.context_steps, strict=True):
            context = NO_CONTEXT if step is None else at[step]
            error = self.counted_errors[here, context] + self._bending[here, following]
            total += error * self._weights[here, following]
        return total

    def best(self, steps: int, heavy: int | NDArray[np.bool_]) -> Planned:
        """The best plan of N = `steps` equal parts of the grid with at most `heavy` heavy calls.

        heavy: or a table, [heavy calls, steps without a context] that the plan may have; of one column where such steps
               are not counted (`CallCost.affordable`)
        Raises ValueError where there is no such plan on this grid.
        """
        size = self.errors.num_steps
        if steps < 1 or size % steps or (isinstance(heavy, int) and heavy < 0):
            raise ValueError(f"expected a divisor of the grid's {size} steps, and heavy calls, got {steps} and {heavy}")
        allowed = (np.ones((heavy + 1, 1), bool) if isinstance(heavy, int) else heavy)[: steps + 1]
        every, shape = size // steps, (*allowed.shape, size + 1)
        start = np.full(shape, np.inf)
        start[0, 0, NO_CONTEXT] = 0
        least = [start]  # after each step: [heavy calls made, steps without a context, place of the context]
        for place in range(0, size, every):
            to = place + every
            terms = (self.counted_errors[place] + self._bending[place, to]) * self._weights[place, to]
            least.append(_refreshed(least[-1], place) + terms)
        end = np.where(allowed[..., None], least[-1], np.inf)
        calls, alone, context = map(int, np.unravel_index(np.argmin(end), shape))
        objective = float(end[calls, alone, context])
        if not np.isfinite(objective):
            raise ValueError(
                f"no plan of {steps} steps with so few heavy calls here: what steps without a context, or with an old "
                "one, are off by is not known"
            )
        refreshes = []
        for place, before in reversed(list(zip(range(0, size, every), least[:-1], strict=True))):
            refreshes.append({place: Refresh.FULL, size: Refresh.NONE}.get(context, Refresh.KEEP))
            if refreshes[-1] is not Refresh.KEEP:
                calls -= refreshes[-1] is Refresh.FULL
                alone -= refreshes[-1] is Refresh.NONE and shape[1] > 1
                context = int(np.argmin(before[calls, alone]))
        return Planned(StepPlan(self.errors.t[::every], tuple(reversed(refreshes))), objective)

    @property
    def _bend(self) -> Bend | None:
        return self.errors.bend if self.order == 2 else None

    @cached_property
    def counted_errors(self) -> NDArray[np.float64]:
        """(M, M + 1): the errors in a plan's terms; for order 2 in excess of a heavy call's at the same time."""
        errors = self.errors.errors
        return errors if self._bend is None else errors - errors.diagonal()[:, None]

    @cached_property
    def _bending(self) -> NDArray[np.float64]:
        """(M + 1, M + 1): the error of a step between two times, [earlier, later], with a heavy call at its start."""
        if self._bend is None:
            return np.zeros((len(self.errors.t),) * 2)
        log_snr = self._log_snr
        error = self._bend.error(log_snr[:, None], log_snr[None], first=False)
        error[0] = self._bend.error(log_snr[:1], log_snr, first=True)
        if self.process.end is not None:  # the last step is then as all others
            return error
        return np.where(np.array(self.errors.t) > 0, error, self._bend.at_the_end(log_snr)[:, None])

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """(M + 1, M + 1): half the loss weight's integral between two times, [earlier, later]."""
        log_snr = torch.from_numpy(self._log_snr)
        return 0.5 * self.weighting.integral(log_snr[:, None], log_snr[None]).numpy()

    @cached_property
    def _log_snr(self) -> NDArray[np.float64]:
        return self.process.schedule.log_snr(torch.tensor(self.errors.t, dtype=torch.float64)).numpy()

    def _index(self, t: float) -> int:
        matches = np.flatnonzero(np.isclose(self.errors.t, t, rtol=0, atol=1e-9))
        if not len(matches):
            raise ValueError(f"no error was measured at time {t}: the grid has {self.errors.num_steps} steps")
        return int(matches[0])


def _refreshed(least: NDArray[np.float64], place: int) -> NDArray[np.float64]:
    """The least sums once the step at `place` has its context: an older one, none, or that of a heavy call."""
    sums, cheapest = least.copy(), least.min(2)
    counted = int(cheapest.shape[1] > 1)
    sums[:, :counted, NO_CONTEXT] = np.inf
    sums[:, counted:, NO_CONTEXT] = cheapest[:, : cheapest.shape[1] - counted]
    sums[0, :, place] = np.inf
    sums[1:, :, place] = cheapest[:-1]
    return sums
