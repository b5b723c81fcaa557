"""A context encoder around a network of another library: what its blocks say, read off while it runs.

    feature = sum over taps of project(norm(block's output)) + pixels(x_hat)      at the light network's first level
    context = (feature, x_hat)

Every tap is normalised over its channels, since scales differ by depth, and brought to the light network's positions:
a map that is a multiple as fine by a convolution of that stride, any other by means over the cells that a position
overlaps, which of a divisor is repetition. Nothing has a bias, so that nothing of an absent context reaches the light
network.

Hooks stand on the blocks for the time of one call, and what they see is a value of that call.

A network of another library as the light one: a heavy network's feature joins it after one of its parts.

    part's output + feature + embedding(log_snr_tau)

The embedding begins at zero; a row without a context gets neither. Without features it is that network alone.

A light network of a model's own first and last blocks, beside the model; what the blocks between made is kept.

    heavy, at tau    h_1, ..., h_L, the tokens after each of L blocks;    context = h_(L-K+1) - h_1
    light, at t      block 1 of z_t, + context + embedding(log_snr_tau), the last K - 1 blocks, the head

At t = tau that is the model itself, and before any training the encoder sharing of Delta-DiT (Chen et al. 2024, arXiv
2406.01125), from where training starts: the embedding begins at zero, the blocks as the model's. The first block is
among them since the head of a DiT takes its conditioning from it. Without a context the blocks stand one on another.

For classes whose blocks run in a row, on tokens.

A smaller model of the same data as the light network, beside the heavy one.

    heavy, at tau    feature = sum over taps of project(norm(block's output)) + pixels(x_hat)
    light, at t      stem(z_t) + feature + embedding(log_snr_tau), and on as it always did

The projections begin at zero (as those of Zhang et al. 2023, arXiv 2302.05543), so before training the pair is the
heavy model at heavy steps and the smaller one between them. Each is asked at the same log-SNR in its own convention, so
their schedules and predictions may differ.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import Channels, Range, Ranged, Side
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.schedule import Schedule
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.config import ForeignConfig
from dualrate.from_diffusers.kinds import BLOCKS
from dualrate.from_diffusers.network import ForeignNetwork
from dualrate.from_diffusers.schedulers import Discrete
from dualrate.networks.blocks import NoiseEmbedding, layer_norm
from dualrate.networks.dual import Features, LightNetwork
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


class JoinedLight(LightNetwork):
    """A network of diffusers, joined by one feature. width: channels of the feature."""

    def __init__(self, net: ForeignNetwork, width: int) -> None:
        super().__init__()
        self.net, self.tau = net, NoiseEmbedding(width)
        for weight in self.tau.mlp[-1].parameters():
            nn.init.zeros_(weight)

    @property
    @abstractmethod
    def place(self) -> nn.Module:
        """The part of the network to whose output the feature, the first one, is added."""

    @abstractmethod
    def spread(self, tau: Tensor) -> Tensor:
        """(B, width), as the feature broadcasts."""

    def joined(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, features: Features, tau: Tensor, present: Tensor | None
    ) -> Tensor:
        added = features[0] + self.spread(tau)

        def join(part: nn.Module, given: Any, output: Tensor) -> Tensor:
            return output + added

        hook = self.place.register_forward_hook(join)
        try:
            return self.net(z, log_snr, label)
        finally:
            hook.remove()


COUNT = "num_layers"  # of a configuration


def shorter(model: ForeignConfig, blocks: int) -> ForeignConfig:
    """The model with so many blocks. Raises ValueError for a class whose blocks are not in a row, and too many."""
    config = json.loads(model.config)
    if model.kind != "DiTTransformer2DModel":
        raise ValueError(
            f"a light network of a model's own blocks is known for DiTTransformer2DModel, got {model.kind}: leave it "
            "out, for a fresh one"
        )
    if not 2 <= blocks < config[COUNT]:
        raise ValueError(
            f"of {config[COUNT]} blocks 2 to {config[COUNT] - 1} make a light network, the first and the last ones, "
            f"got {blocks}"
        )
    return replace(model, config=json.dumps({**config, COUNT: blocks}, sort_keys=True))


def of_shorter(weights: Mapping[str, Tensor], whole: int, blocks: int) -> dict[str, Tensor]:
    """Of the weights of a network of `whole` blocks, by name, those of its first and its last `blocks - 1`."""
    kept = {0: 0, **{whole - blocks + place: place for place in range(1, blocks)}}
    found = {}
    for name, tensor in weights.items():
        before, is_block, after = name.partition(f"{BLOCKS}.")
        place, _, rest = after.partition(".")
        if not is_block:
            found[name] = tensor
        elif int(place) in kept:
            found[f"{before}{BLOCKS}.{kept[int(place)]}.{rest}"] = tensor
    return found


class OwnEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> ((context,), v); context: (B, n, C). blocks: of the light network."""

    def __init__(self, net: ForeignNetwork, blocks: int) -> None:
        super().__init__()
        self.net, self.last = net, len(net.blocks) - blocks

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """z: (B, C, H, W); log_snr: (B,)."""
        parts = self.net.blocks
        with outputs([parts[0], parts[self.last]]) as seen:
            v = self.net(z, log_snr, label)
        return (seen[1] - seen[0],), v


class OwnLight(JoinedLight):
    """Joined after the first block."""

    def __init__(self, net: ForeignNetwork) -> None:
        inner: Any = net.net
        super().__init__(net, inner.inner_dim)

    @property
    def place(self) -> nn.Module:
        return self.net.blocks[0]

    def spread(self, tau: Tensor) -> Tensor:
        return tau[:, None]


BEYOND = 0.5  # in log-SNR: so much more noise is none that counts


def stem_of(net: ForeignNetwork, side: int) -> Stem:
    """Of a network of images of that side. Raises what `convolution_of` raises."""
    convolution = convolution_of(net)
    patch = convolution.stride[0]
    return Stem(convolution.in_channels, convolution.out_channels, side // patch, patch)


def convolution_of(net: ForeignNetwork) -> nn.Conv2d:
    """Its stem's. Raises ValueError for a class whose stem is not known."""
    if net.kind.stem is None:
        raise ValueError(
            f"as a light network DiTTransformer2DModel and UNet2DModel are known, got {type(net.net).__name__}: leave "
            "it out, for a fresh one"
        )
    return net.kind.stem(net.net)


def check_reach(light: ForeignConfig, schedule: Schedule) -> None:
    """Raises ValueError where a network is asked for eps of more noise than it knows: x_hat divides by alpha there."""
    spoken, end = light.convention, torch.ones((), dtype=torch.float64)
    if not isinstance(spoken, Discrete) or spoken.predicts != "epsilon":
        return
    known, asked = (float(one.log_snr(end)) for one in (spoken.betas, schedule))
    if asked < known - BEYOND:
        raise ValueError(
            f"{light.source} predicts eps down to log-SNR {known:.3g}, the heavy model is trained down to {asked:.3g}, "
            "where that says nothing of x: name a light network that predicts v or x, a flow, or one of that schedule"
        )


class SiblingEncoder(TappedEncoder):
    """With projections that begin at zero."""

    def __init__(self, net: ForeignNetwork, stem: Stem, taps: Sequence[Tap]) -> None:
        super().__init__(net, stem, taps)
        for weight in (*self.projections.parameters(), *self.pixels.parameters()):
            nn.init.zeros_(weight)


class SiblingLight(JoinedLight):
    """Joined at the stem. x_hat, which an encoder hands over too, stays aside."""

    def __init__(self, net: ForeignNetwork) -> None:
        super().__init__(net, convolution_of(net).out_channels)

    @property
    def place(self) -> nn.Module:
        return convolution_of(self.net)

    def spread(self, tau: Tensor) -> Tensor:
        return tau[..., None, None]
