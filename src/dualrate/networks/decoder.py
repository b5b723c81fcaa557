"""Networks that make an image of a latent z_0: a diffusion decoder p(x | z_0) (Unified Latents, arXiv 2602.17270).

    single-rate   v = U-ViT(x_t, log_snr_t, label; z_0)                                            at every step
    dual-rate     features = P U-ViT(0, log_snr_1, label; z_0) + maps(z_0)                                   once
                  v = U-ViT(x_t, log_snr_t, label; features)                                       at every step

z_0 enters where the levels of a U-ViT begin: one linear map, without bias, from the positions of the latent to those of
the level, so that a latent of 8 x 8 gives every one of 16 x 16 positions what is its own.

The heavy network of the dual-rate decoder is that of the single-rate one at pure noise: there x_t holds nothing of x,
and 0 takes its place. So it sees z_0 alone, a trained single-rate decoder can take its part, and its features are
right at every time. The sizes of the paper's decoder are known, how z_0 enters it is not: this is ours.

`ImageEncoder` is the other way, images -> latents, one tensor each, without noise: convolutional, of the same source.

    h = patchify(x);  of every level: blocks, then Down = average pool 2, convolution;  z = convolution(SiLU(norm(h)))

The paper's is a ResNet of four levels, [128, 256, 512, 512] channels, on patches of 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import BelowOne, Channels, Range, Ranged, Side
from dualrate.diffusion.values import Shape
from dualrate.networks.blocks import ChannelNorm, ConvBlock
from dualrate.networks.dual import check_pair, projections
from dualrate.networks.uvit import Head, UViT, UViTConfig


class LatentMaps(nn.Module):
    """z_0: (B, C, h, w) -> what it adds at each level of a U-ViT, (B, C_i, H_i, W_i), finest first."""

    def __init__(self, latent: Shape, config: UViTConfig) -> None:
        super().__init__()
        channels, *sides = latent
        self.maps = nn.ModuleList()
        for i, level in enumerate(config.levels):
            side = config.side(i)
            if len(set(sides)) > 1 or max(side, *sides) % min(side, *sides):
                raise ValueError(
                    f"a latent of {latent} (C, H, W) is square, and its side a multiple or a divisor of those of the "
                    f"decoder's levels, {', '.join(str(config.side(i)) for i in range(len(config.levels)))}: change "
                    "the decoder's patch or levels"
                )
            finer, coarser = side // sides[0], sides[0] // side
            kind, ratio = (nn.ConvTranspose2d, finer) if finer else (nn.Conv2d, coarser)
            self.maps.append(kind(channels, level.channels, ratio, stride=ratio, bias=False))

    def forward(self, z_0: Tensor) -> tuple[Tensor, ...]:
        return tuple(to_level(z_0) for to_level in self.maps)


class DecoderUViT(nn.Module):
    """forward: (x_t, log_snr, z_0, label) -> v. latent: (C, h, w) of z_0."""

    def __init__(self, config: UViTConfig, latent: Shape) -> None:
        super().__init__()
        self.net, self.latent = UViT(config), LatentMaps(latent, config)

    def forward(self, x_t: Tensor, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> Tensor:
        """x_t: (B, C, H, W); log_snr: (B,); z_0: (B, c, h, w); label: (B,) int64 or None -> v, as x_t, float32."""
        return self.net(x_t, log_snr, label, self.latent(z_0))

    def features(self, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """The last activation of every level, (B, C_i, H_i, W_i), finest first, with 0 for x_t."""
        x_t = z_0.new_zeros(len(z_0), *self.net.config.shape)
        return self.net.trunk(x_t, self.net.embedding(log_snr, label), self.latent(z_0))


class LatentEncoder(nn.Module):
    """forward: (log_snr at t = 1, z_0, label) -> features of a light decoder, at its widths.

    net:   a `DecoderUViT` without a head
    light: what z_0 itself adds at the levels of the light network, as in a decoder of that alone
    """

    def __init__(self, config: UViTConfig, light: UViTConfig, latent: Shape) -> None:
        super().__init__()
        check_pair(config, light)
        self.net, self.light = DecoderUViT(replace(config, head=False), latent), LatentMaps(latent, light)
        self.projections = projections(config, light)

    def forward(self, log_snr: Tensor, z_0: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """log_snr: (B,); z_0: (B, c, h, w); label: (B,) int64 or None -> (B, light C_i, H_i, W_i), finest first."""
        own, levels = self.light(z_0), self.net.features(log_snr, z_0, label)
        parts = zip(own, self.projections, levels, strict=True)
        return tuple(feature + project(level) for feature, project, level in parts)

    def disconnect(self) -> None:
        """Zero every way from the heavy network into the light one, which is then a decoder by itself."""
        for way in self.projections.parameters():
            nn.init.zeros_(way)


@dataclass(frozen=True)
class EncoderConfig(Ranged):
    """An encoder of images."""

    image_size: Side
    """Side of the images, in pixels."""
    image_channels: Annotated[int, Range(1, 1024)]
    """Of the images: 1 grey, 3 colours."""
    latent_channels: Annotated[int, Range(1, 1024)]
    """Of the latents."""
    channels: tuple[Channels, ...]
    """Of each level, from the finest resolution; each halves the one before."""
    blocks: Annotated[int, Range(0, 1000)] = 2
    """Convolution blocks of a level."""
    last_blocks: Annotated[int, Range(0, 1000)] | None = None
    """Of the last level; as of the others if not given."""
    patch: Annotated[int, Range(1, 256)] = 2
    """Side of the square of pixels that becomes one position of the first level."""
    dropout: BelowOne = 0.0
    """In the blocks, in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels:
            raise ValueError("an encoder needs at least one level: give its channels")
        if self.image_size % self.factor:
            raise ValueError(
                f"images of side {self.image_size} do not divide by {self.factor}, patches of {self.patch} over "
                f"{len(self.channels)} levels: change the patch or the levels"
            )

    @property
    def blocks_of_levels(self) -> tuple[int, ...]:
        """Of each level."""
        last = self.blocks if self.last_blocks is None else self.last_blocks
        return (*(self.blocks for _ in self.channels[1:]), last)

    @property
    def factor(self) -> int:
        """Pixels to a position of the latent, along a side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image."""
        return self.image_channels, self.image_size, self.image_size

    @property
    def latent_shape(self) -> Shape:
        """(C, H, W) of its latent."""
        side = self.image_size // self.factor
        return self.latent_channels, side, side


class ImageEncoder(nn.Module):
    """forward: images -> latents."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, patch = config.channels, config.patch
        self.stem = nn.Conv2d(config.image_channels, channels[0], patch, stride=patch)
        if patch == 1:
            self.stem = nn.Conv2d(config.image_channels, channels[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(ConvBlock(width, 1, config.dropout) for _ in range(blocks))
            for width, blocks in zip(channels, config.blocks_of_levels, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(channels))
        out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)
        self.head = Head(ChannelNorm(channels[-1]), nn.SiLU(), out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, c, h, w) float32."""
        h = self.stem(x)
        one = h.new_ones(len(h), 1)  # in place of an embedding: its scales and shifts are plain parameters then
        for i, blocks in enumerate(self.levels):
            if i:
                h = self.shrink[i - 1](F.avg_pool2d(h, 2))
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, one)
        return self.head(h)
