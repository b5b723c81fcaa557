"""Schedules: inverses, derivatives, end points, and what shifting and interpolating are for."""

import math

import pytest
import torch

from dualrate.diffusion.schedule import (
    Betas,
    Cosine,
    Interpolated,
    Linear,
    RectifiedFlow,
    Truncated,
    alpha,
    shifted,
    sigma,
)
from theory.common import SCHEDULES, f64

GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)
ENDS = dict.fromkeys(SCHEDULES, (-15.0, 15.0)) | {"narrow cosine": (-9.0, 7.0)}  # log_snr of noise and of data
OTHERS = {  # those of other libraries, and parts
    "truncated": (Truncated(Interpolated.between(32, 128, 128), -7.0), (-7.0, 15.0)),
    "rectified flow": (RectifiedFlow(), (-30.0, 30.0)),
    "linear": (Linear(), (-15.0, 15.0)),
    "rectified flow, shifted": (RectifiedFlow(3.0), (-30.0 - 2 * math.log(3), 30.0 - 2 * math.log(3))),
}
TABLES = {
    "betas": Betas(),
    "betas, cosine": Betas("squaredcos_cap_v2", steps=100),
    "betas, sigmoid": Betas("sigmoid"),
}
ALL = SCHEDULES | {name: schedule for name, (schedule, _) in OTHERS.items()} | TABLES
ENDS |= {name: ends for name, (_, ends) in OTHERS.items()}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


@every_schedule
def test_time_inverts_log_snr(schedule):
    torch.testing.assert_close(schedule.time(schedule.log_snr(GRID)), GRID, rtol=0, atol=1e-12)
    log_snr = torch.linspace(-6.5, 6.5, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=0, atol=1e-9)


@every_schedule
def test_variance_is_preserved_and_the_ratio_is_the_snr(schedule):
    log_snr = schedule.log_snr(GRID)
    torch.testing.assert_close(alpha(log_snr) ** 2 + sigma(log_snr) ** 2, torch.ones_like(GRID))
    torch.testing.assert_close(2 * torch.log(alpha(log_snr) / sigma(log_snr)), log_snr)


@every_schedule
def test_derivative_is_that_of_log_snr(schedule):
    t = GRID.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.log_snr_derivative(GRID), slope)


@every_schedule
def test_log_snr_decreases_strictly(schedule):
    assert (schedule.log_snr(GRID).diff() < 0).all()


@pytest.mark.parametrize("name", ENDS)
def test_log_snr_has_its_end_points(name):
    low, high = ENDS[name]
    torch.testing.assert_close(ALL[name].log_snr(f64(1, 0)), f64(low, high), rtol=0, atol=1e-9)


@every_schedule
def test_both_ends_are_finite_in_float32(schedule):
    t = torch.tensor([0.0, 1.0])
    log_snr = schedule.log_snr(t)
    assert log_snr.dtype == torch.float32
    torch.testing.assert_close(log_snr, schedule.log_snr(t.double()).float(), rtol=0, atol=2e-3)
    for value in (
        schedule.log_snr_derivative(t),
        alpha(log_snr),
        sigma(log_snr),
        1 / alpha(log_snr),
        1 / sigma(log_snr),
    ):
        assert value.isfinite().all()
        assert (value != 0).all()
    assert ((schedule.time(log_snr) >= -1e-6) & (schedule.time(log_snr) <= 1 + 1e-6)).all()


@every_schedule
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_times_of_any_shape(schedule, shape):
    t = torch.full(shape, 0.3, dtype=torch.float64)
    one = schedule.log_snr(f64(0.3))[0]
    assert schedule.log_snr(t).shape == schedule.log_snr_derivative(t).shape == schedule.time(t).shape == shape
    torch.testing.assert_close(schedule.log_snr(t), one.expand(shape))


@pytest.mark.parametrize("end", [15.0, 30.0, 40.0, 60.0])
@pytest.mark.parametrize("kind", [Cosine, Linear, lambda low, high: RectifiedFlow(1.0, low, high),
                                  lambda low, high: Truncated(Cosine(low, high), low + 1)])  # fmt: skip
def test_float32_times_have_the_log_snr_of_float64_up_to_every_end_that_is_allowed(kind, end):
    """A cosine's angle at t = 1 is 2 exp(-end / 2) from where its tangent changes its sign."""
    schedule, t = kind(-end, end), torch.tensor([0.0, 0.25, 0.75, 1.0])
    for of in (schedule.log_snr, schedule.log_snr_derivative):
        assert of(t).dtype == torch.float32
        torch.testing.assert_close(of(t), of(t.double()).float(), rtol=1e-4, atol=1e-4)
    assert (schedule.log_snr(t).diff() < 0).all()
    assert (schedule.log_snr_derivative(t) < 0).all()
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-6)


def test_the_cosine_schedule_is_a_cosine():
    log_snr = Cosine(-60, 60).log_snr(GRID[1:-1])
    torch.testing.assert_close(alpha(log_snr), torch.cos(math.pi / 2 * GRID[1:-1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(sigma(log_snr), torch.sin(math.pi / 2 * GRID[1:-1]), rtol=0, atol=1e-9)


def test_a_shift_moves_the_middle_of_the_curve_toward_noise_by_twice_the_log_ratio():
    middle = f64(0.4, 0.5, 0.6)
    moved = shifted(32, 128).log_snr(middle) - Cosine().log_snr(middle)
    torch.testing.assert_close(moved, torch.full_like(moved, 2 * math.log(32 / 128)), rtol=0, atol=0.02)


def test_interpolated_is_shifted_at_the_noisy_end_only():
    schedule, plain = Interpolated.between(32, 128, 128), Cosine()
    moved = schedule.log_snr(GRID) - plain.log_snr(GRID)
    assert moved[900] < -2
    assert moved[500] == pytest.approx(-math.log(4), abs=0.02)
    assert abs(moved[20]) < 0.1
    assert (schedule.log_snr(GRID[950]) - shifted(32, 128).log_snr(GRID[950])).abs() < 0.2
    same = Interpolated.between(128, 128, 128)
    torch.testing.assert_close(same.log_snr(GRID), plain.log_snr(GRID))


def test_an_interpolated_schedule_is_shifted_as_a_whole_between_its_end_points():
    """Between distant ends it is -2 log tan(pi t / 2) + t low + (1 - t) high + shift; low, high: 2 log ratios."""
    t, low, high, shift = GRID[50:-50], 2 * math.log(32 / 128), 2 * math.log(64 / 128), -1.25
    distant = Interpolated(Cosine(-60, 60, low), Cosine(-60, 60, high)).shifted_by(shift)
    expected = -2 * torch.log(torch.tan(math.pi / 2 * t)) + t * low + (1 - t) * high + shift
    torch.testing.assert_close(distant.log_snr(t), expected, rtol=0, atol=1e-9)
    halved = Interpolated.between(32, 64, 64).shifted_by(-2 * math.log(2))
    torch.testing.assert_close(halved.log_snr(GRID), Interpolated.between(16, 32, 64).log_snr(GRID))
    assert halved.log_snr(f64(0, 1)).tolist() == pytest.approx([15, -15])
    assert (halved.log_snr_derivative(GRID) < 0).all()


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="log_snr_min"):
        Cosine(3.0, -3.0)
    with pytest.raises(ValueError, match="noise_resolution"):
        shifted(128, 32)
    with pytest.raises(ValueError, match="noise_resolution"):
        shifted(0, 32)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_mixes_data_and_noise_by_time(shift):
    flow, r = RectifiedFlow(shift), shift * GRID[1:-1] / (1 + (shift - 1) * GRID[1:-1])
    torch.testing.assert_close(flow.log_snr(GRID[1:-1]), 2 * torch.log((1 - r) / r), rtol=0, atol=1e-3)  # truncated
    moved = RectifiedFlow(1.0).log_snr(GRID) - 2 * math.log(shift)
    torch.testing.assert_close(flow.log_snr(GRID), moved, rtol=0, atol=1e-12)


def test_a_table_of_betas_is_the_product_of_their_complements():
    betas = Betas("scaled_linear", 0.00085, 0.012)
    left = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_squared = left.cumprod(0)
    t = f64(*((k + 1) / betas.steps for k in range(1000)))
    torch.testing.assert_close(torch.sigmoid(betas.log_snr(t)), alpha_squared, rtol=1e-11, atol=0)
    assert betas.log_snr(t)[[0, -1]].tolist() == pytest.approx([7.07, -5.36], abs=0.01)
    torch.testing.assert_close(betas.index(betas.log_snr(t)), torch.arange(1000.0, dtype=torch.float64))
    assert betas.index(betas.log_snr(f64(0.0))).item() == 0  # no network knows what lies below its table


def test_the_betas_of_a_sigmoid_go_from_first_to_last():
    share = torch.linspace(-6, 6, 100, dtype=torch.float64)
    left = 1 - (torch.sigmoid(share) * (0.02 - 1e-4) + 1e-4)
    betas = Betas("sigmoid", 1e-4, 0.02, steps=100)
    t = f64(*((k + 1) / betas.steps for k in range(100)))
    torch.testing.assert_close(torch.sigmoid(betas.log_snr(t)), left.cumprod(0), rtol=1e-11, atol=0)


def test_below_its_first_step_a_table_goes_on_in_a_straight_line():
    betas = Betas()
    first, second = betas.log_snr(f64(0, 1 / betas.steps, 2 / betas.steps)).diff()
    assert first.item() == pytest.approx(second.item(), rel=1e-12)


def test_a_table_whose_signal_ends_has_its_alphas_moved_and_scaled():
    """Lin et al., "Common diffusion noise schedules", algorithm 1: of alpha, not of its square."""
    betas = Betas(zero_terminal=True)
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).sqrt()
    moved = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    t = f64(*((k + 1) / betas.steps for k in range(999)))
    torch.testing.assert_close(torch.sigmoid(betas.log_snr(t)), moved[:-1] ** 2, rtol=1e-8, atol=0)


def test_a_table_without_signal_at_its_end_is_cut_where_float32_does_not_see_it():
    betas, first = Betas(zero_terminal=True), f64(1 / Betas().steps)
    torch.testing.assert_close(betas.log_snr(first), Betas().log_snr(first), rtol=1e-12, atol=0)
    assert betas.log_snr(f64(1.0)).item() == -30
    assert (betas.log_snr(GRID).diff() < 0).all()


def test_a_truncated_schedule_is_the_same_curve_up_to_a_noise_level():
    part = Truncated(Cosine(shift=-1.0), -6.0)
    last = Cosine(shift=-1.0).time(f64(-6.0))
    torch.testing.assert_close(part.log_snr(GRID), Cosine(shift=-1.0).log_snr(last * GRID))
    for end in (-15.1, 15.0):
        with pytest.raises(ValueError, match=rf"goes from log-SNR 15 to -15, and ends nowhere in between at {end:g}"):
            Truncated(Cosine(), end)
