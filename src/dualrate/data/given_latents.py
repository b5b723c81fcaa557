"""What decoders are given where they are measured: a latent z_0 for every seed, the same for all decoders of these.

HeldOut       seed i: z_0 of held-out image i, counted round and round, with noise that is keyed by i. What a decoder
              draws of seed i is then its reconstruction of image i
DrawnLatents  seed i: the i-th z_0 that a model of latents drew (`draw_latents`), counted round and round
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, noisy_latents
from dualrate.data.images import ImageSet, to_float
from dualrate.diffusion.draws import Draws

KEPT = 64  # batches of z_0, so that what is drawn of them is timed without the encoder


@dataclass(frozen=True, eq=False)
class HeldOut:
    """codec: whose latents they are; images: that they are of."""

    codec: Codec
    images: ImageSet
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def rows(self, seeds: Tensor) -> Tensor:
        """(B,) int64: which images those of these seeds, (B,), are."""
        return seeds.cpu() % len(self.images)

    def originals(self, seeds: Tensor) -> NDArray[np.uint8]:
        """(B, C, H, W): the images of these seeds, (B,)."""
        return self.images.images[self.rows(seeds).numpy()]

    def __call__(self, seeds: Tensor) -> Tensor:
        """z_0: (B, C, h, w) float32, on the codec's device. seeds: (B,)."""
        key = tuple(seeds.tolist())
        if key not in self._kept:
            x = to_float(self.originals(seeds)).to(self.codec.device)
            with torch.no_grad():
                z_0 = noisy_latents(self.codec, x, Draws(0, seeds.to(self.codec.device)))
            self._kept[key] = z_0
            for oldest in list(self._kept)[:-KEPT]:
                del self._kept[oldest]
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class DrawnLatents:
    """z_0: (N, C, h, w) float32; codec: `Codec.latents` of theirs; digest: of all that they depend on.

    drawn_by: model, plan and sampler, in words; weights: that model's hash; macs: multiply-adds of one latent
    """

    z_0: Tensor
    codec: str
    digest: str
    drawn_by: str
    weights: str
    macs: int

    def __call__(self, seeds: Tensor) -> Tensor:
        """(B, C, h, w), on the device of the seeds, (B,)."""
        return self.z_0[seeds.cpu() % len(self.z_0)].to(seeds.device)


GivenLatents = HeldOut | DrawnLatents
