"""Samples of a condition: exact where (x, y) is Gaussian; whatever the batch; one heavy call for all of a condition.

y ~ N(0, I) and x = m + K y + N(0, S), so x | y ~ N(m + K y, S) and, with mu = m + K y,

    E[x | z_t, y] = mu + alpha S (alpha^2 S + sigma^2 I)^-1 (z_t - alpha mu)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dualrate as dr
from dualrate.denoisers.denoiser import BothRates, Conditional, Denoiser, DualRateConditional, Metered, given_of
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Batch, Cond, Context, Refresh, Reuse, for_rows
from dualrate.diffusion.random import Draws
from dualrate.experiment.network_configs import ThreeConditional
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import BothTimes
from dualrate.networks.blocks import add_shared
from dualrate.networks.conditional import ConditionalBody, ConditionEncoder, ConditionReader
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.catalogue import make_step
from dualrate.sampling.cost import call_cost, expected_costs, macs_of
from dualrate.sampling.trajectory import rollout, sample_batches
from theory.common import PROCESS, f64, normals, uniform_log_snr

MEAN, K = f64(0.2, -0.5, 0.1), f64(0.5, 0.0, -0.3, 0.4, 0.2, 0.6).view(3, 2)
ROOT = f64(0.4, 0.0, 0.0, 0.2, 0.3, 0.0, -0.1, 0.1, 0.05).view(3, 3)
S = ROOT @ ROOT.mT
Y = f64(0.7, -1.1, -0.4, 0.9).view(2, 2, 1, 1)
SHAPE = (3, 1, 1)


def conditional_mean(y: Tensor) -> Tensor:
    return (MEAN + y.double().flatten(1) @ K.mT)[:, :, None, None]


@dataclass(frozen=True)
class Exact(Denoiser):
    """E[x | z_t, y] of the Gaussian above: a heavy call finds what y says of x, a light one does the rest."""

    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context((conditional_mean(given_of(cond)),))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        (mean,), (alpha, sigma) = context.features, PROCESS.scales(t)
        gain = alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(3, dtype=torch.float64))
        offset = add_shared(z.double(), -alpha * mean)
        return add_shared((offset.flatten(1) @ gain.mT).view_as(z), mean).to(z.dtype)


NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("conv", 8, 1)))
HEADLESS = replace(NET, head=False)
GIVEN = (2, 4, 4)
CONDITIONS = normals(3, 3, *GIVEN).float()


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


@cache
def dual() -> DualRateConditional:
    return DualRateConditional(randomised(ConditionEncoder(NET, LIGHT, GIVEN)), randomised(UViT(LIGHT)), PROCESS)


@cache
def both() -> BothRates:
    reader, encoder = (
        randomised(ConditionReader(NET, HEADLESS, LIGHT, GIVEN)),
        randomised(ContextEncoder(HEADLESS, LIGHT)),
    )
    return BothRates(encoder, randomised(LightBody(LIGHT)), PROCESS, reader=reader)


@cache
def single() -> Conditional:
    return Conditional(randomised(ConditionalBody(NET, GIVEN)), PROCESS)


def drawn(denoiser: Denoiser, seeds: list[int], members: int, batch_size: int, *, heavy: int = 1, **more) -> Tensor:
    """(conditions, members, C, H, W). The condition of seed i is number i of CONDITIONS."""
    images = sample_batches(
        denoiser,
        make_step("ancestral", PROCESS),
        dr.StepPlan.uniform(4, heavy),
        (1, 8, 8),
        seeds,
        batch_size=batch_size,
        members=members,
        given=lambda seed: CONDITIONS[seed],
        **more,
    )
    return torch.cat(list(images)).unflatten(0, (len(seeds), members))


@pytest.mark.parametrize(("name", "steps"), [("ancestral", 250), ("ddim", 250), ("sde-dpm++2m", 80)])
def test_members_have_the_mean_and_the_covariance_of_x_given_y(name: str, steps: int) -> None:
    members = 3_000
    images = sample_batches(
        Exact(),
        make_step(name, PROCESS),
        uniform_log_snr(steps, heavy=1),
        SHAPE,
        [0, 1],
        batch_size=members,
        members=members,
        given=lambda seed: Y[seed],
    )
    for found, mean in zip(torch.cat(list(images)).double().view(2, members, 3), conditional_mean(Y), strict=True):
        error = (S.diagonal() / members).sqrt()
        assert ((found.mean(0) - mean.flatten()).abs() < 4 * error).all()
        error = ((S.diagonal()[:, None] * S.diagonal() + S.square()) / members).sqrt()
        assert ((torch.cov(found.mT) - S).abs() < 4 * error + 0.08 * S.diagonal().max()).all()


@pytest.mark.parametrize("make", [single, dual, both])
@pytest.mark.parametrize("members", [1, 3])
def test_a_permutation_of_the_conditions_permutes_the_samples(make, members: int) -> None:
    def of(y: Tensor) -> Tensor:
        """Every condition with the same noise."""
        if make is single:
            y = y.repeat_interleave(members, 0)
        noise = [normals(seed, members, 1, 8, 8).float().repeat(3, 1, 1, 1) for seed in range(6)]
        step, plan = make_step("ancestral", PROCESS), dr.StepPlan.uniform(4, 1)
        with torch.no_grad():
            z = rollout(make(), step, plan, noise[5], Cond(None, y), lambda i, _: noise[i])
        return z.unflatten(0, (3, members))

    order, images = torch.tensor([2, 0, 1]), of(CONDITIONS)
    torch.testing.assert_close(of(CONDITIONS[order]), images[order], rtol=0, atol=1e-6)
    assert all((a - b).abs().max() > 0.01 for a, b in pairwise(images))


@pytest.mark.parametrize("name", ["ancestral", "ddim", "sde-dpm++2m", "heun"])
def test_encoding_once_is_encoding_at_every_step_bit_for_bit(name: str) -> None:
    noise = [normals(seed, 6, 1, 8, 8).float() for seed in range(6)]

    def of(heavy: int) -> tuple[Tensor, int]:
        denoiser, plan = Metered(dual()), dr.StepPlan.uniform(5, heavy)
        with torch.no_grad():
            z = rollout(
                denoiser,
                make_step(name, PROCESS),
                plan,
                noise[5],
                Cond(None, CONDITIONS),
                lambda i, _: noise[i],
            )
        return z, denoiser.meter.heavy

    (once, calls), (always, others) = of(1), of(5)
    assert torch.equal(once, always)
    assert (calls, others) == (3, 15)


@pytest.mark.parametrize("make", [single, dual, both])
def test_a_sample_depends_on_its_condition_its_seed_and_its_number_and_not_on_the_batch(make) -> None:
    members = 4
    images = drawn(make(), [0, 1, 2], members, 64)
    for batch_size in (1, members - 1, members, 2 * members + 1, 3 * members):
        torch.testing.assert_close(drawn(make(), [0, 1, 2], members, batch_size), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(make(), [2], members, 64)[0], images[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(make(), [0, 1, 2], 2, 5), images[:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(make(), [0, 1, 2], 1, 64), images[:, :1], rtol=0, atol=1e-5)
    flat = images.flatten(0, 1).flatten(1)
    assert (torch.cdist(flat, flat) + 9 * torch.eye(len(flat)) > 0.1).all()


def test_labels_and_conditions_of_a_denoiser_whose_context_is_not_of_the_condition_alone() -> None:
    """All members have their seed's; a denoiser that shares no context sees a row of y for each."""
    labels = [2, 0, 1]
    for make in (single, dual, both):
        images = drawn(make(), [0, 1, 2], 2, 64, label=labels)
        torch.testing.assert_close(drawn(make(), [0, 1, 2], 2, 1, label=labels), images, rtol=0, atol=1e-5)
        torch.testing.assert_close(drawn(make(), [0, 1, 2], 1, 1, label=labels), images[:, :1], rtol=0, atol=1e-5)
        assert (drawn(make(), [0, 1, 2], 2, 64, label=[2, 2, 1])[1] - images[1]).abs().max() > 1e-3
    smooth = replace(single(), reuse=Reuse.MARKOV)
    torch.testing.assert_close(drawn(smooth, [0, 1, 2], 4, 9), drawn(single(), [0, 1, 2], 4, 9), rtol=0, atol=1e-5)


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 15])
def test_the_heavy_network_runs_once_a_condition(members: int, batch_size: int) -> None:
    denoiser = Metered(dual())
    drawn(denoiser, [0, 1, 2], members, batch_size)
    assert denoiser.meter.heavy == 3
    assert denoiser.meter.light == 3 * members * 4


@pytest.mark.parametrize("heavy", [1, 4])
def test_a_sample_costs_its_share_of_the_heavy_calls_and_its_light_ones(heavy: int) -> None:
    members, denoiser, step, plan = 5, dual(), make_step("ancestral", PROCESS), dr.StepPlan.uniform(4, heavy)
    calls = call_cost(denoiser, (1, 8, 8), None, given=GIVEN)
    cost = replace(expected_costs(calls, denoiser.reuse, step, plan, (1, 8, 8))[-1], members=members)
    assert cost.macs == int(heavy * calls.heavy / members + 4 * calls.light)
    made = macs_of(lambda: drawn(denoiser, [0, 1, 2], members, 3, heavy=heavy))
    assert made == 3 * (heavy * calls.heavy + 4 * members * calls.light)


@pytest.mark.parametrize("guidance", [None, (0.5, 1.5)])
@pytest.mark.parametrize("refresh", ["full keep full keep", "none full keep full", "none none none none"])
def test_a_condition_that_was_read_once_is_one_that_is_read_at_every_call_bit_for_bit(guidance, refresh: str) -> None:
    """With a guidance interval too, outside which a step has one branch."""
    noise = [normals(seed, 6, 1, 8, 8).float() for seed in range(6)]
    plan = dr.StepPlan(dr.StepPlan.uniform(4).t, tuple(map(Refresh, refresh.split())))
    step, cond = make_step("ancestral", PROCESS), Cond(torch.arange(6) // 2 % 3, CONDITIONS)

    def of(known: bool) -> tuple[Tensor, int]:
        metered = Metered(both())
        denoiser = metered if guidance is None else Guided(metered, PROCESS, 2.0, 3, guidance)
        with torch.no_grad():
            own = denoiser.read(cond) if known else cond
            z = rollout(denoiser, step, plan, noise[5], own, lambda i, _: noise[i])
        return z, metered.meter.read

    (once, reads), (always, others) = of(True), of(False)
    if guidance is None:
        assert torch.equal(once, always)
    torch.testing.assert_close(once, always, rtol=0, atol=1e-5)  # of two branches or one, rounded otherwise
    assert reads == (3 if guidance is None else 6)
    assert others > reads


@dataclass(frozen=True)
class ByLabel(Exact):
    """The same, whose mean is moved by 0.7 times the label."""

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        mean, label = conditional_mean(given_of(cond)), cond.label
        assert label is not None
        return Context((mean + 0.7 * label[:: len(label) // len(mean), None, None, None],))


@pytest.mark.parametrize("members", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("active", [True, False])
def test_guidance_of_members_is_of_the_conditions_and_labels_of_each(active: bool, members: int) -> None:
    """The exact x_hat of each sample is x_null + w (x_label - x_null), one by one."""
    label, t = torch.tensor([1, 2]).repeat_interleave(members), torch.tensor(0.6, dtype=torch.float64)
    noise_level = float(PROCESS.sigma(t) / PROCESS.alpha(t))
    interval = (0.0, noise_level * (1.1 if active else 0.9))
    guided, z = Guided(ByLabel(), PROCESS, 3.0, 0, interval), normals(0, 2 * members, *SHAPE)
    found = guided.denoise(z, t, guided.encode(z, t, Cond(label, Y)), Cond(label, Y))
    for row, y in enumerate(Y.repeat_interleave(members, 0)):

        def x_hat(of: Tensor, row: int = row, y: Tensor = y) -> Tensor:
            own = Cond(of, y[None])
            return ByLabel().denoise(z[row : row + 1], t, ByLabel().encode(z, t, own), own)[0]

        of_label, of_null = x_hat(label[row : row + 1]), x_hat(torch.tensor([0]))
        torch.testing.assert_close(found[row], of_null + (3.0 if active else 1.0) * (of_label - of_null))


def test_with_both_rates_a_later_context_is_of_its_own_state_and_of_the_same_condition() -> None:
    """And a light network without a context sees the condition still."""
    z, t, denoiser = normals(0, 6, 1, 8, 8).float(), torch.tensor(0.4).double(), both()
    with torch.no_grad():
        cond, other = (denoiser.read(Cond(None, y)) for y in (CONDITIONS, CONDITIONS.flip(0)))
        context = denoiser.encode(z, t, cond)
        assert all((denoiser.denoise(z, t, Context(), of) - x).abs().max() > 1e-3 for of, x in (
            (other, denoiser.denoise(z, t, Context(), cond)), (cond, denoiser.denoise(z, t, context, cond))
        ))  # fmt: skip
        assert (denoiser.denoise(z, t, context, other) - denoiser.denoise(z, t, context, cond)).abs().max() > 1e-3
        for changed in (denoiser.encode(2 * z, t, cond), denoiser.encode(z, t, other)):
            assert (changed.features[0] - context.features[0]).abs().max() > 1e-3


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("heavy", [1, 2, 4])
def test_with_both_rates_members_share_the_reading_and_each_pays_for_its_context(heavy: int, members: int) -> None:
    denoiser, step, plan = both(), make_step("ancestral", PROCESS), dr.StepPlan.uniform(4, heavy)
    calls = call_cost(denoiser, (1, 8, 8), None, given=GIVEN)
    assert calls.read == macs_of(lambda: denoiser.read(Cond(None, CONDITIONS[:1])))
    costs = expected_costs(calls, denoiser.reuse, step, plan, (1, 8, 8))
    cost = replace(costs[-1], members=members)
    assert cost.macs == int(calls.read / members + heavy * calls.heavy + 4 * calls.light)
    assert cost.macs == int(calls.shared(members).of(4, heavy))
    metered = Metered(denoiser)
    made = macs_of(lambda: drawn(metered, [0, 1, 2], members, 3, heavy=heavy))
    assert made == 3 * (calls.read + members * (heavy * calls.heavy + 4 * calls.light))
    meter = metered.meter
    assert (meter.read, meter.heavy, meter.light) == (3, 3 * members * heavy, 3 * members * 4)


def test_with_both_rates_a_condition_is_read_once_for_all_noise_levels_of_its_image_in_training() -> None:
    """Half of them without a context of their state, and their loss depends on the condition still."""
    net = replace(HEADLESS, num_classes=0)
    networks = ThreeConditional(net, net, replace(LIGHT, num_classes=0), GIVEN)
    config = dr.DenoisingConfig(BothTimes((1, 4), dropout=0.5, draws=4), label_dropout=0.0)
    torch.manual_seed(0)
    built, denoiser = networks.build(PROCESS)
    randomised(built)
    metered = Metered(denoiser)
    method = Denoising(built, metered, PROCESS, config.weighting, config.times)
    row = torch.arange(3)
    batch = Batch(normals(0, 3, 1, 8, 8).float(), None, row, given=CONDITIONS)
    total = method.loss(batch, 0, Draws(0, row)).total
    assert (metered.meter.read, metered.meter.heavy, metered.meter.light) == (3, 6, 12)
    other = method.loss(replace(batch, given=CONDITIONS.flip(0)), 0, Draws(0, row)).total
    assert (other - total).abs() > 1e-4
    dropped = replace(method, times=BothTimes((1, 4), dropout=1.0, draws=4))
    dropped.loss(batch, 0, Draws(0, row)).total.backward()
    assert not any(weight.grad is not None and weight.grad.any() for weight in built["encoder"].parameters())
    assert built["reader"].light.maps[0].weight.grad.any()


def test_with_both_rates_a_context_of_another_time_is_for_markovian_samplers() -> None:
    noise, of = normals(0, 3, 1, 8, 8).float(), Cond(None, CONDITIONS)
    with torch.no_grad():
        rollout(both(), make_step("ddim", PROCESS), dr.StepPlan.uniform(2), noise, of, lambda i, _: noise)
        with pytest.raises(ValueError, match="changes the joint law"):
            rollout(both(), make_step("ddim", PROCESS), dr.StepPlan.uniform(2, 1), noise, of, lambda i, _: noise)


def test_members_come_seed_by_seed_in_batches_that_progress_counts() -> None:
    seen: list[tuple[int, int]] = []
    drawn(dual(), [0, 1, 2], 4, 9, progress=lambda count, of: seen.append((count, of)))
    assert seen == [(8, 12), (12, 12)]


@pytest.mark.parametrize(("seeds", "members"), [([-1], 2), ([2**40], 2), ([0], 0)])
def test_seeds_whose_members_would_be_another_seeds_are_refused(seeds: list[int], members: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 2\\^40" if members else "at least 1"):
        drawn(dual(), seeds, members, 4)


@pytest.mark.parametrize("make", [single, dual, both])
def test_without_a_condition_there_is_no_sample(make) -> None:
    with pytest.raises(ValueError, match="got none"):
        list(sample_batches(make(), make_step("ddim", PROCESS), dr.StepPlan.uniform(2, 1), (1, 8, 8), [0]))


def test_what_is_shared_is_added_to_the_rows_of_its_condition_without_a_copy() -> None:
    h, shared = normals(0, 6, 4, 2, 2), normals(1, 2, 4, 2, 2)
    assert torch.equal(for_rows(shared, len(h)), shared[torch.arange(len(h)) // 3])
    assert for_rows(shared, len(shared)) is shared
    assert for_rows(shared[:0], 0).shape == shared[:0].shape
    assert torch.equal(add_shared(h, shared), h + for_rows(shared, len(h)))
    assert torch.equal(add_shared(h, h), 2 * h)
    made: list[int] = []

    class Allocations(TorchDispatchMode): ...

    def noted(self, func, types, args=(), kwargs=None):
        out, held = func(*args, **(kwargs or {})), [part for part in args if isinstance(part, Tensor)]
        if all(out.untyped_storage().data_ptr() != part.untyped_storage().data_ptr() for part in held):
            made.append(out.numel())
        return out

    Allocations.__torch_dispatch__ = noted  # set here, or torch loads its compiler
    with Allocations():
        add_shared(h, shared)
    assert made == [h.numel()]  # the sum, and nothing else
