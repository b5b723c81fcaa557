"""Encoder sharing: exact where it is refreshed, cheaper and different where it is not."""

import warnings
from dataclasses import replace

import pytest
import torch
from theory.common import plan_cost
from torch import nn

import dualrate as dr
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.denoiser import Metered, Plain
from dualrate.denoisers.feature_cache import FeatureCache
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.uvit import UViT, UViTCut
from dualrate.sampling.cost import call_cost, macs_of
from dualrate.sampling.trajectory import trajectory

PROCESS = dr.GaussianProcess(Cosine())
DDIM = dr.DDIM(PROCESS)
SHAPE = (1, 8, 8)
CONFIG = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 3)), 3, patch=2, embedding=16, head_dim=16
)


def network(config: dr.UViTConfig = CONFIG) -> UViT:
    """Every parameter random, the zero-initialised ones too."""
    torch.manual_seed(0)
    net = UViT(config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


NET = network()


def shared(split: int = 2) -> FeatureCache:
    return FeatureCache(UViTCut(NET, 1, split), PROCESS)


def images(denoiser: dr.Denoiser, plan: dr.StepPlan, step: dr.Step = DDIM, seeds: range = range(3)) -> torch.Tensor:
    return torch.cat(list(dr.sample_batches(denoiser, step, plan, SHAPE, seeds, [seed % 3 for seed in seeds])))


def one_call(seed: int = 0, t: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, dr.Cond]:
    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return z, torch.full((2,), t, dtype=torch.float64), dr.Cond(torch.tensor([0, 2]))


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("step", [DDIM, dr.Ancestral(PROCESS)], ids=str)
def test_refreshed_at_every_step_it_is_the_network_itself(split, step):
    plan = dr.StepPlan.uniform(4)
    assert torch.equal(images(shared(split), plan, step), images(Plain(NET, PROCESS), plan, step))


def test_kept_features_at_their_own_state_change_nothing():
    """Between refreshes, given the features of the very same state, the whole network runs."""
    z, t, cond = one_call()
    with torch.no_grad():
        context = shared().encode(z, t, cond)
        torch.testing.assert_close(shared().denoise(z, t, context.aged(), cond), context.x_hat)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_kept_features_of_another_state_do(split):
    z, t, cond = one_call()
    with torch.no_grad():
        stale = shared(split).encode(*one_call(1, 0.5)).aged()
        x_hat, exact = (shared(split).denoise(z, t, context, cond) for context in (stale, dr.Context()))
    assert (x_hat - exact).abs().max() > 1e-3
    plan = dr.StepPlan.uniform(4, 2)
    assert (images(shared(split), plan) - images(Plain(NET, PROCESS), plan)).abs().max() > 1e-3


def test_between_refreshes_the_state_and_the_time_are_the_current_ones():
    z, t, cond = one_call()
    with torch.no_grad():
        kept = shared(3).encode(*one_call(1, 0.5)).aged()
        here, other_state, other_time = (
            shared(3).denoise(z_now, t_now, kept, cond) for z_now, t_now in ((z, t), (-z, t), (z, t * 0.9))
        )
        alpha = PROCESS.schedule.log_snr(t).sigmoid().sqrt()[0].item()  # x_hat = alpha z - sigma v(z)
    assert (here - other_state - 2 * alpha * z).abs().max() > 1e-3
    assert (here - other_time).abs().max() > 1e-3


def test_without_a_context_the_whole_network_runs():
    z, t, cond = one_call()
    with torch.no_grad():
        whole = Plain(NET, PROCESS).denoise(z, t, dr.Context(), cond)
        assert torch.equal(shared().denoise(z, t, dr.Context(), cond), whole)
    plan = dr.StepPlan.uniform(4, 0)
    assert torch.equal(images(shared(), plan), images(Plain(NET, PROCESS), plan))


def test_a_plan_counts_its_refreshes_and_the_steps_between():
    meter = Metered(shared())
    images(meter, dr.StepPlan.uniform(8, 3))
    assert (meter.meter.heavy, meter.meter.light) == (3 * 3, 3 * 5)


def test_costs_add_up():
    """A light call lacks the shared blocks, nothing else; a plan costs what torch counts when it runs."""
    z, t, cond = one_call()
    z, t, cond = z[:1], t[:1], cond[:1]
    whole = macs_of(lambda: Plain(NET, PROCESS).denoise(z, t, dr.Context(), cond))
    h, emb = torch.zeros(1, 16, 2, 2), torch.zeros(1, 16)
    lights = []
    for split in (1, 2, 3):
        cost = call_cost(shared(split), SHAPE, 0)
        blocks = macs_of(lambda split=split: NET.middle(h, emb, end=split))
        assert (cost.heavy, cost.light) == (whole, whole - blocks)
        lights.append(cost.light)
    assert whole > lights[0] > lights[1] > lights[2]
    plan = dr.StepPlan.uniform(8, 3)
    cost = plan_cost(shared(), DDIM, plan, SHAPE, label=0)
    assert cost.macs == 3 * whole + 5 * lights[1]
    assert cost.macs == macs_of(lambda: images(shared(), plan, seeds=range(1)))


def test_interleaved_samplings_do_not_meet():
    plan, denoiser = dr.StepPlan.uniform(6, 2), shared()

    def states(seed: int):
        z, _, cond = one_call(seed)
        return trajectory(denoiser, DDIM, plan, z, cond, lambda i, j: torch.zeros_like(z))

    with torch.no_grad():
        alone = [list(states(seed))[-1].z for seed in (0, 1)]
        together = list(zip(states(0), states(1), strict=True))[-1]
    assert torch.equal(together[0].z, alone[0])
    assert torch.equal(together[1].z, alone[1])


def test_guidance_shares_both_branches():
    guided = Guided(shared(), PROCESS, weight=1.5, null=3, interval=(0.3, 3.0))
    plain = Guided(Plain(NET, PROCESS), PROCESS, weight=1.5, null=3, interval=(0.3, 3.0))
    torch.testing.assert_close(images(guided, dr.StepPlan.uniform(4)), images(plain, dr.StepPlan.uniform(4)))

    (z, t, cond), weight = one_call(), 1.5
    always = Guided(shared(), PROCESS, weight=weight, null=3)
    null = dr.Cond(torch.full_like(cond.label, 3))
    with torch.no_grad():
        context = always.encode(z, t, cond).aged()
        later, s = z + 0.1 * torch.randn_like(z), t - 0.1
        found = always.denoise(later, s, context, cond)
        own, empty = (shared().denoise(later, s, shared().encode(z, t, one).aged(), one) for one in (cond, null))
        crossed = shared().denoise(later, s, shared().encode(z, t, null).aged(), cond)
    torch.testing.assert_close(found, empty + weight * (own - empty))
    assert not torch.allclose(crossed, own)  # so that a branch with the other's features would be seen


def test_noise_is_warned_of_and_determinism_is_not():
    plan = dr.StepPlan.uniform(4, 2)
    with pytest.warns(UserWarning, match="smooth path"):
        images(shared(), plan, dr.Ancestral(PROCESS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images(shared(), plan)


@pytest.mark.parametrize("split", [4, 1000])
def test_a_split_must_lie_within_the_middle(split):
    with pytest.raises(ValueError, match="1 to 3 in this network"):
        shared(split)


def test_a_network_without_a_head_is_refused():
    with pytest.raises(ValueError, match="without a head"):
        UViTCut(UViT(replace(CONFIG, head=False)), 1, 1)


def test_a_foreign_context_is_refused():
    z, t, cond = one_call()
    own = torch.zeros(2, 16, 2, 2)
    foreign = [
        dr.Context(tau=t),  # a context, but no features
        dr.Context((own[:, :8],), tau=t),
        dr.Context((own, own), tau=t),
        dr.Context((own[:1],), tau=t[:1]),
        dr.Context((own,), tau=t, present=torch.tensor([True, False])),
    ]
    for context in foreign:
        with pytest.raises(ValueError, match="pass what encode returned"):
            shared().denoise(z, t, context, cond)


@pytest.mark.parametrize("name", ["shared-encoder", "fora", "toca"])
def test_what_makes_x_of_v_is_around_no_model_of_tokens(name):
    with pytest.raises(ValueError, match="has no Gaussian noise"):
        denoiser_named(name)(Plain(NET, Masked()), Masked())
