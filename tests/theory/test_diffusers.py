"""One denoiser and one grid, our steps and those of diffusers: the same states to rounding."""

import pytest
import torch

from dualrate.diffusion.context import Cond, Context
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import v_from_x
from dualrate.sampling import grids
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.solvers import DPMSolver2M, Heun, SDEDPMSolver2M
from dualrate.sampling.trajectory import trajectory
from theory.common import PROCESS, line_mixture, normals
from theory.exact import OracleDenoiser

diffusers = pytest.importorskip("diffusers")

N, PLAN = 20, StepPlan.uniform(20)
ORACLE, START = OracleDenoiser(line_mixture(), PROCESS), normals(0, 8, 1)
TIMES = torch.tensor(PLAN.t, dtype=torch.float64)


def noise(step: int, _: int) -> torch.Tensor:
    return normals(step + 1, 8, 1)


def on_our_grid(kind, **settings):
    """A scheduler of diffusers whose k-th time step is our (N - k)-th, and which predicts v."""
    scheduler = kind(
        num_train_timesteps=N, prediction_type="v_prediction", clip_sample=False, timestep_spacing="leading", **settings
    )
    scheduler.alphas_cumprod = torch.sigmoid(PROCESS.schedule.log_snr(TIMES[:-1])).flip(0)
    scheduler.set_timesteps(N)
    assert scheduler.timesteps.tolist() == list(range(N))[::-1]
    return scheduler


def their_states(scheduler, step):
    z = START
    for i, k in enumerate(scheduler.timesteps):
        t = TIMES[i].expand(8)
        v = v_from_x(z, ORACLE.denoise(z, t, Context(), Cond()), PROCESS.schedule.log_snr(t))
        z = step(v, k, z, i).prev_sample
        yield z


def our_states(step):
    states = trajectory(ORACLE, step, PLAN, START, Cond(), noise)
    next(states)
    return (state.z for state in states)


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)


def test_ddim():
    scheduler = on_our_grid(diffusers.DDIMScheduler, set_alpha_to_one=True)
    assert_equal(our_states(DDIM(PROCESS)), their_states(scheduler, lambda v, k, z, _: scheduler.step(v, k, z)))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_is_ddim_with_noise(eta):
    scheduler = on_our_grid(diffusers.DDIMScheduler, set_alpha_to_one=True)

    def step(v, k, z, i):
        return scheduler.step(v, k, z, eta=eta, variance_noise=noise(i, 0))

    assert_equal(our_states(Ancestral(PROCESS, eta=eta)), their_states(scheduler, step))


@pytest.mark.parametrize(("variance", "gamma"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_ancestral_is_ddpm(variance, gamma, monkeypatch):
    scheduler = on_our_grid(diffusers.DDPMScheduler, variance_type=variance)
    module = diffusers.schedulers.scheduling_ddpm

    def step(v, k, z, i):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(i, 0))
        return scheduler.step(v, k, z)

    assert_equal(our_states(Ancestral(PROCESS, gamma)), their_states(scheduler, step))


# Solvers: their schedulers get our noise levels sigma / alpha, in float64, and x_hat itself.
PLANS = {"t": PLAN, "log-snr": StepPlan.at(grids.uniform_log_snr(PROCESS.schedule, N), ())}
on_both_grids = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def noise_levels(plan):
    """sigma / alpha at the plan's times, 0 at the last: they go to data without noise."""
    levels = torch.exp(-PROCESS.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64)) / 2)
    return torch.cat((levels[:-1], torch.zeros(1, dtype=torch.float64)))


def x_hat(z, t):
    return ORACLE.denoise(z, torch.full((8,), t, dtype=torch.float64), Context(), Cond())


def solved(step, plan, *, first=0):
    states = trajectory(ORACLE, step, plan, START, Cond(), noise, start=first)
    next(states)
    return [state.z for state in states]


# No order 3: of the parabola's part theirs takes half, another method and of second order (test_solvers.py).
@on_both_grids
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_multistep(plan, order):
    """Theirs rounds every state to float32: 20 times 6e-8, and what later steps make of it."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=N, solver_order=order, prediction_type="sample", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(N)
    scheduler.sigmas = noise_levels(plan)
    theirs, z = [], START
    for t, k in zip(plan.t, scheduler.timesteps, strict=False):
        z = scheduler.step(x_hat(z, t), k, z).prev_sample
        theirs.append(z)
    step = DDIM(PROCESS) if order == 1 else DPMSolver2M(PROCESS)
    for ours, other in zip(solved(step, plan), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


@on_both_grids
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_multistep(plan, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=N,
        solver_order=order,
        prediction_type="sample",
        timestep_spacing="trailing",
        algorithm_type="sde-dpmsolver++",
    )
    scheduler.set_timesteps(N)
    scheduler.sigmas = noise_levels(plan)
    theirs, z = [], START
    for i, (t, k) in enumerate(zip(plan.t, scheduler.timesteps, strict=False)):
        z = scheduler.step(x_hat(z, t), k, z, variance_noise=noise(i, 0)).prev_sample
        theirs.append(z)
    step = Ancestral(PROCESS) if order == 1 else SDEDPMSolver2M(PROCESS)
    for ours, other in zip(solved(step, plan), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


@on_both_grids
def test_dpm_solver_1s(plan):
    scheduler = diffusers.DPMSolverSinglestepScheduler(solver_order=1, prediction_type="sample")
    scheduler.set_timesteps(N)
    scheduler.sigmas = noise_levels(plan)
    scheduler.set_begin_index(0)
    theirs, z = [], START
    for t, k in zip(plan.t, scheduler.timesteps, strict=False):
        z = scheduler.step(x_hat(z, t), k, z).prev_sample
        theirs.append(z)
    assert_equal(solved(DDIM(PROCESS), plan), theirs)


@on_both_grids
def test_heun(plan):
    """Their state is z / alpha, and two of their steps are one of ours, except for the last."""
    first = 1  # theirs has no first-order step out of t = 1
    scheduler = diffusers.HeunDiscreteScheduler(num_train_timesteps=N - first, prediction_type="sample")
    scheduler.set_timesteps(N - first)
    levels = noise_levels(plan)[first:]
    scheduler.sigmas = torch.cat((levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]))
    scheduler.set_begin_index(0)
    theirs, z = [], START * (1 + levels[0] ** 2).sqrt()
    for call, k in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(z, k)
        z = scheduler.step(x_hat(scaled, plan.t[first + (call + 1) // 2]), k, z).prev_sample
        if call % 2 == 1 or call == len(scheduler.timesteps) - 1:
            level = levels[len(theirs) + 1]
            theirs.append(z / (1 + level**2).sqrt())
    for ours, other in zip(solved(Heun(PROCESS), plan, first=first), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
