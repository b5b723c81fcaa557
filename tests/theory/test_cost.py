"""Costs: counted on the networks' own device, and by the calls that a plan really makes."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.context import Context, Reuse
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import ThreeConditional, TwoConditional
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.sampling.cost import (
    CallCost,
    call_cost,
    expected_costs,
    macs_of,
    seconds_per_call,
)
from dualrate.sampling.solvers import Heun
from dualrate.sampling.trajectory import sample_batches
from dualrate.texts.noise_planes import NoisePlanes
from theory.common import plan_cost

PROCESS = dr.GaussianProcess(Cosine())
NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)


def dual(head: bool, net: dr.UViTConfig = NET) -> DualRate:
    return DualRate(ContextEncoder(replace(net, head=head), net), LightBody(net), PROCESS)


@pytest.mark.parametrize(("head", "light_calls"), [(True, 6), (False, 8)])
def test_a_plan_costs_the_calls_it_makes(head, light_calls):
    """With a head the encoder answers at its own two steps; without, the light network runs at all eight."""
    model = dual(head)
    cost = call_cost(model, (1, 8, 8), 0)
    plan = dr.StepPlan.uniform(8, 2)
    counted = plan_cost(model, dr.Ancestral(PROCESS), plan, (1, 8, 8), label=0)
    assert (counted.heavy_calls, counted.light_calls) == (2, light_calls)
    assert counted.macs == 2 * cost.heavy + light_calls * cost.light
    assert counted.flops == 2 * counted.macs


SMALL = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1),), 3, patch=4, embedding=8)
PAIRS = {head: dual(head, SMALL) for head in (True, False)}


@pytest.mark.parametrize("heavy", [2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_expected_costs_are_those_of_the_calls_without_making_them(name, heavy):
    """Every sampler, also guided in an interval; with and without an encoder that answers itself."""
    plan, step = dr.StepPlan.late(5, heavy), SAMPLERS[name].build(PROCESS, {})
    if heavy < 5 and not step.markovian:
        pytest.skip("reuses no context")
    for model in PAIRS.values():
        for wrap in (lambda inner: inner, lambda inner: Guided(inner, PROCESS, 2.0, 3, (0.5, 2.0))):
            counted = plan_cost(model, step, plan, (1, 8, 8), label=0, wrap=wrap)
            of = (counted.calls, model.reuse, step, plan, (1, 8, 8))
            costs = expected_costs(*of, label=0, wrap=wrap)
            assert costs[-1] == counted
            found = [one.macs for one in costs]
            assert len(found) == 5
            assert found == sorted(found)
            assert found[-1] == counted.macs


def test_expected_costs_of_one_network_and_of_a_plan_are_the_sums_so_far():
    calls = CallCost(100, 10, denoised=True)
    plan = dr.StepPlan.at(6, [1, 4])
    two = expected_costs(calls, Reuse.MARKOV, dr.Ancestral(PROCESS), plan, (1, 8, 8))
    assert [one.macs for one in two] == [10, 110, 120, 130, 230, 240]
    alone = expected_costs(CallCost(0, 10, decode=5), Reuse.FREE, Heun(PROCESS), dr.StepPlan.uniform(4), (1, 8, 8))
    assert [one.macs for one in alone] == [10, 30, 50, 65]


def test_expected_costs_of_what_reads_noise_beside_its_states():
    step = dr.Ancestral(NoisePlanes(Masked(), 2))
    of = (CallCost(100, 10, denoised=True), Reuse.MARKOV, step, dr.StepPlan.uniform(4, 2), (3, 1, 4))
    assert [one.macs for one in expected_costs(*of)] == [100, 110, 210, 220]


@dataclass
class OfStates(dr.Denoiser):
    """A pair whose heavy network sees states, and nothing of a condition."""

    inner: DualRate
    reuse = Reuse.MARKOV

    def encode(self, z, t, cond):
        return self.inner.encode(z, t, dr.Cond())

    def denoise(self, z, t, context, cond):
        return self.inner.denoise(z, t, context, dr.Cond())


@pytest.mark.parametrize("kind", ["the condition alone", "states", "both"])
def test_members_share_what_is_computed_of_the_condition_alone(kind):
    """A plan of three members costs what its calls do, counted as they are made."""
    plain = replace(SMALL, num_classes=0)
    configs = {
        "the condition alone": TwoConditional(plain, plain, (1, 4, 4)),
        "both": ThreeConditional(plain, plain, plain, (1, 4, 4)),
    }
    model = OfStates(dual(False, plain)) if kind == "states" else configs[kind].build(PROCESS)[1]
    plan, step = dr.StepPlan.uniform(6, 1 if model.reuse is Reuse.FREE else 2), dr.Ancestral(PROCESS)
    calls = call_cost(model, (1, 8, 8), None, given=(1, 4, 4))
    said = replace(expected_costs(calls, model.reuse, step, plan, (1, 8, 8))[-1], members=3)
    how = {"given": lambda seeds: torch.zeros(len(seeds), 1, 4, 4), "members": 3, "batch_size": 6}
    counted = macs_of(lambda: list(sample_batches(model, step, plan, (1, 8, 8), [0, 1], **how)))
    assert said.macs == pytest.approx(counted / 6, rel=1e-6)


def test_guidance_doubles_the_calls_and_its_interval_spares_light_ones():
    model = dual(head=False)
    plan, step = dr.StepPlan.uniform(8, 2), dr.Ancestral(PROCESS)

    def calls(interval):
        counted = plan_cost(
            model, step, plan, (1, 8, 8), label=0,
            wrap=lambda inner: Guided(inner, PROCESS, 2.0, 3, interval),
        )  # fmt: skip
        return counted.heavy_calls, counted.light_calls

    assert calls(None) == (4, 16)
    noise_levels = [torch.exp(-PROCESS.schedule.log_snr(torch.tensor(t)) / 2).item() for t in plan.t[:-1]]
    inside = sum(0.5 < level <= 2 for level in noise_levels)
    assert 0 < inside < 8
    assert calls((0.5, 2.0)) == (4, 8 + inside)


class OnDevice:
    """A denoiser that refuses inputs of any device but its own, as a network on a GPU does."""

    reuse = Reuse.FREE
    device = torch.device("meta")

    def encode(self, z, t, cond):
        assert {z.device, t.device, cond.label.device} == {self.device}
        return Context()

    def denoise(self, z, t, context, cond):
        assert {z.device, t.device, cond.label.device} == {self.device}
        return z


def test_calls_are_counted_on_the_networks_device():
    assert call_cost(OnDevice(), (1, 8, 8), 0, "meta").light == 0


def test_only_the_device_that_is_timed_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    seconds_per_call(lambda: None, seconds=0)
    assert not waited
    seconds_per_call(lambda: None, seconds=0, device="cuda:1")
    assert waited == [torch.device("cuda:1")] * 4  # after the first call, which is not counted, and three more


def test_a_count_is_that_of_torch_in_every_mode():
    layer, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)), torch.ones(4, 2, 4, 4)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert macs_of(lambda: layer(x)) == counter.get_total_flops() // 2
    with torch.inference_mode():
        assert macs_of(lambda: layer(x)) == counter.get_total_flops() // 2


def test_calls_of_nothing_are_not_timed_for_ever():
    """An encoder that a single network does not have takes a microsecond, a second of it a million calls."""
    calls = []
    seconds_per_call(lambda: calls.append(None), seconds=60)
    assert len(calls) == 1001


def test_fused_attention_is_counted():
    """q k^T and its product with v: 2 n m d, which torch's counter leaves out on a CPU."""
    q, k = torch.randn(1, 2, 64, 16), torch.randn(1, 2, 48, 16)
    assert macs_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)) == 2 * 2 * 64 * 48 * 16
