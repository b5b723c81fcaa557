"""Power of fields by wavenumber, and the distance of two spectra in three bands.

The bands divide log wavenumber evenly (Ohana et al. 2024, The Well, arXiv 2412.00568). The Well takes the squared error
of each band, which asks a field to be right point by point; the distance here asks its spectrum alone, as it stays a
question where no point can be known.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

BANDS = ("low", "middle", "high")
POWER_FLOOR = 1e-8  # of the truth's strongest wavenumber: weaker ones, a ten-thousandth in amplitude, count as equal


def power_spectrum(fields: Tensor) -> Tensor:
    """(..., K): power by wavenumber 0 .. K - 1 of fields (..., H, W), those of a ring in sum: all add up to mean x^2.

    Wavenumbers are waves along the longer side, sqrt(k_y^2 + k_x^2) rounded; points lie equally far apart in both
    directions. H = 1 is a field in one dimension. Fields that are not periodic get the power of their edges as well.
    """
    height, width = fields.shape[-2:]
    ring = _rings(height, width).to(fields.device)
    twice = torch.full((width // 2 + 1,), 2.0, device=fields.device, dtype=fields.dtype)  # what the half leaves out
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    power = torch.fft.rfft2(fields).abs().square() * (twice / (height * width) ** 2)
    spectrum = power.new_zeros(*fields.shape[:-2], int(ring.max()) + 1)
    return spectrum.index_add_(-1, ring.flatten(), power.flatten(-2))


def _rings(height: int, width: int) -> Tensor:
    """(H, W // 2 + 1) int64: the wavenumber of each term of `rfft2`."""
    y, x = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    return (max(height, width) * torch.hypot(y[:, None], x)).round().long()


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
