"""One denoiser and one grid, our steps and those of diffusers: the same states to rounding."""

import pytest
import torch

from dualrate.oracle import OracleDenoiser
from dualrate.prediction import v_from_x
from dualrate.sampling import trajectory
from dualrate.steps import DDIM, Ancestral
from dualrate.timing import StepPlan
from dualrate.types import Cond, Context
from theory.common import PROCESS, line_mixture, normals

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


def test_ancestral_is_ddim_with_full_noise():
    scheduler = on_our_grid(diffusers.DDIMScheduler, set_alpha_to_one=True)

    def step(v, k, z, i):
        return scheduler.step(v, k, z, eta=1.0, variance_noise=noise(i, 0))

    assert_equal(our_states(Ancestral(PROCESS)), their_states(scheduler, step))


@pytest.mark.parametrize(("variance", "gamma"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_ancestral_is_ddpm(variance, gamma, monkeypatch):
    scheduler = on_our_grid(diffusers.DDPMScheduler, variance_type=variance)
    module = diffusers.schedulers.scheduling_ddpm

    def step(v, k, z, i):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(i, 0))
        return scheduler.step(v, k, z)

    assert_equal(our_states(Ancestral(PROCESS, gamma)), their_states(scheduler, step))
