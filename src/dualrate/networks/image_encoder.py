"""`ImageEncoder`, images -> latents, one tensor each, without noise (Unified Latents, arXiv 2602.17270): convolutional.

    h = patchify(x);  of every level: blocks, then Down = average pool 2, convolution;  z = convolution(SiLU(norm(h)))

The paper's is a ResNet of four levels, [128, 256, 512, 512] channels, on patches of 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import BelowOne, Channels, Range, Ranged, Side
from dualrate.diffusion.context import Shape
from dualrate.networks.blocks import ChannelNorm, ConvBlock
from dualrate.networks.uvit import Head


@dataclass(frozen=True)
class EncoderConfig(Ranged):
    """An encoder of images."""

    image_size: Side
    """Side of the images, in pixels."""
    image_channels: Annotated[int, Range(1, 1024)]
    """Channels of the images: 1 for grey, 3 for colour."""
    latent_channels: Annotated[int, Range(1, 1024)]
    """Channels of the latents."""
    channels: tuple[Channels, ...]
    """Width of each level, from the finest. Each level halves the side of the one before."""
    blocks: Annotated[int, Range(0, 1000)] = 2
    """Convolution blocks per level."""
    last_blocks: Annotated[int, Range(0, 1000)] | None = None
    """Convolution blocks of the last level. Default: as in the others."""
    patch: Annotated[int, Range(1, 256)] = 2
    """Side of the square of pixels that becomes one position of the first level."""
    dropout: BelowOne = 0.0
    """Dropout in the blocks, in training."""

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
        """The number of blocks of each level."""
        last = self.blocks if self.last_blocks is None else self.last_blocks
        return (*(self.blocks for _ in self.channels[1:]), last)

    @property
    def factor(self) -> int:
        """Pixels per position of the latent, along a side."""
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
        emb = h.new_ones(len(h), 1)  # 1 in place of an embedding: its scales and shifts are plain parameters then
        for i, blocks in enumerate(self.levels):
            if i:
                h = self.shrink[i - 1](F.avg_pool2d(h, 2))
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, emb)
        return self.head(h)
