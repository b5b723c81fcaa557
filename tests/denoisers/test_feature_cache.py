"""Feature caches: the network itself where refreshed, each block's reuse or forecast between, values and no state."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from theory.common import plan_cost
from torch import Tensor, nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.denoisers.denoiser import Metered, Plain
from dualrate.denoisers.feature_cache import FeatureCache, forecast_weights
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.uvit import UViT, UViTCut
from dualrate.sampling.cost import call_cost, macs_of
from dualrate.sampling.solvers import DPMSolver2M
from dualrate.sampling.trajectory import trajectory

PROCESS = dr.GaussianProcess(Cosine())
SHAPE = (1, 8, 8)
LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 8, 1), dr.Level("transformer", 16, 2))
CONFIG = dr.UViTConfig(8, 1, LEVELS, 3, embedding=16, head_dim=8)
TIMES = (0.9, 0.6, 0.5, 0.3)  # three refreshes at unequal distances, and a step between


def network(config: dr.UViTConfig = CONFIG) -> UViT:
    """Every parameter random, the zero-initialised ones too."""
    torch.manual_seed(0)
    net = UViT(config).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


NET = network()
PLAIN = Plain(NET, PROCESS)
NAMES = [name for name in DENOISERS if name != "shared-encoder"]
every_name = pytest.mark.parametrize("name", NAMES)


def named(name: str) -> dr.Denoiser:
    return denoiser_named(name)(PLAIN, PROCESS)


def start(seed: int = 0, rows: int = 2) -> tuple[Tensor, dr.Cond]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *SHAPE, generator=generator, dtype=torch.float64), dr.Cond(torch.arange(rows))


def at(t: float) -> Tensor:
    return torch.full((2,), t, dtype=torch.float64)


def states(denoiser: dr.Denoiser, plan: dr.StepPlan, seed: int = 0, step: dr.Step | None = None):
    z, cond = start(seed)
    return trajectory(denoiser, step or dr.DDIM(PROCESS), plan, z, cond, lambda i, j: torch.zeros_like(z))


def last(*of, **more) -> Tensor:
    with torch.no_grad():
        return list(states(*of, **more))[-1].z


def refreshed(denoiser: dr.Denoiser, cond: dr.Cond, times: tuple[float, ...] = TIMES[:-1]) -> dr.Context:
    """The context after refreshes at these times, each of a state of its own."""
    context = dr.Context()
    for seed, t in enumerate(times):
        context = denoiser.encode(start(seed)[0], at(t), cond).after(context).a_step_later()
    return context


def test_the_catalogue_has_the_caches():
    assert NAMES == ["fora", "deep-cache", "taylor", "polynomial", "toca", "duca"]


@every_name
@pytest.mark.parametrize("step", [dr.DDIM(PROCESS), DPMSolver2M(PROCESS)], ids=str)
def test_refreshed_at_every_step_it_is_the_network_itself(name, step):
    plan = dr.StepPlan.uniform(4)
    assert torch.equal(last(named(name), plan, step=step), last(PLAIN, plan, step=step))


@every_name
def test_between_refreshes_it_is_not(name):
    plan = dr.StepPlan.uniform(6, 3)
    assert (last(named(name), plan) - last(PLAIN, plan)).abs().max() > 1e-3


@every_name
def test_without_a_context_the_whole_network_runs(name):
    plan = dr.StepPlan.uniform(3, 0)
    assert torch.equal(last(named(name), plan), last(PLAIN, plan))


Block = Callable[[str, nn.Module, Tensor], Tensor]


def by_block(z: Tensor, t: Tensor, cond: dr.Cond, run: Block) -> Tensor:
    """x_hat with every block called by `run` (its level's name, the block, h), as the U-ViT's docstring has it."""

    def level(name: str, blocks, h: Tensor) -> Tensor:
        h = h if blocks.position is None else h + blocks.position
        for block in blocks.blocks:
            h = run(name, block, h)
        return h

    h, skips = NET.stem(z), []
    for i, blocks in enumerate(NET.down):
        before = level(f"down {i}", blocks, h)
        h = NET.shrink[i](F.avg_pool2d(before, 2))
        skips.append((before, h))
    h = level("middle 2", NET.middle, h)
    for i in (1, 0):
        before, after = skips[i]
        h = level(f"up {i}", NET.up[i], F.interpolate(NET.grow[i](h - after), scale_factor=2.0) + before)
    log_snr = PROCESS.log_snr(t)[:, None, None, None]
    return log_snr.sigmoid().sqrt() * z - (-log_snr).sigmoid().sqrt() * NET.predict(h)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("outer", [0, 1, 2])
def test_one_kept_sum_is_every_block_kept_or_forecast_on_its_own(outer, order):
    (z, cond), t = start(9), at(TIMES[-1])
    kept = []
    with torch.no_grad():
        for seed, tau in enumerate(TIMES[:-1]):
            emb, added = NET.embedding(PROCESS.log_snr(at(tau)), cond.label), {}

            def note(name, block, h, emb=emb, added=added):
                out = block(h, emb)
                added[block] = out - h
                return out

            by_block(start(seed)[0], at(tau), cond, note)
            kept.insert(0, added)
        kept, times = kept[: order + 1], [at(tau) for tau in TIMES[:-1]][::-1][: order + 1]
        weights = forecast_weights(PROCESS.schedule, t, *times)
        emb = NET.embedding(PROCESS.log_snr(t), cond.label)

        def reuse(name, block, h):
            if int(name[-1]) < outer:
                return block(h, emb)
            return h + sum(w[:, None, None, None] * added[block] for w, added in zip(weights, kept, strict=True))

        expected = by_block(z, t, cond, reuse)
        cache = FeatureCache(NET.cut(outer), PROCESS, order)
        found = cache.denoise(z, t, refreshed(cache, cond), cond)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_deep_cache_of_two_levels_is_encoder_sharing_of_the_whole_middle():
    net = network(dr.UViTConfig(8, 1, (LEVELS[0], LEVELS[2]), 3, patch=2, embedding=16, head_dim=16))
    plan, plain = dr.StepPlan.uniform(6, 2), Plain(net, PROCESS)
    shared = last(FeatureCache(UViTCut(net, 1, 2), PROCESS), plan)
    torch.testing.assert_close(last(denoiser_named("deep-cache")(plain, PROCESS), plan), shared)


@dataclass(frozen=True)
class Curve:
    """A cut network whose inside adds a polynomial of log_snr, and whose v is what was added."""

    degree: int

    def value(self, log_snr: Tensor) -> Tensor:
        return sum((k + 1) * (-log_snr / 3) ** k for k in range(self.degree + 1))

    def whole(self, z, log_snr, label):
        added = self.value(log_snr)[:, None, None, None].expand_as(z)
        return added, added

    def rest(self, z, log_snr, label, added):
        return added


def off(degree: int, order: int, times: tuple[float, ...]) -> float:
    """By how much x_hat misses that of the whole network at the last of the times."""
    cache, (z, cond), t = FeatureCache(Curve(degree), PROCESS, order), start(9), at(times[-1])
    found = cache.denoise(z, t, refreshed(cache, cond, times[:-1]), cond)
    return (found - cache.encode(z, t, cond).x_hat).abs().max().item()


def equal_in_log_snr(count: int) -> tuple[float, ...]:
    """Times whose log-SNR goes up by 1.5 each."""
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    return tuple(t[(PROCESS.schedule.log_snr(t) + 3 - 1.5 * i).abs().argmin()].item() for i in range(count))


def test_a_forecast_follows_features_that_are_a_polynomial_at_any_spacing():
    for times in (TIMES, equal_in_log_snr(4)):
        for degree in (0, 1, 2):
            assert off(degree, 2, times) < 1e-9
        assert off(3, 2, times) > 1e-2
    assert off(1, 0, TIMES) > 1e-2


def test_a_context_keeps_as_many_before_it_as_are_forecast_from():
    with torch.no_grad():
        walk = list(states(named("taylor"), dr.StepPlan.uniform(10, 5)))
    assert [len(state.context.earlier) for state in walk[1::2]] == [0, 1, 2, 2, 2]
    context = walk[-1].context
    assert [one.tau.item() for one in (context, *context.earlier)] == pytest.approx([0.2, 0.4, 0.6])
    assert all(one.earlier == () and one.x_hat is None for one in context.earlier)
    with torch.no_grad():
        assert all(state.context.earlier == () for state in states(named("fora"), dr.StepPlan.uniform(6, 3)))


def test_a_dropped_context_is_no_part_of_a_forecast():
    refresh = (Refresh.FULL, Refresh.FULL, Refresh.NONE, Refresh.FULL)
    plan = dr.StepPlan((0.9, 0.8, 0.7, 0.6, 0.5), refresh)
    with torch.no_grad():
        walk = list(states(named("taylor"), plan))
    assert [len(state.context.earlier) for state in walk] == [0, 0, 1, 0, 0]


@every_name
def test_interleaved_samplings_do_not_meet(name):
    denoiser = named(name)
    plan = dr.StepPlan.uniform(7, 4).renewing(denoiser.between)
    alone = [last(denoiser, plan, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        together = list(zip(states(denoiser, plan, 0), states(denoiser, plan, 1), strict=True))[-1]
    assert not torch.equal(*alone)
    assert [torch.equal(one.z, own) for one, own in zip(together, alone, strict=True)] == [True, True]


@every_name
def test_guidance_branches_have_their_own_caches(name):
    """Guided x_hat is made of two caches that never met; outside the interval, of the label's alone."""
    inner, (z, cond), t = named(name), start(9), at(TIMES[-1])
    guided = Guided(inner, PROCESS, weight=1.5, null=3, interval=(0.3, 3.0))
    null = dr.Cond(torch.full((2,), 3))
    with torch.no_grad():
        context = refreshed(guided, cond)
        label, other = (inner.denoise(z, t, refreshed(inner, of), of) for of in (cond, null))
        torch.testing.assert_close(guided.denoise(z, t, context, cond), other + 1.5 * (label - other))
        outside = guided.denoise(z, at(0.01), context, cond)
        torch.testing.assert_close(outside, inner.denoise(z, at(0.01), refreshed(inner, cond), cond))
    assert (label - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("toca", "duca")])
def test_calls_and_multiply_adds_are_the_schedule_s(name):
    """A light call lacks the inside and nothing else; a plan costs what torch counts when it runs."""
    denoiser, plan, outer = named(name), dr.StepPlan.uniform(8, 3), int(name == "deep-cache")
    meter = Metered(denoiser)
    last(meter, plan)
    assert (meter.meter.heavy, meter.meter.light) == (2 * 3, 2 * 5)
    z, emb, net = torch.zeros(1, *SHAPE), torch.zeros(1, 16), network().float()
    made = denoiser_named(name)(Plain(net, PROCESS), PROCESS)
    cost, h = call_cost(made, SHAPE, 0), net.patches(z)
    outside = [lambda: net.embedding(emb[:, 0], None), lambda: net.predict(net.patches(z))]
    levels = [lambda: net.ascend(*net.descend(h, emb, end=1), emb)] if outer else []
    assert cost.denoised
    assert cost.heavy == macs_of(lambda: net(z, emb[:, 0], None))
    assert cost.light == sum(map(macs_of, outside + levels))
    assert plan_cost(made, dr.DDIM(PROCESS), plan, SHAPE, label=0).macs == 3 * cost.heavy + 5 * cost.light
    assert 3 * cost.heavy + 5 * cost.light == macs_of(
        lambda: list(dr.sample_batches(made, dr.DDIM(PROCESS), plan, SHAPE, [0], [0]))
    )


@every_name
def test_noise_is_warned_of(name):
    with pytest.warns(UserWarning, match="smooth path"):
        last(named(name), dr.StepPlan.uniform(4, 2), step=dr.Ancestral(PROCESS))


def test_what_cannot_be_cached_is_refused():
    for denoiser in (Guided(PLAIN, PROCESS, 2.0, 3), Plain(NET.double, PROCESS)):
        with pytest.raises(ValueError, match=f"that can be cut.*got {type(denoiser).__name__}"):
            denoiser_named("fora")(denoiser, PROCESS)
    flat = UViT(dr.UViTConfig(8, 1, LEVELS[1:2], 3, patch=2, embedding=16, head_dim=8))
    assert denoiser_named("fora")(Plain(flat, PROCESS), PROCESS)
    with pytest.raises(ValueError, match="0 to 0 in this network of 1, got 1"):
        denoiser_named("deep-cache")(Plain(flat, PROCESS), PROCESS)
    headless = UViT(dr.UViTConfig(8, 1, LEVELS, 3, embedding=16, head_dim=8, head=False))
    with pytest.raises(ValueError, match="without a head"):
        denoiser_named("fora")(Plain(headless, PROCESS), PROCESS)


def test_a_foreign_context_is_refused():
    (z, cond), t, cache = start(), at(0.4), named("fora")
    own = torch.zeros(2, 8, 8, 8, dtype=torch.float64)
    for features, match in (
        ((), "got 0"),
        ((own, own), "got 2"),
        ((own[:, :4],), "got .2, 4"),
        ((own[:1],), "got .1, 8"),
    ):
        with pytest.raises(ValueError, match=match):
            cache.denoise(z, t, dr.Context(features, tau=t), cond)
    with pytest.raises(ValueError, match="of all rows"):
        cache.denoise(z, t, dr.Context((own,), tau=t, present=torch.tensor([True, False])), cond)
