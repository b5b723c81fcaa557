"""Windows of frames at times of their own: the clock, each frame's laws, and the Gaussian process of one frame."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.denoisers.denoiser import Conditional, Plain
from dualrate.diffusion.context import Cond, shared_time
from dualrate.diffusion.prediction import v_from_x
from dualrate.diffusion.process import Process
from dualrate.diffusion.schedule import Cosine, RectifiedFlow
from dualrate.diffusion.weighting import Sigmoid, x_loss_weight
from dualrate.forecasts.rolling_process import Rolling
from dualrate.networks.blocks import NoiseEmbedding
from dualrate.sampling.catalogue import make_step

PLAIN = dr.GaussianProcess(Cosine())
CLOCKS = torch.tensor([-2.5, -1.0, -0.3, 0.0, 0.2, 0.9, 1.0, 1.4, 3.0, 4.0], dtype=torch.float64)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(process: Rolling, clocks: Tensor = CLOCKS) -> Tensor:
    return torch.tensor([process.time(c) for c in clocks.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_window_that_moves_on_is_one_at_the_start_of_a_roll(frames: int) -> None:
    process = Rolling(frames=frames)
    first, last = (process.frame_times(shared_time(process.time(c))) for c in (1, 0))
    assert last[1:].tolist() == first[:-1].tolist()
    assert (last[0], first[-1]) == (0, 1)
    torch.testing.assert_close(last, torch.arange(frames).double() / frames)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_time_goes_from_data_to_noise_and_earlier_frames_are_cleaner(frames: int) -> None:
    process = Rolling(frames=frames)
    found = process.frame_times(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert found[0].tolist() == [0.0] * frames
    assert found[-1].tolist() == [1.0] * frames
    assert (found.diff(dim=0) >= 0).all()
    assert (found.diff(dim=1) >= 0).all()
    seen = process.log_snr(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (seen.diff() < 0).all()


@pytest.mark.parametrize("frames", [2, 3, 4, 8, 256])
def test_networks_see_the_clock_on_a_line(frames: int) -> None:
    process = Rolling(frames=frames)
    clocks = torch.arange(-4 * (frames - 1), 4 * frames + 1, dtype=torch.float64) / 4
    seen = process.log_snr(times(process, clocks))
    torch.testing.assert_close(seen.diff(), torch.full_like(seen[1:], -7.5 / (2 * frames - 1)), rtol=0, atol=1e-13)
    assert seen.abs().max() == 15


@pytest.mark.parametrize("frames", [2, 3, 4, 8, 256])
def test_times_of_frames_follow_from_what_networks_see(frames: int) -> None:
    """sigma is what x_hat takes of v, alpha what it takes of z: exact in float64, and at whole clocks clean in any."""
    process = Rolling(frames=frames)
    whole = torch.arange(1 - frames, frames + 1).double()
    clocks = torch.cat((whole, normals(200).clamp(1 - frames, frames), whole[:-1] + 1e-3))
    one = torch.ones(len(clocks), frames, 1, 1, dtype=torch.float64)
    u = ((torch.arange(frames) + clocks[:, None]) / frames).clamp(0, 1)
    log_snr = torch.where(u > 0, process.schedule.log_snr(u), torch.inf)
    t = times(process, clocks)
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        seen, ones, zeros = process.log_snr(t).to(dtype), one.to(dtype), torch.zeros_like(one, dtype=dtype)
        alpha, sigma = process.x_hat(ones, zeros, seen), -process.x_hat(zeros, ones, seen)
        for scale, square in ((alpha, log_snr.sigmoid()), (sigma, (-log_snr).sigmoid())):
            torch.testing.assert_close(scale[..., 0, 0].double(), square.sqrt(), rtol=0, atol=near)
        clean = (whole[:, None] + torch.arange(frames)) <= 0
        assert not sigma[: len(whole), :, 0, 0][clean].any()


@pytest.mark.parametrize("frames", [2, 8, 256])
def test_an_embedding_in_bfloat16_tells_whole_clocks_apart_and_nears_those_that_are_near(frames: int) -> None:
    process, embedding = Rolling(frames=frames), NoiseEmbedding(8)
    seen = process.log_snr(times(process, torch.arange(1 - frames, frames + 1))).float()
    angle = seen[:, None] * embedding.frequency
    waves = torch.cat((angle.sin(), angle.cos()), 1).bfloat16().float()
    apart = torch.cdist(waves, waves) + 9 * torch.eye(len(waves))
    assert apart.min() > 0.1
    assert set(apart[len(apart) // 2].topk(2, largest=False).indices.tolist()) == {frames - 1, frames + 1}


def test_the_start_and_a_roll_have_the_times_of_the_paper() -> None:
    process, k = Rolling(frames=4), torch.arange(4)
    for t in (0.0, 0.3, 0.75, 1.0):
        start, roll = (process.frame_times(shared_time(process.time(c))) for c in (4 * t, t))
        torch.testing.assert_close(start, (k / 4 + t).clamp(0, 1).double())
        torch.testing.assert_close(roll, ((k + t) / 4).clamp(0, 1).double())


def at_its_own(process: Rolling, frame: int, t: Tensor) -> Tensor:
    return process.frame_times(t)[:, frame]


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
def test_each_frame_has_the_laws_of_its_own_times(schedule) -> None:
    """But for time 0, where x is itself."""
    process, plain = Rolling(schedule, 4), dr.GaussianProcess(schedule)
    t = times(process)
    s = times(process, (CLOCKS - torch.linspace(2.2, 0.1, len(CLOCKS)).double()).clamp(min=-3))
    x, z, noise = (normals(len(t), 8, 1, 2, seed=seed) for seed in range(3))
    noisy, posterior, transition = (
        process.add_noise(x, t, noise),
        process.posterior(z, x, t, s),
        process.transition(z, s, t),
    )
    kept, moved = 0, 0
    for frame in range(4):
        rows, of = slice(2 * frame, 2 * frame + 2), (at_its_own(process, frame, t), at_its_own(process, frame, s))
        part, its = x[:, rows], z[:, rows]
        inside = of[1] > 0
        own = plain.add_noise(part, of[0], noise[:, rows])
        torch.testing.assert_close(noisy[of[0] > 0, rows], own[of[0] > 0])
        assert torch.equal(noisy[of[0] == 0, rows], part[of[0] == 0])
        for found, expected in (
            (posterior, plain.posterior(its, part, *of)),
            (transition, plain.transition(its, of[1], of[0])),
        ):
            torch.testing.assert_close(found.mean[inside, rows], expected.mean[inside])
            variance = found.variance.expand(-1, 8, 1, 1)[inside, rows]
            torch.testing.assert_close(variance, expected.variance[inside].expand_as(variance))
        same, ended = of[0] == of[1], (of[1] == 0) & (of[0] > 0)
        kept, moved = kept + int(same.sum()), moved + int(ended.sum())
        assert torch.equal(posterior.mean[same, rows], its[same])
        assert torch.equal(posterior.mean[ended, rows], part[ended])
        assert not posterior.variance[same | ended, rows].any()
    assert kept > 5
    assert moved > 2


def test_a_plan_s_times_have_the_coefficients_that_rows_have() -> None:
    process, z, x = Rolling(frames=4), normals(1, 4, 2, 2), normals(1, 4, 2, 2, seed=1)
    for t, s in pairwise(sorted(times(process).tolist(), reverse=True)):
        shared, rows = (
            process.posterior(z, x, *of)
            for of in ((shared_time(t), shared_time(s)), (shared_time(t)[None], shared_time(s)[None]))
        )
        torch.testing.assert_close(shared.mean, rows.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(shared.variance, rows.variance[0], rtol=0, atol=1e-12)


def test_a_network_s_v_is_read_at_every_frame_s_time() -> None:
    process = Rolling(frames=4)
    t = torch.cat((times(process), torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)))
    x, z = normals(len(t), 8, 1, 1), normals(len(t), 8, 1, 1, seed=1)
    v = torch.cat(
        [
            v_from_x(z[:, 2 * k : 2 * k + 2], x[:, 2 * k : 2 * k + 2], PLAIN.log_snr(at_its_own(process, k, t)))
            for k in range(4)
        ],
        1,
    )
    clean = (process.frame_times(t) == 0).repeat_interleave(2, 1)[:, :, None, None]
    for dtype in (torch.float64, torch.float32):  # as a network in float32 has it
        x_hat = process.x_hat(z.to(dtype), v.to(dtype), process.log_snr(t).to(dtype))
        torch.testing.assert_close(x_hat.double(), torch.where(clean, z, x), rtol=0, atol=1e-4)


def test_moving_from_time_to_time_composes() -> None:
    """q(z_t | z_s) after q(z_s | x) is q(z_t | x), and Bayes' rule gives q(z_s | z_t, x)."""
    process = Rolling(frames=3)
    s, t = times(process, torch.tensor([-1.2, 0.0, 0.4, 1.5])), times(process, torch.tensor([0.3, 0.6, 1.0, 2.2]))
    one = torch.ones(4, 3, 1, 1, dtype=torch.float64)
    zero = torch.zeros_like(one)
    mean_s, mean_t = (process.add_noise(one, at, zero) for at in (s, t))
    var_s, var_t = (process.add_noise(zero, at, one).square() for at in (s, t))
    step = process.transition(one, s, t)
    torch.testing.assert_close(step.mean * mean_s, mean_t)
    torch.testing.assert_close(step.mean**2 * var_s + step.variance, var_t)
    gain = step.mean * var_s / var_t
    back = process.posterior(one, one, t, s)
    torch.testing.assert_close(back.mean, mean_s + gain * (1 - mean_t))
    torch.testing.assert_close(back.variance, var_s - gain * step.mean * var_s)


class Net(nn.Module):
    """A network of the state and of how noisy it is, so that a time in another place is seen."""

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        return torch.tanh(z) * torch.cos(log_snr / 3)[:, None, None, None]


def test_a_window_of_one_frame_is_the_gaussian_process() -> None:
    rolling = Rolling(frames=1)
    images = []
    processes: tuple[Process, ...] = (PLAIN, rolling)
    for process in processes:
        step = make_step("ancestral", process)
        drawn = dr.sample_batches(Plain(Net(), process), step, dr.StepPlan.uniform(7), (2, 4, 4), range(3))
        images.append(torch.cat(list(drawn)))
    torch.testing.assert_close(*images)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(rolling.log_snr(t), PLAIN.log_snr(t))


def test_a_frame_counts_as_an_image_at_its_time_and_not_where_it_is_clean_or_noise() -> None:
    process, weighting = Rolling(frames=4), Sigmoid(-1.0)
    t = times(process)
    found, of = process.frame_weights(weighting, t), process.frame_times(t)
    inside = (of > 0) & (of < 1)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(found[inside], x_loss_weight(weighting, process.schedule, of[inside]))
    assert not found[~inside].any()
    x, x_hat = normals(3, 8, 2, 1), normals(3, 8, 2, 1, seed=1)
    errors = process.frame_errors(x, x_hat)
    torch.testing.assert_close(errors.mean(1), process.deviance(x, x_hat))
    torch.testing.assert_close(errors[:, 1], (x - x_hat)[:, 2:4].square().flatten(1).mean(1))


def test_windows_that_do_not_divide_into_frames_are_refused() -> None:
    process = Rolling(frames=3)
    with pytest.raises(ValueError, match="windows of 3 frames have a multiple of so many channels, not 4"):
        process.add_noise(normals(1, 4, 1, 1), shared_time(0.5), normals(1, 4, 1, 1))


def test_samplers_of_one_noise_level_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DDIM is for a GaussianProcess, not Rolling.*use ancestral"):
        make_step("ddim", Rolling(frames=3))


def test_it_is_written_and_read() -> None:
    process = Rolling(Cosine(shift=-1.0), 5)
    assert from_plain(Process, to_plain(process)) == process


class Seen(nn.Module):
    def forward(self, z: Tensor, log_snr: Tensor, given: Tensor, label: Tensor | None) -> Tensor:
        return given.new_zeros(z.shape) + log_snr[:, None, None, None]


def test_a_conditional_network_sees_the_clock() -> None:
    process = Rolling(frames=2)
    denoiser, t = Conditional(Seen(), process), shared_time(process.time(0.5))
    z, cond = torch.zeros(1, 2, 1, 1, dtype=torch.float64), Cond(None, normals(1, 1, 1, 1))
    found = denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)
    sigma = PLAIN.sigma(process.frame_times(t))
    torch.testing.assert_close(found.flatten(), -sigma * process.log_snr(t))
