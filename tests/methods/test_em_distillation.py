"""EM distillation against closed forms: one Gaussian x ~ N(0, c0^2), g(z) = theta z, where all of a chain is linear.

Its steps are the program's own, applied to one number at a time: moments of a chain follow from those exactly.
"""

from __future__ import annotations

import math

import pytest
import torch
from methods.one_gaussian import Scale
from theory.common import f64, gaussian
from theory.exact import GaussianMixture, OracleDenoiser
from torch import Tensor, nn
from training.toy import Recorder

from dualrate.diffusion.context import Batch, Cond, Context
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.em_distillation import WATCH, ChainState, EMDistillation, Langevin

PROCESS = GaussianProcess(Cosine())
ALPHA, SIGMA, C0, THETA = 0.8, 0.6, 0.5, 0.8
T = PROCESS.schedule.time(f64(2 * math.log(ALPHA / SIGMA)))
V_Q, V_P = ALPHA**2 * C0**2 + SIGMA**2, ALPHA**2 * THETA**2 + SIGMA**2  # of x_t: the teacher's, the student's
M = ALPHA * THETA / V_P  # E[z | x_t] = M x_t


class Generator(Scale):
    """g(z) = theta z, of noise alone."""

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        assert bool((t == 1).all())
        return super().denoise(z, t, context, cond)


def distillation(langevin: Langevin, theta: float = THETA, teacher: float = C0, **changes) -> EMDistillation:
    """Return the method of a Gaussian, its auxiliary knowing the student's; teacher: the deviation of its samples."""
    student = Generator(theta)
    roles = {
        "networks": nn.ModuleDict({"model": student}),
        "student": student,
        "auxiliaries": nn.ModuleDict(),
        "auxiliary": OracleDenoiser(gaussian(theta**2), PROCESS),
        "teacher": OracleDenoiser(gaussian(teacher**2), PROCESS),
        "process": PROCESS,
        "weighting": Sigmoid(),
        "langevin": langevin,
    }
    return EMDistillation(**{**roles, **changes})


def batch(rows: int, dimensions: int = 1) -> Batch:
    return Batch(torch.zeros(rows, dimensions, dtype=torch.float64), None, torch.arange(rows))


def started(draws: Draws, dimensions: int = 1) -> ChainState:
    z, eps = draws.normals(["z", "eps"], dimensions).double()
    return ChainState(z, eps, torch.zeros_like(z))


def linear_step(method: EMDistillation) -> tuple[Tensor, Tensor]:
    """The step of a chain as matrices: of the state (z, eps, c) to its next, (3, 3), and of (n, m) to it, (3, 2)."""
    one = torch.eye(5, dtype=torch.float64)
    state = ChainState(one[:, :1], one[:, 1:2], one[:, 2:3])
    new, _ = method.step(state, T.expand(5), Cond(), one[:, 3:].T[..., None])
    made = torch.cat((new.z, new.eps, new.correction), 1).T.detach()
    return made[:, :3], made[:, 3:]


def moments(method: EMDistillation) -> Tensor:
    """(3, 3): the second moments of (z, eps, c) after the method's steps."""
    step, noise = linear_step(method)
    found = torch.diag(f64(1, 1, 0))
    for _ in range(method.langevin.steps):
        found = step @ found @ step.T + noise @ noise.T
    return found


def stationary(method: EMDistillation) -> Tensor:
    """(2, 2): the second moments of (z, eps) of a chain that has gone on for ever."""
    step, noise = (part[:2] for part in linear_step(method))
    step = step[:, :2]
    unknown = torch.eye(4, dtype=torch.float64) - torch.kron(step, step)
    return torch.linalg.solve(unknown, (noise @ noise.T).flatten()).view(2, 2)


def of_x_t(found: Tensor, theta: float = THETA) -> tuple[float, float]:
    """Var x_t and Cov(x_t, z)."""
    from_state = f64(ALPHA * theta, SIGMA)
    return (from_state @ found @ from_state).item(), (from_state @ found[:, 0]).item()


def test_by_default_it_is_em_with_steps_in_the_noise_and_the_latent():
    chain = Langevin()
    assert chain.steps > 1
    assert min(chain.noise_step, chain.latent_step) > 0
    start = ChainState(torch.ones(4, 1), torch.ones(4, 1), torch.zeros(4, 1))
    draws, t = Draws(0, torch.arange(4)), torch.full((4,), 0.5, dtype=torch.float64)
    end, _ = distillation(chain).chain(start, t, Cond(), draws)
    assert not torch.isclose(end.z, start.z).any()
    assert not torch.isclose(end.eps, start.eps).any()


def test_a_long_chain_has_the_teacher_s_samples_and_the_exact_step_of_em():
    """Var x_t = v_q, Cov(x_t, z) = m v_q, theta' = m v_q / (alpha E z^2) = 0.6533; errors are of first order in h."""
    second = M**2 * V_Q + SIGMA**2 / V_P  # E z^2
    exact = M * V_Q / (ALPHA * second)
    assert exact == pytest.approx(0.6533, abs=5e-5)
    apart = []
    for size in (2e-3, 1e-3):
        found = stationary(distillation(Langevin(1, size, size)))
        variance, covariance = of_x_t(found)
        apart.append((variance - V_Q, covariance - M * V_Q, covariance / (ALPHA * found[0, 0].item()) - exact))
    for coarse, fine in zip(*apart, strict=True):
        assert abs(fine) < 1e-3
        assert coarse / fine == pytest.approx(2, rel=0.01)


def test_the_teacher_s_own_student_is_the_fixed_point_of_em():
    found = stationary(distillation(Langevin(1, 1e-4, 1e-4), theta=C0))
    assert of_x_t(found, C0)[1] / (ALPHA * found[0, 0].item()) == pytest.approx(C0, abs=1e-4)


def test_cancelled_noise_is_a_sixth_of_what_it_was():
    """16 steps of h = 0.2, k = 0.02: what g is regressed on has a slope of 0.669 in z, and 0.655 with its noise; the
    spread around it is 0.118, and 0.724 with the noise."""
    found = moments(distillation(Langevin(16, 0.2, 0.02)))
    told = []
    for weights in (f64(THETA, 0, 1), f64(THETA, SIGMA / ALPHA, 0)):  # g(z) + c, and x_t / alpha
        slope = (weights @ found[:, 0] / found[0, 0]).item()
        told += [slope, math.sqrt(weights @ found @ weights - slope**2 * found[0, 0])]
    assert told == pytest.approx([0.669, 0.118, 0.655, 0.724], abs=1e-3)


@pytest.mark.parametrize("langevin", [Langevin(16, 0.2, 0.02), Langevin(5, 0.9, 0.3), Langevin(1, 1.0, 0)])
def test_eps_is_its_noise_and_the_correction(langevin):
    """eps^L = noise + (alpha / sigma) c^L, the noise carried along by itself; of any networks."""
    method = distillation(langevin, teacher=0.3, auxiliary=OracleDenoiser(two_points(), PROCESS))
    draws, t = Draws(0, torch.arange(64)), torch.linspace(0.2, 0.8, 64, dtype=torch.float64)
    start = started(draws)
    noise, h = start.eps, langevin.noise_step
    end, _ = method.chain(start, t, Cond(), draws)
    for i in range(langevin.steps):
        noise = (1 - h) * noise + math.sqrt(2 * h) * draws.normal(f"langevin {i} eps", 1).double()
    ratio = (PROCESS.alpha(t) / PROCESS.sigma(t))[:, None]
    torch.testing.assert_close(end.eps, noise + ratio * end.correction, rtol=0, atol=1e-14)
    assert end.correction.abs().max() > 0.01
    assert torch.equal(end.z, start.z) == (langevin.latent_step == 0)


def two_points() -> GaussianMixture:
    return GaussianMixture.isotropic(f64(-0.7, 0.9)[:, None], 0.01)


def test_where_teacher_and_student_agree_chains_are_stationary_and_nothing_is_learned():
    found = moments(distillation(Langevin(50, 0.02, 0.01), teacher=THETA))
    torch.testing.assert_close(found[:2, :2], torch.eye(2, dtype=torch.float64), rtol=0, atol=0.011)
    assert not found[2].any()
    method = distillation(Langevin(3, 0.2, 0.02), teacher=THETA)
    loss = method.student_loss(batch(8), 1, Draws(0, torch.arange(8)))
    loss.total.backward()
    assert (loss.total.item(), method.student.a.grad.item(), loss.logs["moment_gap"].item()) == (0, 0, 0)


def test_one_step_of_the_noise_alone_is_variational_score_distillation():
    """-w h (sigma^2 / alpha) J^T (score_q - score_p), twice, for the loss is a square."""
    rows, h = 32, 0.3
    method, draws = distillation(Langevin(1, h, 0)), Draws(0, torch.arange(rows))
    method.student_loss(batch(rows), 1, draws).total.backward()
    state, t = started(draws), method.drawn_times(batch(rows), draws)
    log_snr, weight = PROCESS.log_snr(t), method.weighting.snr_weight(PROCESS.log_snr(t))
    x_t = PROCESS.add_noise(THETA * state.z, t, state.eps)
    apart = gaussian(C0**2).score(x_t, log_snr) - gaussian(THETA**2).score(x_t, log_snr)
    scale = weight * h * PROCESS.sigma(t) ** 2 / PROCESS.alpha(t)
    expected = -2 * (scale[:, None] * state.z * apart).mean()
    torch.testing.assert_close(method.student.a.grad, expected)


class Dropping(Scale):
    """x_hat with half of its numbers dropped, while it trains."""

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return nn.functional.dropout(super().denoise(z, t, context, cond), 0.5, self.training)


def test_the_student_learns_from_an_auxiliary_that_drops_nothing_and_trains_on_afterwards():
    """The gap is between two posterior means: what an auxiliary drops while it trains is no part of it."""

    def loss(training: bool) -> tuple[Tensor, Dropping]:
        auxiliary = Dropping(0.5).train(training)
        method = distillation(Langevin(2), auxiliary=auxiliary, auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}))
        return method.student_loss(batch(64), 1, Draws(0, torch.arange(64))).total, auxiliary

    (found, after), (wanted, _) = loss(True), loss(False)
    assert torch.equal(found, wanted)
    assert after.training
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_the_auxiliary_learns_from_a_student_that_drops_nothing():
    def loss(training: bool) -> Tensor:
        student = Dropping(THETA).train(training)
        method = distillation(Langevin(2), student=student, networks=nn.ModuleDict({"student": student}))
        return method.auxiliary_loss(batch(64), 0, Draws(0, torch.arange(64))).total

    assert torch.equal(loss(True), loss(False))


def test_the_auxiliary_learns_the_student_s_own_denoiser():
    """The gradient of its loss is zero at E[x | x_t] of the student, and at that only."""
    t = T.item()
    gain = ALPHA * THETA**2 / V_P
    found = []
    for a in (gain, 1.5 * gain):
        auxiliary = Scale(a)
        method = distillation(
            Langevin(1), auxiliary=auxiliary, auxiliaries=nn.ModuleDict({"a": auxiliary}), times=(t - 1e-9, t)
        )
        (phase,) = method.phases(0)
        phase.loss(batch(20_000), 0, Draws(0, torch.arange(20_000))).total.backward()
        found.append(abs(auxiliary.a.grad.item()))
        assert method.student.a.grad is None
    assert found[0] < found[1] / 10


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_auxiliary_s_loss_is_the_weighted_mean_of_its_errors(dimensions):
    """w = sigmoid(-b) of x's, at bias 0 alpha^2, and a mean over rows and numbers."""
    auxiliary, rows = Scale(0.4), batch(16, dimensions)
    method = distillation(Langevin(1), auxiliary=auxiliary, auxiliaries=nn.ModuleDict({"a": auxiliary}))
    draws = Draws(0, rows.sample)
    state, t = started(draws, dimensions), method.drawn_times(rows, draws)
    x_t = PROCESS.add_noise(THETA * state.z, t, state.eps)
    weight = torch.sigmoid(PROCESS.log_snr(t))[:, None]
    expected = (weight * (THETA * state.z - 0.4 * x_t).square()).mean()
    torch.testing.assert_close(method.auxiliary_loss(rows, 0, draws).total, expected)


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.5])
def test_logs_say_whether_the_auxiliary_keeps_up(ratio):
    """Auxiliary a x_t and teacher b x_t: E (a - b) x_t (theta z - a x_t) = (a - b) (alpha theta^2 - a v_p)."""
    a, b, t = ratio * ALPHA * THETA**2 / V_P, ALPHA * C0**2 / (ALPHA**2 * C0**2 + SIGMA**2), T.item()
    auxiliary = Scale(a)
    method = distillation(
        Langevin(1), auxiliary=auxiliary, auxiliaries=nn.ModuleDict({"a": auxiliary}), times=(t - 1e-9, t)
    )
    logs = method.student_loss(batch(50_000), 0, Draws(0, torch.arange(50_000))).logs
    expected = (a - b) * (ALPHA * THETA**2 - a * V_P)
    assert logs["gap_ahead"].item() == pytest.approx(expected, abs=0.004)
    assert (expected == 0) == (ratio == 1) or abs(expected) > 0.008
    assert logs["moment_gap"].item() == pytest.approx((a - b) ** 2 * V_P, rel=0.03)
    assert logs["power"].item() == pytest.approx(THETA**2, rel=0.03)
    assert logs["latent_power"].item() == pytest.approx(1, rel=0.03)  # z stays
    step, noise = linear_step(method)
    eps = (step @ torch.diag(f64(1, 1, 0)) @ step.T + noise @ noise.T)[1, 1].item()
    assert logs["noise_power"].item() == pytest.approx(eps, rel=0.03)
    assert ratio < 1.5 or eps < 0.95  # which tells it from the one before


def test_in_turns_student_and_auxiliary_come_to_the_teacher_s_samples():
    """At one noise level, where the auxiliary, too, is one number: theta from 0.9 to the teacher's 0.5."""
    auxiliary, t = Scale(ALPHA * 0.9**2 / (ALPHA**2 * 0.9**2 + SIGMA**2)), T.item()
    method = distillation(
        Langevin(3, 0.2, 0.01),
        0.9,
        auxiliary=auxiliary,
        auxiliaries=nn.ModuleDict({"a": auxiliary}),
        times=(t - 1e-9, t),
    )
    optimizers = [
        torch.optim.Adam([part.a], rate, (0.0, 0.99)) for part, rate in ((auxiliary, 0.08), (method.student, 0.03))
    ]
    for i in range(100):
        (phase,) = method.phases(i)
        optimizers[i % 2].zero_grad()
        rows = Batch(torch.zeros(256, 1, dtype=torch.float64), None, torch.arange(256 * i, 256 * (i + 1)))
        phase.loss(rows, i, Draws(0, rows.sample)).total.backward()
        optimizers[i % 2].step()
    assert method.student.a.item() == pytest.approx(C0, abs=0.05)
    assert auxiliary.a.item() == pytest.approx(ALPHA * C0**2 / V_Q, abs=0.1)


@pytest.mark.parametrize(
    ("last", "what"),
    [
        ({}, None),
        ({"moment_gap": 3.0, "gap_ahead": 0.3}, "the moment gap grows"),
        ({"gap_ahead": 1.1}, "the auxiliary lags behind the student"),
        ({"moment_gap": 0.0}, None),
        ({"power": 0.1}, "the student collapses"),
        ({"latent_power": 3.0}, "the Langevin chain runs away"),
        ({"noise_power": 3.0}, "the Langevin chain runs away"),
    ],
)
def test_what_goes_wrong_is_told_once(last, what):
    recorder = Recorder()
    watch = WATCH(recorder, window=2)
    well = {"moment_gap": 1.0, "gap_ahead": 0.2, "power": 0.5, "latent_power": 1.0, "noise_power": 1.0}
    for i, logs in enumerate((well, well, {**well, **last}, {**well, **last})):
        for j in range(2):
            watch.update(2 * i + j, 8, {f"student/{name}": value for name, value in logs.items()})
    assert len(recorder.notes) == (what is not None)
    assert all(what in note for note in recorder.notes)
