"""A U-ViT with parts of SiD2 (Hoogeboom et al. 2024, arXiv 2410.19324) and simple diffusion (2023, 2301.11093).

GroupNorm, SiD2's, in convolution blocks and in front of the head, where ours is a layer norm over channels. m and v are
of a group of channels over all positions (Wu and He 2018); it took 40% of a light call on a CPU in bfloat16:

    (h - m) / sqrt(v + 1e-5) scale + shift

Patches by an invertible transform W, in front of a 3 x 3 convolution, and v by its inverse behind the head. A side is
halved by lifting, then the other one, and for patches of 4, 8, ... all results again:

    haar   high_i = odd_i - even_i                            low_i = even_i + high_i / 2
    5/3    high_i = odd_i - (even_i + even_{i+1}) / 2         low_i = even_i + (high_{i-1} + high_i) / 4

and low sqrt(2), high / sqrt(2) are channels. Beyond an edge lies its mirror, or the opposite one where these meet. The
Haar transform is orthonormal. The 5/3 (Le Gall and Tabatabai 1988), which simple diffusion names, is nearly so, and
reaches beyond a patch. Ours: the factors, and the order of the channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.networks.blocks import Block, ConvBlock, no_autocast
from dualrate.networks.uvit import Blocks, UViT, UViTConfig

Wavelet = Literal["haar", "5/3"]


class GroupNorm(nn.Module):
    """The norm of the module in 32 groups, or the most that the channels and 32 divide into; like h.

    learned: whether it has a scale and a shift of each channel
    """

    def __init__(self, channels: int, *, learned: bool = True) -> None:
        super().__init__()
        self.groups = math.gcd(32, channels)
        self.scale = nn.Parameter(torch.ones(channels)) if learned else None
        self.shift = nn.Parameter(torch.zeros(channels)) if learned else None

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W); in the precision of the scale."""
        with no_autocast(h):
            wide = h if self.scale is None else h.to(self.scale.dtype)
            return F.group_norm(wide, self.groups, self.scale, self.shift).to(h.dtype)


class GroupedBlock(Block):
    """A `ConvBlock` with its norms over groups."""

    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        channels = block.conv1.in_channels
        self.norm, self.inner = GroupNorm(channels), GroupNorm(channels, learned=False)
        self.conv1, self.conv2, self.film, self.dropout = block.conv1, block.conv2, block.film, block.dropout

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h: (B, C, H, W); emb: (B, E)."""
        scale, shift = self.film(emb)
        u = self.inner(self.conv1(F.silu(self.norm(h)))) * scale[:, :, None, None] + shift[:, :, None, None]
        return h + self.conv2(self.dropout(F.silu(u)))


@dataclass(frozen=True)
class SiD2Config(UViTConfig):
    """A U-ViT with parts of SiD2 and simple diffusion."""

    norm: Literal["group", "layer"] = "group"
    """Norm of convolution blocks and the head: over groups of channels and all positions (group), as in SiD2, or over
    the channels of each position (layer)."""
    downsampling: Literal["patch", Wavelet] = "patch"
    """How patches become positions: by one convolution (patch), or by an invertible transform and a 3 x 3 one: haar, or
    5/3, which simple diffusion names. Patches of a power of two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downsampling != "patch" and (self.patch == 1 or self.patch & (self.patch - 1)):
            raise ValueError(
                f"a wavelet is of patches of 2, 4, 8, ... pixels a side, got a patch of {self.patch}: change patch, or "
                "leave downsampling at patch"
            )

    def network(self) -> UViT:
        return SiD2(self)

    @property
    def macs(self) -> int:
        stem = self.numbers * self.widths[0] * math.prod(self.sides(0)) * (math.prod(self.along(3)) - 1)
        return super().macs + (0 if self.downsampling == "patch" else stem)


class SiD2(UViT):
    """The network of the module."""

    config: SiD2Config

    def __init__(self, config: SiD2Config) -> None:
        super().__init__(config)
        if config.norm == "group":
            for part in [part for part in self.modules() if isinstance(part, Blocks) and part.level.kind == "conv"]:
                part.blocks = nn.ModuleList(GroupedBlock(cast(ConvBlock, block)) for block in part.blocks)
            if self.head is not None:
                self.head[0] = GroupNorm(config.widths[0])
        if config.downsampling != "patch":
            self.stem = config.conv3(config.numbers, config.widths[0])

    def patches(self, z: Tensor) -> Tensor:
        if self.config.downsampling == "patch":
            return super().patches(z)
        patch = self.config.along(self.config.patch)
        return super().patches(decomposed(z, self.config.downsampling, patch, self.config.wrapped))

    def predict(self, h: Tensor) -> Tensor:
        if self.config.downsampling == "patch" or self.head is None:
            return super().predict(h)
        patch = self.config.along(self.config.patch)
        return composed(self.head(h), self.config.downsampling, patch, self.config.wrapped)


def with_sid2(config: object) -> SiD2Config | None:
    """The same U-ViT with these parts; None for another network."""
    return SiD2Config(**vars(config)) if type(config) is UViTConfig else None


def decomposed(x: Tensor, wavelet: Wavelet, patch: tuple[int, int], wrapped: tuple[bool, bool]) -> Tensor:
    """(B, C, p H, q W) -> (B, C p q, H, W). patch: p and q, powers of two; wrapped: whether its edges meet, by side."""
    for axis in _axes(patch):
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        high = odd - _near(even, wavelet, axis, 1, wrapped)
        low = even + _near(high, wavelet, axis, -1, wrapped) / 2
        x = torch.cat((low * math.sqrt(2), high / math.sqrt(2)), 1)
    return x


def composed(x: Tensor, wavelet: Wavelet, patch: tuple[int, int], wrapped: tuple[bool, bool]) -> Tensor:
    """The inverse of `decomposed`."""
    for axis in reversed(_axes(patch)):
        low, high = x.chunk(2, 1)
        low, high = low / math.sqrt(2), high * math.sqrt(2)
        even = low - _near(high, wavelet, axis, -1, wrapped) / 2
        odd = high + _near(even, wavelet, axis, 1, wrapped)
        x = torch.stack((even, odd), axis + 1).flatten(axis, axis + 1)
    return x


def _axes(patch: tuple[int, int]) -> list[int]:
    """The axes to be halved, in turn."""
    turns = max(patch).bit_length() - 1
    return [axis for _ in range(turns) for axis, side in ((2, patch[0]), (3, patch[1])) if side > 1]


def _near(x: Tensor, wavelet: Wavelet, axis: int, step: Literal[1, -1], wrapped: tuple[bool, bool]) -> Tensor:
    """The mean of x and the next (1) or the one before it (-1); of haar, x itself."""
    if wavelet == "haar":
        return x
    moved, edge = x.roll(-step, axis), -1 if step == 1 else 0
    if not wrapped[axis - 2]:
        moved.select(axis, edge).copy_(x.select(axis, edge))
    return (x + moved) / 2
