"""Schedules: inverses, derivatives, end points, and what shifting and interpolating are for."""

import math

import pytest
import torch

from dualrate.diffusion.schedule import Cosine, Interpolated, alpha, shifted, sigma
from theory.common import SCHEDULES, f64

GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


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
def test_log_snr_decreases_strictly_between_its_end_points(schedule):
    log_snr = schedule.log_snr(GRID)
    assert (log_snr.diff() < 0).all()
    low, high = (-9.0, 7.0) if schedule is SCHEDULES["narrow cosine"] else (-15.0, 15.0)
    torch.testing.assert_close(log_snr[[0, -1]], f64(high, low), rtol=0, atol=1e-9)


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


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="log_snr_min"):
        Cosine(3.0, -3.0)
    with pytest.raises(ValueError, match="noise_resolution"):
        shifted(128, 32)
    with pytest.raises(ValueError, match="noise_resolution"):
        shifted(0, 32)
