"""Students as networks: phases, gradients, and the states of their own rollouts."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from methods.one_gaussian import PROCESS, C, Scale, data
from methods.two_networks import NET, Recorded, images, randomised
from theory.held_context import NeededContext, two_band_variance
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.diffusion.context import Batch, Cond, Refresh, Reuse
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching
from dualrate.methods.student_states import ForwardPairs, FromData, FullRollout, SegmentRollout, StateSource, turns
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.trajectory import trajectory

PLAN = dr.StepPlan.uniform(8, 4)
UNEVEN = dr.StepPlan.at(5, (0, 3, 4))


def dual(head: bool = True) -> DualRate:
    encoder, light = ContextEncoder(replace(NET, head=head), NET), LightBody(NET)
    return DualRate(randomised(encoder), randomised(light), PROCESS)


def dual_method(states: StateSource, head: bool = True, **changes) -> MomentMatching:
    student, teacher = dual(head), randomised(UViT(NET))
    auxiliary = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.mul_(1.1)
    return MomentMatching(
        networks=nn.ModuleDict({"encoder": student.encoder, "light": student.light}),
        auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}), student=student, auxiliary=Plain(auxiliary, PROCESS),
        teacher=Plain(teacher, PROCESS), process=PROCESS, weighting=Sigmoid(), states=states,
        backbone=student.encoder.net, **changes,
    )  # fmt: skip


SOURCES = [
    SegmentRollout(PLAN, PROCESS), SegmentRollout(UNEVEN, PROCESS, pairs=2),
    FullRollout(PLAN, PROCESS), FullRollout(UNEVEN, PROCESS, pairs=3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "head"), [*((source, True) for source in SOURCES), (SOURCES[1], False), (SOURCES[3], False)]
)
def test_states_are_those_of_the_sampler(source, head):
    """z_t, z_tau and x~ are what one trajectory over the plan, with the same noise, has and does at these steps."""
    student, batch, plan = dual(head), images(8, 5), source.plan
    draws, cond = Draws(0, batch.sample), Cond(batch.label)
    states = source(student, batch, cond, draws)
    rows = torch.arange(8).repeat_interleave(source.pairs)
    assert torch.equal(states.row, rows)
    assert len(states.tau) < len(states.row) or source.pairs == 1  # pairs of a segment share the heavy call
    heavy = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.FULL]
    x_hat = states.x_hat(student, cond)

    @cache
    def path_of(row: int, start: int) -> tuple[list[Tensor], list[Tensor]]:
        one = slice(row, row + 1)
        return sampler_path(source, student, batch[one], cond[one], start)

    for r, row in enumerate(rows.tolist()):
        i, call = plan.t.index(states.t[r].item()), states.call[r]
        first = max(h for h in heavy if h <= i)
        start = 0 if isinstance(source, FullRollout) else first
        path, answers = path_of(row, start)
        torch.testing.assert_close(states.z_t[r : r + 1], path[i - start])
        torch.testing.assert_close(states.z_tau[call][None], path[first - start])
        assert (states.tau[call].item(), states.call_row[call].item()) == (plan.t[first], row)
        torch.testing.assert_close(x_hat[r : r + 1], answers[i - start])


def sampler_path(source, student, batch: Batch, cond: Cond, start: int) -> tuple[list[Tensor], list[Tensor]]:
    """States of one trajectory from step `start`, and what the student answered at them."""

    def normal(stream: str) -> Tensor:
        return Draws(0, batch.sample).normal(stream, 1, 8, 8).double()

    z = normal("rollout start")
    if isinstance(source, SegmentRollout):
        z = PROCESS.add_noise(batch.x, torch.tensor([source.plan.t[start]], dtype=torch.float64), normal("z_tau"))
    recorded = Recorded(student, [], Reuse.MARKOV)

    def draw(i: int, j: int) -> Tensor:
        return normal(f"rollout step {i} draw {j}")

    with torch.no_grad():
        states = trajectory(recorded, dr.Ancestral(PROCESS), source.plan, z, cond, draw, start=start)
        return [state.z for state in states], recorded.answers


@pytest.mark.parametrize("plan", [PLAN, UNEVEN])
def test_a_rollout_from_noise_has_the_sampler_s_law(plan):
    """Both bands of the needed-context oracle have at every step the variance of the closed form (methods: oracle)."""
    oracle, rows = NeededContext(PROCESS, C), 16000
    batch = Batch(torch.zeros(rows, 2, dtype=torch.float64), None, torch.arange(rows))
    states = FullRollout(plan, PROCESS)(oracle, batch, Cond(), Draws(0, batch.sample))
    for i in range(1, plan.num_steps):
        low, high = states.z_t[states.t == plan.t[i]].var(0)
        expected = two_band_variance(PROCESS, dr.StepPlan(plan.t[: i + 1], plan.refresh[:i]), C)
        error = 4 * (2 / (rows / plan.num_steps)) ** 0.5
        assert (low.item(), high.item()) == pytest.approx([value.item() for value in expected], rel=error)


def test_pre_training_sees_pairs_of_one_forward_path():
    """Cov(z_t, z_tau) = (alpha_tau / alpha_t) Var z_t, on the grid, only where the context is an older one."""
    batch = data(40000)
    states = ForwardPairs(UNEVEN, PROCESS)(Scale(1.0), batch, Cond(), Draws(0, batch.sample))
    assert set(states.t.tolist()) == {UNEVEN.t[1], UNEVEN.t[2]}
    assert set(states.tau.tolist()) == {UNEVEN.t[0]}
    shorter = dr.StepPlan((0.6, 0.4, 0.0), (Refresh.FULL, Refresh.KEEP))
    states = ForwardPairs(shorter, PROCESS)(Scale(1.0), batch, Cond(), Draws(0, batch.sample))
    t, tau = states.t[0], states.tau[0]
    cov = torch.cov(torch.cat((states.z_t, states.z_tau), 1).T)
    variance = (PROCESS.alpha(t) ** 2 * C + PROCESS.sigma(t) ** 2).item()
    assert cov[0, 0].item() == pytest.approx(variance, rel=0.03)
    assert cov[0, 1].item() == pytest.approx((PROCESS.alpha(tau) / PROCESS.alpha(t)).item() * variance, rel=0.03)


@pytest.mark.parametrize("source", SOURCES)
def test_rows_cover_the_plan_evenly_and_s_its_intervals(source):
    rows, plan, oracle = 400 * source.plan.num_steps, source.plan, NeededContext(PROCESS, C)
    batch = Batch(torch.zeros(rows, 2, dtype=torch.float64), None, torch.arange(rows))
    states = source(oracle, batch, Cond(), Draws(0, batch.sample))
    for i, (upper, lower) in enumerate(zip(plan.t[:-1], plan.t[1:], strict=True)):
        of_step = states.t == upper
        assert of_step.sum() == 400 * source.pairs, i
        share = ((states.s[of_step] - lower) / (upper - lower)).sort().values
        assert share[0] > 0
        assert share[-1] < 1
        even = (torch.arange(len(share)) + 0.5) / len(share)
        assert (share - even).abs().max() < 1.95 / len(share) ** 0.5  # Kolmogorov, 1 in 1,000


@pytest.mark.parametrize(("count", "rows"), [(8, 4), (8, 12), (2, 1), (6, 9), (4, 2)])
def test_every_second_batch_meets_every_step_as_often(count, rows):
    """As student and auxiliary take turns in batches."""
    taken = torch.zeros(2, count)
    for iteration in range(2000):
        draws = Draws(0, torch.arange(rows) + rows * iteration)
        taken[iteration % 2] += turns(draws, count).bincount(minlength=count)
    expected = 1000 * rows / count
    assert (taken - expected).abs().max() < 5 * expected**0.5


def test_rows_in_a_row_meet_each_step_once():
    found = turns(Draws(3, torch.arange(700)), 7).view(100, 7)
    assert torch.equal(found.sort(1).values, torch.arange(7).expand(100, 7))
    assert len(found[:, 0].unique()) == 7


@pytest.mark.parametrize("source", SOURCES)
def test_rollouts_are_a_sampler_s_so_without_dropout(source):
    """In training mode, too; what the student learns from is with it, and so is all that follows."""
    method, batch = dual_method(source), images(8, 5)
    for part in method.networks.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    draws, seen = Draws(0, batch.sample), []
    for training in (True, False):
        method.networks.train(training)
        seen.append(method.sampled(batch, draws)[0].z_t)
        assert all(part.training == training for part in method.networks.modules())
    assert torch.equal(*seen)


@pytest.mark.parametrize("source", [SegmentRollout, FullRollout])
@pytest.mark.parametrize("pairs", [2, 3, 5, 7])
def test_pairs_of_a_row_take_turns_over_its_segment_or_plan(source, pairs):
    """So they are at different steps where there is room for that, and at every step where they are enough."""
    batch = Batch(torch.zeros(10, 2, dtype=torch.float64), None, torch.arange(10))
    states = source(UNEVEN, PROCESS, pairs)(NeededContext(PROCESS, C), batch, Cond(), Draws(0, batch.sample))
    segments = [UNEVEN.t[:3], UNEVEN.t[3:4], UNEVEN.t[4:5]]
    for t in states.t.view(10, pairs).tolist():
        room = next(s for s in segments if t[0] in s) if source is SegmentRollout else UNEVEN.t[:-1]
        counts = [t.count(step) for step in room]
        assert sum(counts) == pairs
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("steps", [1, 8])
def test_states_from_data_serve_every_step_up_to_the_longest(steps):
    batch = data(4000)
    states = FromData(steps, PROCESS)(Scale(1.0), batch, Cond(), Draws(0, batch.sample))
    gap = states.t - states.s
    assert gap.min() > 0
    assert gap.max() <= 1 / steps + 1e-12
    assert states.t.max() == 1
    inner = gap if steps == 1 else gap[states.s < 1 - 1 / steps]
    expected = 1 / 3 if steps == 1 else 1 / 2  # of the lesser of two numbers from 0 to 1, where t ends at 1; of one
    assert (inner * steps).mean().item() == pytest.approx(expected, abs=0.03)
    even = (torch.arange(4000) + 0.5) / 4000
    assert (states.s.sort().values - even).abs().max() < 1e-3
    eps = (states.z_t - PROCESS.alpha(states.t)[:, None] * batch.x) / PROCESS.sigma(states.t)[:, None]
    assert eps.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("source", [FromData(4, PROCESS), *SOURCES, ForwardPairs(PLAN, PROCESS)])
def test_no_state_carries_a_gradient(source):
    method, batch = dual_method(source), images(4)
    states = source(method.student, batch, Cond(batch.label), Draws(0, batch.sample))
    assert not any(getattr(states, name).requires_grad for name in ("z_t", "t", "s", "z_tau", "tau"))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_student_s_gradient_reaches_both_networks_and_no_other(source, bfloat16):
    """Under autocast too, where a first pass without gradients must not leave its casts behind."""
    method, batch = dual_method(source), images(16)
    for network in (*method.networks.values(), method.auxiliary.network, method.teacher.network):
        network.float()
    batch = replace(batch, x=batch.x.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        method.student_loss(batch, 1, Draws(0, batch.sample)).total.backward()
    without = [name for name, p in method.networks.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if "label" not in name]
    assert all(p.requires_grad for p in method.networks.parameters())
    assert all(p.grad is None for p in (*method.auxiliaries.parameters(), *method.teacher.network.parameters()))


def test_the_auxiliary_s_gradient_reaches_the_auxiliary_only():
    method, batch = dual_method(SOURCES[0]), images(16)
    method.auxiliary_loss(batch, 0, Draws(0, batch.sample)).total.backward()
    assert all(p.grad is not None for p in method.auxiliaries.parameters())
    assert all(p.grad is None for p in (*method.networks.parameters(), *method.teacher.network.parameters()))


def test_phases_alternate_after_pre_training():
    method = dual_method(SOURCES[0], pretraining=3, pretraining_states=ForwardPairs(PLAN, PROCESS))
    names = [phase.name for i in range(7) for phase in method.phases(i)]
    assert names == ["pretraining"] * 3 + ["auxiliary", "student", "auxiliary", "student"]
    (pretraining,), (auxiliary,), (student,) = (method.phases(i) for i in (0, 3, 4))
    assert {id(p) for p in auxiliary.parameters} == {id(p) for p in method.auxiliaries.parameters()}
    assert {id(p) for p in student.parameters} == {id(p) for p in method.networks.parameters()}
    kept = {id(p) for p in method.networks["encoder"].net.parameters()}
    assert {id(p) for p in pretraining.parameters} == {id(p) for p in student.parameters} - kept


def test_the_student_s_rate_slows_the_student_only():
    """Not its pre-training, and not the auxiliary, which has to follow it."""
    states = ForwardPairs(PLAN, PROCESS)
    method = dual_method(SOURCES[0], pretraining=1, pretraining_states=states, student_rate=0.25)
    rates = {phase.name: phase.rate for i in range(3) for phase in method.phases(i)}
    assert rates == {"pretraining": 1, "auxiliary": 1, "student": 0.25}


def test_pre_training_stills_the_encoder_s_dropout():
    method = dual_method(SOURCES[0], pretraining=3, pretraining_states=ForwardPairs(PLAN, PROCESS))
    batch, seen = images(8), []
    method.backbone.embedding.register_forward_pre_hook(lambda part, _: seen.append(part.training))
    method.networks.train()
    method.pretraining_loss(batch, 0, Draws(0, batch.sample))
    assert seen
    assert not any(seen)
    assert method.backbone.training


def test_pre_training_is_the_denoising_loss_with_the_encoder_as_it_is():
    method = dual_method(SOURCES[0], pretraining=3, pretraining_states=ForwardPairs(PLAN, PROCESS))
    batch = images(8)
    draws, encoder = Draws(0, batch.sample), method.networks["encoder"]
    loss = method.pretraining_loss(batch, 0, draws)
    states = method.pretraining_states(method.student, batch, Cond(batch.label), draws)
    log_snr, derivative = PROCESS.schedule.log_snr(states.t), PROCESS.schedule.log_snr_derivative(states.t)
    error = (states.x_hat(method.student, Cond(batch.label)) - batch.x).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.total, (-0.5 * derivative * torch.sigmoid(log_snr) * error).mean())
    loss.total.backward()
    assert all(p.grad is None for p in encoder.net.parameters())
    assert all(p.grad is not None for p in (*encoder.projections.parameters(), *encoder.pixels.parameters()))
    assert all(p.grad is not None for n, p in method.networks["light"].named_parameters())


@pytest.mark.parametrize("source", [FromData(4, PROCESS), *SOURCES])
@pytest.mark.parametrize("loss", ["student_loss", "auxiliary_loss"])
def test_micro_batches_add_up(source, loss):
    method, batch = dual_method(source), images(3, 11)
    of = getattr(method, loss)
    with torch.no_grad():
        whole = of(batch, 0, Draws(0, batch.sample))
        parts = [batch[slice(i, i + 1)] for i in range(3)]
        losses = [of(part, 0, Draws(0, part.sample)) for part in parts]
    torch.testing.assert_close(torch.stack([part.total for part in losses]).mean(), whole.total)
    for name, value in whole.logs.items():
        torch.testing.assert_close(torch.stack([part.logs[name] for part in losses]).mean(), value)


def test_the_last_step_of_a_rollout_learns():
    method, batch = dual_method(FullRollout(PLAN, PROCESS)), images(8)
    states, t = method.sampled(batch, Draws(0, batch.sample))[0], PLAN.t[-2]
    last = states.t == t
    assert bool(((states.s > 0) & (states.s < t))[last].all())
    method.student_loss(batch[last], 1, Draws(0, batch.sample[last])).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.student.light.net.head.parameters())


def test_auxiliary_and_teacher_draw_the_same_dropout_masks():
    """So the gap between two networks with the same weights is zero, not the difference of two masks."""
    config = replace(NET, levels=tuple(replace(level, dropout=0.5) for level in NET.levels))
    method = dual_method(SOURCES[0])
    teacher = randomised(UViT(config)).train()
    method = replace(method, teacher=Plain(teacher, PROCESS), auxiliary=Plain(copy.deepcopy(teacher), PROCESS))
    batch = images(8)
    for loss in (method.student_loss, method.auxiliary_loss):
        assert loss(batch, 0, Draws(0, batch.sample)).logs["moment_gap"] == 0
    teacher.eval()
    assert method.student_loss(batch, 0, Draws(0, batch.sample)).logs["moment_gap"] > 0


@pytest.mark.parametrize("head", [True, False])
def test_the_instant_version_differentiates_the_networks(head):
    """The derivative along nu against central differences in the teacher's parameters."""
    student, teacher, batch = dual(head), randomised(UViT(NET)), images(8)
    method = InstantMomentMatching(
        networks=nn.ModuleDict({"encoder": student.encoder, "light": student.light}), student=student,
        teacher=Plain(teacher, PROCESS), process=PROCESS, weighting=Sigmoid(),
        states=FullRollout(PLAN, PROCESS),
    )  # fmt: skip
    states, x, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    cond = Cond(batch.label)
    before = copy.deepcopy(teacher.state_dict())
    nu = method.teacher_gradient(x.detach(), z_s, states.s, cond, len(z_s))
    got = method.derivative(nu, z_s, states.s, cond)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    ends = []
    for step in (1e-5, -1e-5):
        moved = {name: p.detach() + step * nu[name] for name, p in teacher.named_parameters()}
        ends.append(method.teach(moved, z_s, states.s, cond).detach())
    torch.testing.assert_close(got, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)
    method.student_loss(batch, 0, Draws(0, batch.sample)).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.light.net.head[-1].weight.grad.any()
    assert [phase.name for i in range(3) for phase in method.phases(i)] == ["student"] * 3


def test_sources_of_no_states_are_refused():
    with pytest.raises(ValueError, match="pairs is"):
        SegmentRollout(PLAN, PROCESS, pairs=0)
    with pytest.raises(ValueError, match="every step"):
        ForwardPairs(dr.StepPlan.uniform(4), PROCESS)
    with pytest.raises(ValueError, match="steps is"):
        FromData(0, PROCESS)
