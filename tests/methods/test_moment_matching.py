"""Moment matching against closed forms of one Gaussian, x ~ N(0, C): every optimum is known.

For one pair (t, s) and a linear student x~ = a z_t, with z_s = A z_t + B x~ + sqrt(V) n and P = A + B a,

    E[x~ | z_s] = a P v_t / (P^2 v_t + V) z_s,  v = alpha^2 C + sigma^2
    g_theta(z_s) = k z_s,                       k = alpha_s C / v_s

and the two agree at the positive root of (B - k B^2) v a^2 + (A - 2 k A B) v a - k (A^2 v + V) = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from methods.one_gaussian import PROCESS, C, Scale, data
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Batch, Cond, Context
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching
from dualrate.methods.student_states import FullRollout, StateSource, StudentStates, gaps
from dualrate.methods.times import stratified_uniform

T, S = 0.7, 0.4
WEIGHT = torch.sigmoid(PROCESS.schedule.log_snr(torch.tensor(S, dtype=torch.float64))).item()  # at bias 0


@dataclass(frozen=True)
class FixedPair:
    """z_t of data at one t, for one s; or at times of its own for every row."""

    t: float | Tensor = T
    s: float | Tensor = S

    @torch.no_grad()
    def __call__(self, student, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        t, s = (torch.as_tensor(time, dtype=torch.float64).expand(len(batch)) for time in (self.t, self.s))
        z_t = PROCESS.add_noise(batch.x, t, draws.normal("z_t", *batch.x.shape[1:]).double())
        rows = torch.arange(len(batch))
        return StudentStates(z_t, t, s, rows, rows, z_t, t, rows)


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
        weighting=Sigmoid(), states=states,
    )  # fmt: skip


class Of(nn.Module):
    """A denoiser without times as a network: v."""

    def __init__(self, inner: Scale) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        x_hat = self.inner.denoise(z, log_snr, Context(), Cond(label))
        return v_from_x(z, x_hat, log_snr)


def instant(a: float, states: StateSource = FixedPair()) -> InstantMomentMatching:
    student, teacher = Scale(a), Plain(Of(Scale(constants()[4])), PROCESS)
    return InstantMomentMatching(
        networks=nn.ModuleDict({"model": student}), student=student, teacher=teacher,
        process=PROCESS, weighting=Sigmoid(), states=states,
    )  # fmt: skip


def gradient(method, a: Scale, batch: Batch, loss: str = "student_loss") -> float:
    total = getattr(method, loss)(batch, 0, Draws(0, batch.sample)).total
    return torch.autograd.grad(total, a.a)[0].item()


def over_batches(method, a: Scale, loss: str = "student_loss", count: int = 25) -> tuple[float, float]:
    """Mean gradient over independent batches, and its standard error."""
    found = torch.tensor([gradient(method, a, data(1000, i * 1000), loss) for i in range(count)], dtype=torch.float64)
    return found.mean().item(), found.std().item() / count**0.5


def train(method, iterations: int, rows: int, lr: float) -> float:
    """Plain gradient descent through the method's phases, at a rate that falls to a tenth."""
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
    assert train(method, 200, 500, 1.5) == pytest.approx(root(), rel=0.02)
    assert method.auxiliary.a.item() == pytest.approx(constants()[4], rel=0.02)


def test_the_instant_student_reaches_the_same_root():
    assert train(instant(0.4), 60, 500, 5.0) == pytest.approx(root(), rel=0.02)


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
    states, _, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    k, w = constants()[4], WEIGHT

    def slope(a: float) -> Tensor:
        """Return the slope of the regression of x~ = a z_t on z_s, in this batch."""
        return (a * states.z_t * z_s).sum() / z_s.square().sum()

    def objective(a: float) -> float:
        return (w / 4 * (slope(a) - k) ** 2 * z_s.square().mean()).item()

    with torch.no_grad():
        method.auxiliary.a.copy_((slope(a) + k) / 2)
    expected = (objective(a + 1e-3) - objective(a - 1e-3)) / 2e-3
    assert gradient(method, method.student, batch) == pytest.approx(expected, rel=1e-9)
    assert gradient(method, method.auxiliary, batch, "auxiliary_loss") == pytest.approx(0, abs=1e-12)  # (slope + k) / 2


def test_every_state_has_the_weight_of_its_own_s():
    """w(s) = sigmoid(log_snr(s)) = alpha_s^2 at bias 0."""
    t, s = (torch.linspace(*ends, 7, dtype=torch.float64) for ends in ((0.3, 1.0), (0.05, 0.9)))
    method, batch, k = alternating(0.4, 0.5, states=FixedPair(t, s)), data(7), constants()[4]
    draws = Draws(0, batch.sample)
    _, x, _, z_s = method.sampled(batch, draws)
    weight = PROCESS.alpha(s)[:, None] ** 2
    auxiliary = (weight * ((x - 0.5 * z_s) ** 2 + (k * z_s - 0.5 * z_s) ** 2)).sum() / 7
    student = (weight * ((x - k * z_s) ** 2 - (x - 0.5 * z_s) ** 2) / 2).sum() / 7
    torch.testing.assert_close(method.auxiliary_loss(batch, 0, draws).total, auxiliary)
    torch.testing.assert_close(method.student_loss(batch, 1, draws).total, student)


def test_pairs_of_a_row_have_noise_of_their_own():
    """The noise of z_s, recovered from it: no two of four neighbouring pairs, those of two rows, are correlated."""
    method, batch = alternating(0.4, 0.5, states=FullRollout(dr.StepPlan.uniform(8, 4), PROCESS, pairs=2)), data(4000)
    states, x, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    law = PROCESS.posterior(states.z_t, x.detach(), states.t, states.s)
    noise = ((z_s - law.mean) / law.variance.sqrt()).view(-1, 4)  # two rows of two pairs
    torch.testing.assert_close(torch.corrcoef(noise.T), torch.eye(4, dtype=torch.float64), rtol=0, atol=4 / 2000**0.5)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


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


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_instant_version_by_hand(dimensions):
    """g_theta = theta z: nu = -2 w mean((x~ - theta z_s) z_s) of one half, the JVP nu z_s for the other."""
    method, batch = instant(0.4), data(7)
    batch = replace(batch, x=torch.cat([batch.x, 0.5 * batch.x], 1)[:, :dimensions])
    method = replace(method, preconditioner={"inner.a": torch.tensor(0.3, dtype=torch.float64)})
    _, x, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    k, w = constants()[4], WEIGHT
    A, B = slice(0, 3), slice(3, 7)
    total = torch.zeros((), dtype=torch.float64)
    for mine, other in ((A, B), (B, A)):
        nu = -2 * w * ((x[other] - k * z_s[other]) * z_s[other]).mean().detach()
        total = total + (w * x[mine] * -(0.3 * nu) * z_s[mine]).sum() / x.numel()
    got = method.student_loss(batch, 0, Draws(0, batch.sample)).total
    torch.testing.assert_close(got, total)
    torch.testing.assert_close(*(torch.autograd.grad(loss, method.student.a)[0] for loss in (got, total)))


def test_the_instant_version_of_several_pairs_a_row_by_hand():
    """All pairs of a row are in one half; every pair has the weight of its own s."""
    method, batch = instant(0.4, FullRollout(dr.StepPlan.uniform(4, 2), PROCESS, pairs=2)), data(7)
    states, x, _, z_s = method.sampled(batch, Draws(0, batch.sample))
    teacher, w = method.teacher.network.inner.a.item(), PROCESS.alpha(states.s)[:, None] ** 2
    first = states.row < 3
    assert len(states.row) == 14
    total = torch.zeros((), dtype=torch.float64)
    for mine, other in ((first, ~first), (~first, first)):
        nu = (-2 * w * (x - teacher * z_s) * z_s)[other].mean().detach()
        total = total + (w * x * -nu * z_s)[mine].sum() / x.numel()
    got = method.student_loss(batch, 0, Draws(0, batch.sample)).total
    torch.testing.assert_close(got, total)


def test_the_preconditioner_is_adam_s():
    """x_hat = (a + 10 b) z: the gradients of a, b and c are as 1, 10 and 0, their mean 11 / 3."""

    class Three(Scale):
        def __init__(self, a: float) -> None:
            super().__init__(a)
            self.b, self.c = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))

        def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
            return (self.a + 10 * self.b) * z

    teacher = Three(0.2)
    method = replace(instant(0.4), teacher=Plain(Of(teacher), PROCESS))
    found = method.preconditioned(data(16, 16 * i) for i in range(4)).preconditioner
    assert found is not None
    assert {name: part.item() for name, part in found.items()} == pytest.approx(
        {"inner.a": 11 / 3, "inner.b": 11 / 30, "inner.c": 1000}
    )


def test_its_mean_squares_are_those_that_adam_comes_to():
    """torch's Adam, whose average hardly forgets, over the same batches at a learning rate of zero."""
    method, batches = instant(0.4), [replace(data(16, 16 * i), label=torch.arange(16) % 3) for i in range(5)]
    gains = nn.Parameter(torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64))

    class ByLabel(Scale):
        def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
            return self.a[cond.label][:, None] * z

    teacher, optimizer = ByLabel(0.0), torch.optim.Adam([gains], lr=0, betas=(0.0, 1 - 1e-9))
    teacher.a = gains
    found = replace(method, teacher=Plain(Of(teacher), PROCESS)).preconditioned(batches).preconditioner
    assert found is not None
    for batch in batches:
        draws = Draws(0, batch.sample)
        s = stratified_uniform(draws)
        z_s = PROCESS.add_noise(batch.x, s, draws.normal("preconditioner", 1).double())
        weight = torch.sigmoid(PROCESS.schedule.log_snr(s))[:, None]
        optimizer.zero_grad()
        (weight * (batch.x - gains[batch.label][:, None] * z_s).square()).mean().backward()
        optimizer.step()
    root = optimizer.state[gains]["exp_avg_sq"].sqrt()
    torch.testing.assert_close(found["inner.a"], root.mean() / root)


def test_the_instant_version_refuses_one_row():
    method = instant(0.4)
    with pytest.raises(ValueError, match="two halves"):
        method.student_loss(data(1), 0, Draws(0, torch.arange(1)))


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


def test_the_last_step_learns_only_from_inside_its_interval():
    """At s = 0 z_s is x~ itself, where auxiliary and teacher agree; uniform s gives the last step a gradient."""
    a, (t, lower) = 0.8, dr.StepPlan.uniform(8, 4).t[-2:]
    found = {}
    for s in (lower, t / 2):
        A, B, V, v, k = constants(t, s)
        P = A + B * a
        method = alternating(a, (a * P * v / (P**2 * v + V) + k) / 2, states=FixedPair(t, s))
        method.teacher.a.data.fill_(k)
        found[s] = abs(over_batches(method, method.student, count=4)[0])
    assert found[t / 2] > 1e-3
    assert found[0.0] < 1e-4 * found[t / 2]
