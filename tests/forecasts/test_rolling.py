"""Rolling Diffusion of a sequence whose posterior is known: x^{k+1} = rho x^k + sqrt(1 - rho^2) n, of variance V.

Given the frame before the window, y, its frames are jointly Gaussian, x | y ~ N(m y, S), and z = A x + D^(1/2) eps has

    E[x | z, y] = m y + S A (A S A + D)^-1 (z - A m y)

Sampling is then linear in the window, so what comes out has a covariance that a recursion gives exactly.
"""

from __future__ import annotations

import itertools
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.denoisers.denoiser import (
    BothRates,
    Conditional,
    Denoiser,
    DualRateConditional,
    Metered,
    given_of,
    posterior_mean,
)
from dualrate.diffusion.context import Batch, Cond, Context, Reuse, shared_time
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.network_configs import ThreeConditional, TwoConditional
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.rolling import RollingConfig, RollingDenoising, Window, roll
from dualrate.forecasts.rolling_process import Rolling
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime, TimeSampler
from dualrate.networks.blocks import NoiseEmbedding
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import MEMBER, sample_batches

RHO = 0.8


def given_past(frames: int, variance: float = 1.0, rho: float = RHO) -> tuple[Tensor, Tensor]:
    """m and S."""
    k = torch.arange(1, frames + 1, dtype=torch.float64)
    return rho**k, variance * (rho ** (k[:, None] - k).abs() - rho ** (k[:, None] + k))


def levels(process: Rolling, t: Tensor) -> tuple[Tensor, Tensor]:
    """(..., F): alpha and sigma^2 of every frame; of a clean one 1 and 0."""
    times = process.frame_times(t)
    log_snr = process.schedule.log_snr(times)
    clean = times == 0
    return torch.sigmoid(log_snr).sqrt().masked_fill(clean, 1), torch.sigmoid(-log_snr).masked_fill(clean, 0)


def gain(process: Rolling, t: Tensor, covariance: Tensor) -> Tensor:
    """(..., F, F): S A (A S A + D)^-1."""
    alpha, noise = levels(process, t)
    a = torch.diag_embed(alpha)
    return covariance @ a @ torch.linalg.inv(a @ covariance @ a + torch.diag_embed(noise))


class Exact(nn.Module, Denoiser):
    """E[x | z, y], and `off` times z, frame by frame. It notes what its heavy calls get."""

    reuse = Reuse.FREE

    def __init__(self, process: Rolling, variance: float = 1.0, rho: float = RHO) -> None:
        super().__init__()
        self.process = process
        self.mean, self.covariance = given_past(process.frames, variance, rho)
        self.off = nn.Parameter(torch.zeros(process.frames, dtype=torch.float64))
        self.calls: list[tuple[Tensor, float, Tensor]] = []

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        y = given_of(cond)
        self.calls.append((z, float(t.flatten()[0]), y))
        return Context((y[:, -1:].flatten(1),))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        (y,) = context.features
        mean, window = y.repeat_interleave(len(z) // len(y), 0) * self.mean, z.flatten(1)
        alpha, _ = levels(self.process, t)
        moved = gain(self.process, t, self.covariance) @ (window - alpha * mean)[..., None]
        return (mean + moved[..., 0] + self.off * window).view_as(z)


class BothRatesExact(Exact):
    """A share of x_hat comes from the window that the heavy call saw, and y is read once."""

    reuse = Reuse.MARKOV

    def __init__(self, process: Rolling, held: float) -> None:
        super().__init__(process)
        self.held = held

    def read(self, cond: Cond) -> Cond:
        return replace(cond, features=(given_of(cond)[:, -1:],))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        x_hat = super().denoise(z, t, super().encode(z, t, Cond(given=cond.features[0])), cond)
        return Context((x_hat,), tau=t)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        now = super().denoise(z, t, Context((cond.features[0].flatten(1),)), cond)
        return (1 - self.held) * now + self.held * context.features[0]


class Shown(Denoiser):
    """The same to a sampler of another process, of the same times."""

    reuse = Reuse.FREE

    def __init__(self, inner: Exact, process: dr.GaussianProcess) -> None:
        self.inner, self.process = inner, process

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self.inner.encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.inner.denoise(z, t, context, cond)


def first(rows: int, variance: float = 1.0, past: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return variance**0.5 * torch.randn(rows, past, 1, 1, dtype=torch.float64, generator=generator)


def rolled(process: Rolling, steps: int, count: int, rows: int, **more) -> list[Window]:
    key, past = torch.arange(rows), first(rows)
    with torch.no_grad():
        return [*itertools.islice(roll(Exact(process), process, forecast_of(process), past, key, steps, **more), count)]


def forecast_of(process: Rolling, past: int = 1, noise: float = 0.0) -> Forecast:
    return Forecast(past, process.frames, noise=noise)


def recursion(process: Rolling, steps: int, held: float = 0.0) -> tuple[float, float]:
    """Variance and lag-1 correlation that frames come to have: (y, z) has one linear map a step, and one a shift.

    held: the share of x_hat that is of the window at the start of a roll
    """
    frames = process.frames
    mean, covariance = given_past(frames)
    whole, noise = torch.eye(frames + 1, dtype=torch.float64), torch.zeros(frames + 1, frames + 1, dtype=torch.float64)

    def of_window(t: Tensor) -> Tensor:
        """x_hat, (F, 1 + F), of (y, z)."""
        of_z = gain(process, t, covariance)
        return torch.cat(((mean - of_z @ (levels(process, t)[0] * mean))[:, None], of_z), 1)

    at_start = held * of_window(shared_time(process.time(1)))
    for i in range(steps):
        t, s = (shared_time(process.time(1 - j / steps)) for j in (i, i + 1))
        (alpha_t, noise_t), (alpha_s, noise_s) = levels(process, t), levels(process, s)
        x_hat = (1 - held) * of_window(t)
        ratio = alpha_t / alpha_s
        added = noise_t - ratio**2 * noise_s  # of q(z_t | z_s)
        step = torch.eye(frames + 1, dtype=torch.float64)
        step[1:, 1:] = torch.diag(ratio * noise_s / noise_t)
        of_x = (alpha_s * added / noise_t)[:, None]
        step[1:] += of_x * x_hat
        whole, noise = step @ whole, step @ noise @ step.mT
        whole[1:] += of_x * at_start
        noise[1:, 1:] += torch.diag(added * noise_s / noise_t)
    state = torch.eye(frames + 1, dtype=torch.float64)
    for _ in range(100):
        moved = torch.eye(frames + 1, dtype=torch.float64)
        moved[:-1, :-1] = state[1:, 1:]
        state = whole @ moved @ whole.mT + noise
    return float(state[1, 1]), float(state[0, 1] / (state[0, 0] * state[1, 1]).sqrt())


@pytest.mark.parametrize(("frames", "steps"), [(1, 8), (3, 16), (4, 4)])
def test_frames_of_the_exact_denoiser_have_the_law_that_linear_algebra_gives(frames: int, steps: int) -> None:
    process = Rolling(frames=frames)
    found = torch.stack([window.frame.flatten() for window in rolled(process, steps, 45, 3_000)[20:]])
    variance, correlation = recursion(process, steps)
    assert found.var().item() == pytest.approx(variance, abs=0.04)
    assert ((found[1:] * found[:-1]).mean() / found.var()).item() == pytest.approx(correlation, abs=0.015)


@pytest.mark.parametrize("steps", [1, 4])
def test_features_of_a_heavy_call_serve_the_steps_of_its_roll(steps: int) -> None:
    process, rows, held = Rolling(frames=3), 3_000, 0.5
    model, past, key = BothRatesExact(process, held), first(rows), torch.arange(rows)
    with torch.no_grad():
        windows = [*itertools.islice(roll(model, process, forecast_of(process), past, key, steps), 35)]
    found = torch.stack([window.frame.flatten() for window in windows[15:]])
    variance, correlation = recursion(process, steps, held)
    assert steps == 1 or abs(variance - recursion(process, steps)[0]) > 0.05
    assert found.var().item() == pytest.approx(variance, abs=0.04)
    assert ((found[1:] * found[:-1]).mean() / found.var()).item() == pytest.approx(correlation, abs=0.015)
    clocks = [round(process.clock(shared_time(t)).item(), 9) for _, t, _ in model.calls]
    assert clocks == [3, 2, 1] + [1] * 34


def test_the_heavy_network_learns_windows_at_the_start_of_a_roll_on_the_path_of_the_light_one_s() -> None:
    process, rows = Rolling(frames=3), 20_000
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    class Noted(BothRatesExact):
        def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
            seen["tau"] = z.flatten(1), t
            return super().encode(z, t, cond)

        def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
            seen["t"] = z.flatten(1), t
            return super().denoise(z, t, context, cond)

    model, batch = (
        Noted(process, 0.5),
        Batch(torch.zeros(rows, 3, 1, 1).double(), None, torch.arange(rows), given=torch.zeros(rows, 1, 1, 1).double()),
    )
    learner(model, draws=1).loss(batch, 0, batch.draws(0))
    (z_tau, tau), (z_t, t) = seen["tau"], seen["t"]
    torch.testing.assert_close(process.clock(tau), torch.ceil(process.clock(t)))
    (alpha_tau, noise_tau), (alpha_t, noise_t) = levels(process, tau), levels(process, t)
    torch.testing.assert_close(z_t.square().mean(0), noise_t.mean(0), rtol=0.05, atol=0.01)
    torch.testing.assert_close(z_tau.square().mean(0), noise_tau.mean(0), rtol=0.05, atol=0.01)
    torch.testing.assert_close((z_t * z_tau).mean(0), (alpha_tau / alpha_t * noise_t).mean(0), rtol=0.05, atol=0.01)


def test_with_more_steps_frames_come_to_have_the_law_of_the_sequence() -> None:
    """The values of a reference run within its chance: variance 0.93 at 16 steps and four frames."""
    off = [1 - recursion(Rolling(frames=4), steps)[0] for steps in (4, 16, 64, 256)]
    assert all(0 < later < 0.4 * sooner for sooner, later in itertools.pairwise(off))
    assert off[1] == pytest.approx(0.07, abs=0.01)
    assert off[3] < 0.006
    assert recursion(Rolling(frames=4), 256)[1] == pytest.approx(RHO, abs=1e-3)


def test_after_the_start_each_frame_has_its_marginal() -> None:
    variance, process, rows = 0.25, Rolling(frames=3), 6_000
    past = first(rows, variance)
    window = next(roll(Exact(process, variance), process, forecast_of(process), past, torch.arange(rows), 32))
    alpha, noise = levels(process, shared_time(process.time(0)))
    z = window.z.flatten(1)
    torch.testing.assert_close(z.var(0), alpha**2 * variance + noise, rtol=0.08, atol=0)
    together = torch.cat((past.flatten(1), z), 1).T.cov()
    mean, _ = given_past(3)
    torch.testing.assert_close(together[0, 1:], variance * alpha * mean, rtol=0, atol=0.02)
    expected = variance * alpha[0] * alpha[1:] * mean[:2]
    torch.testing.assert_close(together[1, 2:], expected, rtol=0, atol=0.02)


def test_a_window_of_one_frame_is_diffusion_frame_by_frame() -> None:
    """The numbers of the Gaussian process under ancestral steps, each frame of the one before."""
    process, plain, steps, rows = Rolling(frames=1), dr.GaussianProcess(Rolling().schedule), 6, 5
    past, key = first(rows), torch.arange(rows)
    windows = rolled(process, steps, 3, rows)
    plan, shown = dr.StepPlan.uniform(steps, 1), Shown(Exact(process), plain)
    (drawn,) = sample_batches(shown, Ancestral(plain), plan, (1, 1, 1), range(rows), given=lambda seed: past[seed])
    torch.testing.assert_close(windows[0].frame.float(), drawn)
    for number in (1, 2):
        draws, y = Draws(number, key), windows[number - 1].frame
        z, model = draws.normal("frame", 1, 1, 1).double(), Exact(process)
        for i in range(steps):
            t, s = shared_time(1 - i / steps), shared_time(1 - (i + 1) / steps)
            x_hat = model.denoise(z, t, model.encode(z, t, Cond(None, y)), Cond(None, y)).detach()
            noise = draws.normal(f"step {i} draw 0", 1, 1, 1)
            z = x_hat if i == steps - 1 else plain.posterior(z, x_hat, t, s).sample(noise)
        torch.testing.assert_close(windows[number].frame, z)


def test_noise_moves_with_its_frame_and_the_clean_one_joins_the_past() -> None:
    process, steps, members, past = Rolling(frames=3), 4, 2, first(3, past=2)
    model = Exact(process)
    key = (torch.arange(3)[:, None] + MEMBER * torch.arange(members)).flatten()
    metered = Metered(model)
    forecast = forecast_of(process, 2, noise=0.5)
    windows = [*itertools.islice(roll(metered, process, forecast, past, key, steps), 5)]
    assert metered.meter.heavy == 3 + 4 * 6  # of the first frame one a past
    assert metered.meter.light == 6 * (3 * steps + 4 * steps)
    (z, t, y), *rolls = model.calls
    assert (t, len(y)) == (1.0, 3)
    torch.testing.assert_close(y, forecast.observe(past, Draws(0, torch.arange(3))))
    torch.testing.assert_close(z, Draws(0, key).normal("start", 3, 1, 1))
    for before, after, (z, t, y) in zip(windows, windows[1:], rolls, strict=False):
        assert t == process.time(1)
        assert torch.equal(z[:, :2], before.z[:, 1:])
        assert torch.equal(before.frame, before.z[:, :1])
        assert torch.equal(before.past[:, 1:], before.frame)
        assert torch.equal(after.past[:, :1], before.frame)
        draws = Draws(after.rolls, key)
        torch.testing.assert_close(z[:, 2:], draws.normal("frame", 1, 1, 1).double())
        torch.testing.assert_close(y, forecast.observe(before.past, draws))
    new = torch.stack([z[:, 2] for z, _, _ in rolls]).flatten()
    assert len(new.unique()) == len(new)


def test_a_frame_depends_on_its_key_and_number_alone() -> None:
    process, past = Rolling(frames=3), first(4)
    key, forecast, model = torch.tensor([3, 3 + MEMBER, 9, 9 + MEMBER]), forecast_of(process, noise=0.5), Exact(process)
    whole = [*itertools.islice(roll(model, process, forecast, past[:2], key, 4), 6)]
    part = [*itertools.islice(roll(model, process, forecast, past[1:2], key[3:], 4), 6)]
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one.z[3:], other.z)


def learner(model: Exact, draws: int = 2, whole: float = 0.5) -> RollingDenoising:
    return RollingDenoising(nn.ModuleDict(), model, model.process, Sigmoid(), GivenTimes(draws), whole=whole)


def data(rows: int, start: int, frames: int) -> Batch:
    draws = Draws(7, torch.arange(start, start + rows))
    normal = draws.normal("x", frames + 1).double()
    x = [normal[:, 0]]
    for k in range(frames):
        x.append(RHO * x[-1] + math.sqrt(1 - RHO**2) * normal[:, k + 1])
    made = torch.stack(x, 1)[:, :, None, None]
    return Batch(made[:, 1:], None, draws.row, given=made[:, :1])


@pytest.mark.parametrize(("rho", "right"), [(RHO, True), (0.5, False)])
def test_nothing_pulls_at_the_exact_denoiser(rho: float, right: bool) -> None:
    """In expectation, for every frame: of a denoiser of another sequence the loss falls somewhere."""
    process, found = Rolling(frames=3), []
    for i in range(40):
        model, batch = Exact(process, rho=rho), data(500, 500 * i, 3)
        (gradient,) = torch.autograd.grad(learner(model).loss(batch, 0, batch.draws(0)).total, [model.off])
        found.append(gradient)
    rows = torch.stack(found)
    apart = rows.mean(0).abs() / (rows.std(0) / math.sqrt(len(rows)))
    assert (apart.max() < 4.5) == right


class Small(nn.Module):
    """v of the window, the past and the clock, embedded as in the package's networks."""

    def __init__(self, frames: int, embedding: int = 32, width: int = 64) -> None:
        super().__init__()
        self.clock = NoiseEmbedding(embedding)
        sizes = [frames + 1 + embedding, width, width, frames]
        layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor, log_snr: Tensor, past: Tensor, label: Tensor | None) -> Tensor:
        return self.layers(torch.cat((z.flatten(1), past.flatten(1), self.clock(log_snr)), 1)).view_as(z)


def test_networks_learn_the_clocks_that_the_start_goes_through() -> None:
    """Steps to the first frame begin at whole clocks, some or all of them. What counts there is the last noisy frame
    that is not all noise, and the mean squared error that is due to the network.
    """
    process = Rolling(frames=4)
    torch.manual_seed(0)
    network = Small(4).double()
    model = Conditional(network, process)
    method = RollingDenoising(nn.ModuleDict({"model": network}), model, process, Sigmoid(), SingleTime())
    optimizer = torch.optim.Adam(network.parameters())
    for i in range(400):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, i / 50) * (1 - i / 400)
        batch = data(128, 128 * i, 4)
        optimizer.zero_grad()
        method.loss(batch, i, batch.draws(0)).total.backward()
        optimizer.step()
    held_out, exact = data(1_000, 128 * 400, 4), Exact(process)
    noise = Draws(8, held_out.sample).normal("noise", 4, 1, 1).double()
    for clock, frame in ((3, 0), (2, 1), (1, 2)):
        t = shared_time(process.time(clock))
        z = process.add_noise(held_out.x, t, noise)
        with torch.no_grad():
            x_hat, expected = (posterior_mean(each, z, t, held_out.cond)[:, frame] for each in (model, exact))
        assert (x_hat - expected).square().mean() < 0.06, clock


def test_losses_of_frames_are_logged_and_their_mean_is_the_loss() -> None:
    process, batch = Rolling(frames=3), data(64, 0, 3)
    loss = learner(Exact(process)).loss(batch, 0, batch.draws(0))
    assert list(loss.logs) == ["loss_frame0", "loss_frame1", "loss_frame2"]
    torch.testing.assert_close(sum(loss.logs.values()) / 3, loss.total.detach())


def test_times_are_those_of_a_roll_but_for_a_share() -> None:
    process, draws = Rolling(frames=4), Draws(0, torch.arange(20_000))
    for whole in (0.0, 0.3):
        clock = process.clock(learner(Exact(process), whole=whole).rolled(draws)[0])
        inside = (clock >= 0) & (clock <= 1)
        assert inside.double().mean().item() == pytest.approx(1 - whole * 6 / 7, abs=0.01)
        assert (clock < 0).double().mean().item() == pytest.approx(whole * 3 / 7, abs=0.01)
        assert clock[inside].mean().item() == pytest.approx(0.5, abs=0.01)
        times = process.frame_times((clock[inside] + 3) / 7).flatten()
        torch.testing.assert_close(
            times.histc(8, 0, 1) / len(times), torch.full((8,), 1 / 8).double(), rtol=0.05, atol=0
        )


NET = dr.UViTConfig(8, 2, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("conv", 8, 1)))
PAIR = TwoConditional(NET, LIGHT, (1, 8, 8))


def experiment(forecast: Forecast, process: dr.GaussianProcess | Rolling) -> dr.Experiment:
    return dr.Experiment("run", PAIR, RollingConfig(), dr.FitConfig(2), process=process, condition=forecast)


def test_what_cannot_roll_is_refused() -> None:
    process = Rolling(frames=2)
    with pytest.raises(ValueError, match="whose process is Rolling, got GaussianProcess"):
        experiment(Forecast(1, 2), dr.GaussianProcess(process.schedule))
    with pytest.raises(ValueError, match="its condition is a Forecast with as many"):
        experiment(Forecast(1, 2), Rolling(frames=1))
    with pytest.raises(ValueError, match="drop --difference"):
        experiment(Forecast(1, 2, difference=True), process)
    for times in (BothTimes((8, 32)), BothTimes((1, 1), 0.5), TimeSampler((1, 1), 0.0, first=(0.5, 0.9))):
        with pytest.raises(ValueError, match=r"pass SingleTime\(\) or GivenTimes\(\) as times"):
            RollingConfig(times).check(experiment(Forecast(1, 2), process))
    with pytest.raises(ValueError, match="windows of 2 frames roll, the forecast has 3"):
        next(roll(Exact(process), process, Forecast(1, 3), first(1), torch.arange(1), 2))


def test_the_heavy_network_of_two_rates_sees_each_past_once() -> None:
    made = experiment(Forecast(1, 2), Rolling(frames=2))
    torch.manual_seed(0)
    networks, denoiser = made.build()
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert isinstance(denoiser, DualRateConditional)
    metered, past = Metered(denoiser), torch.randn(2, 1, 8, 8)
    assert isinstance(made.process, Rolling)
    assert isinstance(made.condition, Forecast)
    key = (torch.arange(2)[:, None] + MEMBER * torch.arange(3)).flatten()
    windows = [*itertools.islice(roll(metered, made.process, made.condition, past, key, 4), 3)]
    assert (metered.meter.heavy, metered.meter.light) == (2 + 6 + 6, 6 * (8 + 4 + 4))
    frames = torch.stack([window.frame for window in windows])
    assert frames.shape == (3, 6, 1, 8, 8)
    assert frames.isfinite().all()
    assert (frames.std(1) > 1e-3).all()  # members differ


def test_the_window_s_heavy_network_hands_over_its_x_hat_of_every_frame() -> None:
    process = Rolling(frames=2)
    net = replace(NET, image_channels=2)
    networks, denoiser = ThreeConditional(net, net, replace(LIGHT, image_channels=2), (1, 8, 8)).build(process)
    torch.manual_seed(0)
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert isinstance(denoiser, BothRates)
    silent = replace(denoiser, encoder=deepcopy(denoiser.encoder))
    nn.init.zeros_(silent.encoder.get_parameter("pixels.weight"))
    z, cond = torch.randn(3, 2, 8, 8), Cond(given=torch.randn(3, 1, 8, 8))
    for clock in (-1, 0, 1, 2):
        t = shared_time(process.time(clock))
        with torch.no_grad():
            context, without = denoiser.encode(z, t, cond), silent.encode(z, t, cond)
            expected = networks.get_submodule("encoder.pixels")(context.x_hat)
        torch.testing.assert_close(context.features[0] - without.features[0], expected, rtol=1e-4, atol=1e-4)
