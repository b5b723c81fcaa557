"""Decoders: one heavy call on z_0, any sampler after it; exact where p(x | z_0) is known; costs by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from theory.common import PROCESS, normals, uniform_log_snr
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import Conditional, DualRateConditional, Metered
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond, Context
from dualrate.networks.blocks import zero_init
from dualrate.networks.conditional import ConditionalBody, ConditionEncoder, ConditionMaps
from dualrate.networks.uvit import UViT
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.sampling.cost import macs_of
from dualrate.sampling.trajectory import rollout

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("conv", 8, 1)))
LATENT = (3, 2, 2)


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.double().eval()


def dual() -> DualRateConditional:
    return DualRateConditional(randomised(ConditionEncoder(NET, LIGHT, LATENT)), randomised(UViT(LIGHT)), PROCESS)


def single(config: dr.UViTConfig = NET) -> Conditional:
    return Conditional(randomised(ConditionalBody(config, LATENT)), PROCESS)


def cond(rows: int = 2, seed: int = 1) -> Cond:
    return Cond(torch.arange(rows), normals(seed, rows, *LATENT))


def decode(denoiser: dr.Denoiser, step: dr.Step, plan: dr.StepPlan, of: Cond) -> Tensor:
    rows = len(of.given) if of.given is not None else 2
    with torch.no_grad():
        return rollout(denoiser, step, plan, normals(0, rows, 1, 8, 8), of, lambda i, j: normals(2 + i, rows, 1, 8, 8))


def test_the_heavy_network_is_told_that_all_is_noise():
    one, told = dual(), []
    one.encoder.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    with torch.no_grad():
        one.encode(normals(0, 2, 1, 8, 8), torch.full((2,), 0.4, dtype=torch.float64), cond())
    torch.testing.assert_close(told[0].double(), PROCESS.log_snr(torch.ones(2, dtype=torch.float64)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_heavy_call_serves_every_sampler_and_what_it_sees_is_z_0_alone(name):
    plan, every = dr.StepPlan.uniform(4, 1), dr.StepPlan.uniform(4)
    step, meter = make_step(name, PROCESS), Metered(dual())
    images = decode(meter, step, plan, cond())
    assert meter.meter.heavy == 2
    calls = step.calls_per_step * 4 - step.single_call_steps * (step.calls_per_step - 1)
    assert meter.meter.light == 2 * calls
    torch.testing.assert_close(decode(dual(), step, every, cond()), images)  # anew at every step: nothing has aged
    assert not torch.allclose(decode(dual(), step, plan, cond(seed=7)), images)


@pytest.mark.parametrize("make", [single, dual])
def test_every_row_has_its_own_z_0_and_gives_it_a_gradient(make):
    denoiser, of, t = make(), cond(3), torch.full((3,), 0.4, dtype=torch.float64)
    of.given.requires_grad_()
    z = normals(0, 3, 1, 8, 8)
    x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, of), of)
    (gradient,) = torch.autograd.grad(x_hat[1].sum(), of.given)
    assert gradient[1].abs().min() > 0
    assert not gradient[[0, 2]].any()
    swapped = of[torch.tensor([1, 0, 2])]
    other = denoiser.denoise(z, t, denoiser.encode(z, t, swapped), swapped)
    assert [torch.equal(a, b) for a, b in zip(x_hat, other, strict=True)] == [False, False, True]


def test_guidance_asks_for_both_branches_of_every_image():
    guided = Guided(dual(), PROCESS, weight=2.0, null=3)
    z, t, of = normals(0, 2, 1, 8, 8), torch.full((2,), 0.4, dtype=torch.float64), cond()
    x_hat = guided.denoise(z, t, guided.encode(z, t, of), of)
    own, null = (
        dual().denoise(z, t, dual().encode(z, t, one), one) for one in (of, Cond(torch.full((2,), 3), of.given))
    )
    torch.testing.assert_close(x_hat, null + 2 * (own - null))


def test_a_light_decoder_without_the_heavy_network_is_a_decoder_by_itself():
    """A retrofit begins with this: the light network and its maps are those of a single-rate decoder."""
    light, two = single(LIGHT), dual()
    two.encoder.light.load_state_dict(light.network.latent.state_dict())
    two.light.load_state_dict(light.network.net.state_dict())
    plan, step = dr.StepPlan.uniform(3, 1), dr.DDIM(PROCESS)
    images = decode(light, step, plan, cond())
    assert not torch.allclose(decode(two, step, plan, cond()), images)
    zero_init(two.encoder.projections)
    torch.testing.assert_close(decode(two, step, plan, cond()), images)


def test_the_heavy_network_is_the_single_rate_one_where_all_is_noise():
    config = replace(NET, num_classes=0)
    decoder, z_0 = ConditionalBody(config, LATENT), normals(0, 1, *LATENT).float()
    encoder = ConditionEncoder(config, config, LATENT)
    weights = {name: part for name, part in decoder.state_dict().items() if "head." not in name}
    encoder.net.load_state_dict(weights)
    log_snr = PROCESS.log_snr(torch.ones(1, dtype=torch.float64)).float()
    own, its = (net.features(log_snr, z_0, None)[0] for net in (decoder, encoder.net))
    torch.testing.assert_close(own, its, rtol=0, atol=0)
    assert not [name for name, _ in encoder.named_parameters() if "head." in name]


def test_a_latent_reaches_positions_of_its_own():
    """A finer level: a square of positions of each of the latent's, by maps of their own; a coarser one: the other way.

    Products by hand.
    """
    config = dr.UViTConfig(
        8, 1, (dr.Level("conv", 4, 1), dr.Level("conv", 8, 1), dr.Level("conv", 16, 1)), embedding=16
    )
    maps, z_0 = ConditionMaps((3, 4, 4), config), torch.zeros(1, 3, 4, 4)
    assert [tuple(part.shape) for part in maps(z_0)] == [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2)]
    assert macs_of(lambda: maps(z_0)) == 3 * 4 * 64 + 3 * 8 * 16 + (3 * 4) * 16 * 4
    z_0[0, 1, 2, 3] = 1
    fine, same, coarse = maps(z_0)
    for part, side in ((fine, 8), (same, 4), (coarse, 2)):
        touched = part[0].detach().abs().sum(0).nonzero()
        assert touched.shape[0] == max(1, side // 4) ** 2
        assert torch.equal(touched[0], torch.tensor([2 * side // 4, 3 * side // 4]))
    assert fine[0, :, 4:6, 6:8].flatten(1).unique(dim=1).shape[1] == 4
    with pytest.raises(ValueError, match=r"condition of \(3, 3, 3\).*levels, 8 x 8, 4 x 4, 2 x 2"):
        ConditionMaps((3, 3, 3), config)


def test_what_a_decoder_cannot_do_without_is_asked_for():
    z, t = normals(0, 2, 1, 8, 8), torch.full((2,), 0.4, dtype=torch.float64)
    with pytest.raises(ValueError, match="got none: pass Cond"):
        single().denoise(z, t, Context(), Cond(torch.arange(2)))
    with pytest.raises(ValueError, match="got none: pass Cond"):
        dual().encode(z, t, Cond(torch.arange(2)))
    with pytest.raises(ValueError, match="begin the plan with one"):
        decode(dual(), dr.DDIM(PROCESS), dr.StepPlan.uniform(4, 0), cond())


@dataclass(frozen=True)
class LinearGaussian:
    """x ~ N(0, 1) at each position, z_0 = x + noise of variance r: x | z_0 ~ N(g z_0, g r), g = 1 / (1 + r).

    Its heavy call makes g z_0 of z_0, and nothing else sees that: E[x | x_t, z_0] = m + C alpha (x_t - alpha m) / S,
    with m = g z_0, C = g r and S = alpha^2 C + sigma^2.
    """

    r: float
    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z, t, cond):
        return Context((cond.given / (1 + self.r),))

    def denoise(self, z, t, context, cond):
        (m,), c = context.features, self.r / (1 + self.r)
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in (PROCESS.alpha(t), PROCESS.sigma(t)))
        return m + c * alpha * (z - alpha * m) / (alpha**2 * c + sigma**2)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++2m", "heun"])
def test_an_exact_decoder_draws_from_the_posterior(name):
    """Mean and variance of 4,096 images of one z_0 each, within five standard errors; one heavy call."""
    plan = uniform_log_snr(300, heavy=1)
    r, z_0, count = 0.5, torch.full((4096, 1, 1, 1), 1.2, dtype=torch.float64), 4096
    step = make_step(name, PROCESS)
    x = rollout(
        LinearGaussian(r),
        step,
        plan,
        normals(0, count, 1, 1, 1),
        Cond(given=z_0),
        lambda i, j: normals(i + 1, count, 1, 1, 1),
    )
    variance = r / (1 + r)
    assert abs(x.mean() - 1.2 / (1 + r)) < 5 * math.sqrt(variance / count)
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / count) + 0.01  # and the step's own error
