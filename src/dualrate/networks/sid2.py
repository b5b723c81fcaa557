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

Skips of every block, as in U-Nets and simple diffusion, where SiD2 and ours have a residual one a level: block j of B
on the way up of a level has W_j [h; s_(B-j)], h what comes up, s_i what block i = 1 ... B of the way down gave, W_j a
1 x 1 convolution of the two, concatenated. Nothing is subtracted from h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.networks.blocks import Block, ConvBlock, add_shared, doubled, no_autocast
from dualrate.networks.uvit import Blocks, Skips, UViT, UViTConfig

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

    skips: Literal["residual", "concatenated"] = "residual"
    """Skips from the way down to the way up: one sum a level, as in SiD2 (residual), or each block's output, as in
    simple diffusion (concatenated)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skips == "concatenated" and not all(level.blocks for level in self.levels[:-1]):
            raise ValueError(
                "concatenated skips are of blocks, and a level has none: give it one, or leave skips residual"
            )
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
        above = enumerate(self.levels[:-1])
        joins = sum(2 * level.blocks * level.channels**2 * math.prod(self.sides(i)) for i, level in above)
        return super().macs + stem * (self.downsampling != "patch") + joins * (self.skips == "concatenated")


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
        self.joins: Any = None
        if config.skips == "concatenated":
            self.joins = nn.ModuleList(
                nn.ModuleList(nn.Conv2d(2 * level.channels, level.channels, 1) for _ in range(level.blocks))
                for level in config.levels[:-1]
            )

    def descend(
        self, h: Tensor, emb: Tensor, added: Sequence[Tensor] = (), begin: int = 0, end: int | None = None
    ) -> tuple[Tensor, Skips]:
        """The way down, as of a U-ViT. skips: concatenated ones are every block's output."""
        if self.joins is None:
            return super().descend(h, emb, added, begin, end)
        skips: Skips = []
        for i in range(begin, len(self.down) if end is None else end):
            h, outputs = add_shared(h, added[i]) if i < len(added) else h, list[Tensor]()
            for j in range(self.config.levels[i].blocks):
                h = self.down[i](h, emb, j, j + 1)
                outputs.append(h)
            h = self.shrink[i](F.avg_pool2d(h, self.config.along(2)))
            skips.append(tuple(outputs))
        return add_shared(h, added[-1]) if end is None and len(added) > len(self.down) else h, skips

    def ascend(self, h: Tensor, skips: Skips, emb: Tensor, begin: int = 0) -> tuple[Tensor, ...]:
        if self.joins is None:
            return super().ascend(h, skips, emb, begin)
        last = [h]
        for i, outputs in reversed(list(enumerate(skips, begin))):
            h = doubled(self.grow[i](h), line=self.config.line)
            for j, (join, output) in enumerate(zip(self.joins[i], reversed(outputs), strict=True)):
                h = self.up[i](join(torch.cat((h, output), 1)), emb, j, j + 1)
            last.append(h)
        return tuple(reversed(last))

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
