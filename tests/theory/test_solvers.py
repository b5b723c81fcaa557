"""Solvers of the probability-flow ODE: order of accuracy, both ends, float32, what they need of a denoiser."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dualrate.denoisers.denoiser import Metered
from dualrate.diffusion.context import Cond, Context
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import alpha, sigma
from dualrate.sampling import grids
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.trajectory import State, rollout, trajectory
from theory.common import PROCESS, f64, gaussian, line_mixture, normals, sources, uniform_log_snr
from theory.exact import OracleDenoiser
from theory.held_context import Echo

MIXTURE = line_mixture()
ORACLE = OracleDenoiser(MIXTURE, PROCESS)
DDIM_STEP, HEUN, TWO_M, THREE_M = DDIM(PROCESS), Heun(PROCESS), DPMSolver2M(PROCESS), DPMSolver3M(PROCESS)
ADJUSTED = AdjustedDDIM(PROCESS)
every_solver = pytest.mark.parametrize("step", [DDIM_STEP, HEUN, TWO_M, THREE_M], ids=str)
every_ode_step = pytest.mark.parametrize("step", [DDIM_STEP, ADJUSTED, HEUN, TWO_M, THREE_M], ids=str)
higher_order = pytest.mark.parametrize("step", [HEUN, TWO_M, THREE_M], ids=str)


def no_noise(*_):
    raise AssertionError("a deterministic step must not draw noise")


def x_hat(z, t):
    return ORACLE.denoise(z, t, Context(), Cond())


def solve(step, plan, start, denoiser=ORACLE):
    return rollout(denoiser, step, plan, start, Cond(), no_noise)


def exact(start, low, high):
    """z at log-SNR `high`, from the score of the mixture and a general ODE solver."""

    def slope(log_snr, scaled):  # of z / alpha: eps_hat d(sigma / alpha)
        log_snr = f64(log_snr)[0]
        z = alpha(log_snr) * torch.tensor(scaled)[:, None]
        eps_hat = -sigma(log_snr) * MIXTURE.score(z, log_snr)
        return (-0.5 * torch.exp(-log_snr / 2) * eps_hat[:, 0]).numpy()

    scales = [float(alpha(f64(end))) for end in (low, high)]
    scaled = start[:, 0].numpy() / scales[0]
    return scales[1] * solve_ivp(slope, (low, high), scaled, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]


@cache
def truth_between(low, high):
    """`exact` from the usual start."""
    return exact(normals(0, 64, 1), low, high)


@pytest.mark.parametrize("step", [DDIM_STEP, HEUN, TWO_M], ids=str)
def test_errors_fall_with_the_order_of_the_method(step):
    ends, start, counts = (-6.0, 6.0), normals(0, 64, 1), [32, 64, 128]
    truth = truth_between(*ends)
    errors = [np.abs(solve(step, uniform_log_snr(n, *ends), start)[:, 0].numpy() - truth).mean() for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(step.order, abs=0.15)


def test_heun_is_the_trapezoid_rule_in_the_noise_level():
    """X = z / alpha, S = sigma / alpha: X_s = X_t + (S_s - S_t) (eps_t + eps_s) / 2, eps_s after a step of Euler.

    On a long step, where e^h is far from 1.
    """
    t, s, z = f64(*[0.7] * 8), f64(*[0.3] * 8), normals(3, 8, 1)
    low, high = PROCESS.schedule.log_snr(t), PROCESS.schedule.log_snr(s)
    noise = [torch.exp(-log_snr / 2)[:, None] for log_snr in (low, high)]

    def slope(z, time, log_snr):  # eps_hat
        return (z - alpha(log_snr)[:, None] * x_hat(z, time)) / sigma(log_snr)[:, None]

    scaled, first = z / alpha(low)[:, None], slope(z, t, low)
    second = slope(alpha(high)[:, None] * (scaled + (noise[1] - noise[0]) * first), s, high)
    expected = alpha(high)[:, None] * (scaled + (noise[1] - noise[0]) * (first + second) / 2)
    made, _ = HEUN(x_hat, z, t, s, no_noise, ())
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    assert (made - DDIM_STEP(x_hat, z, t, s, no_noise, ())[0]).abs().max() > 0.01


def log_snrs(steps, low, high, lengths):
    """Steps whose lengths repeat a pattern."""
    sums = torch.tensor(lengths, dtype=torch.float64).repeat(steps // len(lengths)).cumsum(0)
    return low + (high - low) * torch.cat((torch.zeros(1, dtype=torch.float64), sums / sums[-1]))


@pytest.mark.parametrize(("exact_history", "order"), [(True, THREE_M.order), (False, 2)])
@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 2.0)], ids=["equal", "unequal"])
def test_3m_is_of_third_order_from_an_exact_history(exact_history, order, lengths):
    """From log-SNR -1, where x_hat changes quickly: from noise its start would be exact to third order in effect."""
    ends, start, counts, errors = (-1.0, 6.0), normals(0, 64, 1), [32, 64, 128], []
    truth = truth_between(*ends)
    for n in counts:
        levels = log_snrs(n, *ends, lengths)
        times = PROCESS.schedule.time(levels)
        plan, state = StepPlan.at(times.tolist(), ()), None
        if exact_history:
            z = [start] + [torch.tensor(exact(start, ends[0], float(levels[i])))[:, None] for i in (1, 2)]
            x = [(x_hat(z[i], times[i].expand(64)), times[i]) for i in (1, 0)]
            state = State(2, z[2], times[2], Context(), None, tuple(x))
        *_, last = trajectory(ORACLE, THREE_M, plan, start, Cond(), no_noise, state=state)
        errors.append(np.abs(last.z[:, 0].numpy() - truth).mean())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_3m_is_exact_where_x_hat_is_a_parabola(power):
    """z / sigma grows by the integral of e^l x_hat dl, l half the log-SNR, known for x_hat = l^power."""
    l_q, l_p, l_t, l_s = f64(-0.3), f64(0.1), f64(0.8), f64(1.3)
    q, p, t, s = (PROCESS.schedule.time(2 * level) for level in (l_q, l_p, l_t, l_s))

    def integral(level):
        return level.exp() * (1, level - 1, level**2 - 2 * level + 2)[power]

    z, carry = f64(0.4), ((l_p**power, p), (l_q**power, q))
    z_s, _ = THREE_M(lambda *_: l_t**power, z, t, s, no_noise, carry)
    expected = PROCESS.sigma(s) * (z / PROCESS.sigma(t) + integral(l_s) - integral(l_t))
    torch.testing.assert_close(z_s, expected, rtol=0, atol=1e-12)


def pair_law_error(step, steps: int, c: float) -> float:
    """Return the error of the variances of all states and of their covariances an eighth of the way apart, exactly."""
    plan, every = uniform_log_snr(steps, -15, 6), steps // 8
    states = torch.stack([state.z for state in sources(OracleDenoiser(gaussian(c), PROCESS), step, plan)][::every])
    made = (states @ states.mT if states.ndim == 2 else states.flatten(1) @ states.flatten(1).T).tril()
    a, v = (torch.tensor(plan.t[::every], dtype=torch.float64) for _ in range(2))
    a, v = PROCESS.alpha(a), PROCESS.alpha(v) ** 2 * c + PROCESS.sigma(v) ** 2
    law = (a[None] / a[:, None] * v[:, None]).tril()  # Cov(z_s, z_t) = (alpha_t / alpha_s) v_s for the later s
    return (made - law).abs().max().item()


@pytest.mark.parametrize("step", [Ancestral(PROCESS), SDEDPMSolver2M(PROCESS)], ids=str)
@pytest.mark.parametrize("c", [0.09, 3.0])
def test_sde_solvers_keep_the_law_of_pairs_to_their_order(step, c):
    counts = [64, 128, 256]
    errors = [pair_law_error(step, n, c) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(step.order, abs=0.2)


def test_a_noise_level_above_zero_is_first_order():
    counts = [64, 128, 256]
    step = SDEDPMSolver2M(PROCESS, 0.5)
    errors = [pair_law_error(step, n, 0.09) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(step.order, abs=0.2)
    assert step.order == 1


@pytest.mark.parametrize("gamma", [0.1, 0.7])
def test_the_noise_level_of_sde_2m_is_that_of_ancestral(gamma):
    """And no part of the mean."""
    z, noise, now, before = (normals(i, 8, 1) for i in range(4))
    p, t, s = (f64(time).expand(8) for time in (0.8, 0.7, 0.4))

    def drawn(level):
        return SDEDPMSolver2M(PROCESS, level)(lambda *_: now, z, t, s, lambda: noise, (before, p))[0]

    wide, narrow = (Ancestral(PROCESS, g).kernel(lambda *_: now, z, t, s).variance.sqrt() for g in (gamma, 0.0))
    torch.testing.assert_close(drawn(gamma) - drawn(0.0), (wide - narrow) * noise)


def test_2m_keeps_its_order_on_steps_of_unequal_length():
    ends, start, counts = (-6.0, 6.0), normals(0, 64, 1), [32, 64, 128]
    truth, errors = truth_between(*ends), []
    for n in counts:
        times = PROCESS.schedule.time(log_snrs(n, *ends, (1.0, 2.0)))
        errors.append(np.abs(solve(TWO_M, StepPlan.at(times.tolist(), ()), start)[:, 0].numpy() - truth).mean())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)


@pytest.fixture(scope="module")
def from_noise():
    """Starts, and where they go by many steps."""
    start = normals(0, 256, 1)
    return start, solve(TWO_M, uniform_log_snr(500), start)


@pytest.mark.parametrize(("step", "steps"), [(TWO_M, 8), (TWO_M, 16), (THREE_M, 8), (THREE_M, 16), (HEUN, 17)], ids=str)
def test_few_steps_do_better_than_ddim_at_equal_evaluations(step, steps, from_noise):
    """From noise to data, on a grid uniform in log-SNR."""
    (start, truth), evaluations = from_noise, 2 * steps - 2 if step is HEUN else steps
    ours, ddim = (
        (solve(solver, StepPlan.at(grids.uniform_log_snr(PROCESS.schedule, n), ()), start) - truth).square().mean()
        for solver, n in ((step, steps), (DDIM_STEP, evaluations))
    )
    assert ours < ddim


def test_heun_leaves_time_one_at_first_order():
    """Its correction there would multiply x_s - x_t by S_t / (2 S_s), 900 for S_s = 1."""
    z, t, s = normals(0, 8, 1), f64(1.0).expand(8), f64(0.5).expand(8)
    assert torch.equal(HEUN(x_hat, z, t, s, no_noise, ())[0], DDIM_STEP(x_hat, z, t, s, no_noise, ())[0])
    t = f64(0.99).expand(8)
    assert not torch.equal(HEUN(x_hat, z, t, s, no_noise, ())[0], DDIM_STEP(x_hat, z, t, s, no_noise, ())[0])


@higher_order
def test_the_step_into_time_zero_is_first_order(step):
    z, carry = normals(0, 8, 1), step.start()
    z, carry = step(x_hat, z, f64(1.0).expand(8), f64(0.5).expand(8), no_noise, carry)
    z, carry = step(x_hat, z, f64(0.5).expand(8), f64(0.3).expand(8), no_noise, carry)
    z, carry = step(x_hat, z, f64(0.3).expand(8), f64(0.2).expand(8), no_noise, carry)
    end, _ = step(x_hat, z, f64(0.2).expand(8), f64(0.0).expand(8), no_noise, carry)
    assert torch.equal(end, x_hat(z, f64(0.2).expand(8)))


def test_2m_starts_at_first_order_and_remembers_one_step():
    z, times = normals(0, 8, 1), [f64(time).expand(8) for time in (0.9, 0.7, 0.5)]
    first, carry = TWO_M(x_hat, z, times[0], times[1], no_noise, TWO_M.start())
    assert torch.equal(first, DDIM_STEP(x_hat, z, times[0], times[1], no_noise, ())[0])
    second, _ = TWO_M(x_hat, first, times[1], times[2], no_noise, carry)
    forgotten, _ = TWO_M(x_hat, first, times[1], times[2], no_noise, TWO_M.start())
    assert (second - forgotten).abs().min() > 1e-4


def test_3m_starts_like_2m_and_remembers_two_steps():
    start, plan = normals(0, 8, 1), uniform_log_snr(5, -1, 6)
    three, two = (list(trajectory(ORACLE, step, plan, start, Cond(), no_noise)) for step in (THREE_M, TWO_M))
    for i in (1, 2):
        assert torch.equal(three[i].z, two[i].z)
    assert (three[3].z - two[3].z).abs().min() > 1e-4
    assert [len(state.carry) for state in three] == [0, 1, 2, 2, 2, 2]


@every_ode_step
def test_a_trajectory_goes_on_from_any_of_its_states(step):
    start, plan = normals(0, 4, 1), StepPlan.at(grids.karras(PROCESS.schedule, 6), ())
    states = list(trajectory(ORACLE, step, plan, start, Cond(), no_noise))
    for begin in states:
        *_, last = trajectory(ORACLE, step, plan, start, Cond(), no_noise, state=begin)
        assert torch.equal(last.z, states[-1].z)


@every_solver
@pytest.mark.parametrize("grid", [grids.uniform_log_snr, grids.karras])
def test_float32_states_lose_nothing_from_noise_to_data(step, grid):
    """alpha is 6e-4 at t = 1: z / alpha in float32 would be off by 1e-4 there, and stay so."""
    start, plan = normals(0, 256, 1), StepPlan.at(grid(PROCESS.schedule, 40), ())

    class Single:
        """The oracle of a float32 state in float64, so that only the step rounds."""

        reuse = ORACLE.reuse

        def denoise(self, z, t, context, cond):
            return ORACLE.denoise(z.double(), t, context, cond).float()

    rounded = solve(step, plan, start.float(), Single())
    assert rounded.dtype == torch.float32
    error = (rounded - solve(step, plan, start)).abs()
    assert error.median() < 1e-6
    assert error.max() < 3e-5


@every_ode_step
def test_a_heavy_call_at_every_step_is_one_at_every_evaluation(step):
    start, evaluations = normals(0, 3, 1), 14 if step is HEUN else 8
    heavy = Metered(Echo(MIXTURE, PROCESS))
    solve(step, StepPlan.uniform(8), start, heavy)
    assert (heavy.meter.heavy, heavy.meter.light) == (3 * evaluations, 3 * evaluations)


@every_ode_step
def test_reuse_of_a_dual_rate_context_is_refused(step):
    with pytest.raises(ValueError, match=f"{type(step).__name__}.*Use Ancestral"):
        solve(step, StepPlan.uniform(8, 4), normals(0, 3, 1), Echo(MIXTURE, PROCESS))
    solve(step, StepPlan.uniform(8, 4), normals(0, 3, 1), ORACLE)  # nothing is reused of a single-rate model
