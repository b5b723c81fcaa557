"""Update rules on data whose answers are known: exact variances, the law of pairs. Orders: test_solvers.py."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from dualrate.diffusion.context import Cond, Context
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Interpolated, alpha, sigma
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.trajectory import rollout
from theory.common import PROCESS, f64, gaussian, line_mixture, normals, sources, uniform_log_snr
from theory.exact import OracleDenoiser
from theory.held_context import held_variance

STEPS = [
    *(Ancestral(PROCESS, gamma) for gamma in (0.0, 0.3, 1.0)),
    *(Ancestral(PROCESS, eta=eta) for eta in (0.0, 0.5)),
    *(kind(PROCESS) for kind in (DDIM, AdjustedDDIM, Heun, DPMSolver2M, DPMSolver3M, SDEDPMSolver2M)),
]
every_step = pytest.mark.parametrize("step", STEPS, ids=str)
S, T = f64(0.4), f64(0.7)


def no_noise(*_):
    raise AssertionError("a deterministic step must not draw noise")


def denoise_with(mixture):
    oracle = OracleDenoiser(mixture, PROCESS)
    return lambda z, t: oracle.denoise(z, t, Context(), Cond())


def variances(step, plan, c):
    """Exact variance of z after every step, for data N(0, c)."""
    return torch.stack([(state.z**2).sum() for state in sources(OracleDenoiser(gaussian(c), PROCESS), step, plan)])


@pytest.mark.parametrize("c", [0.09, 1.0, 7.0])
def test_ancestral_variances_follow_their_closed_form(c):
    plan = StepPlan.uniform(12)
    log_snr = PROCESS.schedule.log_snr(torch.tensor(plan.t, dtype=torch.float64))
    measured = variances(Ancestral(PROCESS), plan, c)
    assert float(measured[0]) == 1
    for i in range(1, 12):
        torch.testing.assert_close(measured[i], held_variance(log_snr[:i], log_snr[i], c))
    torch.testing.assert_close(measured[-1], held_variance(log_snr[:-1], f64(math.inf)[0], c))


def test_both_ends_of_gamma_are_exact_for_the_data_they_are_made_for():
    plan = StepPlan.uniform(5)
    marginal = PROCESS.sigma(torch.tensor(plan.t, dtype=torch.float64)) ** 2
    point = variances(Ancestral(PROCESS, gamma=0.0), plan, 0.0)  # x is a point: the posterior is the reverse kernel
    torch.testing.assert_close(point[1:-1], marginal[1:-1], rtol=1e-5, atol=0)
    unit = variances(Ancestral(PROCESS, gamma=1.0), plan, 1.0)  # x ~ N(0, 1): the forward kernel is its own reverse
    torch.testing.assert_close(unit[:-1], torch.ones_like(unit[:-1]))


def test_gamma_interpolates_the_log_variance_between_posterior_and_transition():
    z, denoise = f64(0.3)[None], denoise_with(gaussian(0.3))
    low, middle, high = (Ancestral(PROCESS, gamma).kernel(denoise, z, T, S) for gamma in (0.0, 0.25, 1.0))
    torch.testing.assert_close(low.variance, PROCESS.posterior(z, z, T, S).variance)
    torch.testing.assert_close(high.variance, PROCESS.transition(z, S, T).variance)
    torch.testing.assert_close(middle.variance.log(), 0.75 * low.variance.log() + 0.25 * high.variance.log())
    torch.testing.assert_close(low.mean, high.mean)
    torch.testing.assert_close(low.mean, PROCESS.posterior(z, denoise(z, T), T, S).mean)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_many_ancestral_steps_give_the_exact_variance(gamma):
    coarse, fine = (float(variances(Ancestral(PROCESS, gamma), uniform_log_snr(n), 0.09)[-1]) for n in (100, 200))
    assert fine == pytest.approx(0.09, rel=0.08)
    assert 2 * fine - coarse == pytest.approx(0.09, rel=0.01)  # the limit of a first-order error


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8])
def test_many_steps_with_less_noise_give_the_exact_variance(eta):
    step = Ancestral(PROCESS, eta=eta)
    coarse, fine = (float(variances(step, uniform_log_snr(n), 0.09)[-1]) for n in (100, 200))
    assert fine == pytest.approx(0.09, rel=0.07)
    assert 2 * fine - coarse == pytest.approx(0.09, rel=0.01)  # the limit of a first-order error


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
def test_any_eta_keeps_the_marginals_of_a_point(eta):
    """DDIM's family is made for this: z_s given x is N(alpha_s x, sigma_s^2), however noise is shared with z_t."""
    plan = StepPlan.uniform(5)
    marginal = PROCESS.sigma(torch.tensor(plan.t, dtype=torch.float64)) ** 2
    point = variances(Ancestral(PROCESS, eta=eta), plan, 0.0)
    torch.testing.assert_close(point[1:-1], marginal[1:-1], rtol=1e-5, atol=0)


def test_eta_is_the_share_of_fresh_noise():
    z, denoise = f64(0.3)[None], denoise_with(gaussian(0.3))
    full, half = (Ancestral(PROCESS, eta=eta).kernel(denoise, z, T, S) for eta in (1.0, 0.5))
    torch.testing.assert_close(half.variance, full.variance / 4)


def test_eta_goes_from_ddim_to_the_posterior():
    z, noise, denoise = f64(0.3, -1.0)[:, None], normals(1, 2, 1), denoise_with(line_mixture())

    def end(step):
        return step(denoise, z, T.expand(2), S.expand(2), lambda: noise, ())[0]

    assert torch.equal(end(Ancestral(PROCESS, eta=0.0)), end(DDIM(PROCESS)))
    assert torch.equal(end(Ancestral(PROCESS, eta=1.0)), PROCESS.posterior(z, denoise(z, T), T, S).sample(noise))
    torch.testing.assert_close(end(Ancestral(PROCESS, eta=1e-9)), end(DDIM(PROCESS)), rtol=0, atol=1e-8)
    torch.testing.assert_close(end(Ancestral(PROCESS, eta=1 - 1e-9)), end(Ancestral(PROCESS)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("c", [0.09, 3.0])
def test_less_noise_breaks_the_law_of_pairs_the_more(c):
    v_t, v_s = (PROCESS.alpha(time) ** 2 * c + PROCESS.sigma(time) ** 2 for time in (T, S))
    z = v_t.sqrt()[None]

    def excess(eta):
        z_s, _ = Ancestral(PROCESS, eta=eta)(denoise_with(gaussian(c)), z, T, S, lambda: f64(0.0)[None], ())
        return float(z_s * z - PROCESS.alpha(T) / PROCESS.alpha(S) * v_s)

    excesses = [excess(eta) for eta in (0.0, 0.3, 0.7, 0.95, 1.0)]
    assert excesses == sorted(excesses, reverse=True)
    assert excesses[-2] > 0.01
    assert abs(excesses[-1]) < 1e-12


def test_many_ancestral_steps_give_the_exact_distribution():
    mixture, plan = line_mixture(), uniform_log_snr(200)
    denoiser, step = OracleDenoiser(mixture, PROCESS), Ancestral(PROCESS)
    x = rollout(denoiser, step, plan, normals(0, 4000, 1), Cond(), lambda i, _: normals(i + 1, 4000, 1))

    def distribution(value):
        parts = norm.cdf(np.asarray(value)[:, None], mixture.means[:, 0], mixture.covariances[:, 0, 0] ** 0.5)
        return parts @ mixture.weights.numpy()

    assert kstest(x[:, 0].numpy(), distribution).pvalue > 0.01


@every_step
@pytest.mark.parametrize("c", [0.09, 3.0])
def test_a_markovian_step_keeps_the_law_of_pairs(step, c):
    """Cov(z_s, z_t) = (alpha_t / alpha_s) Var z_s where z_t has its marginal; DDIM makes another pair."""
    v_t, v_s = (PROCESS.alpha(time) ** 2 * c + PROCESS.sigma(time) ** 2 for time in (T, S))
    z_t = v_t.sqrt()[None]
    z_s, _ = step(denoise_with(gaussian(c)), z_t, T, S, lambda: f64(0.0)[None], step.start())
    law = torch.isclose(z_s * z_t, PROCESS.alpha(T) / PROCESS.alpha(S) * v_s)
    assert bool(law) is step.markovian


@pytest.mark.parametrize("kind", [DDIM, Heun, DPMSolver2M])
def test_one_deterministic_step_is_exact_for_a_point_mass(kind):
    x, eps, t, s = f64(-0.6, 0.2)[None], normals(1, 1, 2), f64(0.95), f64(0.1)
    point = gaussian(0.0, 2)
    point = type(point)(point.weights, x, point.covariances)
    z_s, _ = kind(PROCESS)(denoise_with(point), PROCESS.add_noise(x, t, eps), t, s, no_noise, ())
    torch.testing.assert_close(z_s, PROCESS.add_noise(x, s, eps))


def test_many_ddim_steps_transport_a_gaussian_by_its_closed_form():
    """z_s = alpha_s m + sqrt(v_s / v_t) (z_t - alpha_t m), the limit of a first-order error."""
    m, c, z = 0.4, 0.09, normals(0, 5, 1)
    denoiser, plans = OracleDenoiser(gaussian(c, mean=m), PROCESS), (uniform_log_snr(n, -8, 8) for n in (150, 300))
    coarse, fine = (rollout(denoiser, DDIM(PROCESS), plan, z, Cond(), no_noise) for plan in plans)
    (a_t, v_t), (a_s, v_s) = ((alpha(u), alpha(u) ** 2 * c + sigma(u) ** 2) for u in f64(-8, 8))
    expected = a_s * m + (v_s / v_t).sqrt() * (z - a_t * m)
    torch.testing.assert_close(2 * fine - coarse, expected, rtol=0, atol=2e-4)


@every_step
def test_a_batch_of_two_is_two_batches_of_one(step):
    denoise, z, noise = denoise_with(line_mixture()), normals(0, 2, 1), normals(1, 2, 1)
    t, s = f64(0.9, 0.5), f64(0.6, 0.1)
    both, _ = step(denoise, z, t, s, lambda: noise, ())
    for row in (slice(0, 1), slice(1, 2)):
        one, _ = step(denoise, z[row], t[row], s[row], lambda row=row: noise[row], ())
        torch.testing.assert_close(one, both[row], rtol=0, atol=1e-14)


@every_step
def test_the_last_step_returns_x_hat(step):
    denoise, z = denoise_with(line_mixture()), normals(0, 3, 1)
    t = f64(0.2).expand(3)
    end, _ = step(denoise, z, t, torch.zeros_like(t), no_noise, ())
    assert torch.equal(end, denoise(z, t))


def test_the_kernel_into_time_zero_has_a_variance():
    for step in (Ancestral(PROCESS), Ancestral(PROCESS, eta=0.5)):
        kernel = step.kernel(denoise_with(line_mixture()), f64(0.3)[:, None], f64(0.2), f64(0.0))
        assert 0 < float(kernel.variance) < 1e-6


def test_without_noise_there_is_no_kernel():
    with pytest.raises(ValueError, match="eta above 0"):
        Ancestral(PROCESS, eta=0.0).kernel(denoise_with(line_mixture()), f64(0.3)[:, None], T, S)


@every_step
@pytest.mark.parametrize("end", [0.4, 0.0])
def test_states_keep_their_type_when_times_are_float64(step, end):
    z = normals(0, 2, 1).float()
    t, s = f64(0.9, 0.9), f64(end, end)
    z_s, _ = step(lambda z, t: 0.5 * z, z, t, s, lambda: torch.zeros(2, 1), ())
    assert z_s.dtype == torch.float32


def test_steps_follow_the_schedule_they_are_given():
    process = GaussianProcess(Interpolated.between(32, 128, 128))
    one, zero = f64(1.0), f64(0.0)  # a state and its x_hat
    ancestral, _ = Ancestral(process)(lambda z, t: zero, one, T, S, lambda: zero, ())
    ddim, _ = DDIM(process)(lambda z, t: zero, one, T, S, no_noise, ())
    torch.testing.assert_close(ancestral, process.posterior(one, zero, T, S).mean)
    torch.testing.assert_close(ddim, process.sigma(S) / process.sigma(T))


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        Ancestral(PROCESS, gamma)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta is a number from 0 to 1, got"):
        Ancestral(PROCESS, eta=eta)


def test_gamma_and_eta_exclude_each_other():
    with pytest.raises(ValueError, match="gamma at 0 or eta at 1"):
        Ancestral(PROCESS, gamma=0.3, eta=0.5)
    Ancestral(PROCESS, gamma=0.3, eta=1.0)
