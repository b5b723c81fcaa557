"""A context encoder around a network of another library: what its blocks say, read off while it runs.

    feature = sum over taps of project(norm(block's output)) + pixels(x_hat)      at the light network's first level
    context = (feature, x_hat)

Every tap is normalised over its channels, since scales differ by depth, and brought to the light network's positions:
a map that is a multiple as fine by a convolution of that stride, any other by means over the cells that a position
overlaps, which of a divisor is repetition. Nothing has a bias, so that nothing of an absent context reaches the light
network.

Hooks stand on the blocks for the time of one call, and what they see is a value of that call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import Channels, Range, Ranged, Side
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.values import Shape
from dualrate.foreign.network import ForeignNetwork
from dualrate.networks.blocks import layer_norm
from dualrate.networks.uvit import UViTConfig


@dataclass(frozen=True)
class Stem:
    """Where a light network takes a feature in: (B, width, side, side), a position for each patch of the image."""

    image_channels: int
    width: int
    side: int
    patch: int

    @staticmethod
    def of(light: UViTConfig) -> Stem:
        """At the finest level."""
        return Stem(light.image_channels, light.levels[0].channels, light.side(0), light.patch)


@dataclass(frozen=True)
class Tap(Ranged):
    """The output of a block of the network: (B, channels, side, side), or that many tokens."""

    block: Annotated[int, Range(0, 10_000)]
    """Which, in the order in which they run."""
    channels: Channels
    side: Side


@contextmanager
def outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """What each of the blocks returned last; None before."""
    seen: list[Any] = [None] * len(blocks)

    def note(place: int) -> Any:
        return lambda block, given, output: seen.__setitem__(place, output)

    hooks = [block.register_forward_hook(note(place)) for place, block in enumerate(blocks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def as_map(output: Tensor) -> Tensor:
    """(B, C, h, w) of a map, or of tokens (B, n, C) on a square."""
    if output.ndim == 4:
        return output
    side = round(output.shape[1] ** 0.5)
    return output.transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
def taps_of(network: ForeignNetwork, shape: Shape, blocks: Sequence[int] | None = None) -> list[Tap]:
    """The taps on these blocks; None: at a third and two thirds of the depth, and the last. Runs the network once.

    Raises ValueError for a network that has no such blocks.
    """
    parts = network.blocks
    if blocks is None:
        blocks = sorted({max(len(parts) * share // 3 - 1, 0) for share in (1, 2, 3)}) if parts else []
    if wrong := [block for block in blocks if not 0 <= block < len(parts)]:
        raise ValueError(f"{type(network.net).__name__} has blocks 0 to {len(parts) - 1}, got {wrong}")
    device = next(network.parameters()).device
    with outputs([parts[block] for block in blocks]) as seen:
        label = torch.zeros(1, dtype=torch.int64, device=device) if network.num_classes else None
        network(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device), label)
    maps = [as_map(network.kind.tapped(output)) for output in seen]
    return [Tap(block, made.shape[1], made.shape[2]) for block, made in zip(blocks, maps, strict=True)]


class Projection(nn.Module):
    """A tap's map at the light network's positions. (B, C, side, side) -> (B, width, positions, positions)."""

    def __init__(self, tap: Tap, width: int, positions: int) -> None:
        super().__init__()
        stride = 1 if tap.side % positions else tap.side // positions
        self.positions = positions
        self.conv = nn.Conv2d(tap.channels, width, stride, stride=stride, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        h = self.conv(layer_norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return h if h.shape[2] == self.positions else F.adaptive_avg_pool2d(h, self.positions)


class TappedEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> ((feature, x_hat), v), for a `LightUViT` that corrects x_hat."""

    def __init__(self, net: ForeignNetwork, stem: Stem, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.net, self.taps = net, tuple(taps)
        self.projections = nn.ModuleList(Projection(tap, stem.width, stem.side) for tap in taps)
        self.pixels = nn.Conv2d(stem.image_channels, stem.width, stem.patch, stride=stem.patch, bias=False)

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """z: (B, C, H, W); log_snr: (B,)."""
        parts = self.net.blocks
        with outputs([parts[tap.block] for tap in self.taps]) as seen:
            v = self.net(z, log_snr, label)
        x_hat = x_from_v(z, v, log_snr)
        feature = self.pixels(x_hat)
        for project, output in zip(self.projections, seen, strict=True):
            feature = feature + project(as_map(self.net.kind.tapped(output)))
        return (feature, x_hat), v
