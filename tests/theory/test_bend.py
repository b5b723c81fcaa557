"""Errors of a solver's steps: against the solvers themselves, and of one Gaussian in closed form."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from dualrate.diffusion.context import Cond
from dualrate.sampling.grids import uniform_log_snr
from dualrate.sampling.planner import Bend, measure_bend
from dualrate.sampling.solvers import extrapolated
from theory.common import PROCESS, gaussian, normals
from theory.exact import OracleDenoiser

C = 0.3  # the variance of the data


def x_hat(h, u=1.0):
    """Along the ODE of N(0, C): z / sqrt(alpha^2 C + sigma^2) = u stays, so x_hat = C u / sqrt(C + e^-2h)."""
    return C * u / np.sqrt(C + np.exp(-2 * h))


def slope(h):
    return C * np.exp(-2 * h) * (C + np.exp(-2 * h)) ** -1.5


def curvature(h):
    e = np.exp(-2 * h)
    return C * (-2 * e * (C + e) ** -1.5 + 3 * e**2 * (C + e) ** -2.5)


def off(h: float, length: float, used: float) -> float:
    """`used` for x_hat over a step from h, by the exact mean with the weight e^h."""
    mean = quad(lambda at: np.exp(at) * x_hat(at), h, h + length)[0] / (np.exp(h + length) - np.exp(h))
    return used - mean


@pytest.mark.parametrize("h", [-1.0, 0.2, 1.5])
def test_steps_are_off_by_taylor_s_terms(h):
    """Steps of 2M with the package's own extrapolation; what is left falls with the step."""
    for length, least in ((0.02, 0.05), (0.002, 0.005)):
        first = off(h, length, x_hat(h))
        assert first == pytest.approx(-length / 2 * slope(h), rel=3 * length)
        times = [PROCESS.schedule.time(torch.tensor([2 * at]).double()) for at in (h - length, h, h + length)]
        now, before = (torch.tensor([[x_hat(at)]]).double() for at in (h, h - length))
        used = extrapolated(PROCESS, now, times[1], times[2], (before, times[0])).item()
        expected = -(length**2) * (5 * curvature(h) + slope(h)) / 12
        assert off(h, length, used) == pytest.approx(expected, rel=least * 10, abs=1e-3 * length**2)


@pytest.mark.parametrize("first", [True, False])
def test_it_is_measured_along_the_ode(first):
    """u ~ N(0, 1), so mean squares are those of one path; times are those of a grid even in log-SNR."""
    t = (*uniform_log_snr(PROCESS.schedule, 400)[1:-1], 0.0)
    oracle = OracleDenoiser(gaussian(C), PROCESS)
    normal = normals(0, 50, 1)
    bend = measure_bend(oracle, PROCESS, t, normal, Cond())
    assert (len(bend.log_snr), len(bend.first), len(bend.second)) == (399, 398, 397)
    u = normal.square().mean().item()
    start, end = np.array([-2.0, 0.0, 1.0]), np.array([-1.0, 1.0, 3.0])
    h, length = (start + end) / 4, (end - start) / 2
    exact = length**2 / 4 * slope(h) ** 2 if first else length**4 * (5 * curvature(h) + slope(h)) ** 2 / 144
    np.testing.assert_allclose(
        bend.at_the_end(start), u * (x_hat(bend.log_snr[-1] / 2) - x_hat(start / 2)) ** 2, rtol=0.03
    )
    np.testing.assert_allclose(bend.error(start, end, first=first), u * exact, rtol=0.03, atol=5e-6)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got"):
        Bend(np.zeros(4), np.zeros(3), np.zeros(3), np.zeros(4))
