"""The residual U-ViT of SiD2 (Hoogeboom et al. 2024, arXiv 2410.19324), hierarchical, with one skip per resolution.

    h = patchify(z)
    down, level i:  blocks;  before_i = h;  h = Down(h);  after_i = h         Down = average pool 2, convolution
    middle:         blocks
    up, level i:    h = Up(h - after_i) + before_i;  blocks                   Up = convolution, nearest 2
    v = unpatchify(norm, SiLU, zero-init convolution)

If all blocks are the identity, as at initialisation, h - after_i = 0 and `before_i` passes through unchanged.

A level is convolutional or transformer blocks; a single level with transformer blocks is a flat, DiT-like network.
The ImageNet recipes have the layout of arXiv 2403.06807 without its concatenated skips: see `recipes/imagenet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import BelowOne, Channels, Classes, OuterLevels, Range, Ranged, SharedBlocks, Side
from dualrate.diffusion.context import Shape
from dualrate.networks.blocks import (
    ChannelNorm,
    ConvBlock,
    Embedding,
    InFloat32,
    TransformerBlock,
    add_shared,
    attend,
    attention_weights,
    chosen_of,
    conv3,
    doubled,
    modulated,
    require_shape,
    transformer_macs,
    unpatchified,
    with_chosen,
    zero_init,
)
from dualrate.networks.body import BodyConfig

LIGHT = 3  # times the multiply-adds of a light network are its heavy one's, at least: with less two rates save nothing
Skips = list[tuple[Tensor, ...]]  # (before, after) of the module docstring, finest level first


@dataclass(frozen=True)
class Level(Ranged):
    """One resolution."""

    kind: Literal["conv", "transformer"]
    """Kind of blocks: convolutions, or self-attention."""
    channels: Channels
    """Width of the level."""
    blocks: Annotated[int, Range(0, 1000)]
    """Blocks on the way down, and as many again on the way up. The last level is the middle, which runs once."""
    dropout: BelowOne = 0.0
    """Dropout in the blocks, in training."""


@dataclass(frozen=True)
class UViTConfig(BodyConfig):
    """A U-ViT."""

    image_size: Side
    """Width of the images in pixels, and their height unless that is given."""
    image_channels: Annotated[int, Range(1, 1024)]
    """Channels of the images: 1 for grey, 3 for colour."""
    levels: tuple[Level, ...]
    """From the finest resolution to the middle; each halves the one before."""
    num_classes: Classes = 0
    """Number of classes; 0 for an unconditional model. The label after the last class is the null class."""
    patch: Annotated[int, Range(1, 256)] = 1
    """Side of the square of pixels that becomes one position of the first level."""
    embedding: Channels = 256
    """Width of the embedding of noise level and label."""
    head_dim: Annotated[int, Range(1, 1024)] = 64
    """Width of an attention head, a divisor of the channels of every transformer level."""
    head: bool = True
    """Whether the network has a head that predicts v. A context encoder may do without."""
    height: Side | None = None
    """Height of the images, in pixels. 1: fields of one dimension, on a line."""
    periodic: bool = False
    """Whether opposite edges meet, as on a circle or a torus."""
    across: bool = False
    """Whether left and right edges alone meet, as on a sphere."""
    poles: bool = False
    """With this, whether the row beyond a pole is the one before it, half a turn round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels:
            raise ValueError("a U-ViT needs at least one level (the middle)")
        factor = self.patch * 2 ** (len(self.levels) - 1)
        for side in self.shape[1:]:
            if side % factor and not (self.line and side == 1):
                raise ValueError(
                    f"images of side {side} do not divide into patches of {self.patch} over {len(self.levels)} levels: "
                    f"the side must be a multiple of {factor}; pad the images or drop a level"
                )
        if self.poles and (not self.across or self.line or self.image_size % (2 * factor)):
            raise ValueError(
                f"poles want left and right edges that meet, rows, and a width that is a multiple of {2 * factor}, so "
                f"that every level has half a turn; got {self.shape} (C, H, W), across {self.across}: drop poles"
            )

    @property
    def shape(self) -> Shape:
        return self.image_channels, self.height or self.image_size, self.image_size

    @property
    def line(self) -> bool:
        """Whether images have one row: then convolutions, patches and levels go along it."""
        return self.height == 1

    def along(self, count: int) -> tuple[int, int]:
        """This count down and across; on a line 1 down."""
        return 1 if self.line else count, count

    def conv3(self, channels: int, out: int) -> nn.Conv2d:
        """A convolution over three positions of each axis."""
        return conv3(channels, out, line=self.line, periodic=self.wrapped, poles=self.poles)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(level.channels for level in self.levels)

    def network(self) -> UViT:
        return UViT(self)

    def coarsest(self, network: nn.Module) -> nn.ModuleList:
        assert isinstance(network, UViT)
        return network.middle.blocks

    @property
    def macs(self) -> int:
        """Multiply-adds of a call for an image, but for those of the embedding."""
        taps, grids = math.prod(self.along(3)), [math.prod(self.sides(i)) for i in range(self.num_levels)]
        ends = (taps if self.patch == 1 else 1) + taps * self.head  # stem and head
        total = ends * self.numbers * self.widths[0] * grids[0]
        total += sum(2 * fine * coarse * n for (fine, coarse), n in zip(pairwise(self.widths), grids[1:], strict=True))
        for i, (level, n) in enumerate(zip(self.levels, grids, strict=True)):
            conv = level.kind == "conv"
            block = 2 * taps * level.channels**2 * n if conv else transformer_macs(level.channels, n)
            total += block * level.blocks * (2 if i + 1 < self.num_levels else 1)
        return total

    @property
    def numbers(self) -> int:
        """Numbers of a patch."""
        return self.image_channels * math.prod(self.along(self.patch))

    def lighter(self) -> UViTConfig:
        """Half of its transformers' channels and of its middle's blocks, three quarters of its convolutions' channels.

        Below other levels, a middle of transformer blocks becomes one convolution block of as many multiply-adds, which
        takes fewer seconds (docs/results/bodies.md). The finest level keeps at least one channel for every number of a
        patch, for all that the network sees passes through it. Where that leaves more than a part in `LIGHT` of the
        multiply-adds, it has a block less, and the middle those of all blocks.
        """
        light = self._lighter(fewer=0)
        return light if len(self.levels) == 1 or LIGHT * light.macs <= self.macs else self._lighter(fewer=1)

    def _lighter(self, fewer: int) -> UViTConfig:
        """A light network with so many blocks fewer at the finest level."""
        finest, *coarser = self.levels
        lighter = [_lighter(finest, self.numbers), *(_lighter(level) for level in coarser)]
        lighter[0] = replace(lighter[0], blocks=max(0, finest.blocks - fewer))
        middle = lighter[-1] = replace(lighter[-1], blocks=max(1, self.levels[-1].blocks // (1 if fewer else 2)))
        if coarser and middle.kind == "transformer":
            tokens, taps = math.prod(self.sides(len(coarser))), math.prod(self.along(3))
            squares = middle.blocks * transformer_macs(middle.channels, tokens) / (2 * taps * tokens)  # of channels
            lighter[-1] = Level("conv", 8 * max(1, int(math.sqrt(squares) / 8)), 1)
        widths = [level.channels for level in lighter if level.kind == "transformer"]
        return replace(self, levels=tuple(lighter), head_dim=math.gcd(self.head_dim, *widths))

    def with_dropout(self, dropout: float) -> UViTConfig:
        """A copy with this rate of dropout at all levels."""
        return replace(self, levels=tuple(replace(level, dropout=dropout) for level in self.levels))

    def sides(self, level: int) -> tuple[int, int]:
        """Positions down and across at a level."""
        down, across = self.along(self.patch * 2**level)
        return self.shape[1] // down, self.shape[2] // across


def _lighter(level: Level, least: int = 1) -> Level:
    channels = level.channels // 2 if level.kind == "transformer" else -(-level.channels * 3 // 32) * 8
    return replace(level, channels=min(level.channels, max(channels, least)), dropout=0.0)


class Blocks(nn.Module):
    """The blocks of one level, with a learned position per token in front of transformer blocks."""

    def __init__(self, level: Level, sides: tuple[int, int], config: UViTConfig) -> None:
        super().__init__()
        self.level = level
        tokens = level.kind == "transformer"
        self.position = nn.Parameter(0.02 * torch.randn(1, level.channels, *sides)) if tokens else None
        self.blocks = nn.ModuleList(self.block(level, config) for _ in range(level.blocks))

    @staticmethod
    def block(level: Level, config: UViTConfig) -> nn.Module:
        if level.kind == "transformer":
            return TransformerBlock(level.channels, config.embedding, config.head_dim, level.dropout)
        edges = {"line": config.line, "periodic": config.wrapped, "poles": config.poles}
        return ConvBlock(level.channels, config.embedding, level.dropout, **edges)

    def forward(self, h: Tensor, emb: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """Blocks `begin` to `end` (exclusive; None: to the last), the positions in front of block 0."""
        if self.position is not None and begin == 0:
            h = h + self.position.to(h.dtype)
        for block in list(self.blocks)[begin:end]:
            h = block(h, emb)
        return h


class Head(InFloat32, nn.Sequential):
    """The last layers, from the last activation to v or logits."""


class UViT(nn.Module):
    """forward: (z, log_snr, label) -> v. `features`: also the last activation of every level."""

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        levels, first = config.levels, config.levels[0].channels
        self.embedding = Embedding(config.embedding, config.num_classes)
        patch = config.along(config.patch)
        self.stem: nn.Module = nn.Conv2d(config.image_channels, first, patch, stride=patch)
        if config.patch == 1:
            self.stem = config.conv3(config.image_channels, first)
        self.down = nn.ModuleList(Blocks(level, config.sides(i), config) for i, level in enumerate(levels[:-1]))
        self.middle = Blocks(levels[-1], config.sides(len(levels) - 1), config)
        self.up = nn.ModuleList(Blocks(level, config.sides(i), config) for i, level in enumerate(levels[:-1]))

        def resample(source: Level, target: Level) -> nn.Conv2d:
            conv = nn.Conv2d(source.channels, target.channels, 1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)  # so that `grow` adds nothing while h - after is zero
            return conv

        self.shrink = nn.ModuleList(resample(a, b) for a, b in pairwise(levels))
        self.grow = nn.ModuleList(resample(b, a) for a, b in pairwise(levels))
        self.head = None
        if config.head:
            out = zero_init(config.conv3(first, config.image_channels * math.prod(patch)))
            self.head = Head(ChannelNorm(first), nn.SiLU(), out)

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()) -> Tensor:
        """z: (B, C, H, W); log_snr: (B,); label: (B,) int64 or None -> v: (B, C, H, W) float32. added: see `trunk`."""
        return self.called(z, log_snr, self.embedding(log_snr, label), added)

    def called(self, z: Tensor, log_snr: Tensor, emb: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """v. emb: the embedding of noise level and label; other arguments: of `forward`."""
        return self.predict(self.trunk(z, emb, added)[0])

    def features(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """(one (B, C_i, H_i, W_i) per level, finest first; v, or None without a head). added: see `trunk`."""
        levels = self.trunk(z, self.embedding(log_snr, label), added)
        return levels, None if self.head is None else self.predict(levels[0])

    def trunk(self, z: Tensor, emb: Tensor, added: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The last activation of every level, finest first.

        added: one tensor for each of the first levels; it joins the activations where the level begins (`add_shared`)
        """
        h, skips = self.descend(self.patches(z), emb, added)
        return self.ascend(self.middle(h, emb), skips, emb)

    def patches(self, z: Tensor) -> Tensor:
        """The input of the first level."""
        return self.stem(z.contiguous(memory_format=torch.channels_last))

    def descend(
        self, h: Tensor, emb: Tensor, added: Sequence[Tensor] = (), begin: int = 0, end: int | None = None
    ) -> tuple[Tensor, Skips]:
        """The way down from the input h of level `begin` to that of level `end` (None: the middle), and (before, after)
        of every level on it. added: see `trunk`.
        """

        def joined(h: Tensor, i: int) -> Tensor:
            return add_shared(h, added[i]) if i < len(added) else h

        skips: Skips = []
        for i in range(begin, len(self.down) if end is None else end):
            before = self.down[i](joined(h, i), emb)
            h = self.shrink[i](F.avg_pool2d(before, self.config.along(2)))
            skips.append((before, h))
        return joined(h, len(self.down)), skips

    def ascend(self, h: Tensor, skips: Skips, emb: Tensor, begin: int = 0) -> tuple[Tensor, ...]:
        """The way up over the levels of the skips, the finest of which is level `begin`, from the output h of the level
        below them: the last activation of each, finest first, and h.
        """
        last = [h]
        for i, (before, after) in reversed(list(enumerate(skips, begin))):
            h = self.up[i](doubled(self.grow[i](h - after), line=self.config.line) + before, emb)
            last.append(h)
        return tuple(reversed(last))

    def cut(self, outer: int) -> UViTCut:
        """This network, its levels from `outer` on apart. Raises ValueError where that cannot be, as `UViTCut`."""
        return UViTCut(self, outer)

    def token_cut(self, scores: bool) -> UViTTokens:
        """This network, its middle in tokens. Raises ValueError where that has no attention, as `UViTTokens`."""
        return UViTTokens(self, len(self.down), scores=scores)

    def predict(self, h: Tensor) -> Tensor:
        """v of the finest level's last activation, in float32 whatever precision the trunk ran in."""
        if self.head is None:
            raise ValueError("this U-ViT was built without a head (UViTConfig.head): it has features, but no v")
        return unpatchified(self.head(h), self.config.along(self.config.patch))


@dataclass(frozen=True)
class UViTCut(Ranged):
    """A U-ViT in two: the inside, levels from `outer` on, by the sum that they add to their input; and the rest.

    outer:  0 to the number of levels above the middle. 0: only patches and head are outside
    blocks: where the middle alone is inside, the number of its first blocks that are; None: all
    """

    network: UViT
    outer: OuterLevels
    blocks: SharedBlocks | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        above = len(self.network.config.levels) - 1
        if self.outer > above:
            raise ValueError(
                f"outer is the number of levels that run at every step, 0 to {above} in this network of {above + 1}, "
                f"got {self.outer}"
            )
        middle = self.network.config.levels[-1].blocks
        if self.blocks is not None and (self.outer < above or self.blocks > middle):
            raise ValueError(f"a refresh serves the first blocks, 1 to {middle} in this network, got {self.blocks}")
        if self.network.head is None:
            raise ValueError("this U-ViT was built without a head, so it cannot denoise: cut one that predicts v")

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum that the inside adds, (B, C, h, w) of level `outer`, and the network's v. Arguments: its own."""
        net, emb, h, skips = self.outside(z, log_snr, label)
        inner, inner_skips = net.descend(h, emb, begin=self.outer)
        out = net.ascend(net.middle(inner, emb, end=self.blocks), inner_skips, emb, begin=self.outer)[0]
        return out - h, self._v(out, skips, emb)

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v by the outside alone. added: the sum of the inside; raises ValueError where it has another shape."""
        _, emb, h, skips = self.outside(z, log_snr, label)
        require_shape(added, h)
        return self._v(h + added, skips, emb)

    def _v(self, out: Tensor, skips: Skips, emb: Tensor) -> Tensor:
        """v of the inside's output."""
        out = out if self.blocks is None else self.network.middle(out, emb, begin=self.blocks)
        return self.network.predict(self.network.ascend(out, skips, emb)[0])

    def outside(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[UViT, Tensor, Tensor, Skips]:
        """The network, its embedding, the input of level `outer`, and the skips of the way down to it."""
        emb = self.network.embedding(log_snr, label)
        return self.network, emb, *self.network.descend(self.network.patches(z), emb, end=self.outer)


@dataclass(frozen=True)
class UViTTokens(UViTCut):
    """A U-ViT whose middle's attention can be kept, and the rest of it run for some tokens alone.

    With the output of attention kept, a_i, no token depends on another. Block by block the tokens that are chosen there
    get a new sum, s_i, and all tokens have theirs added:

        s_i <- a_i + MLP(h_i + a_i), then h_i <- h_i + s_i

    scores: whether a whole call counts the attention that tokens receive; on a GPU this changes the rounding of v
    """

    scores: bool = False

    def __post_init__(self) -> None:
        if self.network.middle.position is None or not self._blocks:
            raise ValueError("tokens are kept of a middle level of transformer blocks, and this U-ViT has none there")
        super().__post_init__()

    def whole(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: Tensor, log_snr: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums that the blocks of the middle add to its n tokens, and those of attention, (B, blocks, n, C); the
        attention that tokens receive from all n, (B, blocks, n), a mean over heads, 0 without `scores`; and v.
        """
        tokens, emb, ended = self._middle(z, log_snr, label)
        sums, attention, received = list[Tensor](), list[Tensor](), list[Tensor]()
        for block in self._blocks:
            q, k, v = block.heads_of(modulated(tokens, block.film1(emb)))
            weights = attention_weights(q, k) if self.scores else None
            received.append(tokens.new_zeros(tokens.shape[:2]) if weights is None else weights.mean(1).sum(1))
            attention.append(block.joined(attend(q, k, v) if weights is None else weights.to(v.dtype) @ v))
            before, tokens = tokens, tokens + attention[-1]
            tokens = tokens + block.mlp(tokens, emb)
            sums.append(tokens - before)
        return torch.stack(sums, 1), torch.stack(attention, 1), torch.stack(received, 1), ended(tokens)

    def part(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, sums: Tensor, attention: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums of `whole`, made anew for the tokens that are chosen in each block, (B, blocks, k); and v.

        Raises ValueError where `sums` has another shape.
        """
        (tokens, emb, ended), renewed = self._middle(z, log_snr, label), list[Tensor]()
        require_shape(sums[:, 0], tokens)
        by_block = (each.unbind(1) for each in (sums, attention, chosen))
        for block, added, of_block, places in zip(self._blocks, *by_block, strict=True):
            some = chosen_of(tokens, places)
            mixed = some + chosen_of(of_block, places)
            renewed.append(with_chosen(added, places, mixed + block.mlp(mixed, emb) - some))
            tokens = tokens + renewed[-1]
        return torch.stack(renewed, 1), ended(tokens)

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the middle's blocks. added: what they add, (B, n, C); raises ValueError for another shape."""
        tokens, _, ended = self._middle(z, log_snr, label)
        require_shape(added, tokens)
        return ended(tokens + added)

    @property
    def _blocks(self) -> list[TransformerBlock]:
        return [cast(TransformerBlock, block) for block in self.network.middle.blocks]

    def _middle(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Its tokens with their positions, (B, n, C), the embedding, and what makes v of the tokens after it."""
        net, emb, h, skips = self.outside(z, log_snr, label)
        tokens = (h + cast(Tensor, net.middle.position).to(h.dtype)).flatten(2).transpose(1, 2)
        return tokens, emb, lambda after: self._v(after.transpose(1, 2).unflatten(2, h.shape[2:]), skips, emb)
