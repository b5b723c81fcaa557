"""Two networks and a plan that says which runs: exact, counted, priced; and where the change is, by errors."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from theory.common import plan_cost
from theory.exact import GaussianMixture, OracleDenoiser
from torch import nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Metered, Plain
from dualrate.denoisers.duodiff import Switched
from dualrate.denoisers.feature_cache import FeatureCache
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond, Context, Refresh
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.cost import call_cost, expected_costs
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.planner import NO_CONTEXT, Errors, Planner, measure_errors
from dualrate.sampling.solvers import Heun

PROCESS = dr.GaussianProcess(Cosine())
SHAPE, STEPS = (1, 8, 8), 6
CONFIG = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 3)), 3, patch=2, embedding=16, head_dim=16
)
SMALL = replace(CONFIG, levels=(dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)))


def plain(config: dr.UViTConfig, seed: int) -> Plain:
    torch.manual_seed(seed)
    net = UViT(config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Plain(net.eval(), PROCESS)


HEAVY, LIGHT = plain(CONFIG, 0), plain(SMALL, 1)
PAIR = Switched(LIGHT, HEAVY)


def images(denoiser: dr.Denoiser, plan: dr.StepPlan, step: dr.Step | None = None) -> torch.Tensor:
    return torch.cat(list(dr.sample_batches(denoiser, step or dr.DDIM(PROCESS), plan, SHAPE, range(3), [0, 1, 2])))


@cache
def of_one(step: dr.Step) -> torch.Tensor:
    return images(HEAVY, dr.StepPlan.uniform(STEPS), step)


@pytest.mark.parametrize("step", [dr.Ancestral(PROCESS), dr.SDEDPMSolver2M(PROCESS), Heun(PROCESS)], ids=str)
@pytest.mark.parametrize("alone", range(0, STEPS + 1, 2))
def test_two_of_one_network_are_that_network_wherever_they_change_over(alone, step):
    plan = dr.StepPlan.late(STEPS, STEPS - alone, alone)
    assert torch.equal(images(Switched(HEAVY, HEAVY), plan, step), of_one(step))


def test_each_makes_its_own_steps():
    """By hand: DDIM with one network down to the change, and with the other from there."""
    plan, change = dr.StepPlan.late(STEPS, 4, 2), 2
    assert torch.equal(images(PAIR, dr.StepPlan.late(STEPS, STEPS, 0)), images(HEAVY, dr.StepPlan.uniform(STEPS)))
    assert torch.equal(images(PAIR, dr.StepPlan.late(STEPS, 0, STEPS)), images(LIGHT, dr.StepPlan.uniform(STEPS)))
    step, draws, label = dr.DDIM(PROCESS), Draws(0, torch.arange(3)), torch.arange(3)
    z = draws.normal("start", *SHAPE)
    with torch.no_grad():
        for i, (t, s) in enumerate(itertools.pairwise(torch.tensor(plan.t, dtype=torch.float64))):
            net = LIGHT if i < change else HEAVY
            z, _ = step(
                lambda z, t, net=net: net.denoise(z, t, dr.Context(), dr.Cond(label)), z, t.expand(3), s.expand(3),
                None, (),
            )  # fmt: skip
    torch.testing.assert_close(images(PAIR, plan), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [dr.DDIM(PROCESS), Heun(PROCESS)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_calls_and_multiply_adds_are_those_of_the_network_that_makes_them(step, weight):
    def wrap(denoiser):
        return denoiser if weight == 1 else Guided(denoiser, PROCESS, weight, 3)

    plan, how = dr.StepPlan.late(STEPS, 4, 2), {"label": 0, "wrap": wrap}
    alone = [plan_cost(one, dr.DDIM(PROCESS), dr.StepPlan.uniform(1), SHAPE, label=0).macs for one in (HEAVY, LIGHT)]
    found = plan_cost(PAIR, step, plan, SHAPE, **how)
    branches = 1 if weight == 1 else 2
    calls = (4 * branches, 2 * branches) if step.calls_per_step == 1 else (7 * branches, 3 * branches)
    assert (found.heavy_calls, found.light_calls) == calls
    assert found.macs == calls[0] * alone[0] + calls[1] * alone[1]
    costs = expected_costs(found.calls, PAIR.reuse, step, plan, SHAPE, **how)
    assert costs[-1] == found
    assert costs[0].macs == branches * step.calls_per_step * alone[1] - (step.calls_per_step == 2) * branches * alone[1]


@pytest.mark.parametrize("length", [0.3, None])
def test_every_call_of_a_heavy_step_is_the_heavy_network_and_paid_as_such(length):
    step, plan = NoiseCovariance(PROCESS, length=length), dr.StepPlan.uniform(STEPS)
    torch.testing.assert_close(images(PAIR, plan, step), of_one(step), rtol=1e-5, atol=1e-5)
    cost = plan_cost(PAIR, step, plan, SHAPE, label=0)
    assert (cost.heavy_calls, cost.light_calls) == (2 * STEPS - 1 + (length is None) * (STEPS - 1), 0)


def test_the_light_network_of_a_dual_rate_model_makes_steps_alone():
    dual = DualRate(ContextEncoder(CONFIG, SMALL), LightBody(SMALL), PROCESS)
    meter = Metered(dual)
    plan = dr.StepPlan.late(STEPS, 4, 2)
    assert torch.equal(images(Switched(meter, HEAVY), plan), images(Switched(Plain(dual.light, PROCESS), HEAVY), plan))
    assert (meter.meter.heavy, meter.meter.light) == (0, 2 * 3)


def test_beside_a_dual_rate_model_another_network_makes_the_steps_without_a_context():
    """By hand, ancestral: what a step calls is said by the plan; and each call is paid at its own price."""
    torch.manual_seed(2)
    dual = DualRate(ContextEncoder(CONFIG, SMALL), LightBody(SMALL), PROCESS)
    for parameter in (*dual.encoder.parameters(), *dual.light.parameters()):
        nn.init.normal_(parameter, std=0.2)
    middle = plain(replace(CONFIG, levels=(dr.Level("conv", 8, 1), dr.Level("transformer", 16, 2))), 3)
    pair, step = Switched(middle, dual), dr.Ancestral(PROCESS)
    plan = dr.StepPlan(dr.StepPlan.uniform(5).t, tuple(map(Refresh, ("none", "full", "keep", "none", "full"))))
    draws, cond, context = Draws(0, torch.arange(3)), dr.Cond(torch.arange(3)), dr.Context()
    z = draws.normal("start", *SHAPE)
    with torch.no_grad():
        for i, (t, s) in enumerate(itertools.pairwise(torch.tensor(plan.t, dtype=torch.float64))):
            now, refresh = t.expand(3), plan.refresh[i]
            context = dual.encode(z, now, cond) if refresh is Refresh.FULL else context.aged()
            if refresh is Refresh.NONE:
                x_hat = middle.denoise(z, now, dr.Context(), cond)
            else:
                x_hat = dual.denoise(z, now, context, cond)
            posterior = PROCESS.posterior(z, x_hat, now, s.expand(3))
            z = posterior.sample(draws.normal(f"step {i} draw 0", *SHAPE)) if s > 0 else x_hat
    torch.testing.assert_close(images(pair, plan, step), z, rtol=1e-4, atol=1e-4)
    found = plan_cost(pair, step, plan, SHAPE, label=0)
    own, two = (plan_cost(one, step, dr.StepPlan.uniform(1), SHAPE, label=0) for one in (middle, dual))
    assert (found.heavy_calls, found.light_calls, found.alone_calls) == (2, 3, 2)
    assert found.macs == 2 * two.calls.heavy + two.calls.light + 2 * own.macs
    assert found.macs == found.calls.of(5, heavy=2, alone=2)
    assert expected_costs(found.calls, pair.reuse, step, plan, SHAPE, label=0)[-1] == found
    with pytest.raises(ValueError, match="need a smooth path or one plan"):
        Switched(LIGHT, FeatureCache.shared_encoder(HEAVY, PROCESS))


def test_a_cache_without_a_context_is_the_whole_network_at_its_price():
    cache, plan = FeatureCache.shared_encoder(HEAVY, PROCESS), dr.StepPlan.uniform(4, 0)
    assert torch.equal(images(cache, plan), images(HEAVY, dr.StepPlan.uniform(4)))
    assert plan_cost(cache, dr.DDIM(PROCESS), plan, SHAPE, label=0).macs == 4 * call_cost(cache, SHAPE, 0).heavy


def mixture(variance: float) -> OracleDenoiser:
    means = torch.tensor([[-0.8], [0.8]], dtype=torch.float64)
    return OracleDenoiser(GaussianMixture.isotropic(means, variance), PROCESS)


def test_errors_are_those_of_each_network_at_every_time():
    """The exact network's is the posterior variance; the other one's, exact of wider components, is larger."""
    exact, rough = mixture(0.01), mixture(0.5)
    draws, t = Draws(0, torch.arange(20_000)), dr.StepPlan.uniform(8).t
    x = exact.mixture.sample(draws.uniform("component"), draws.normal("x", 1).double())
    errors = measure_errors(Switched(rough, exact), PROCESS, t, x, dr.Cond(), draws).errors
    for i, time in enumerate(t[:-1]):
        now = torch.tensor(time, dtype=torch.float64)
        z = PROCESS.add_noise(x, now.expand(len(x)), draws.normal("z", 1).double())
        variance = exact.mixture.posterior_covariance(z, PROCESS.log_snr(now)).mean().item()
        assert errors[i, i] == pytest.approx(variance, rel=0.05, abs=1e-4)
        assert errors[i, NO_CONTEXT] > (0.99 if i < 2 else 1.02) * errors[i, i]
    assert np.isinf(errors[np.tril_indices(8, -1)]).all()


def planner_of(heavy: list[float], light: list[float]) -> Planner:
    steps = len(heavy)
    errors = np.full((steps, steps + 1), np.inf)
    errors[range(steps), range(steps)], errors[:, NO_CONTEXT] = heavy, light
    return Planner(Errors(dr.StepPlan.uniform(steps).t, errors), PROCESS)


def test_the_planner_places_any_number_of_heavy_calls_where_they_gain_most():
    planner = planner_of([0.4, 0.2, 0.2, 0.1, 0.05], [0.4, 0.5, 0.25, 0.2, 0.2])
    for heavy in range(6):
        found = planner.best(5, heavy)
        plans = [
            dr.StepPlan(found.plan.t, tuple(Refresh.FULL if i in chosen else Refresh.NONE for i in range(5)))
            for chosen in itertools.combinations(range(5), heavy)
        ]
        assert found.objective == pytest.approx(min(map(planner.objective, plans)))


def test_networks_that_predict_eps_switch_as_published():
    """DuoDiff's finding is of eps: x_hat = (z - sigma eps) / alpha, of the network whose step it is, in float64."""
    torch.manual_seed(0)
    bodies = [dr.DiTConfig(8, 1, 16, blocks, head_dim=8, convention="dit").network().double() for blocks in (1, 2)]
    outputs: dict[nn.Module, torch.Tensor] = {}

    def note(layer, inputs, output) -> None:
        outputs[layer] = output

    for body in bodies:
        for parameter in body.parameters():
            nn.init.normal_(parameter, std=0.2)
        body.final_layer["linear"].register_forward_hook(note)
    pair = Switched(*(Plain(body, PROCESS) for body in bodies))
    z, t, cond = torch.randn(2, 1, 8, 8).double(), torch.tensor([0.3, 0.9]).double(), Cond()
    alpha, sigma = (part[:, None, None, None] for part in (PROCESS.alpha(t), PROCESS.sigma(t)))
    calls = (lambda: pair.denoise(z, t, Context(), cond), lambda: pair.encode(z, t, cond).x_hat)
    for call, body in zip(calls, bodies, strict=True):
        outputs.clear()
        x_hat = call()
        ((layer, output),) = outputs.items()
        assert layer is body.final_layer["linear"]
        eps = output.view(2, 4, 4, 2, 2, 1).permute(0, 5, 1, 3, 2, 4).reshape(z.shape)
        torch.testing.assert_close(x_hat, (z - sigma * eps) / alpha)
