"""Moment matching against closed forms of one Gaussian, x ~ N(0, C): every optimum is known.

For one pair (t, s) and a linear student x~ = a z_t, with z_s = A z_t + B x~ + sqrt(V) n and P = A + B a,

    E[x~ | z_s] = a P v_t / (P^2 v_t + V) z_s,  v = alpha^2 C + sigma^2
    g_theta(z_s) = k z_s,                       k = alpha_s C / v_s

and the two agree at the positive root of (B - k B^2) v a^2 + (A - 2 k A B) v a - k (A^2 v + V) = 0.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.draws import Draws
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching, gaps
from dualrate.oracle import NeededContext, two_band_variance
from dualrate.student_states import ForwardPairs, FromData, FullRollout, SegmentRollout, StateSource, StudentStates
from dualrate.types import Batch, Cond, Context, Refresh, Reuse

PROCESS = dr.GaussianProcess(dr.Cosine())
C = 0.09
T, S = 0.7, 0.4
WEIGHT = torch.sigmoid(PROCESS.schedule.log_snr(torch.tensor(S, dtype=torch.float64))).item()  # at bias 0


@dataclass(frozen=True)
class FixedPair:
    """z_t of data at one t, for one s."""

    t: float = T
    s: float = S

    @torch.no_grad()
    def __call__(self, student, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        t, s = (torch.full((len(batch),), time, dtype=torch.float64) for time in (self.t, self.s))
        z_t = PROCESS.add_noise(batch.x, t, draws.normal("z_t", *batch.x.shape[1:]).double())
        rows = torch.arange(len(batch))
        return StudentStates(z_t, t, s, rows, rows, z_t, t, rows)


class Scale(nn.Module):
    """x_hat = a z, a denoiser of one parameter. spread: of the noise added to it, as a sampler of x might."""

    reuse = Reuse.FREE

    def __init__(self, a: float, spread: float = 0.0) -> None:
        super().__init__()
        self.a, self.spread = nn.Parameter(torch.tensor(a, dtype=torch.float64)), spread

    def encode(self, z, t, cond, *, previous=None, refresh=Refresh.FULL) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.a * z + self.spread * torch.randn_like(z)


def data(rows: int, first: int = 0) -> Batch:
    draws = Draws(5, torch.arange(first, first + rows))
    return Batch(C**0.5 * draws.normal("x", 1).double(), None, draws.row)


def constants(t: float = T, s: float = S) -> tuple[float, float, float, float, float]:
    """A, B, V of the posterior, v_t, and the teacher's k_s, in terms of alpha and sigma at both times."""
    alpha_t, alpha_s, sigma_t, sigma_s = (
        float(f(torch.tensor(time, dtype=torch.float64))) for f in (PROCESS.alpha, PROCESS.sigma) for time in (t, s)
    )
    a_ts = alpha_t / alpha_s
    moved = sigma_t**2 - a_ts**2 * sigma_s**2
    slope, shift = a_ts * sigma_s**2 / sigma_t**2, alpha_s * moved / sigma_t**2
    k = alpha_s * C / (alpha_s**2 * C + sigma_s**2)
    return slope, shift, moved * sigma_s**2 / sigma_t**2, alpha_t**2 * C + sigma_t**2, k


def root(t: float = T, s: float = S) -> float:
    A, B, V, v, k = constants(t, s)
    square, linear, constant = (B - k * B**2) * v, (A - 2 * k * A * B) * v, -k * (A**2 * v + V)
    return (-linear + math.sqrt(linear**2 - 4 * square * constant)) / (2 * square)


def half_way(a: float) -> float:
    """The auxiliary's optimum for the student x~ = a z_t: the mean of the student's and the teacher's slope."""
    A, B, V, v, k = constants()
    P = A + B * a
    return (a * P * v / (P**2 * v + V) + k) / 2


def alternating(a: float, phi: float, spread: float = 0.0, states: StateSource = FixedPair()) -> MomentMatching:
    student, auxiliary = Scale(a, spread), Scale(phi)
    return MomentMatching(
        networks=nn.ModuleDict({"model": student}), auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}),
        student=student, auxiliary=auxiliary, teacher=Scale(constants()[4]), process=PROCESS,
        weighting=dr.Sigmoid(), states=states,
    )  # fmt: skip


def instant(a: float, states: StateSource = FixedPair()) -> InstantMomentMatching:
    student, teacher = Scale(a), Scale(constants()[4])
    return InstantMomentMatching(
        networks=nn.ModuleDict({"model": student}), student=student, teacher=teacher, teacher_network=teacher,
        process=PROCESS, weighting=dr.Sigmoid(), states=states,
    )  # fmt: skip


def gradient(method, a: Scale, batch: Batch, loss: str = "student_loss") -> float:
    total = getattr(method, loss)(batch, 0, Draws(0, batch.sample)).total
    return torch.autograd.grad(total, a.a)[0].item()


def over_batches(
    method, a: Scale, loss: str = "student_loss", count: int = 50, rows: int = 1000
) -> tuple[float, float]:
    """Mean gradient over independent batches, and its standard error."""
    found = torch.tensor([gradient(method, a, data(1000, i * 1000), loss) for i in range(count)], dtype=torch.float64)
    return found.mean().item(), found.std().item() / count**0.5


def train(method, iterations: int, rows: int, lr: float) -> float:
    """Plain gradient descent through the method's phases, each gradient divided by the phase's curvature in z."""
    for iteration in range(iterations):
        batch = data(rows, iteration * rows)
        (phase,) = method.phases(iteration)
        loss = phase.loss(batch, iteration, Draws(0, batch.sample)).total
        with torch.no_grad():
            for p, g in zip(phase.parameters, torch.autograd.grad(loss, phase.parameters), strict=True):
                p -= lr * (1 - 0.9 * iteration / iterations) * g
    return method.networks["model"].a.item()


def test_the_alternating_student_reaches_the_root():
    method = alternating(0.4, 0.5)
    assert train(method, 800, 500, 0.5) == pytest.approx(root(), rel=0.02)
    assert method.auxiliary.a.item() == pytest.approx(constants()[4], rel=0.02)


def test_the_instant_student_reaches_the_same_root():
    assert train(instant(0.4), 300, 1000, 1.0) == pytest.approx(root(), rel=0.02)


def test_at_the_optimum_the_expected_gradient_is_zero():
    optimum = alternating(root(), half_way(root()))
    assert half_way(root()) == pytest.approx(constants()[4], rel=1e-9)  # no gap left
    instantly = instant(root())
    for method in (optimum, instantly):
        mean, error = over_batches(method, method.student)
        assert abs(mean) < 4 * error or abs(mean) < 1e-12
    away = alternating(1.1 * root(), half_way(1.1 * root()))
    for method in (away, instant(1.1 * root())):
        mean, error = over_batches(method, method.student)
        assert mean > 10 * error
    for method in (optimum, away):
        mean, error = over_batches(method, method.auxiliary, "auxiliary_loss")
        assert abs(mean) < 4 * error


def test_the_student_descends_a_quarter_of_the_squared_gap():
    """The gradient is that of 1/4 w E|E[x~ | z_s] - g_theta|^2 with z_s frozen, by central differences."""
    a, batch = 0.4, data(300)
    method = alternating(a, 0.0)
    states, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    k, w = constants()[4], WEIGHT

    def slope(a: float) -> Tensor:
        """Of the regression of x~ = a z_t on z_s, in this batch."""
        return (a * states.z_t * z_s).sum() / z_s.square().sum()

    def objective(a: float) -> float:
        return (w / 4 * (slope(a) - k) ** 2 * z_s.square().mean()).item()

    with torch.no_grad():
        method.auxiliary.a.copy_((slope(a) + k) / 2)
    expected = (objective(a + 1e-3) - objective(a - 1e-3)) / 2e-3
    assert gradient(method, method.student, batch) == pytest.approx(expected, rel=1e-9)
    assert gradient(method, method.auxiliary, batch, "auxiliary_loss") == pytest.approx(0, abs=1e-12)  # (slope + k) / 2


def test_exact_posterior_samples_match_every_moment():
    """x~ drawn from the true p(x | z_t) needs a slope that is not the root: what counts is its law, not its formula."""
    torch.manual_seed(0)
    alpha, sigma = (float(f(torch.tensor(T, dtype=torch.float64))) for f in (PROCESS.alpha, PROCESS.sigma))
    v = alpha**2 * C + sigma**2
    gain, spread = alpha * C / v, math.sqrt(C * sigma**2 / v)
    exact, blurred = (alternating(gain, constants()[4], noise) for noise in (spread, 0.0))
    mean, error = over_batches(exact, exact.auxiliary, "auxiliary_loss")
    assert abs(mean) < 4 * error  # the auxiliary stays at the teacher, so the student's gradient stays zero
    assert gradient(exact, exact.student, data(100)) == 0
    mean, error = over_batches(blurred, blurred.auxiliary, "auxiliary_loss")
    assert abs(mean) > 10 * error


def test_the_instant_version_by_hand():
    """g_theta = theta z: nu = -2 w mean((x~ - theta z_s) z_s) of one half, the JVP nu z_s for the other."""
    method, batch = instant(0.4), data(7)
    method = replace(method, preconditioner={"a": torch.tensor(0.3, dtype=torch.float64)})
    _, x, z_s = method.sampled(batch, Draws(0, batch.sample))
    k, w = constants()[4], WEIGHT
    A, B = slice(0, 3), slice(3, 7)
    total = torch.zeros((), dtype=torch.float64)
    for mine, other in ((A, B), (B, A)):
        nu = -2 * w * ((x[other] - k * z_s[other]) * z_s[other]).mean().detach()
        total = total + (w * x[mine] * -(0.3 * nu) * z_s[mine]).sum() / 7
    got = method.student_loss(batch, 0, Draws(0, batch.sample)).total
    torch.testing.assert_close(got, total)
    torch.testing.assert_close(*(torch.autograd.grad(loss, method.student.a)[0] for loss in (got, total)))


def test_the_instant_version_refuses_what_it_cannot_do():
    method = instant(0.4)
    with pytest.raises(ValueError, match="two halves"):
        method.student_loss(data(1), 0, Draws(0, torch.arange(1)))
    with pytest.raises(ValueError, match="guided"):
        replace(method, teacher=dr.Guided(method.teacher, PROCESS, 2.0, 3))
    with pytest.raises(ValueError, match="preconditioner"):
        replace(method, preconditioner={"b": torch.ones(())})


def test_logs_say_whether_the_auxiliary_keeps_up():
    a, batch = 0.4, data(20000)
    for phi, ratio in ((half_way(a), 1.0), ((half_way(a) + constants()[4]) / 2, 3.0)):  # at its optimum, half-way to it
        logs = alternating(a, phi).auxiliary_loss(batch, 0, Draws(0, batch.sample)).logs
        assert (logs["gap_ahead"] / logs["moment_gap"]).item() == pytest.approx(ratio, rel=0.05)
    assert logs["gap_s1"].item() == pytest.approx(4 * logs["moment_gap"].item())  # s = 0.4 for all
    assert logs["gap_s0"] == logs["gap_s2"] == logs["gap_s3"] == 0
    assert not any(value.requires_grad for value in logs.values())


def test_the_gap_by_quarters_of_s_adds_up():
    gap, s = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None], torch.tensor([0.24, 0.26, 0.74, 1.0], dtype=torch.float64)
    logs = {name: value.item() for name, value in gaps(gap, s).items()}
    assert logs == {"moment_gap": 7.5, "gap_s0": 1, "gap_s1": 4, "gap_s2": 9, "gap_s3": 16}


# --- networks: phases, gradients, rollouts ---------------------------------------------------------------------------

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
PLAN = dr.StepPlan.uniform(8, 4)
UNEVEN = dr.StepPlan.at(5, (0, 3, 4))


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def images(rows: int, first: int = 0) -> Batch:
    draws = Draws(3, torch.arange(first, first + rows))
    return Batch(draws.normal("x", 1, 8, 8).double(), draws.row % 3, draws.row)


def dual(head: bool = True) -> dr.DualRate:
    encoder, light = dr.ContextEncoder(replace(NET, head=head), NET), dr.LightUViT(NET)
    return dr.DualRate(randomised(encoder).double(), randomised(light).double(), PROCESS)


def dual_method(states: StateSource, head: bool = True, **changes) -> MomentMatching:
    student, teacher = dual(head), randomised(dr.UViT(NET)).double()
    auxiliary = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.mul_(1.1)
    return MomentMatching(
        networks=nn.ModuleDict({"encoder": student.encoder, "light": student.light}),
        auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}), student=student, auxiliary=dr.Plain(auxiliary, PROCESS),
        teacher=dr.Plain(teacher, PROCESS), process=PROCESS, weighting=dr.Sigmoid(), states=states, **changes,
    )  # fmt: skip


SOURCES = [
    SegmentRollout(PLAN, PROCESS), SegmentRollout(UNEVEN, PROCESS, pairs=2),
    FullRollout(PLAN, PROCESS), FullRollout(UNEVEN, PROCESS, pairs=3),
]  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """Keeps what a denoiser answers."""

    inner: dr.Denoiser
    answers: list[Tensor]
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z, t, cond, *, previous=None, refresh=Refresh.FULL) -> Context:
        return self.inner.encode(z, t, cond)

    def denoise(self, z, t, context, cond) -> Tensor:
        self.answers.append(self.inner.denoise(z, t, context, cond))
        return self.answers[-1]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("head", [True, False])
def test_states_are_those_of_the_sampler(source, head):
    """z_t, z_tau and x~ are what one trajectory over the plan, with the same noise, has and does at these steps."""
    student, batch, plan = dual(head), images(16, 5), source.plan
    draws, cond = Draws(0, batch.sample), Cond(batch.label)
    states = source(student, batch, cond, draws)
    rows = torch.arange(16).repeat_interleave(source.pairs)
    assert torch.equal(states.row, rows)
    assert len(states.tau) < len(states.row) or source.pairs == 1  # pairs of a segment share the heavy call
    heavy = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.FULL]
    x_hat = states.x_hat(student, cond)
    for r, row in enumerate(rows.tolist()):
        i, one, call = plan.t.index(states.t[r].item()), slice(row, row + 1), states.call[r]
        first = max(h for h in heavy if h <= i)
        start = 0 if isinstance(source, FullRollout) else first
        path, answers = sampler_path(source, student, batch[one], cond[one], start)
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
    recorded = Recorded(student, [])

    def draw(i: int, j: int) -> Tensor:
        return normal(f"rollout step {i} draw {j}")

    with torch.no_grad():
        states = dr.trajectory(recorded, dr.Ancestral(PROCESS), source.plan, z, cond, draw, start=start)
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


@pytest.mark.parametrize("steps", [1, 8])
def test_states_from_data_serve_every_step_up_to_the_longest(steps):
    batch = data(4000)
    states = FromData(steps, PROCESS)(Scale(1.0), batch, Cond(), Draws(0, batch.sample))
    gap = states.t - states.s
    assert gap.min() > 0
    assert gap.max() <= 1 / steps + 1e-12
    assert states.t.max() == 1
    inner = gap[states.s < 1 - 1 / steps] if steps > 1 else torch.rand(0)
    assert (inner * steps).mean().item() == pytest.approx(0.5, abs=0.03) or steps == 1
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
    with pytest.raises(ValueError, match="pretraining_states"):
        dual_method(SOURCES[0], pretraining=3)


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
@pytest.mark.parametrize("rows", [1, 3])
def test_micro_batches_add_up(source, loss, rows):
    method, batch = dual_method(source), images(6, 11)
    of = getattr(method, loss)
    with torch.no_grad():
        whole = of(batch, 0, Draws(0, batch.sample))
        parts = [batch[slice(i, i + rows)] for i in range(0, 6, rows)]
        losses = [of(part, 0, Draws(0, part.sample)) for part in parts]
    torch.testing.assert_close(torch.stack([part.total for part in losses]).mean(), whole.total)
    for name, value in whole.logs.items():
        torch.testing.assert_close(torch.stack([part.logs[name] for part in losses]).mean(), value)


def test_the_last_step_learns_only_from_inside_its_interval():
    """At s = 0 z_s is x~ itself, where auxiliary and teacher agree; uniform s gives the last step a gradient."""
    a, (t, lower) = 0.8, PLAN.t[-2:]
    found = {}
    for s in (lower, t / 2):
        A, B, V, v, k = constants(t, s)
        P = A + B * a
        method = alternating(a, (a * P * v / (P**2 * v + V) + k) / 2, states=FixedPair(t, s))
        method.teacher.a.data.fill_(k)
        found[s] = abs(over_batches(method, method.student, count=4)[0])
    assert found[t / 2] > 1e-3
    assert found[0.0] < 1e-4 * found[t / 2]
    method, batch = dual_method(FullRollout(PLAN, PROCESS)), images(8)
    states = method.sampled(batch, Draws(0, batch.sample))[0]
    last = states.t == t
    assert bool(((states.s > 0) & (states.s < t))[last].all())
    method.student_loss(batch[last], 1, Draws(0, batch.sample[last])).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.student.light.net.head.parameters())


def test_auxiliary_and_teacher_draw_the_same_dropout_masks():
    """So the gap between two networks with the same weights is zero, not the difference of two masks."""
    config = replace(NET, levels=tuple(replace(level, dropout=0.5) for level in NET.levels))
    method = dual_method(SOURCES[0])
    teacher = randomised(dr.UViT(config)).double().train()
    method = replace(method, teacher=dr.Plain(teacher, PROCESS), auxiliary=dr.Plain(copy.deepcopy(teacher), PROCESS))
    batch = images(8)
    for loss in (method.student_loss, method.auxiliary_loss):
        assert loss(batch, 0, Draws(0, batch.sample)).logs["moment_gap"] == 0
    teacher.eval()
    assert method.student_loss(batch, 0, Draws(0, batch.sample)).logs["moment_gap"] > 0


@pytest.mark.parametrize("head", [True, False])
def test_the_instant_version_differentiates_the_networks(head):
    """The derivative along nu against central differences in the teacher's parameters."""
    student, teacher, batch = dual(head), randomised(dr.UViT(NET)).double(), images(8)
    method = InstantMomentMatching(
        networks=nn.ModuleDict({"encoder": student.encoder, "light": student.light}), student=student,
        teacher=dr.Plain(teacher, PROCESS), teacher_network=teacher, process=PROCESS, weighting=dr.Sigmoid(),
        states=FullRollout(PLAN, PROCESS),
    )  # fmt: skip
    states, x, z_s = method.sampled(batch, Draws(0, batch.sample))
    cond = Cond(batch.label)
    before = copy.deepcopy(teacher.state_dict())
    nu = method.teacher_gradient(x.detach(), z_s, states.s, cond)
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


def test_plans_that_leave_a_student_without_context_are_refused():
    for source in (SegmentRollout, FullRollout, ForwardPairs):
        with pytest.raises(ValueError, match="context"):
            source(dr.StepPlan.at(4, (1,)), PROCESS)
    with pytest.raises(ValueError, match="t = 1"):
        FullRollout(dr.StepPlan((0.5, 0.0), (Refresh.FULL,)), PROCESS)
    with pytest.raises(ValueError, match="pair"):
        SegmentRollout(PLAN, PROCESS, pairs=0)
    with pytest.raises(ValueError, match="every step"):
        ForwardPairs(dr.StepPlan.uniform(4), PROCESS)
    with pytest.raises(ValueError, match="one step"):
        FromData(0, PROCESS)
