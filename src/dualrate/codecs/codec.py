"""What a codec is: images to latents, on which networks are trained, and latents back to images.

    x = (z_raw - mean) / std   per channel: the latents that this package speaks of are the x of its processes

A codec normalises itself, so nobody else knows a scaling factor. What an encoder gives is a Gaussian for every element
(`Moments`); one without spread is the case of a deterministic encoder. A decoder may draw: its numbers are keyed by the
image's seed (`Draws`), as those of a sampler are, so a diffusion decoder is a codec like any other.

A decoder of noisy latents takes z_0 = alpha x + sigma eps, of the log-SNR that it says (`log_snr`): the x of processes
is what its encoder gives, and a process whose trajectories end in z_0 (`NoisyEnd`) draws what it takes.

Networks on pixels are the case of `Pixels`, which does nothing, and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import alpha, sigma
from dualrate.diffusion.values import Shape
from dualrate.sampling.cost import macs_of
from dualrate.system.device import whole_products

AT_ONCE = 2**21  # pixels of images that go through a codec together: 8 of 512 x 512, 32 of 256 x 256


@dataclass(frozen=True)
class Moments:
    """A Gaussian for every element of some latents, normalised.

    mean, log_var: (B, C, H, W); log_var None: no spread
    """

    mean: Tensor
    log_var: Tensor | None = None

    def sample(self, eps: Tensor) -> Tensor:
        """mean + e^(log_var / 2) eps, in float32. eps: as `mean`, standard normal; unused where there is no spread."""
        if self.log_var is None:
            return self.mean.float()
        return self.mean.float() + (self.log_var.float() / 2).exp() * eps

    def stacked(self) -> Tensor:
        """(B, M, C, H, W): the mean, and log_var where there is one."""
        return torch.stack([self.mean] if self.log_var is None else [self.mean, self.log_var], 1)

    @staticmethod
    def of(stacked: Tensor) -> Moments:
        """From `stacked`."""
        return Moments(stacked[:, 0], stacked[:, 1] if stacked.shape[1] > 1 else None)


@dataclass(frozen=True)
class Normalisation:
    """x = (z_raw - mean) / std. mean, std: one number per channel, or one for all."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or not self.std or not all(std > 0 for std in self.std):
            raise ValueError(f"latents are normalised by numbers above 0, got mean {self.mean} and std {self.std}")

    def forward(self, raw: Moments) -> Moments:
        """Moments of a codec's own latents -> those that networks see."""
        mean, std = self._like(raw.mean)
        log_var = None if raw.log_var is None else raw.log_var - 2 * std.log()
        return Moments((raw.mean - mean) / std, log_var)

    def inverse(self, x: Tensor) -> Tensor:
        """(B, C, H, W) latents that networks see -> a codec's own."""
        mean, std = self._like(x)
        return x * std + mean

    def _like(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Each (1, C or 1, 1, 1)."""
        if {len(self.mean), len(self.std)} - {1, z.shape[1]}:
            raise ValueError(
                f"latents have {z.shape[1]} channels, their normalisation is of {len(self.mean)} means and "
                f"{len(self.std)} standard deviations: one, or one for each channel, is expected"
            )
        mean, std = (z.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return mean, std


class Codec(Protocol):
    """Between images, (B, C, H, W) in [-1, 1], and their latents, without gradient. It works in float32."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that its latents and images depend on: weights, rule of normalisation, settings.

        Empty: images are their own latents.
        """
        ...

    @property
    def latents(self) -> str:
        """sha256 of what its latents depend on: the fingerprint, unless its decoder is not the one that belongs to it.

        Models of its latents know it by this.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where it works."""
        ...

    @property
    def log_snr(self) -> float | None:
        """Of the latents that `decode` takes; None: they have no noise."""
        ...

    def latent_shape(self, image: Shape) -> Shape:
        """(C, H, W) of the latent of an image of that shape. Raises ValueError for images that it cannot encode."""
        ...

    def image_shape(self, latent: Shape) -> Shape:
        """(C, H, W) of the image of a latent of that shape. Raises ValueError for latents that it cannot decode."""
        ...

    def encode(self, images: Tensor) -> Moments:
        """Normalised moments of the latents of some images."""
        ...

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        """Images of normalised latents, nominally in [-1, 1]: of z_0 where it takes them with noise.

        draws: of their seeds, for a decoder that draws
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """Images are their own latents."""

    fingerprint: str = ""
    latents: str = ""
    device: torch.device = torch.device("cpu")
    log_snr = None  # no annotation: no field

    def latent_shape(self, image: Shape) -> Shape:
        return image

    def image_shape(self, latent: Shape) -> Shape:
        return latent

    def encode(self, images: Tensor) -> Moments:
        return Moments(images)

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return x


ON_PIXELS = Pixels()


def decoded(codec: Codec, x: Tensor, draws: Draws) -> Tensor:
    """`Codec.decode`, some rows at a time, which bounds the memory: `AT_ONCE` pixels of images."""
    _, height, width = codec.image_shape((x.shape[1], x.shape[2], x.shape[3]))
    size = max(1, AT_ONCE // (height * width))
    parts = [slice(first, first + size) for first in range(0, len(x), size)]
    with whole_products():
        return torch.cat([codec.decode(x[part], Draws(draws.seed, draws.row[part])) for part in parts])


def with_noise(codec: Codec, x: Tensor, draws: Draws) -> Tensor:
    """Latents as `Codec.encode` gives them, (B, C, H, W) -> as `Codec.decode` takes them."""
    if codec.log_snr is None:
        return x
    log_snr = torch.tensor(codec.log_snr)
    return alpha(log_snr) * x + sigma(log_snr) * draws.normal("z_0", *x.shape[1:])


def noisy_latents(codec: Codec, images: Tensor, draws: Draws) -> Tensor:
    """z_0 of images (B, C, H, W) in [-1, 1], drawn anew for every row of `draws`: what a decoder is given of them.

    Some rows at a time, which bounds the memory: `AT_ONCE` pixels.
    """
    size, made = max(1, AT_ONCE // (images.shape[2] * images.shape[3])), []
    for part, row in zip(images.split(size), draws.row.split(size), strict=True):
        own = Draws(draws.seed, row)
        with whole_products():
            moments = codec.encode(part)
        made.append(with_noise(codec, moments.sample(own.normal("latent", *moments.mean.shape[1:])), own))
    return torch.cat(made)


def round_trip(codec: Codec, images: Tensor, draws: Draws) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] encoded, by the mean of each, and decoded."""
    with whole_products():
        encoded = codec.encode(images).mean
    return decoded(codec, with_noise(codec, encoded, draws), draws)


def decode_macs(codec: Codec, latent: Shape, device: torch.device | str = "cpu") -> int:
    """Multiply-adds of one image's decoding, counted."""
    x, row = torch.zeros(1, *latent, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    return macs_of(lambda: codec.decode(x, Draws(0, row)))
