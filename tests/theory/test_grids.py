"""Time grids: their ends, their spacing, what they refuse."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import Betas
from dualrate.sampling import grids
from theory.common import PROCESS, SCHEDULES

COSINE = PROCESS.schedule
WIDE = {name: schedule for name, schedule in SCHEDULES.items() if name != "narrow cosine"}


def log_snr(times, schedule=COSINE):
    return schedule.log_snr(torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("grid", [grids.uniform_log_snr, grids.karras])
@given(steps=st.integers(1, 300))
@example(steps=1)
@example(steps=300)
@settings(max_examples=10)
def test_a_grid_goes_from_noise_to_data(name, grid, steps):
    times = grid(WIDE[name], steps)
    plan = StepPlan.at(times, ())  # refuses times that do not decrease
    assert (plan.t[0], plan.t[-1], plan.num_steps) == (1, 0, steps)


def test_uniform_steps_are_those_of_a_plan_by_number():
    assert grids.uniform(7) == StepPlan.uniform(7).t == StepPlan.at(7, ()).t


@pytest.mark.parametrize("name", WIDE)
def test_steps_of_the_second_grid_are_equal_in_log_snr(name):
    inner = log_snr(grids.uniform_log_snr(WIDE[name], 9, -8.0, 4.0), WIDE[name])[1:-1]
    torch.testing.assert_close(inner, torch.linspace(-6.5, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("name", WIDE)
def test_steps_of_karras_are_equal_in_a_root_of_the_noise_level(name):
    levels = torch.exp(-log_snr(grids.karras(WIDE[name], 18), WIDE[name])[1:-1] / 2)
    roots = torch.cat((torch.tensor([80.0], dtype=torch.float64), levels)) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), ((0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17 + 0 * levels))
    assert levels[-1].item() == pytest.approx(0.002)


def test_rho_of_one_is_equal_in_the_noise_level():
    levels = torch.exp(-log_snr(grids.karras(COSINE, 6, rho=1, sigma_min=1, sigma_max=11))[1:-1] / 2)
    torch.testing.assert_close(levels, torch.tensor([9.0, 7, 5, 3, 1], dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: grids.uniform_log_snr(COSINE, 8, 3.0, -3.0),
        lambda: grids.uniform_log_snr(COSINE, 2, 3.0, -3.0),
        lambda: grids.uniform_log_snr(COSINE, 8, high=15.5),
        lambda: grids.uniform_log_snr(COSINE, 8, low=-40.0),
        lambda: grids.uniform_log_snr(COSINE, 8, high=math.nan),
        lambda: grids.karras(COSINE, 8, sigma_min=2, sigma_max=1),
        lambda: grids.karras(SCHEDULES["narrow cosine"], 8),
    ],
)
def test_ends_outside_the_schedule_or_out_of_order_are_refused(make):
    with pytest.raises(ValueError, match="within the schedule's"):
        make()


@pytest.mark.parametrize("changes", [{"rho": 0}, {"sigma_min": 0}, {"sigma_max": -1}])
def test_karras_needs_positive_numbers(changes):
    with pytest.raises(ValueError, match="positive"):
        grids.karras(COSINE, 8, **changes)


@pytest.mark.parametrize("grid", [grids.uniform_log_snr, grids.karras])
def test_a_grid_has_a_step(grid):
    with pytest.raises(ValueError, match="at least one step, got 0"):
        grid(COSINE, 0)


@pytest.mark.parametrize("name", WIDE)
@given(steps=st.integers(1, 300), share=st.floats(0, 1))
@example(steps=300, share=0.5)
@settings(max_examples=15)
def test_every_blend_decreases_from_noise_to_data(name, steps, share):
    times = grids.blended(WIDE[name], steps, share)
    plan = StepPlan.at(times, ())  # refuses times that do not decrease
    assert (plan.t[0], plan.t[-1], plan.num_steps) == (1, 0, steps)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_ends_of_the_blends_are_the_two_grids(name, steps):
    """To the bit, so that kept features of the one are those of the other."""
    assert grids.blended(WIDE[name], steps, 0.0) == grids.uniform(steps)
    assert grids.blended(WIDE[name], steps, 1.0) == grids.uniform_log_snr(WIDE[name], steps)


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_a_blend_is_the_mean_of_the_two_grids(share):
    blend, even, log = (
        torch.tensor(times, dtype=torch.float64)
        for times in (grids.blended(COSINE, 9, share), grids.uniform(9), grids.uniform_log_snr(COSINE, 9))
    )
    torch.testing.assert_close(blend - even, share * (log - even))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_blend_has_a_share_from_0_to_1(share):
    with pytest.raises(ValueError, match="from 0 to 1"):
        grids.blended(COSINE, 8, share)


def test_a_blend_has_a_name():
    assert grids.grid_times("blend:0.3", COSINE, 8) == grids.blended(COSINE, 8, 0.3)


@pytest.mark.parametrize("name", ["even", "blend", "blend:", "blend:x", "blend:1.5", "blend:nan", "blend:-1", ""])
def test_a_name_that_is_none_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"no grid .*t, log-snr, karras, and blend:0\.3"):
        grids.grid_times(name, COSINE, 8)


@pytest.mark.parametrize("name", ["log-snr", "karras", "blend:0.5"])
def test_usual_ends_keep_within_a_schedule_that_stops_before_them(name):
    betas = Betas("scaled_linear", 0.00085, 0.012)  # log-SNR -5.4 to 7.7
    times = grids.grid_times(name, betas, 8)
    assert (times[0], times[-1]) == (1, 0)
    assert betas.index(betas.log_snr(torch.tensor(times[-2], dtype=torch.float64))) < 80
