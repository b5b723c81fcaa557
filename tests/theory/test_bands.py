"""Frequency bands against scipy's DCT, and what an orthonormal transform promises."""

import numpy as np
import pytest
import scipy.fft
import torch

from dualrate.sampling.covariance import Bands
from theory.common import normals

SHAPES = [(1, 28, 28), (3, 8, 8), (3, 5, 7), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_is_scipys_orthonormal_dct(shape):
    bands, x = Bands(shape), normals(0, 2, *shape)
    want = torch.from_numpy(scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(1, 2, 3)))
    torch.testing.assert_close(bands.transform(x), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(bands.inverse(bands.transform(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_where_edges_meet_the_transform_is_numpys_dft_in_its_real_form(shape):
    """Hartley's: real part less imaginary part, an axis at a time; and its own inverse."""
    bands, x = Bands(shape, boundary="periodic"), normals(0, 2, *shape)
    want = scipy.fft.dct(x.numpy(), type=2, norm="ortho", axis=1)
    for axis in (2, 3):
        waves = np.fft.fft(want, axis=axis, norm="ortho")
        want = waves.real - waves.imag
    torch.testing.assert_close(bands.transform(x), torch.from_numpy(want), rtol=0, atol=1e-12)
    torch.testing.assert_close(bands.inverse(bands.transform(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 8])
def test_where_edges_meet_waves_of_one_frequency_share_a_band(size):
    index = Bands((1, size, size), rings=1000, boundary="periodic").index[0]
    k = np.minimum(np.arange(size), size - np.arange(size))
    radius = np.unique(k[:, None] ** 2 + k**2, return_inverse=True)[1].reshape(size, size)
    assert index.tolist() == radius.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_coefficient_has_a_band_and_every_band_a_coefficient(shape):
    bands = Bands(shape)
    assert bands.index.shape == shape
    assert sorted(bands.index.unique().tolist()) == list(range(bands.count))
    values = normals(1, 2, bands.count)
    torch.testing.assert_close(bands.mean(bands.spread(values)), values)


def test_bands_are_rings_from_the_mean_outward_channel_by_channel():
    bands = Bands((3, 8, 8), rings=6)
    first, last = bands.index[0], bands.index[2]
    assert first[0, 0] == 0
    assert (first == 0).sum() == 1  # the mean alone
    assert bool((first.diff(dim=1) >= 0).all())
    assert torch.equal(first, first.mT)
    assert torch.equal(last - first, torch.full_like(first, 2 * bands.count // 3))


def test_rings_are_of_equal_width_in_the_root_of_the_radius():
    radius = np.hypot(*np.mgrid[:8, :8] / 8)
    ring = np.minimum((5 * np.sqrt(radius / radius.max())).astype(int), 4)
    expected = np.unique(ring, return_inverse=True)[1].reshape(8, 8)  # empty ones are dropped
    assert Bands((1, 8, 8), rings=5).index[0].tolist() == expected.tolist()


def test_a_band_of_colour_is_an_opponent_colour():
    grey = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    red_against_blue = grey * torch.tensor([1.0, 0, -1]).view(3, 1, 1)
    for colour, channel in ((grey, 0), (red_against_blue, 1)):
        energy = Bands((3, 4, 4)).transform(colour).square().sum((0, 2, 3))
        assert energy[channel] == pytest.approx(float(colour.square().sum()))


def test_no_band_or_no_pixel_is_refused():
    with pytest.raises(ValueError, match="rings is a whole number from 1 to 1,000, got 0"):
        Bands((1, 8, 8), rings=0)
    with pytest.raises(ValueError, match=r"shape is .* got \(1, 0, 8\)"):
        Bands((1, 0, 8))
