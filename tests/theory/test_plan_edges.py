"""The edges of plans and times: one step, a heavy call at every step or only the first, tau = t, both ends of time."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.context import Batch, Cond, Context, Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import BatchTimes, TimeSampler, TimeSource
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.trajectory import rollout
from dualrate.training.config import FitConfig
from theory.common import PROCESS, line_mixture, normals
from theory.exact import OracleDenoiser
from theory.held_context import Echo

NET = UViTConfig(4, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=1, embedding=16, head_dim=16)
STEPS = (Ancestral(PROCESS), Ancestral(PROCESS, 1.0), DDIM(PROCESS))
COND = Cond(torch.tensor([0, 2]))


def loud(module):
    """The module with weights at which every layer has a say (a fresh one returns zero)."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.requires_grad_(False)


ENCODER, LIGHT = loud(ContextEncoder(NET, NET)), loud(LightBody(NET))
DUAL, HEAVY = DualRate(ENCODER, LIGHT, PROCESS), Plain(ENCODER.net, PROCESS)
Z = normals(1, 2, 1, 4, 4).float()


def noise(step: int, draw: int) -> torch.Tensor:
    return normals(100 * step + draw + 2, 2, 1, 4, 4).float()


@settings(max_examples=25)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.sampled_from(STEPS))
def test_samples_are_finite_whatever_the_plan(size, step):
    n, heavy = size
    if not step.markovian and 0 < heavy < n:
        heavy = n  # a deterministic sampler may not reuse a context
    z = rollout(DUAL, step, StepPlan.uniform(n, heavy), Z, COND, noise)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_heavy_call_at_every_step_is_the_heavy_model(step, steps):
    """An encoder with a head denoises by itself where it is called; so does an echo of the exact answer."""
    plan = StepPlan.uniform(steps)
    dual, heavy = (rollout(denoiser, step, plan, Z, COND, noise) for denoiser in (DUAL, HEAVY))
    torch.testing.assert_close(dual, heavy, rtol=1e-6, atol=1e-6)
    start, mixture = normals(1, 6, 1), line_mixture()
    echo, exact = (
        rollout(denoiser, step, plan, start, Cond(), lambda i, _: normals(i + 2, 6, 1))
        for denoiser in (Echo(mixture, PROCESS), OracleDenoiser(mixture, PROCESS))
    )
    assert torch.equal(echo, exact)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_one_step_is_the_estimate_from_noise(step):
    z = rollout(DUAL, step, StepPlan.uniform(1), Z, COND, noise)
    t = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(z, HEAVY.denoise(Z, t, Context(), COND), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_a_late_plan_goes_without_a_context_for_an_eighth_where_there_is_room(size):
    """The rest is spread evenly over what is left, its first call at once."""
    steps, heavy = size
    plan = StepPlan.late(steps, heavy)
    alone = min(steps // 8, steps - heavy)
    assert (plan.num_steps, plan.num_heavy) == (steps, heavy)
    if heavy:
        rest = StepPlan.uniform(steps - alone, heavy)
        assert plan.refresh == (Refresh.NONE,) * alone + rest.refresh


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, n))))
def test_a_late_plan_goes_without_a_context_for_as_many_steps_as_it_is_told(size):
    steps, heavy, alone = size
    if alone > steps - heavy:
        with pytest.raises(ValueError, match=f"leave 0 to {steps - heavy} to the light network alone .* got {alone}"):
            StepPlan.late(steps, heavy, alone)
        return
    rest = StepPlan.uniform(steps - alone, heavy)
    assert StepPlan.late(steps, heavy, alone).refresh == (Refresh.NONE,) * alone + rest.refresh


@dataclass(frozen=True)
class Ends(TimeSource):
    """Times as extreme as they can be, tau = t or tau = 1, all contexts kept."""

    t: float
    tau: float

    def __call__(self, draws: Draws) -> BatchTimes:
        t = torch.full((len(draws.row),), self.t, dtype=torch.float64)
        return BatchTimes(t, torch.full_like(t, self.tau), torch.arange(len(t)))


@pytest.mark.parametrize("times", [(1e-9, 1e-9), (1e-9, 1.0), (0.5, 0.5), (1 - 1e-9, 1 - 1e-9), (1 - 1e-9, 1.0)])
def test_training_at_the_ends_of_time_is_finite(times):
    experiment = Experiment("ends", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(1))
    method = replace(experiment.method.build(experiment), times=Ends(*times))
    loud(method.networks).requires_grad_(True)
    (phase,) = method.phases(0)
    batch = Batch(normals(3, 4, 1, 4, 4).float().clamp(-1, 1), torch.arange(4) % 3, torch.arange(4))
    loss = phase.loss(batch, 0, Draws(0, batch.sample))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(p.grad).all() for p in phase.parameters if p.grad is not None)


@pytest.mark.parametrize("heavy", [1, 10**5])
def test_times_of_one_heavy_call_and_of_one_at_every_step(heavy):
    times = TimeSampler(heavy=(heavy, heavy))(Draws(0, torch.arange(1000)))
    assert (times.t <= times.tau).all()
    assert (times.tau <= 1).all()
    if heavy > 1:
        torch.testing.assert_close(times.tau, times.t, rtol=0, atol=1 / heavy)
    else:
        assert (times.tau - times.t).mean() > 0.25  # reaches from everywhere up to 1
