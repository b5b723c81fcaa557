"""The Lanczos Gaussian sampler: the root of a whole covariance, exact where it has few eigenvalues."""

import itertools

import pytest
import torch

import dualrate as dr
from dualrate.diffusion.context import Cond
from dualrate.sampling.covariance import tweedie
from dualrate.sampling.lanczos import LanczosCovariance
from dualrate.sampling.trajectory import rollout
from theory.common import PROCESS, f64, normals
from theory.exact import GaussianMixture, OracleDenoiser

SIZE = 12
T, S = f64(0.7)[0], f64(0.3)[0]
both_kernels = pytest.mark.parametrize("kernel", ["ddim", "markov"])


def gaussian(*values: float) -> GaussianMixture:
    """A Gaussian in 12 dimensions, whose covariance has these eigenvalues, along axes at random."""
    axes, _ = torch.linalg.qr(normals(1, SIZE, SIZE))
    covariance = axes @ torch.diag(f64(*values).repeat(SIZE // len(values))) @ axes.mT
    return GaussianMixture(f64(1.0), normals(2, 1, SIZE), (covariance + covariance.mT)[None] / 2)


def x_hat_of(mixture: GaussianMixture):
    oracle = OracleDenoiser(mixture, PROCESS)
    return lambda z, t: oracle.denoise(z, t, dr.Context(), Cond())


def exact(mixture: GaussianMixture, kernel: str, z, t, s, normal):
    """A z + B x_hat + (B^2 C + V)^(1/2) n, by all eigenvectors."""
    c, log_snr = mixture.posterior_covariance(z, PROCESS.log_snr(t)), PROCESS.log_snr
    share = 1 - torch.exp(log_snr(t) - log_snr(s))
    alpha_t, alpha_s, sigma_t, sigma_s = PROCESS.alpha(t), PROCESS.alpha(s), PROCESS.sigma(t), PROCESS.sigma(s)
    a, b, v = sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t, 0.0
    if kernel == "markov":
        a, b, v = (1 - share) * alpha_s / alpha_t, share * alpha_s, share * sigma_s**2
    values, axes = torch.linalg.eigh(b**2 * c + v * torch.eye(SIZE))
    root = axes @ torch.diag_embed(values.clamp_min(0).sqrt()) @ axes.mT
    return a * z + b * x_hat_of(mixture)(z, t) + (root @ normal[..., None])[..., 0]


@both_kernels
@pytest.mark.parametrize("values", [(0.3,), (0.05, 0.8), (0.01, 0.2, 4.0)])
def test_a_covariance_of_up_to_three_eigenvalues_has_its_root(kernel, values):
    mixture, z, normal = gaussian(*values), normals(3, 5, SIZE), normals(4, 5, SIZE)
    step = LanczosCovariance(PROCESS, kernel, most=1e9)
    made, _ = step(x_hat_of(mixture), z, T, S, lambda: normal, ())
    torch.testing.assert_close(made, exact(mixture, kernel, z, T, S, normal), rtol=0, atol=1e-7)


@both_kernels
def test_of_more_eigenvalues_the_error_falls_fast_with_the_products(kernel):
    mixture, z, normal = gaussian(0.02, 0.1, 0.3, 0.6, 1.0, 2.0), normals(3, 5, SIZE), normals(4, 5, SIZE)
    want, errors = exact(mixture, kernel, z, T, S, normal), []
    for count in (1, 2, 3, 4, 6):
        step = type("Of", (LanczosCovariance,), {"products": count})(PROCESS, kernel, most=1e9)
        made, _ = step(x_hat_of(mixture), z, T, S, lambda: normal, ())
        errors.append((made - want).abs().max().item())
    assert all(later < 0.6 * sooner for sooner, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-7


@both_kernels
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gaussians_of_three_eigenvalues_have_their_law_after_any_number_of_steps(kernel, steps):
    """In expectation over the noise of a step, as its root is a linear map of it: the covariance, within chance."""
    mixture, rows = gaussian(0.05, 0.3, 1.0), 20_000
    step, plan = LanczosCovariance(PROCESS, kernel, most=1e9), dr.StepPlan.uniform(steps)
    draws = lambda i, j: normals(10 + i, rows, SIZE)  # noqa: E731
    x = rollout(OracleDenoiser(mixture, PROCESS), step, plan, normals(5, rows, SIZE), Cond(), draws)
    torch.testing.assert_close(x.mean(0), mixture.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(x.mT.cov(), mixture.covariances[0], rtol=0, atol=0.03)


def test_a_mixtures_posterior_is_a_whole_matrix_and_its_root_is_taken_at_each_z():
    """Two modes: C has one large eigenvalue, along the line through them, wherever z is."""
    apart = torch.zeros(2, SIZE, dtype=torch.float64)
    apart[:, 0], apart[:, 1] = f64(-1.0, 1.0), f64(-0.5, 0.5)
    mixture, normal = GaussianMixture.isotropic(apart, 0.04), normals(4, 6, SIZE)
    z = normals(3, 6, SIZE)
    for kernel in ("ddim", "markov"):
        made, _ = LanczosCovariance(PROCESS, kernel, 1e-5, 1e9)(x_hat_of(mixture), z, T, S, lambda: normal, ())
        torch.testing.assert_close(made, exact(mixture, kernel, z, T, S, normal), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("gain", "variance"), [(-0.5, 0.0), (0.5, 1.0)])
def test_an_estimate_lies_between_nothing_and_the_variance_of_data(gain, variance):
    """x_hat = g z: C is negative, or above 1 in units of the data."""
    t, s = f64(0.95)[0], f64(0.6)[0]
    assert tweedie(PROCESS, t) * 0.5 > 1
    z, normal = normals(0, 4, SIZE), normals(1, 4, SIZE)
    b = PROCESS.alpha(s) - PROCESS.alpha(t) * PROCESS.sigma(s) / PROCESS.sigma(t)
    made, _ = LanczosCovariance(PROCESS, "ddim")(lambda z, t: gain * z, z, t, s, lambda: normal, ())
    mean = (PROCESS.sigma(s) / PROCESS.sigma(t) + b * gain) * z
    torch.testing.assert_close(made, mean + b * variance**0.5 * normal, rtol=0, atol=1e-9)
