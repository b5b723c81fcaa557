"""Power of fields by wavenumber, of those on a whole sphere by degree, and the distance of two spectra in three bands.

On a sphere a field is the sum of spherical harmonics of degree n and order m that fits it best, in least squares over
the latitudes. They have mean square 1; P is the normalised associated Legendre function, x the sine of latitude:

    P_mm = sqrt((2m + 1) / 2m) cos(latitude) P_(m-1)(m-1),   P_00 = 1
    P_nm = a_n (x P_(n-1)m - P_(n-2)m / a_(n-1)),            a_n = sqrt((4 n^2 - 1) / (n^2 - m^2))

The bands divide log wavenumber evenly (Ohana et al. 2024, The Well, arXiv 2412.00568). The Well takes the squared error
of each band, which asks a field to be right point by point; the distance here asks its spectrum alone, as it stays a
question where no point can be known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.forecasts.geometry import Geometry

Spectrum = Callable[[Tensor], Tensor]  # (..., H, W) -> (..., K)
MOST_ROWS = 192  # of a sphere: the functions of more take too much memory, so that power is by ring as on a plane

BANDS = ("low", "middle", "high")
POWER_FLOOR = 1e-8  # of the truth's strongest wavenumber: weaker ones, a ten-thousandth in amplitude, count as equal


def power_spectrum(fields: Tensor) -> Tensor:
    """(..., K): power by wavenumber 0 .. K - 1 of fields (..., H, W), those of a ring in sum: all add up to mean x^2.

    Wavenumbers are waves along the longer side, sqrt(k_y^2 + k_x^2) rounded; points lie equally far apart in both
    directions. H = 1 is a field in one dimension. Fields that are not periodic get the power of their edges as well.
    """
    height, width = fields.shape[-2:]
    y, x = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    ring = (max(height, width) * torch.hypot(y[:, None], x)).round().long().to(fields.device)  # of terms of `rfft2`
    twice = torch.full((width // 2 + 1,), 2.0, device=fields.device, dtype=fields.dtype)  # what the half leaves out
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    power = torch.fft.rfft2(fields).abs().square() * (twice / (height * width) ** 2)
    spectrum = power.new_zeros(*fields.shape[:-2], int(ring.max()) + 1)
    return spectrum.index_add_(-1, ring.flatten(), power.flatten(-2))


def spectrum_of(geometry: Geometry) -> Spectrum:
    """Power by degree where fields cover a whole sphere, in latitudes and evenly round it; else by wavenumber."""
    _, latitudes = geometry.latitudes
    if geometry.whole and len(latitudes) <= MOST_ROWS:
        return partial(power_on_sphere, latitudes=latitudes)
    return power_spectrum


def power_on_sphere(fields: Tensor, latitudes: tuple[float, ...]) -> Tensor:
    """(..., K): power by degree 0 .. K - 1 of fields (..., H, W); K rows lie between the poles.

    latitudes: in degrees, (H,). Of a field of degrees below K all add up to the mean of x^2 over the sphere.
    """
    width = fields.shape[-1]
    waves = torch.fft.rfft(fields) / width
    analysis = _analysis(latitudes, waves.shape[-1]).to(fields.device, fields.dtype)
    twice = torch.full((len(analysis),), 2.0, device=fields.device, dtype=fields.dtype)  # for orders of both signs
    twice[0] = 1
    if width % 2 == 0 and len(analysis) == waves.shape[-1]:
        twice[-1] = 1
    some = waves[..., : len(analysis)]
    power = sum(torch.einsum("mnh,...hm->...mn", analysis, part).square() for part in (some.real, some.imag))
    return torch.einsum("...mn,m->...n", power, twice)


@lru_cache(maxsize=4)
def _analysis(latitudes: tuple[float, ...], orders: int) -> Tensor:
    """(M, K, H) from a row of each latitude to degrees, of each order below K and `orders`: the best fit's."""
    functions = legendre(np.sin(np.radians(latitudes)), sum(abs(latitude) < 89.999 for latitude in latitudes))
    fits = np.zeros((min(orders, len(functions)), *functions.shape[1:]))
    for m in range(len(fits)):
        fits[m, m:] = np.linalg.pinv(functions[m, m:].T, rcond=1e-10)
    return torch.from_numpy(fits)


def legendre(x: NDArray[np.float64], degrees: int) -> NDArray[np.float64]:
    """(m, n, H) normalised associated Legendre functions of the module, 0 for n < m. x: (H,)"""
    values = np.zeros((degrees, degrees, len(x)))
    diagonal, cosine = np.ones_like(x), np.sqrt(np.maximum(1 - x**2, 0))
    for m in range(degrees):
        diagonal = diagonal if m == 0 else diagonal * cosine * np.sqrt((2 * m + 1) / (2 * m))
        values[m, m] = diagonal
        before, last = np.zeros_like(x), np.inf
        for n in range(m + 1, degrees):
            factor = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
            values[m, n] = factor * (x * values[m, n - 1] - before / last)
            before, last = values[m, n - 1], factor
    return values


def band_masks(wavenumbers: int, side: int) -> list[Tensor]:
    """Masks (K,) of three bands from wavenumber 1 to the highest that a side resolves, `side // 2`, included."""
    k, highest = torch.arange(wavenumbers), side // 2
    edges = [highest ** (part / 3) for part in (0, 1, 2)] + [highest + 1]
    return [(k >= low) & (k < high) for low, high in pairwise(edges)]


def spectrum_distance(power: Tensor, truth: Tensor, side: int) -> Tensor:
    """(..., 3): mean |log(power / truth)|, natural, over channels and the wavenumbers of the low, middle, high band.

    power, truth: (..., C, K) of `power_spectrum`, means over fields; side: points along the longer side
    NaN for a band without a wavenumber, on sides of fewer than 8 points.
    """
    floor = POWER_FLOOR * truth[..., 1:].amax(-1, keepdim=True) if truth.shape[-1] > 1 else 0
    ratio = (power.clamp(min=floor) / truth.clamp(min=floor)).log().abs()
    return torch.stack([ratio[..., band].flatten(-2).mean(-1) for band in band_masks(truth.shape[-1], side)], -1)
