"""Context dropout: which images of a training batch keep the context of the heavy network.

They are spread evenly over the sample numbers, so that every run of an even number of images keeps exactly half of them
at a dropout of 0.5. The others train the light network alone, and are not encoded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualrate.diffusion.draws import Draws


def kept_images(draws: Draws, dropout: float) -> Tensor:
    """(K, 1): numbers of the images, within the batch, that keep their context."""
    return torch.nonzero(radical_inverse(draws.row) >= dropout)


def radical_inverse(row: Tensor) -> Tensor:
    """(B,) float64 in [0, 1): the binary digits of sample numbers, the lowest 32, mirrored at the point.

    Van der Corput's sequence: any 2^m rows that begin at a multiple of 2^m have one in every 2^-m. Beside the rotation
    of `stratified_uniform` it is uniform in the square, whatever threshold it is compared with: the rows that share
    their lowest digits are equally far apart, and t at these is a rotation by a multiple of the golden ratio, which is
    as irrational. A second rotation would be tied to the first at thresholds near its multiples.
    """
    place = torch.arange(32, device=row.device)
    return ((row[:, None] >> place) & 1).double() @ torch.ldexp(torch.ones_like(place).double(), -place - 1)
