"""DDIM with a Fourier-structured covariance, on Gaussian fields whose law it must keep; and what bounds an estimate."""

import itertools

import pytest
import torch

import dualrate as dr
from dualrate.diffusion.context import Cond, Refresh
from dualrate.sampling.covariance import Bands, Boundary
from dualrate.sampling.ddim import DDIM, AdjustedDDIM
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.solvers import DPMSolver2M, Heun
from dualrate.sampling.trajectory import rollout
from theory.common import PROCESS, f64, normals
from theory.exact import GaussianMixture, OracleDenoiser
from theory.test_covariance import Field

SHAPE = (1, 8, 8)
RINGS = 6
no_bound = {"rings": RINGS, "most": 1e9}
both_kernels = pytest.mark.parametrize("kernel", ["ddim", "markov"])
both_boundaries = pytest.mark.parametrize("boundary", ["even", "periodic"])


def bands_of(boundary: Boundary) -> Bands:
    return Bands(SHAPE, RINGS, boundary)


def power_of(bands: Bands) -> torch.Tensor:
    """From 20 in the lowest band down."""
    return 20.0 / (1 + torch.arange(bands.count, dtype=torch.float64)) ** 2.5


def spectrum(step, plan, bands: Bands, power: torch.Tensor) -> torch.Tensor:
    """(H, W): the variance of each coefficient at the end, of all independent noises together.

    The field's denoiser is linear and mixes no coefficients; a probe's signs are the draw before the noise.
    """
    rows = plan.num_steps + 1

    def unit(row: int) -> torch.Tensor:
        ones = bands.inverse(torch.ones(1, *SHAPE, dtype=torch.float64))
        return torch.eye(rows, dtype=torch.float64)[row].view(-1, 1, 1, 1) * ones

    def draw(i: int, j: int) -> torch.Tensor:
        return normals(i, rows, *SHAPE) if j == 0 else unit(i + 1)

    x = rollout(Field(power, bands), step, plan, unit(0), Cond(), draw)
    return bands.transform(x).square().sum(0)[0]


@both_kernels
@both_boundaries
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_stationary_field_has_its_own_spectrum_after_any_number_of_steps(kernel, boundary, steps):
    """Without a table; one step is enough. But for e^-15 of the start, which is data and is taken for noise."""
    bands = bands_of(boundary)
    step, power = FourierCovariance(PROCESS, kernel, boundary, **no_bound), power_of(bands)
    made = spectrum(step, dr.StepPlan.uniform(steps), bands, power)
    torch.testing.assert_close(made, bands.spread(power[None])[0, 0], rtol=2e-6, atol=0)


def torus_covariance(power: torch.Tensor, bands: Bands) -> torch.Tensor:
    """(64, 64) of a periodic field, made by numpy's rule for stationary covariances: an inverse FFT of the spectrum."""
    spectrum = bands.spread(power[None])[0, 0]
    kernel = torch.fft.ifft2(spectrum).real
    place = torch.arange(64)
    row, column = place // 8, place % 8
    return kernel[(row[:, None] - row) % 8, (column[:, None] - column) % 8]


@pytest.mark.parametrize("steps", [1, 2])
def test_on_a_torus_the_covariance_is_that_of_an_inverse_fft(steps):
    """Any stationary Gaussian field of these bands, by the general oracle: the covariance of all pairs of pixels."""
    bands = bands_of("periodic")
    covariance = torus_covariance(power_of(bands), bands)
    field = GaussianMixture(f64(1.0), torch.zeros(1, 64).double(), (covariance + covariance.mT)[None] / 2)
    step, plan = FourierCovariance(PROCESS, boundary="periodic", **no_bound), dr.StepPlan.uniform(steps)
    rows = 64 * (steps + 1)
    sources = torch.eye(rows, dtype=torch.float64).view(rows, steps + 1, *SHAPE)

    def draw(i: int, j: int) -> torch.Tensor:
        return normals(i, rows, *SHAPE) if j == 0 else sources[:, i + 1]

    x = rollout(OracleDenoiser(field, PROCESS), step, plan, sources[:, 0], Cond(), draw).flatten(1)
    torch.testing.assert_close(x.mT @ x, covariance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("calls", [4, 8])
def test_at_equal_calls_it_is_nearer_to_a_stationary_field_than_the_samplers_it_was_compared_with(calls):
    """Wasserstein distance of Gaussian fields, sqrt(sum of (sqrt(p) - sqrt(q))^2); a JVP counts as a call. Only the
    rings of a few bands keep it from 0.
    """
    bands = Bands(SHAPE, 1000, "periodic")
    power = 1 / (1 + torch.arange(bands.count, dtype=torch.float64)) ** 1.5
    power = power / bands.spread(power[None]).mean()
    exact = bands.spread(power[None])[0, 0].sqrt()

    def distance(step) -> float:
        plan = dr.StepPlan.uniform(step.most_steps(calls))
        return (spectrum(step, plan, bands, power).sqrt() - exact).square().sum().sqrt().item()

    ours = distance(FourierCovariance(PROCESS, boundary="periodic"))
    others = [distance(step) for step in (DDIM(PROCESS), AdjustedDDIM(PROCESS), Heun(PROCESS), DPMSolver2M(PROCESS))]
    assert ours < 0.5 * min(others)
    assert distance(FourierCovariance(PROCESS, boundary="periodic", rings=1000)) < 1e-5


@both_boundaries
def test_of_a_network_that_makes_too_much_of_noise_the_estimate_is_bounded(boundary):
    """x_hat = g z at high noise: C = (sigma^2 / alpha) g is far above the variance of any data in [-1, 1]."""
    plan, rows = dr.StepPlan((1.0, 0.6), (Refresh.FULL,)), 4
    z, t, s = normals(0, rows, *SHAPE), f64(plan.t[0])[0], f64(plan.t[1])[0]
    b = PROCESS.alpha(s) - PROCESS.alpha(t) * PROCESS.sigma(s) / PROCESS.sigma(t)
    normal = normals(1, rows, *SHAPE)
    for gain, variance in ((0.5, 1.0), (-0.5, 0.0), (1e-4, 1e-4 * PROCESS.sigma(t) ** 2 / PROCESS.alpha(t))):
        step = FourierCovariance(PROCESS, boundary=boundary)
        made, _ = step(lambda z, t, g=gain: g * z, z, t, s, lambda: normal, ())
        mean = (PROCESS.sigma(s) / PROCESS.sigma(t) + b * gain) * z
        torch.testing.assert_close(made, mean + b * variance**0.5 * normal, rtol=1e-9, atol=1e-9)


def test_only_the_markov_kernel_says_that_it_keeps_pairs_and_names_tell_them_apart():
    steps = [FourierCovariance(PROCESS, *of) for of in itertools.product(("ddim", "markov"), ("even", "periodic"))]
    assert [step.markovian for step in steps] == [False, False, True, True]
    assert len(set(map(str, steps))) == 4
    with pytest.raises(ValueError, match='boundary is "even" or "periodic", got \'torus\''):
        FourierCovariance(PROCESS, boundary="torus")  # pyright: ignore[reportArgumentType]
