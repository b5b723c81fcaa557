"""Frames that are each made by themselves, told their lead: of one heavy call, to the law of an autoregression; and
attention among frames.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.denoisers.denoiser import DualRateConditional, Metered
from dualrate.diffusion.context import Batch
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.network_configs import OneConditional, TwoConditional
from dualrate.forecasts.rolling_process import SharedNoise
from dualrate.methods.crps import OneCall
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import GivenTimes
from dualrate.networks.conditional import ByLead, FrameAttention
from dualrate.networks.dis import DiSConfig
from dualrate.networks.dit import DiTConfig
from dualrate.sampling.cost import call_cost
from dualrate.sampling.trajectory import sample_batches

RHO, LEADS = 0.8, (1, 3, 7)
NET = dr.UViTConfig(8, 2, (dr.Level("conv", 8, 1), dr.Level("conv", 24, 1)), embedding=16, height=1)
GIVEN = (3, 1, 4)


class Reader(nn.Module):
    """y itself. calls: rows of each"""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, log_snr: Tensor, given: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        self.calls.append(len(given))
        return (given,)


class Law(nn.Module):
    """v of E[x^k | z, y], x^k | y ~ N(rho^k y, 1 - rho^2k): the frame k after y of an autoregression of variance 1."""

    def embedding(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        return torch.zeros(len(log_snr), 1, dtype=log_snr.dtype)

    def called(self, z: Tensor, log_snr: Tensor, emb: Tensor, added: tuple[Tensor]) -> Tensor:
        k, (y,) = emb[:, :1, None, None], added
        mean, variance = RHO**k * y.repeat_interleave(len(z) // len(y), 0), 1 - RHO ** (2 * k)
        snr, (alpha, noise) = log_snr, ((s * log_snr).sigmoid()[:, None, None, None] for s in (1, -1))
        gain = alpha.sqrt() * variance / (alpha * variance + noise)
        return v_from_x(z, mean + gain * (z - alpha.sqrt() * mean), snr)


class Number(nn.Module):
    def forward(self, lead: Tensor) -> Tensor:
        return lead[:, None].double()


def exact(process: dr.GaussianProcess, leads: tuple[int, ...] = LEADS) -> DualRateConditional:
    light = ByLead(replace(NET, image_channels=1, image_size=2), leads, attention=False)
    light.net, light.lead = Law(), Number()  # pyright: ignore[reportAttributeAccessIssue]
    return DualRateConditional(Reader(), light, process)


@pytest.mark.parametrize("shared", [True, False])
def test_every_lead_of_every_member_has_its_law_of_one_heavy_call(shared: bool) -> None:
    process = SharedNoise(Cosine(), len(LEADS)) if shared else dr.GaussianProcess(Cosine())
    model, y, members = exact(process), torch.tensor([1.5, -0.5])[:, None, None, None], 3000
    step, plan = dr.DDIM(process), dr.StepPlan.uniform(60, 1)
    batches = sample_batches(
        model, step, plan, (len(LEADS), 1, 1), [0, 1], batch_size=2 * members, members=members, given=lambda s: y[s]
    )
    x = torch.cat(list(batches)).double().view(2, members, len(LEADS))
    assert isinstance(model.encoder, Reader)
    assert model.encoder.calls == [2]
    power = RHO ** torch.tensor(LEADS, dtype=torch.float64)
    spread = (1 - power**2).sqrt()
    torch.testing.assert_close(x.mean(1), y.view(2, 1) * power, rtol=0, atol=4 * 1 / math.sqrt(members))
    torch.testing.assert_close(x.std(1), spread.expand(2, -1), rtol=0.05, atol=0)
    apart = (x[0] - x[0].mean(0)) / spread
    together = (apart.T @ apart / members)[0, 1].item()
    assert together == pytest.approx(1.0 if shared else 0.0, abs=0.08)


def test_a_lead_s_frame_is_the_same_whatever_else_is_made() -> None:
    y = torch.tensor([1.5, -0.5])[:, None, None, None]

    def made(leads: tuple[int, ...]) -> Tensor:
        process = SharedNoise(Cosine(), len(leads))
        step, plan, shape = dr.Ancestral(process), dr.StepPlan.uniform(4, 1), (len(leads), 1, 2)
        return torch.cat([*sample_batches(exact(process, leads), step, plan, shape, [5, 6], given=lambda s: y[s - 5])])

    torch.testing.assert_close(made(LEADS)[:, 1:2], made((3,)))


def random(networks: OneConditional | TwoConditional) -> dr.Denoiser:
    torch.manual_seed(0)
    parts, model = networks.build(dr.GaussianProcess(Cosine()))
    for weight in parts.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("kind", [Denoising, OneCall])
def test_one_heavy_call_a_window_trains_all_draws_of_all_leads(kind: Any) -> None:
    pair = random(TwoConditional(NET, replace(NET, levels=NET.levels), GIVEN, leads=LEADS))
    metered, rows = Metered(pair), 3
    torch.manual_seed(1)
    batch = Batch(torch.randn(rows, 6, 1, 8), None, torch.arange(rows), given=torch.randn(rows, *GIVEN))
    process = dr.GaussianProcess(Cosine())
    parts: Any = (Sigmoid(), GivenTimes(2)) if kind is Denoising else (2, "crps")
    loss = kind(nn.ModuleDict(), metered, process, *parts).loss(batch, 0, batch.draws(0))
    assert (metered.meter.heavy, metered.meter.light) == (rows, 2 * rows)
    assert isinstance(pair, DualRateConditional)
    assert isinstance(pair.light, ByLead)
    (gradient,) = torch.autograd.grad(loss.total, [*pair.light.lead.mlp[-1].parameters()][:1])
    assert gradient.any()


def test_a_window_costs_one_heavy_call_and_a_light_one_a_lead() -> None:
    costs = [
        call_cost(random(TwoConditional(NET, NET, GIVEN, leads=leads)), (2 * len(leads), 1, 8), None, given=GIVEN)
        for leads in ((4,), (4, 5), (4, 5, 9))
    ]
    assert len({cost.heavy for cost in costs}) == 1
    light = [cost.light for cost in costs]
    assert light[2] - light[1] == light[1] - light[0]
    assert 2.8 * light[0] < light[2] <= 3 * light[0]  # but for the noise level's embedding, which is of a window


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_frames_change_places_and_see_each_other_where_they_may(single: bool, attention: bool) -> None:
    """Equal leads: then a window's frames may be permuted. Without attention one frame does not change another."""
    how: Any = {"leads": (2, 2, 2), "attention": attention}
    model: Any = random(OneConditional(NET, GIVEN, **how) if single else TwoConditional(NET, NET, GIVEN, **how))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 3, 2, 1, 8, generator=generator)
    y = torch.randn(2, *GIVEN, generator=generator)
    if single:
        y = y.repeat_interleave(2, 0)
    t, cond = torch.tensor([0.3, 0.6, 0.9, 0.5], dtype=torch.float64), dr.Cond(given=y)

    def x_hat(frames: Tensor) -> Tensor:
        state = frames.flatten(1, 2)
        return model.denoise(state, t, model.encode(state, t, cond), cond).unflatten(1, (3, 2))

    with torch.no_grad():
        whole, order = x_hat(z), [2, 0, 1]
        torch.testing.assert_close(x_hat(z[:, order]), whole[:, order], rtol=1e-4, atol=1e-4)
        other = z.clone()
        other[:, 0] += 1
        changed = (x_hat(other) - whole).abs().amax((0, 2, 3, 4))
    assert changed[0] > 0.1
    assert (changed[1:] > 1e-3).all() if attention else (changed[1:] == 0).all()


def test_attention_among_frames_is_that_of_each_place_by_hand() -> None:
    torch.manual_seed(0)
    block = FrameAttention(3, 8, 4, 4).double()
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.5)
    tokens = torch.randn(2 * 3, 5, 8, dtype=torch.float64)  # rows: frames of two samples; five places
    found = block.attention(tokens)
    for sample in range(2):
        for place in range(5):
            own = tokens[3 * sample : 3 * sample + 3, place]
            mixed = []
            for head in range(2):
                at = slice(4 * head, 4 * head + 4)
                q, k, v = (part[:, at] for part in block.qkv(own).chunk(3, -1))
                q, k = (F.layer_norm(part, (4,)) * scale for part, scale in ((q, block.scale_q), (k, block.scale_k)))
                mixed.append(torch.softmax(q @ k.T / 2, -1) @ v)
            torch.testing.assert_close(found[3 * sample : 3 * sample + 3, place], block.out(torch.cat(mixed, -1)))


def test_scans_have_no_place_for_attention_over_time() -> None:
    flat = DiSConfig(8, 1, 16, 1)
    with pytest.raises(ValueError, match="in a U-ViT or a DiT, got DiSConfig"):
        ByLead(flat, (1, 2), attention=True)


@pytest.mark.parametrize("flat", [False, True])
def test_a_causal_frame_sees_those_before_it_alone(flat: bool) -> None:
    config: Any = DiTConfig(4, 1, 16, 1, head_dim=16) if flat else replace(NET, image_channels=1, image_size=8)
    torch.manual_seed(0)
    net = random_weights(ByLead(config, (1, 2, 3), attention=True, causal=True)).double()
    z = torch.randn(2, 3, *config.shape[1:], dtype=torch.float64, requires_grad=True)
    v = net(z, torch.zeros(2, dtype=torch.float64), None)
    for k in range(3):
        (slope,) = torch.autograd.grad(v[:, k].sum(), z, retain_graph=True)
        seen = slope.abs().amax((0, 2, 3)) > 0
        assert seen.tolist() == [earlier <= k for earlier in range(3)]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_time_begins_as_the_network_of_a_frame(causal: bool) -> None:
    """Bit for bit, of one frame and of several: what it adds is 0 until it is trained."""
    config = replace(NET, image_channels=1, image_size=8)
    net = ByLead(config, (1, 2, 3), attention=True, causal=causal)
    frame: Any = random_weights(config.network())
    net.net.load_state_dict(net.net.state_dict() | frame.state_dict())
    z, log_snr = torch.randn(2, 3, 1, 8), torch.tensor([-1.0, 2.0])
    emb = frame.embedding(log_snr, None).repeat_interleave(3, 0)
    alone = frame.called(z.flatten(0, 1)[:, None], log_snr.repeat_interleave(3), emb).view_as(z)
    torch.testing.assert_close(net(z, log_snr, None), alone, rtol=0, atol=0)
    one = ByLead(config, (1,), attention=True, causal=causal)
    one.net.load_state_dict(one.net.state_dict() | frame.state_dict())
    assert torch.equal(one(z[:, :1], log_snr, None), frame(z[:, :1], log_snr, None))
    net.net.middle.blocks[-1].out.weight.data.normal_()
    assert not torch.equal(net(z, log_snr, None), alone)


def random_weights(network: nn.Module) -> nn.Module:
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network
