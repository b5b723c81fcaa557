"""The yardstick itself: against autograd, Tweedie's formulas, torch.distributions and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from dualrate.diffusion.context import Cond, Context, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import eps_from_x
from dualrate.diffusion.schedule import alpha, sigma
from theory.common import PROCESS, f64, gaussian, line_mixture, normals, space_mixture, uniforms
from theory.exact import GaussianMixture, OracleDenoiser
from theory.held_context import held_variance, two_band_variance

LOG_SNR = f64(-12, -4, -1, 0, 1, 3, 6)
MIXTURES = {"line": line_mixture(), "space": space_mixture(), "gaussian": gaussian(0.3, 2, mean=0.4)}
every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


def noisy(mixture, log_snr=LOG_SNR):
    dimensions = mixture.means.shape[1]
    x = mixture.sample(uniforms(0, len(log_snr)), normals(1, len(log_snr), dimensions))
    return alpha(log_snr)[:, None] * x + sigma(log_snr)[:, None] * normals(2, len(log_snr), dimensions)


@every_mixture
def test_density_is_that_of_torch(mixture):
    z = noisy(mixture)
    for row, log_snr in zip(z, LOG_SNR, strict=True):
        noise = sigma(log_snr) ** 2 * torch.eye(len(row), dtype=torch.float64)
        components = MultivariateNormal(
            alpha(log_snr) * mixture.means, alpha(log_snr) ** 2 * mixture.covariances + noise
        )
        expected = MixtureSameFamily(Categorical(mixture.weights), components).log_prob(row)
        torch.testing.assert_close(mixture.log_density(row[None], log_snr)[0], expected)


@every_mixture
def test_score_is_the_gradient_of_the_log_density(mixture):
    z = noisy(mixture).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(z, LOG_SNR).sum(), z)
    torch.testing.assert_close(mixture.score(z, LOG_SNR), gradient)


@every_mixture
def test_tweedie(mixture):
    """E[x | z] = (z + sigma^2 score) / alpha and Cov[x | z] = sigma^2 / alpha dE[x | z] / dz."""
    z = noisy(mixture).requires_grad_()
    mean = mixture.posterior_mean(z, LOG_SNR)
    score = -eps_from_x(z, mean, LOG_SNR) / expand(sigma(LOG_SNR), z)
    torch.testing.assert_close(score, mixture.score(z, LOG_SNR), rtol=1e-6, atol=1e-7)
    jacobian = torch.stack([torch.autograd.grad(c.sum(), z, retain_graph=True)[0] for c in mean.unbind(1)], dim=1)
    factor = (sigma(LOG_SNR) ** 2 / alpha(LOG_SNR))[:, None, None]
    torch.testing.assert_close(mixture.posterior_covariance(z, LOG_SNR), factor * jacobian, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 3.0])
@pytest.mark.parametrize("z", [-1.2, 0.1, 0.7])
def test_moments_by_quadrature(log_snr, z):
    mixture, a, s = line_mixture(), float(alpha(f64(log_snr))), float(sigma(f64(log_snr)))
    parts = mixture.weights, mixture.means[:, 0], mixture.covariances[:, 0, 0]
    components = [*zip(*(part.tolist() for part in parts), strict=True)]

    def pdf(x: float, mean: float, deviation: float) -> float:
        return math.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))

    def moment(power: int) -> float:
        def joint(x: float) -> float:
            return x**power * sum(w * pdf(x, m, c**0.5) for w, m, c in components) * pdf(z, a * x, s)

        return quad(joint, -2, 2, points=[-0.8, 0.1, 0.9], epsabs=1e-12, limit=200)[0]

    mass, mean = moment(0), moment(1) / moment(0)
    at = f64(z)[:, None], f64(log_snr)
    assert math.exp(mixture.log_density(*at)) == pytest.approx(mass, rel=1e-8)
    assert float(mixture.posterior_mean(*at)) == pytest.approx(mean, rel=1e-8)
    assert float(mixture.posterior_covariance(*at)) == pytest.approx(moment(2) / mass - mean**2, rel=1e-7)


@every_mixture
def test_samples_have_the_moments_of_the_mixture(mixture):
    n, dimensions = 100_000, mixture.means.shape[1]
    x = mixture.sample(uniforms(3, n), normals(4, n, dimensions))
    mean = mixture.weights @ mixture.means
    apart = mixture.means - mean
    covariance = torch.einsum("k,kij->ij", mixture.weights, mixture.covariances + apart[:, :, None] * apart[:, None, :])
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov().view_as(covariance), covariance, rtol=0, atol=0.01)


def test_noise_hides_and_its_absence_shows_the_data():
    mixture, z = space_mixture(), normals(0, 4, 3)
    blind = mixture.posterior_mean(z, f64(-30)[0])
    torch.testing.assert_close(blind, (mixture.weights @ mixture.means).expand(4, 3), rtol=0, atol=1e-5)
    full_rank = gaussian(0.3, 3)
    torch.testing.assert_close(full_rank.posterior_mean(z, f64(30)[0]), z, rtol=1e-5, atol=1e-5)
    assert full_rank.log_density(z, f64(math.inf)[0]).isfinite().all()


def test_images_times_per_row_and_types():
    mixture, z = gaussian(0.3, 12, mean=0.1), normals(0, 5, 3, 2, 2)
    t = f64(0.1, 0.3, 0.5, 0.7, 0.9)
    denoiser = OracleDenoiser(mixture, PROCESS)
    x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, Cond()), Cond())
    assert x_hat.shape == mixture.score(z, t).shape == z.shape
    torch.testing.assert_close(x_hat[2:3], denoiser.denoise(z[2:3], t[2:3], Context(), Cond()))
    single = denoiser.denoise(z.float(), t.float(), Context(), Cond())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, x_hat.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "covariances"),
    [
        ((0.5, 0.5), torch.eye(2).expand(3, 2, 2)),
        ((0.5, 0.6), torch.eye(2).expand(2, 2, 2)),
        ((1.5, -0.5), torch.eye(2).expand(2, 2, 2)),
        ((0.5, 0.5), torch.tensor([[1.0, 2.0], [2.0, 1.0]]).expand(2, 2, 2)),
        ((0.5, 0.5), torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(2, 2, 2)),
    ],
)
def test_impossible_mixtures_are_refused(weights, covariances):
    with pytest.raises(ValueError):
        GaussianMixture(f64(*weights), normals(0, 2, 2), covariances.double())


def stale_variances(log_snr: np.ndarray, end: float, c: float) -> float:
    """The recursion behind `held_variance`: Var z_s = (A + B k)^2 Var z_t + V, one refresh after another."""
    variance = 1.0
    for now, then in zip(log_snr, [*log_snr[1:], end], strict=True):
        alpha2_t, alpha2_s, r = 1 / (1 + math.exp(-now)), 1 / (1 + math.exp(-then)), math.exp(now - then)
        gain = alpha2_t**0.5 * c / (alpha2_t * c + 1 - alpha2_t)
        slope = r * (alpha2_s / alpha2_t) ** 0.5 + (1 - r) * alpha2_s**0.5 * gain
        variance = slope**2 * variance + (1 - r) * (1 - alpha2_s)
    return variance


@pytest.mark.parametrize("c", [0.09, 1.0, 10.0])
@pytest.mark.parametrize(("start", "end"), [(-15.0, 2.0), (-3.5, 15.0), (-3.5, math.inf)])
def test_held_variance_solves_its_recursion(c, start, end):
    log_snr = np.array([start, -3.0, -1.2, 0.5, 1.9])
    assert float(held_variance(torch.tensor(log_snr), f64(end)[0], c)) == pytest.approx(
        stale_variances(log_snr, end, c)
    )


def test_the_two_bands_differ_by_what_the_context_misses():
    low, high = two_band_variance(PROCESS, StepPlan.uniform(32, 4), 0.09)
    assert low < high < 0.09
    same = two_band_variance(PROCESS, StepPlan.uniform(32, 32), 0.09)
    torch.testing.assert_close(*same)
    with pytest.raises(ValueError, match="NONE"):
        two_band_variance(PROCESS, StepPlan.uniform(32, 0), 0.09)
