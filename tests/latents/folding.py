"""A codec that costs nothing to make: one convolution there and one back, whose folder is its factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dualrate.codecs.codec import CodecFolder, Moments, Shape
from dualrate.diffusion.random import Draws
from dualrate.pipelines.autoencoder import Normalisation


class Folding:
    """Pixels of 2 x 2 squares as channels, turned by an orthogonal matrix: nothing is lost. The spread is narrow."""

    device = torch.device("cpu")
    log_snr: float | None = None

    def __init__(self, fingerprint: str, std: float = 0.5) -> None:
        self.fingerprint = self.latents = fingerprint
        self.normalisation = Normalisation((0.1,), (std,))
        generator = torch.Generator().manual_seed(3)
        self.matrix = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]

    def latent_shape(self, image: Shape) -> Shape:
        return 12, image[1] // 2, image[2] // 2

    def image_shape(self, latent: Shape) -> Shape:
        return 3, latent[1] * 2, latent[2] * 2

    def encode(self, images: Tensor) -> Moments:
        mean = F.conv2d(F.pixel_unshuffle(images, 2), self.matrix[..., None, None])
        return self.normalisation.forward(Moments(mean, torch.full_like(mean, -6) + mean))

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return F.pixel_shuffle(F.conv2d(self.normalisation.inverse(x), self.matrix.T[..., None, None]), 2)


@dataclass(frozen=True)
class FoldingFolder(CodecFolder):
    """Its fingerprint is its folder."""

    def read(self, device: torch.device | str) -> Folding:
        return Folding(self.fingerprint)


LOG_SNR = 2.0


class Noisy(Folding):
    """Takes its latents with noise."""

    log_snr = LOG_SNR


@dataclass(frozen=True)
class NoisyFolder(FoldingFolder):
    """Its fingerprint is its folder."""

    def read(self, device: torch.device | str) -> Folding:
        return Noisy(self.fingerprint)
