"""Power by degree on a sphere: closed forms, latitudes of any spacing, and where it stands in for that of a plane."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from forecasts.made_globes import saved, untrained, waves

from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.evaluation import forecast_scores
from dualrate.forecasts.spectra import legendre, power_on_sphere, power_spectrum, spectrum_of
from dualrate.forecasts.starts import held_out_starts

GAUSSIAN = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(16)[0][::-1]))
ROWS = {
    "Gaussian": GAUSSIAN, "with poles": np.linspace(90, -90, 17), "half a step off": np.linspace(84.375, -84.375, 16),
    "south first": GAUSSIAN[::-1],
}  # fmt: skip
everywhere = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def grid(rows):
    """Return the sine and the cosine of latitude and the longitude of every point."""
    latitude, longitude = np.meshgrid(np.radians(rows), np.arange(32) * math.pi / 16, indexing="ij")
    return np.sin(latitude), np.cos(latitude), longitude


@everywhere
@pytest.mark.parametrize(
    ("harmonic", "degree", "square"),
    [
        (lambda s, c, east: s, 1, 1 / 3),
        (lambda s, c, east: c * np.cos(east), 1, 1 / 3),
        (lambda s, c, east: (3 * s**2 - 1) / 2, 2, 1 / 5),
        (lambda s, c, east: s * c * np.sin(east), 2, 1 / 15),
        (lambda s, c, east: c**3 * np.cos(3 * east), 3, 8 / 35),
        (lambda s, c, east: (5 * s**3 - 3 * s) / 2, 3, 1 / 7),
    ],
)
def test_a_harmonic_has_its_mean_square_at_its_degree(rows, harmonic, degree, square):
    power = power_on_sphere(torch.from_numpy(harmonic(*grid(rows))), tuple(rows.tolist()))
    expected = torch.zeros(len(power), dtype=torch.float64)
    expected[degree] = square
    torch.testing.assert_close(power, expected, rtol=1e-10, atol=1e-12)


@everywhere
def test_powers_of_a_sum_add_up_to_its_mean_square_and_a_rotation_changes_none(rows):
    random = np.random.default_rng(0).normal(size=(2, 6, 6))
    functions, (_, _, longitude) = legendre(np.sin(np.radians(rows)), 6), grid(rows)
    field = sum(
        random[0, m, n] * functions[m, n][:, None] * np.cos(m * longitude + random[1, m, n])
        for m in range(6) for n in range(m, 6)
    )  # fmt: skip
    by_degree = [
        sum(random[0, m, n] ** 2 * (np.cos(random[1, m, n]) ** 2 if m == 0 else 1 / 2) for m in range(n + 1))
        for n in range(6)
    ]
    power = power_on_sphere(torch.from_numpy(field), tuple(rows.tolist()))
    np.testing.assert_allclose(power[:6], by_degree, rtol=1e-10)
    assert power[6:].abs().max() < 1e-12
    turned = power_on_sphere(torch.from_numpy(np.roll(field, 5, 1)), tuple(rows.tolist()))
    torch.testing.assert_close(turned, power, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "rows", [np.linspace(90, -90, 181), np.linspace(89.5, -89.5, 180), np.linspace(89.47, -89.47, 170)]
)
def test_a_fine_grid_of_noise_has_no_more_power_than_the_noise(rows):
    """Each order is fitted by its own functions alone, so that no rounding is taken for one of them."""
    noise = torch.randn(1, len(rows), 2 * len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = power_on_sphere(noise, tuple(rows.tolist()))
    assert 0.3 < power.sum() < 1.2
    area = np.cos(np.radians(rows)) / np.cos(np.radians(rows)).mean()
    harmonic = torch.from_numpy(np.sin(np.radians(rows)))[:, None].expand(-1, 2 * len(rows))
    assert power_on_sphere(harmonic, tuple(rows.tolist()))[1].item() == pytest.approx(1 / 3, rel=1e-9)
    assert (harmonic[:, 0].square().numpy() * area).mean() == pytest.approx(1 / 3, rel=1e-2)


def test_functions_are_orthonormal():
    x, weights = np.polynomial.legendre.leggauss(24)
    functions = legendre(x, 16)
    for m in range(16):
        products = np.einsum("nh,kh,h->nk", functions[m], functions[m], weights / 2)
        np.testing.assert_allclose(products, np.diag(np.arange(16) >= m).astype(float), atol=1e-12)


def test_scores_of_a_whole_sphere_are_by_degree_and_of_a_region_by_wavenumber(tmp_path):
    model = untrained(saved(waves(), tmp_path / "globe.nc"), tmp_path / "globe")
    forecast = model.experiment.condition
    assert isinstance(forecast, Forecast)
    geometry = forecast.geometry
    assert spectrum_of(geometry) is not power_spectrum
    north = replace(geometry.axes[0], values=geometry.axes[0].values[:4])
    assert spectrum_of(replace(geometry, axes=(north, geometry.axes[1]))) is power_spectrum
    assert spectrum_of(replace(geometry, spherical=False)) is power_spectrum
    starts = held_out_starts(model, 2, 2)
    x = np.random.default_rng(0).normal(280, 3, (2, 3, 2, 1, 8, 16)).astype(np.float32)
    scores = forecast_scores(model, starts, x).by_name["forecast"]
    assert starts.truth is not None
    truth = np.stack([starts.truth(i) for i in range(2)])
    scaled = torch.from_numpy(truth[:, 0]).double() / torch.tensor(forecast.statistics.std)[:, None, None]
    expected = power_on_sphere(scaled, geometry.latitudes[1]).mean(0)
    np.testing.assert_allclose(scores.power_truth[0], expected, rtol=1e-6)
