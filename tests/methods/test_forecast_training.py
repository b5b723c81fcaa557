"""Training from forecast contexts: which heavy call was before, what the light network sees, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.prediction import Sigmoid
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Batch, Cond, Context
from dualrate.methods.denoising import Denoising, DenoisingConfig
from dualrate.methods.times import SHORTEST, SingleTime, TimeSampler
from dualrate.recipes.fashion_mnist import dual, single

PROCESS = dr.GaussianProcess(Cosine())
ROWS = 4000
TIMES = [
    TimeSampler((3, 3), dropout=0.25),
    TimeSampler((3, 3), dropout=0.0, phase=0),
    TimeSampler((2, 6), dropout=0.0, draws=2),
    TimeSampler((1, 4), dropout=0.25, first=(0.6, 0.9)),
]


@dataclass(frozen=True)
class Straight:
    """A dual-rate stand-in: features on a line in log-SNR, another one of each image, told by its label."""

    encoded: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    seen: list[tuple[Tensor, Context, Tensor]] = field(default_factory=list)
    reuse: dr.Reuse = dr.Reuse.MARKOV

    def feature(self, t: Tensor, label: Tensor) -> Tensor:
        return ((2 + 3 * PROCESS.log_snr(t)) * (1 + label)).view(-1, 1, 1, 1)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        self.encoded.append((z, t))
        return Context((self.feature(t, cond.label),), tau=t)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        self.seen.append((t, context, z))
        return 0.9 * z


def trained(times: TimeSampler, rows: int = ROWS) -> tuple[Straight, Batch, Denoising]:
    """One loss of a batch whose images are its sample numbers' labels."""
    straight = Straight()
    method = Denoising(nn.ModuleDict(), straight, PROCESS, Sigmoid(), times, label_dropout=0, forecast=True)
    batch = Batch(torch.randn(rows, 1, 2, 2, dtype=torch.float64), torch.arange(rows), torch.arange(rows))
    method.loss(batch, 0, Draws(0, batch.sample))
    return straight, batch, method


@pytest.mark.parametrize("times", TIMES, ids=["random", "fixed", "shared", "late"])
def test_the_light_network_sees_the_line_through_two_heavy_calls_at_its_own_time(times: TimeSampler) -> None:
    """Dated now; where no heavy call was before, the context as it was."""
    straight, batch, method = trained(times)
    ((t, context, _),) = straight.seen
    assert context.present is not None
    assert context.tau is not None
    drawn = method.times(Draws(0, batch.sample))
    image = torch.arange(ROWS).repeat_interleave(times.draws)
    tau, before = drawn.tau[image], drawn.before[image]
    dated = torch.where(before > tau, t, tau)[context.present]
    torch.testing.assert_close(context.tau[context.present], dated)
    lines = straight.feature(dated, batch.label[image][context.present])
    torch.testing.assert_close(context.features[0][context.present], lines, rtol=1e-6, atol=1e-6)
    assert {True, False} == set((before > tau)[context.present].tolist())
    assert not context.features[0][~context.present].any()
    assert context.features[0].isfinite().all()


def test_the_heavy_call_before_is_that_of_the_same_plan() -> None:
    """Of three even calls one third before, up to the first, at 1 or at F; there is none before that one."""
    draws = Draws(0, torch.arange(ROWS))
    even = TIMES[0](draws)
    before = (even.tau + 1 / 3).clamp(max=1)
    short = before - even.tau < SHORTEST / 3
    torch.testing.assert_close(even.before, torch.where(short, even.tau, before))
    assert 0 < short.double().mean() < 0.3
    fixed = TIMES[1](draws)
    assert {round(3 * one) for one in fixed.before.tolist()} == {2, 3}
    late, first = TIMES[3], (0.6, 0.9)
    drawn = late(draws)
    share = late._num_heavy(draws)
    of_first = first[0] + (first[1] - first[0]) * draws.uniform("first")
    reached = drawn.t <= of_first
    j = torch.round(drawn.tau * share / of_first)
    torch.testing.assert_close(drawn.before[reached], (of_first * torch.minimum(j + 1, share) / share)[reached])


def test_all_three_states_are_of_one_forward_path() -> None:
    """Noises of z_before and z_tau correlate by a_b s / (a s_b), those of z_before and z_t by a_b s_t / (a_t s_b)."""
    straight, batch, method = trained(TimeSampler((3, 3), dropout=0.0), rows=20_000)
    times = method.times(Draws(0, batch.sample))
    inside = times.before > times.tau
    (z_tau, tau), (z_before, before) = straight.encoded
    assert torch.equal(before, times.before[inside])  # no heavy call where there is none before
    ((t, _, z_t),) = straight.seen
    x = batch.x[inside]

    def noise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (one.view(-1, 1, 1, 1) for one in (PROCESS.alpha(t), PROCESS.sigma(t)))
        return (z - alpha * x) / sigma

    last = noise(z_before, before)
    assert last.mean().abs() < 0.02
    assert last.std().item() == pytest.approx(1, abs=0.02)
    for z, at in ((z_tau[inside], tau[inside]), (z_t[inside], t[inside])):
        ratio = PROCESS.alpha(before) * PROCESS.sigma(at) / (PROCESS.alpha(at) * PROCESS.sigma(before))
        expected = ratio.view(-1, 1, 1, 1)
        slope = (noise(z, at) * last * expected).mean() / expected.square().mean()
        assert slope.item() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("times", TIMES, ids=["random", "fixed", "shared", "late"])
def test_no_forecast_goes_further_than_plans_do(times: TimeSampler) -> None:
    """By a short segment a line is not known; what is added to the features stays a few of their differences."""
    drawn = times(Draws(0, torch.arange(200_000)))
    image = torch.arange(200_000).repeat_interleave(times.draws)
    tau, before = drawn.tau[image], drawn.before[image]
    given = before > tau
    heavy = times._num_heavy(Draws(0, torch.arange(200_000)))[image]
    assert ((before - tau)[given] * heavy[given] >= SHORTEST - 1e-9).all()
    assert ((tau - drawn.t)[given] <= 10 * (before - tau)[given]).all()


def test_without_a_context_to_forecast_it_is_refused() -> None:
    with pytest.raises(ValueError, match="forecast of a dual-rate model along Gaussian paths, got Plain"):
        Denoising(nn.ModuleDict(), Plain(nn.Identity(), PROCESS), PROCESS, Sigmoid(), SingleTime(), forecast=True)
    with pytest.raises(ValueError, match="has none: drop forecast"):
        replace(single("light"), method=DenoisingConfig(forecast=True))
    one_call = replace(dual().method, forecast=True, times=TimeSampler((1, 1)))
    with pytest.raises(ValueError, match="from two heavy calls, fashion-mnist-dual-45 makes one"):
        replace(dual(), method=one_call)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_recipe_trains_so_where_it_is_asked_for(frozen: bool) -> None:
    """With a head, and labels; a frozen encoder stays without a gradient in both of its calls."""
    made = dual()
    assert isinstance(made.method, DenoisingConfig)
    assert not made.method.forecast
    of = {"freeze_encoder": True, "encoder_from": "heavy"} if frozen else {}
    method = replace(made.method, forecast=True, **of).build(made)
    rows = Batch(torch.randn(16, 1, 28, 28), torch.arange(16) % 10, torch.arange(16))
    loss = method.loss(rows, 0, Draws(0, rows.sample)).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.networks.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.networks["light"].parameters())
    backbone = made.networks.backbone(method.networks, "encoder")
    assert all(p.grad is None for p in backbone.parameters()) == frozen
