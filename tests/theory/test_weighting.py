"""Loss weights: integrals in closed form, the same for every schedule."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import fixed_quad, quad

from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Elbo, Sigmoid, x_loss_weight
from theory.common import SCHEDULES, f64

ends_at_15 = pytest.mark.parametrize(
    "schedule", [s for name, s in SCHEDULES.items() if name != "narrow cosine"], ids=lambda s: type(s).__name__
)
WEIGHTINGS = [Elbo(), Sigmoid(), Sigmoid(-2.0), Sigmoid(1.0)]


def mean_over_time(schedule, integrand) -> float:
    """Integral over t in [0, 1], cut where the curve is steep: to 1e-14, as other edges and degrees tell."""
    ends = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]
    edges = [0.0, *ends, 0.5, *(1 - end for end in reversed(ends)), 1.0]
    return sum(fixed_quad(lambda t: integrand(f64(*t)).numpy(), a, b, n=30)[0] for a, b in pairwise(edges))


@ends_at_15
@pytest.mark.parametrize("c", [0.09, 1.0, 7.0])
def test_elbo_of_a_gaussian(schedule, c):
    def integrand(t):
        snr = schedule.log_snr(t).exp()
        return x_loss_weight(Elbo(), schedule, t) * c / (c * snr + 1)

    expected = 0.5 * (math.log(c * math.exp(15) + 1) - math.log(c * math.exp(-15) + 1))
    assert mean_over_time(schedule, integrand) == pytest.approx(expected, rel=1e-7)


@ends_at_15
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_a_loss_of_the_noise_level_alone_does_not_depend_on_the_schedule(schedule, weighting):
    def loss(schedule):  # an error like that of a denoiser: small where the data are visible
        return mean_over_time(
            schedule, lambda t: x_loss_weight(weighting, schedule, t) / (1 + schedule.log_snr(t).exp()) ** 1.5
        )

    assert loss(schedule) == pytest.approx(loss(Cosine()), rel=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_the_integral_is_that_of_the_weight(weighting):
    for low, high in [(-15.0, -3.0), (-1.0, 1.5), (4.0, 15.0)]:
        expected, _ = quad(lambda log_snr: float(weighting.snr_weight(f64(log_snr))[0]), low, high, epsrel=1e-10)
        assert float(weighting.integral(f64(low), f64(high))[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bias", [0.0, -2.0, 1.0])
def test_sigmoid_weight_is_the_elbo_weight_times_a_sigmoid(bias):
    log_snr = torch.linspace(-15, 15, 61, dtype=torch.float64)
    expected = log_snr.exp() * torch.sigmoid(bias - log_snr)
    torch.testing.assert_close(Sigmoid(bias).snr_weight(log_snr), expected, rtol=1e-12, atol=0)


@ends_at_15
def test_the_weight_of_the_v_loss_is_finite_at_both_ends_in_float32(schedule):
    t = torch.tensor([0.0, 1.0])
    in_v = x_loss_weight(Sigmoid(), schedule, t) * torch.sigmoid(-schedule.log_snr(t))
    assert in_v.isfinite().all()
    assert (in_v < 0.01).all()
