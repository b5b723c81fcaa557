"""Windows that roll by SDE-DPM-Solver++ 2M: the law of frames by linear algebra, its order, and what it is worth.

The sequence and its exact denoiser are those of test_rolling.py. With y, the window z and the x_hat of the step before
a step is a linear map with noise, so that a recursion has the covariance that frames come to have.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from forecasts.test_rolling import RHO, Exact, Shown, first, forecast_of, gain, given_past, levels, recursion
from torch import Tensor

import dualrate as dr
from dualrate.diffusion.context import Cond, shared_time
from dualrate.diffusion.random import Draws
from dualrate.forecasts.rolling import roll
from dualrate.forecasts.rolling_process import Rolling
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.grids import grid_times
from dualrate.sampling.solvers import SDEDPMSolver2M
from dualrate.sampling.trajectory import rollout, sample_batches

Clocks = tuple[float, ...]


def even(steps: int) -> Clocks:
    return tuple(1 - i / steps for i in range(steps + 1))


def log_levels(process: Rolling, clock: float) -> Tensor:
    """Half the log-SNR of every frame, infinite where it is clean."""
    alpha, noise = levels(process, shared_time(process.time(clock)))
    return torch.log(alpha / noise.sqrt())


def linear_step(process: Rolling, clock: float, after: float, before: Tensor | None, gamma: float):
    """The map of (y, z, x_hat before), (1 + 2 F)^2, and the variance that is added to each frame of z."""
    frames = process.frames
    mean, covariance = given_past(frames)
    (alpha_t, noise_t), (alpha_s, noise_s) = (levels(process, shared_time(process.time(c))) for c in (clock, after))
    l_t, l_s = log_levels(process, clock), log_levels(process, after)
    of_z = gain(process, shared_time(process.time(clock)), covariance)
    x_hat = torch.cat(((mean - of_z @ (alpha_t * mean))[:, None], of_z, torch.zeros_like(of_z)), 1)
    x = x_hat.clone()
    for k in range(frames if before is not None else 0):
        if math.isfinite(l_s[k]) and l_t[k] != before[k]:  # else of first order
            share = float((l_s[k] - l_t[k]) / (l_t[k] - before[k]) / 2)
            x[k] = (1 + share) * x_hat[k]
            x[k, 1 + frames + k] -= share
    ratio = alpha_t / alpha_s
    added = noise_t - ratio**2 * noise_s  # of q(z_t | z_s)
    whole = torch.zeros(1 + 2 * frames, 1 + 2 * frames, dtype=torch.float64)
    whole[0, 0] = 1
    whole[1 : 1 + frames, 1 : 1 + frames] = torch.diag(ratio * noise_s / noise_t)
    whole[1 : 1 + frames] += (alpha_s * added / noise_t)[:, None] * x
    whole[1 + frames :] = x_hat
    variance = torch.where(noise_s > 0, (added * noise_s / noise_t) ** (1 - gamma) * added.clamp_min(0) ** gamma, 0.0)
    return whole, variance, l_t


def law(process: Rolling, clocks: Clocks, gamma: float = 0.0) -> tuple[float, float]:
    """Variance and lag-1 correlation that frames come to have, each roll going on from the x_hat of the one before."""
    frames = process.frames
    size, window = 1 + 2 * frames, slice(1, 1 + frames)
    whole, noise = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    before = torch.cat((log_levels(process, clocks[-2])[1:], log_levels(process, 1)[-1:]))  # moved by a frame
    for clock, after in itertools.pairwise(clocks):
        step, variance, before = linear_step(process, clock, after, before, gamma)
        whole, noise = step @ whole, step @ noise @ step.mT
        noise[window, window] += torch.diag(variance)
    move, state = torch.zeros_like(noise), torch.eye(size, dtype=torch.float64)
    move[0, 1] = 1
    for k in (*range(1, frames), *range(1 + frames, 2 * frames)):
        move[k, k + 1] = 1
    for _ in range(200):
        state = move @ state @ move.mT
        state[frames, frames] = 1
        state = whole @ state @ whole.mT + noise
    return float(state[1, 1]), float(state[0, 1] / (state[0, 0] * state[1, 1]).sqrt())


UNEVEN = (1.0, 0.7, 0.2, 0.0)


@pytest.mark.parametrize(
    ("frames", "clocks", "gamma"),
    [(4, even(1), 0.0), (4, even(4), 0.0), (3, UNEVEN, 0.0), (3, UNEVEN, 0.3), (1, even(6), 0.2)],
)
def test_frames_have_the_law_that_linear_algebra_gives(frames: int, clocks: Clocks, gamma: float) -> None:
    process, rows = Rolling(frames=frames), 3_000
    past, key, step = first(rows), torch.arange(rows), SDEDPMSolver2M(process, gamma)
    with torch.no_grad():
        windows = roll(Exact(process), process, forecast_of(process), past, key, clocks, step=step)
        made = torch.stack([window.frame.flatten() for window in itertools.islice(windows, 20, 45)])
    variance, correlation = law(process, clocks, gamma)
    assert made.var().item() == pytest.approx(variance, abs=0.04)
    assert ((made[1:] * made[:-1]).mean() / made.var()).item() == pytest.approx(correlation, abs=0.015)


@pytest.mark.parametrize("frames", [4, 8])
def test_at_equal_calls_frames_keep_more_of_their_variance_than_by_ancestral_steps(frames: int) -> None:
    process = Rolling(frames=frames)
    for steps in (1, 2, 4, 8):
        ancestral, solver = recursion(process, steps)[0], law(process, even(steps))[0]
        assert abs(1 - solver) < 0.75 * abs(1 - ancestral)
        assert abs(1 - solver) < 0.06 or (frames, steps) == (4, 1)
        assert law(process, even(steps), 1.0)[0] > law(process, even(steps), 0.1)[0] > solver


def test_it_is_of_second_order_at_gamma_0() -> None:
    counts = (16, 32, 64, 128)
    errors = [abs(1 - law(Rolling(frames=4), even(steps))[0]) for steps in counts]
    orders = [math.log2(sooner / later) for sooner, later in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(SDEDPMSolver2M(Rolling()).order, abs=0.2)
    rough = [abs(1 - law(Rolling(frames=4), even(steps), 0.5)[0]) for steps in counts[-2:]]
    assert math.log2(rough[0] / rough[1]) == pytest.approx(SDEDPMSolver2M(Rolling(), 0.5).order, abs=0.2)


def test_a_window_of_one_frame_is_that_solver_frame_by_frame() -> None:
    process, plain, steps, rows = Rolling(frames=1), dr.GaussianProcess(Rolling().schedule), 6, 5
    past, step = first(rows), SDEDPMSolver2M(process, 0.2)
    with torch.no_grad():
        window = next(roll(Exact(process), process, forecast_of(process), past, torch.arange(rows), steps, step=step))
    plan, shown = dr.StepPlan.uniform(steps, 1), Shown(Exact(process), plain)
    how = {"given": lambda seed: past[seed]}
    (drawn,) = sample_batches(shown, replace(step, process=plain), plan, (1, 1, 1), range(rows), **how)
    torch.testing.assert_close(window.frame.float(), drawn)


def test_windows_are_drawn_whole_by_it_from_the_start_to_the_end() -> None:
    """From t = 1 to 0, through the times at which frames are clean in the window and others are not yet."""
    process, rows, steps = Rolling(frames=3), 10_000, 200
    model, y = Exact(process), torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    plan, draws = dr.StepPlan.uniform(steps, 1), Draws(3, torch.arange(rows))

    def draw(i: int, j: int) -> Tensor:
        return draws.normal(f"{i} {j}", 3, 1, 1).double()

    with torch.no_grad():
        z = rollout(model, SDEDPMSolver2M(process), plan, draw(-1, 0), Cond(given=y), draw)
    torch.testing.assert_close(z.flatten(1).T.cov(), given_past(3)[1], rtol=0, atol=0.04)


def test_times_by_name_are_those_of_the_first_frame_in_a_roll() -> None:
    process = Rolling(frames=4)
    clocks = grid_times("log-snr", process.pace, 5)
    levels_of_first = [2 * log_levels(process, clock)[0].item() for clock in clocks[:-1]]
    apart = [after - before for before, after in itertools.pairwise(levels_of_first)]
    assert (clocks[0], clocks[-1]) == (1, 0)
    assert apart == pytest.approx([apart[0]] * 4)
    assert levels_of_first[-1] == pytest.approx(8)
    t = torch.linspace(0.05, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(process.pace.time(process.pace.log_snr(t)), t)
    slope = torch.autograd.functional.jacobian(process.pace.log_snr, t).diagonal()
    torch.testing.assert_close(process.pace.log_snr_derivative(t), slope)


def test_a_step_of_one_noise_level_is_refused() -> None:
    process = Rolling(frames=2)
    with pytest.raises(ValueError, match=r"DDIM is for a GaussianProcess, not Rolling.*take Reverse or SDEDPMSolver2M"):
        next(roll(Exact(process), process, forecast_of(process), first(1), torch.arange(1), 2, step=DDIM(process)))


def test_more_steps_bring_the_law_of_the_sequence() -> None:
    variance, correlation = law(Rolling(frames=4), even(64))
    assert variance == pytest.approx(1, abs=0.002)
    assert correlation == pytest.approx(RHO, abs=1e-3)
