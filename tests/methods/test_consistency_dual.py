"""Dual-rate students by consistency: trained on the pairs of sampling, the light network says what f says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from methods.one_gaussian import PROCESS, C
from methods.two_networks import NET, Recorded, images, randomised
from theory.common import f64
from torch import Tensor, nn

from dualrate.denoisers.denoiser import DualRate, Plain, posterior_mean
from dualrate.diffusion.context import Batch, Cond, Context, Refresh, Reuse
from dualrate.diffusion.random import Draws
from dualrate.methods.consistency import Consistency, TeacherSteps
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.step import move_weights
from dualrate.sampling.trajectory import trajectory

PLANS = [(4, 2), (8, 3), (4, 1)]


def method(steps: int, heavy: int | None, head: bool = True) -> Any:
    encoder, light = randomised(ContextEncoder(replace(NET, head=head), NET)), randomised(LightBody(NET))
    student = DualRate(encoder, light, PROCESS, Reuse.OWN)
    teacher = Plain(randomised(UViT(NET)), PROCESS)
    networks = nn.ModuleDict({"encoder": encoder, "light": light})
    return Consistency(networks, student, PROCESS, steps, teacher, TeacherSteps(16, 16), heavy=heavy)


def of_kept(method: Consistency, batch: Batch) -> Any:
    with torch.no_grad():
        return method.pairs(batch, Draws(0, batch.sample))


@pytest.mark.parametrize(("steps", "heavy"), PLANS)
@pytest.mark.parametrize("head", [True, False])
def test_pairs_are_those_of_the_sampler_and_so_is_what_the_light_network_is_trained_to_say(steps, heavy, head):
    """z_t, z_tau and x_hat are what sampling from the same noise has and does at these steps: a path for K rows."""
    own, batch = method(steps, heavy, head), images(2 * (steps - heavy) + 2, 5)
    z_t, t, z_tau, tau, cond = of_kept(own, batch)
    kept = [time for time, refresh in zip(own.plan.t, own.plan.refresh, strict=False) if refresh is Refresh.KEEP]
    sources = [row for row in range(len(batch)) if batch.sample[row] % len(kept) == 0]
    assert len(sources) >= 2
    assert t.tolist() == [time for time in kept for _ in sources]
    context = own.student.encode(z_tau, tau, cond).aged()
    x_hat = own.student.denoise(z_t, t, context, cond)
    paths = {}
    for source in sources:
        row, recorded = batch[source : source + 1], Recorded(own.student, [], Reuse.OWN)
        z = Draws(0, row.sample).normal("rollout start", 1, 8, 8).double()
        with torch.no_grad():
            path = list(trajectory(recorded, DDIM(PROCESS), own.plan, z, Cond(row.label), no_noise))
        paths[source] = path, recorded.answers
    for i, source in enumerate(sources * len(kept)):
        path, answers = paths[source]
        at = own.plan.t.index(t[i].item())
        last = max(j for j in range(at) if own.plan.refresh[j] is Refresh.FULL)
        assert tau[i].item() == own.plan.t[last]
        torch.testing.assert_close(z_t[i : i + 1], path[at].z)
        torch.testing.assert_close(z_tau[i : i + 1], path[last].z)
        torch.testing.assert_close(x_hat[i : i + 1], answers[at])
    f = posterior_mean(own.student, z_t, t, cond)
    expected = ((f - x_hat) / PROCESS.sigma(t).view(-1, 1, 1, 1)).square().mean((1, 2, 3))
    torch.testing.assert_close(own.kept_loss(batch, Draws(0, batch.sample)), expected)


def no_noise(step: int, draw: int) -> Tensor:
    raise AssertionError("DDIM draws none")


class Flow(nn.Module):
    """The dual-rate student of data N(0, C) whose steps of DDIM in S segments are the probability-flow ODE.

    The light network sees z_tau alone, and knows where it went.
    """

    reuse = Reuse.OWN

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def deviation(self, t: Tensor) -> Tensor:
        return (PROCESS.alpha(t) ** 2 * C + PROCESS.sigma(t) ** 2).sqrt()

    def x_hat(self, z: Tensor, t: Tensor) -> Tensor:
        border = (torch.ceil(t * self.steps - 1e-9) - 1).clamp(min=0) / self.steps
        from_z, from_x = move_weights(PROCESS, t, border)
        gain = (self.deviation(border) / self.deviation(t) - from_z) / from_x
        return gain.nan_to_num().view(-1, 1).to(z) * z

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context((z,), t, x_hat=self.x_hat(z, t))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        assert context.tau is not None
        (z_tau,) = context.features
        return self.x_hat(z_tau * (self.deviation(t) / self.deviation(context.tau)).view(-1, 1).to(z), t)


def flow(steps: int, heavy: int) -> Any:
    return Consistency(nn.ModuleDict(), Flow(steps), PROCESS, steps, heavy=heavy)


@pytest.mark.parametrize(("steps", "heavy"), PLANS)
def test_of_one_gaussian_pairs_have_the_covariance_of_the_flow(steps, heavy):
    """Cov(z_t, z_tau) = sqrt(v_t v_tau), of rank one, where a forward path has (alpha_tau / alpha_t) v_t."""
    own, rows = flow(steps, heavy), 16_000
    batch = Batch(torch.zeros(rows, 2, dtype=torch.float64), None, torch.arange(rows))
    z_t, t, z_tau, tau, _ = of_kept(own, batch)
    v_t, v_tau = own.student.deviation(t) ** 2, own.student.deviation(tau) ** 2
    torch.testing.assert_close(z_t, (v_t / v_tau).sqrt()[:, None] * z_tau, rtol=1e-6, atol=1e-6)
    paths = int((t == t[0]).sum())  # of two elements each, whose squares over their variance have a variance of 2
    assert (z_tau.square().mean(1) / v_tau).mean().item() == pytest.approx(1, abs=4 / paths**0.5)
    forward = PROCESS.alpha(tau) / PROCESS.alpha(t) * v_t
    assert bool(((v_t * v_tau).sqrt() > 1.02 * forward).all())


def test_the_exact_student_has_nothing_to_learn_at_a_kept_context():
    """Its light network knows z_t from z_tau, on the flow; on a forward path it would not."""
    own, rows = flow(4, 2), 64
    batch = Batch(torch.zeros(rows, 2, dtype=torch.float64), None, torch.arange(rows))
    assert own.kept_loss(batch, Draws(0, batch.sample)).max().item() < 1e-10

    @dataclass(frozen=True)
    class ForwardPath(Consistency):
        def pairs(self, batch, draws):
            t, tau = f64(0.75).expand(rows), f64(1.0).expand(rows)
            noises = (draws.normal(stream, 2).double() for stream in ("z_tau", "z_t"))
            z_t, z_tau = PROCESS.pair(C**0.5 * draws.normal("x", 2).double(), t, tau, *noises)
            return z_t, t, z_tau, tau, Cond()

    other = ForwardPath(own.networks, own.student, PROCESS, 4, heavy=2)
    assert other.kept_loss(batch, Draws(0, batch.sample)).mean().item() > 1e-3


@pytest.mark.parametrize("head", [True, False])
def test_the_gradient_reaches_both_networks_and_the_target_gives_none(head):
    own, batch = method(4, 2, head), images(4)
    own.kept_loss(batch, Draws(0, batch.sample)).mean().backward()
    found = {name: p.grad for name, p in own.networks.named_parameters()}
    without = [name for name, grad in found.items() if grad is None or not grad.any()]
    assert not [name for name in without if not name.startswith("encoder.net.head") and "label" not in name]
    assert own.networks.training
    assert all(p.grad is None for p in own.teacher.network.parameters())


@pytest.mark.parametrize("head", [True, False])
def test_what_the_light_network_asks_for_does_not_reach_the_encoder_s_u_vit(head):
    own, batch = method(4, 2, head), images(4)
    encoder, light = own.networks["encoder"], own.networks["light"]
    replace(own, backbone=encoder.net).kept_loss(batch, Draws(0, batch.sample)).mean().backward()
    assert all(p.grad is None for p in encoder.net.parameters())
    assert all(p.requires_grad for p in encoder.net.parameters())
    assert all(p.grad.any() for p in (*encoder.projections.parameters(), light.net.stem.weight))


@pytest.mark.parametrize("first", [0, 1])
def test_the_loss_is_that_of_f_and_that_of_kept_contexts_over_the_rows_of_the_batch(first):
    """So that the ranks of a run, with more or fewer paths among their rows, add up to one process."""
    own, batch = method(4, 2), images(5, first)
    draws = Draws(0, batch.sample)
    with torch.no_grad():
        both, alone = own.loss(batch, 0, draws), replace(own, heavy=None).loss(batch, 0, draws)
        kept = own.kept_loss(batch, draws)
        assert len(kept) == {0: 6, 1: 4}[first]
        kept = kept.sum() / 5
    torch.testing.assert_close(both.total, alone.total + kept)
    torch.testing.assert_close(both.logs["kept"], kept)
    assert both.logs.keys() - alone.logs.keys() == {"kept"}


def test_contexts_of_one_forward_path_are_not_for_ddim():
    own, batch = method(4, 2), images(4)
    own = replace(own, student=replace(own.student, reuse=Reuse.MARKOV))
    with pytest.raises(ValueError, match="changes the joint law"):
        own.loss(batch, 0, Draws(0, batch.sample))


def test_rows_without_a_path_have_a_loss_too():
    own, batch = method(4, 2), images(1, 1)
    loss = own.loss(batch, 0, Draws(0, batch.sample))
    assert loss.logs["kept"] == 0
    loss.total.backward()
    assert all(p.grad is not None for name, p in own.networks.named_parameters() if name.startswith("light.net.stem"))
