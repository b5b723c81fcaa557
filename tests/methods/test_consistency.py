"""Multistep consistency against closed forms: DDIM's inverse, the flow of one Gaussian, the v-loss, the annealing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from theory.common import f64, gaussian, normals
from theory.exact import GaussianMixture, OracleDenoiser
from torch import Tensor, nn
from training.toy import Recorder

import dualrate as dr
from dualrate.denoisers.denoiser import Plain, posterior_mean
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Batch, Cond, Context, Reuse
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.forecasts.rolling_process import SharedNoise
from dualrate.methods.consistency import WATCH, Consistency, TeacherSteps
from dualrate.networks.blocks import NoiseEmbedding
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.step import move, move_weights

PROCESS = GaussianProcess(Cosine())
C = 0.09


class Known(nn.Module):
    """x_hat by a function of (z, t, label)."""

    reuse = Reuse.FREE

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.function(z, t, cond.label)


def consistency(function, steps: int, total: int, process: GaussianProcess = PROCESS, **more) -> Consistency:
    """Return the method of a student that is a function, with T = `total` throughout."""
    student = Known(function)
    networks = nn.ModuleDict({"model": student})
    return Consistency(networks, student, process, steps, teacher_steps=TeacherSteps(total, total), **more)


def curved(z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    """A student of no particular meaning, linear in nothing."""
    return torch.tanh(z + t.view(-1, 1).to(z)) * (1 - z.square().mean(1, keepdim=True))


def data(rows: int, d: int = 4) -> Batch:
    draws = Draws(5, torch.arange(rows))
    return Batch(C**0.5 * draws.normal("x", d).double(), draws.row % 3, draws.row)


def literal(method: Consistency, x: Tensor, z: Tensor, t: Tensor, s: Tensor, b: Tensor, variance: Tensor) -> Tensor:
    """The paper's algorithm, step by step; x: the teacher's."""

    def step(variance_of):
        rule = AdjustedDDIM(method.process, variance_of)
        return rule(lambda *_: x, z, t, s, lambda: z, ())[0]

    z_s = torch.where((s > 0)[:, None], step(lambda _: variance), move(method.process, z, x, t, s))
    z_b = move(method.process, z_s, curved(z_s, s), s, b)
    from_z, from_x = (weight.to(z)[:, None] for weight in move_weights(method.process, t, b))
    return (z_b - from_z * z) / from_x


@pytest.mark.parametrize(("steps", "total"), [(1, 64), (4, 64), (4, 1280), (16, 1280)])
@pytest.mark.parametrize("eta", [0.0, 0.75])
def test_the_target_is_the_inverse_of_two_steps(steps, total, eta):
    """In double precision to rounding; in single precision it keeps the digits that the inverse step loses."""
    teacher = Known(lambda z, t, label: 0.3 * torch.sin(2 * z))
    method, batch = consistency(curved, steps, total, teacher=teacher, eta=eta), data(1024)
    t, s, b = method.times(0, Draws(0, batch.sample))
    z, cond = PROCESS.add_noise(batch.x, t, normals(3, 1024, 4)), Cond()
    x = posterior_mean(teacher, z, t, cond)
    variance = eta * (x - batch.x).square().mean(1)
    found, expected = method.target(batch.x, z, t, s, b, cond), literal(method, x, z, t, s, b, variance)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    single = method.target(batch.x.float(), z.float(), t, s, b, cond)
    inverse = literal(method, x.float(), z.float(), t, s, b, variance)
    ours, theirs = ((one.double() - found).abs().max().item() for one in (single, inverse))
    assert ours < 2e-6
    assert theirs > 10 * ours or total < 1280


def test_frames_that_share_their_noise_share_it_in_training() -> None:
    """As in sampling: z_t of frames that are equal is equal too, in the loss and on the student's own path."""
    seen: list[Tensor] = []

    def noted(z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        seen.append(z)
        return 0.5 * z

    process = SharedNoise(Cosine(), 3)
    x = normals(1, 64, 2, 1, 4).repeat(1, 3, 1, 1)
    batch = Batch(x, None, torch.arange(64))
    method = consistency(noted, 4, 8, process)
    method.loss(batch, 0, Draws(0, batch.sample))
    dual = replace(method, heavy=2)
    dual.pairs(batch, Draws(0, batch.sample))
    assert len(seen) > 2
    for z in seen:
        frames = z.unflatten(1, (3, -1))
        assert torch.equal(frames, frames[:, :1].expand_as(frames))
        assert z[:, 0].std() > 0.1


def test_no_step_is_the_identity_so_at_a_border_the_student_is_not_in_the_target():
    method, batch = consistency(lambda z, t, label: torch.full_like(z, 1e9), 4, 32), data(256)
    t, s, b = method.times(0, Draws(0, batch.sample))
    target = method.target(batch.x, PROCESS.add_noise(batch.x, t, normals(3, 256, 4)), t, s, b, Cond())
    at = s == b
    assert at.sum() == 256 / 8
    assert torch.equal(target[at], batch.x[at])
    assert bool((target[~at] > 1e3).all())


def test_what_lasts_is_where_the_teacher_s_steps_lead():
    """The student that equals its own target jumps where T / S steps of DDIM lead; the flow of one Gaussian,
    z_s = z_t sqrt(v_s / v_t), is where they lead to but for an error of order 1 / T."""
    teacher, steps, apart = OracleDenoiser(gaussian(C), PROCESS), 2, []
    for total in (64, 128, 256):
        gain: dict[float, float] = {}

        def student(z, t, label, gain=gain):
            return f64(*(gain.get(time, math.nan) if time % 0.5 else 0.0 for time in t.tolist()))[:, None] * z

        method = consistency(student, steps, total, teacher=teacher, eta=0.0)
        lower = f64(*(k / total for k in range(total)))
        for s in lower:
            t, border = s + 1 / total, torch.floor(s * steps) / steps
            one = torch.ones(1, 1, dtype=torch.float64)
            gain[t.item()] = method.target(one, one, t[None], s[None], border[None], Cond()).item()
        for upper in (0.5, 1.0):
            z = torch.ones(1, 1, dtype=torch.float64)
            made = move(PROCESS, z, gain[upper] * z, f64(upper), f64(upper - 0.5))
            for k in range(round(upper * total), round((upper - 0.5) * total), -1):
                t = f64(k / total)
                z = move(PROCESS, z, posterior_mean(teacher, z, t, Cond()), t, t - 1 / total)
            torch.testing.assert_close(made, z)
            v = PROCESS.alpha(f64(upper, upper - 0.5)) ** 2 * C + PROCESS.sigma(f64(upper, upper - 0.5)) ** 2
            apart.append(made.item() - (v[1] / v[0]).sqrt().item())
    for i, half in ((0, 2), (1, 3), (2, 4), (3, 5)):
        assert apart[i] / apart[half] == pytest.approx(2, rel=0.1)


def exact_segments(steps: int):
    """The student of one Gaussian whose steps of DDIM are the flow itself."""

    def x_hat(z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        border = (torch.ceil(t * steps - 1e-9) - 1).clamp(min=0) / steps
        v_t, v_b = (PROCESS.alpha(time) ** 2 * C + PROCESS.sigma(time) ** 2 for time in (t, border))
        from_z, from_x = move_weights(PROCESS, t, border)
        return (((v_b / v_t).sqrt() - from_z) / from_x).nan_to_num()[:, None] * z  # at t = 0 whatever

    return x_hat


@pytest.mark.parametrize("steps", [1, 4])
def test_the_loss_of_the_exact_student_falls_with_the_teacher_s_steps(steps):
    """It is a square: as 1 / T^2 and faster, since the last point before a border is one of T / S."""
    teacher, batch, found = OracleDenoiser(gaussian(C, 4), PROCESS), data(4096), []
    for total in (64, 256, 1024):
        method = consistency(exact_segments(steps), steps, total, teacher=teacher, eta=0.0)
        found.append(method.loss(batch, 0, Draws(0, batch.sample)).total.item())
    assert found[0] < 1e-2
    assert found[1] < found[0] / 16
    assert found[2] < found[1] / 16


@pytest.mark.parametrize("huber", [None, 0.3])
def test_with_as_many_steps_as_the_teacher_the_loss_is_that_of_v(huber):
    """|v - v_hat|^2 at t = 1 / T to 1: from data of the image's v, from a teacher of its v."""
    method, batch = consistency(curved, 8, 8, huber=huber), data(64)
    teacher = OracleDenoiser(gaussian(C, 4), PROCESS)
    draws = Draws(0, batch.sample)
    t, log_snr = method.times(0, draws)[0], PROCESS.log_snr(method.times(0, draws)[0])
    assert sorted(set(t.tolist())) == [k / 8 for k in range(1, 9)]
    z = PROCESS.add_noise(batch.x, t, draws.normal("z_t", 4).double())
    for taught, x in ((None, batch.x), (teacher, posterior_mean(teacher, z, t, Cond()))):
        loss = replace(method, teacher=taught, eta=0.0).loss(batch, 0, draws).total
        square = (v_from_x(z, curved(z, t), log_snr) - v_from_x(z, x, log_snr)).square().mean(1)
        expected = square if huber is None else (square + huber**2).sqrt() - huber
        torch.testing.assert_close(loss, expected.mean())


def test_the_pseudo_huber_loss_is_a_norm_of_small_c_and_a_square_of_large_ones():
    """sqrt(e + c^2) - c: sqrt(e) for c -> 0, e / (2 c) for c -> infinity. The gradient: at most 1 / (sigma sqrt d)."""
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    target = x + torch.tensor([0.1, 1.0, 1000.0], dtype=torch.float64)[:, None]
    sigma, error = PROCESS.sigma(t), consistency(curved, 8, 8).distance(target, x, t)
    torch.testing.assert_close(error, ((target - x) / sigma[:, None]).square().mean(1))

    def huber(c):
        return consistency(curved, 8, 8, huber=c).distance(target, x.requires_grad_(), t)

    torch.testing.assert_close(huber(1e-9), error.sqrt(), rtol=0, atol=1e-8)
    torch.testing.assert_close(2 * 1000 * huber(1000.0)[:2], error[:2], rtol=1e-4, atol=0)
    most = 1 / (sigma * 2)
    for c in (1e-9, 0.5, 1.0):
        (gradient,) = torch.autograd.grad(huber(c).sum(), x)
        found = gradient.norm(dim=1)
        torch.testing.assert_close(found, most * (error / (error + c**2)).sqrt())
        assert found[2] == pytest.approx(most[2].item(), rel=1e-6)  # however large the error


def test_from_data_and_from_a_teacher_the_expected_target_is_the_same():
    """The student is linear in z, given z_t: over x of the posterior, here its mean plus and minus one deviation."""
    teacher = OracleDenoiser(gaussian(C, 4), PROCESS)
    method, batch = consistency(lambda z, t, label: (0.2 + t)[:, None] * z, 4, 64), data(256)
    t, s, b = method.times(0, Draws(0, batch.sample))
    z = PROCESS.add_noise(batch.x, t, normals(3, 256, 4))
    mean, apart = posterior_mean(teacher, z, t, Cond()), 0.1 * normals(4, 256, 4)
    from_data = sum(method.target(mean + sign * apart, z, t, s, b, Cond()) for sign in (1, -1)) / 2
    taught = replace(method, teacher=teacher, eta=0.0)
    torch.testing.assert_close(from_data, taught.target(batch.x, z, t, s, b, Cond()))


def test_a_guided_teacher_leads_and_its_unguided_error_is_put_back():
    teacher = Known(lambda z, t, label: torch.tanh(z * (1 + label)[:, None]))
    method, batch = consistency(curved, 4, 64, teacher=teacher, guidance=2.5, null=3), data(32)
    t = torch.full((32,), 0.6, dtype=torch.float64)
    z, cond = PROCESS.add_noise(batch.x, t, normals(3, 32, 4)), Cond(batch.label)
    x, variance = method.taught(batch.x, z, t, cond)
    torch.testing.assert_close(x, posterior_mean(Guided(teacher, PROCESS, 2.5, 3), z, t, cond))
    torch.testing.assert_close(variance, 0.75 * (posterior_mean(teacher, z, t, cond) - batch.x).square().mean(1))


@pytest.mark.parametrize(("process", "put_back"), [(PROCESS, False), (NoisyEnd(Cosine(log_snr_max=5.0)), True)])
def test_variance_is_put_back_by_steps_that_end_in_noise(process, put_back):
    teacher = Known(lambda z, t, label: 0.5 * z)
    method, batch = consistency(curved, 4, 64, process, teacher=teacher), data(8)
    t, s = (torch.full((8,), time, dtype=torch.float64) for time in (1 / 64, 0.0))
    z = process.add_noise(batch.x, t, normals(3, 8, 4))
    assert torch.equal(method.target(batch.x, z, t, s, s, Cond()), 0.5 * z) != put_back


def test_the_teacher_s_steps_are_annealed():
    steps = TeacherSteps()
    assert steps(0) == 64
    assert steps(50_000) == pytest.approx((64 * 1280) ** 0.5)
    assert round(steps(50_000), 1) == 286.2
    assert steps(100_000) == pytest.approx(1280)
    assert steps(200_000) == 1280
    assert TeacherSteps(4, 9, 0)(0) == 9
    for segments in (1, 3, 16):
        assert steps.of_segment(50_000, segments) == round(286.2167 / segments)
    method = replace(consistency(curved, 16, 1), teacher_steps=TeacherSteps(64, 1280, 10))
    found = [method.loss(data(16), i, Draws(0, torch.arange(16))).logs["teacher_steps"].item() for i in (0, 5, 10)]
    assert found == [64, 288, 1280]


@pytest.mark.parametrize(("steps", "total"), [(1, 64), (3, 63), (7, 1274), (16, 1280)])
def test_every_time_belongs_to_the_segment_that_ends_below_it(steps, total):
    method = consistency(curved, steps, total)
    t, s, border = method.times(0, Draws(0, torch.arange(8 * total)))
    assert [round(time * total) for time in sorted(set(t.tolist()))] == list(range(1, total + 1))
    torch.testing.assert_close(t - s, torch.full_like(t, 1 / total), rtol=0, atol=1e-12)
    for i, (upper, lower) in enumerate(
        zip(dr.StepPlan.uniform(steps).t, dr.StepPlan.uniform(steps).t[1:], strict=False)
    ):
        own = (t > lower + 1e-9) & (t <= upper + 1e-9)  # its upper border, but not its lower one
        assert own.sum().item() == pytest.approx(8 * total / steps, abs=4), i
        torch.testing.assert_close(border[own], torch.full_like(t[own], lower), rtol=0, atol=1e-12)
    assert bool((s >= border).all())
    assert (s == border).sum().item() == pytest.approx(8 * steps, abs=4)  # to the bit, at the end of every segment


def test_targets_are_made_without_dropout_and_without_gradient():
    class Recorded(Known):
        def denoise(self, z, t, context, cond):
            modes.append((self.training, torch.is_grad_enabled()))
            return self.weight * z

    modes: list[tuple[bool, bool]] = []
    student = Recorded(None)
    student.weight = nn.Parameter(f64(0.5))
    method = replace(consistency(curved, 4, 64), networks=nn.ModuleDict({"model": student}), student=student)
    method.loss(data(8), 0, Draws(0, torch.arange(8))).total.backward()
    assert modes == [(False, False), (True, True)]
    assert student.training
    assert student.weight.grad is not None


def test_what_goes_wrong_is_told_once():
    def told(*windows: tuple[float, float]) -> list[str]:
        recorder = Recorder()
        watch = WATCH(recorder, window=2)
        for i, (loss, power) in enumerate(windows):
            for j in range(2):
                watch.update(2 * i + j, 100, {"student/loss": loss, "student/power": power})
        assert len(recorder.updates) == 2 * len(windows)
        return recorder.notes

    assert not told((1, 0.5), (0.1, 0.3), (0.15, 0.6))
    (grown,) = told((1, 0.5), (0.1, 0.5), (0.3, 0.5), (0.4, 0.5))
    assert "warning at iteration 5: the student's loss grows; from 0.1 at its least to 0.3: " in grown
    (collapsed,) = told((1, 0.5), (1, 0.2), (1, 0.2))
    assert "the student collapses" in collapsed
    assert "--fit.optim.lr" in collapsed


RING = GaussianMixture.isotropic(torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]]), 0.01)


class Mlp(nn.Module):
    """(z, log_snr, label) -> v for points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(32)
        self.layers = nn.Sequential(nn.Linear(34, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        return self.layers(torch.cat((z, self.embedding(log_snr)), 1))


@pytest.mark.parametrize("taught", [True, False])
def test_a_student_of_a_mixture_in_the_plane_comes_nearer_to_it(taught):
    """By an exact teacher, or from data: the loss falls, and so does the distance of samples to the components."""
    torch.manual_seed(0)
    network = Mlp()
    student, teacher = Plain(network, PROCESS), OracleDenoiser(RING, PROCESS) if taught else None
    networks, steps, rows = nn.ModuleDict({"model": network}), TeacherSteps(8, 16, 100), 256
    method = Consistency(networks, student, PROCESS, 4, teacher, steps, eta=0.0)
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-2), []

    def apart() -> float:
        (drawn,) = dr.sample_batches(student, DDIM(PROCESS), dr.StepPlan.uniform(4), (2,), range(500), batch_size=500)
        return torch.cdist(drawn, RING.means).min(1).values.mean().item()

    before = apart()
    for iteration in range(200):
        draws = Draws(1, torch.arange(iteration * rows, (iteration + 1) * rows))
        x = RING.sample(draws.uniform("component").flatten(), draws.normal("x", 2))
        loss = method.loss(Batch(x, None, draws.row), iteration, draws).total
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - iteration / 200)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) < (0.4 if taught else 0.7) * sum(losses[:50])
    assert apart() < 0.8 * before  # their standard deviation is 0.1, a mean distance of 0.125
