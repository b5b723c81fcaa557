"""The forward process against the algebra of joint Gaussians: coefficients are read off by feeding unit vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualrate.diffusion.context import shared_time
from dualrate.diffusion.process import GaussianProcess, posterior_weights
from theory.common import PROCESS, SCHEDULES, f64, normals

times = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3, unique=True).map(sorted)
every_process = pytest.mark.parametrize("process", [GaussianProcess(s) for s in SCHEDULES.values()], ids=SCHEDULES)
ONE, ZERO = f64(1.0), f64(0.0)


def posterior_coefficients(process, t, s):
    """(A, B, V) of q(z_s | z_t, x) = N(A z_t + B x, V)."""
    from_z, from_x = process.posterior(ONE, ZERO, t, s), process.posterior(ZERO, ONE, t, s)
    return from_z.mean, from_x.mean, from_z.variance


@every_process
@given(times)
@settings(max_examples=20)
def test_posterior_is_the_conditional_of_the_joint_gaussian(process, times):
    s, _, t = (f64(time) for time in times)
    covariance = process.alpha(t) / process.alpha(s) * process.sigma(s) ** 2  # of z_s, z_t given x
    a, b, variance = posterior_coefficients(process, t, s)
    slope = covariance / process.sigma(t) ** 2
    torch.testing.assert_close(a, slope, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(b, process.alpha(s) - slope * process.alpha(t), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(variance, process.sigma(s) ** 2 - slope * covariance, rtol=1e-6, atol=1e-9)


@every_process
@given(times)
@settings(max_examples=20)
def test_posterior_after_marginal_is_the_marginal(process, times):
    s, _, t = (f64(time) for time in times)
    a, b, variance = posterior_coefficients(process, t, s)
    torch.testing.assert_close(a * process.alpha(t) + b, process.alpha(s), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a**2 * process.sigma(t) ** 2 + variance, process.sigma(s) ** 2, rtol=1e-9, atol=1e-9)


@every_process
@given(times)
@settings(max_examples=20)
def test_transitions_compose(process, times):
    r, s, t = (f64(time) for time in times)
    first, second, both = process.transition(ONE, r, s), process.transition(ONE, s, t), process.transition(ONE, r, t)
    torch.testing.assert_close(first.mean * second.mean, both.mean)
    torch.testing.assert_close(second.mean**2 * first.variance + second.variance, both.variance)


@every_process
@given(times)
@settings(max_examples=20)
def test_transition_after_marginal_is_the_marginal(process, times):
    s, _, t = (f64(time) for time in times)
    step = process.transition(ONE, s, t)
    torch.testing.assert_close(step.mean * process.alpha(s), process.alpha(t))
    torch.testing.assert_close(step.mean**2 * process.sigma(s) ** 2 + step.variance, process.sigma(t) ** 2)


@every_process
@pytest.mark.parametrize(("t", "tau"), [(0.3, 0.6), (0.0, 1.0), (0.7, 0.7), (0.98, 1.0)])
@pytest.mark.parametrize("c", [0.09, 1.0, 10.0])
def test_either_construction_of_the_pair_has_the_law_of_one_forward_path(process, t, tau, c):
    x, first, second = torch.eye(3, dtype=torch.float64) * f64(c**0.5, 1, 1)  # rows: the contribution of x, eps, eps'
    times = torch.full((3,), t, dtype=torch.float64), torch.full((3,), tau, dtype=torch.float64)
    backward = process.pair(x, *times, first, second)
    z_t = process.add_noise(x, times[0], first)
    forward = z_t, process.transition(z_t, *times).sample(second)
    alpha_t, alpha_tau, sigma_t = process.alpha(f64(t)), process.alpha(f64(tau)), process.sigma(f64(t))
    for z_t, z_tau in (backward, forward):
        expected = alpha_t * alpha_tau * c + alpha_tau / alpha_t * sigma_t**2
        torch.testing.assert_close((z_t * z_tau).sum(), expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close((z_t**2).sum(), (alpha_t**2 * c + sigma_t**2)[0])
        torch.testing.assert_close((z_tau**2).sum(), (alpha_tau**2 * c + process.sigma(f64(tau)) ** 2)[0])


def test_a_step_of_no_length_changes_nothing():
    z, x, t = normals(0, 4, 3), normals(1, 4, 3), f64(0.1, 0.4, 0.9, 1.0)
    posterior, transition = PROCESS.posterior(z, x, t, t), PROCESS.transition(z, t, t)
    torch.testing.assert_close(posterior.mean, z)
    torch.testing.assert_close(transition.mean, z)
    assert (posterior.variance == 0).all()
    assert (transition.variance == 0).all()


def test_changing_coefficients_in_place_changes_no_later_ones():
    t, s = shared_time(0.7), shared_time(0.3)

    def coefficients():
        return PROCESS.log_snr(t), *PROCESS.scales(t), *posterior_weights(PROCESS, t, s)

    before = [value.item() for value in coefficients()]
    for value in coefficients():
        value.zero_()
    assert [value.item() for value in coefficients()] == before


def test_times_broadcast_over_leading_axes():
    x, eps, t = normals(0, 2, 3, 4, 5), normals(1, 2, 3, 4, 5), normals(2, 2, 3).sigmoid()
    together = PROCESS.posterior(PROCESS.add_noise(x, t, eps), x, t, t / 2)
    for frame in range(3):
        z = PROCESS.add_noise(x[:, frame], t[:, frame], eps[:, frame])
        alone = PROCESS.posterior(z, x[:, frame], t[:, frame], t[:, frame] / 2)
        torch.testing.assert_close(together.mean[:, frame], alone.mean)
        torch.testing.assert_close(together.variance[:, frame], alone.variance)
