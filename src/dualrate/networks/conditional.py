"""Networks that make an image of a condition y: a latent, a smaller image, an image with a hole, past frames.

    single-rate   v = U-ViT(z_t, log_snr_t, label; y)                                              at every step
    dual-rate     features = P U-ViT(0, log_snr_1, label; y) + maps(y)                                      once
                  v = U-ViT(z_t, log_snr_t, label; features)                                       at every step

    both rates    of_y, own_of_y = as features above, for two networks                                      once
                  features = P U-ViT(z_tau, log_snr_tau, label; own_of_y)                           now and then
                  v = U-ViT(z_t, log_snr_t, log_snr_tau, label; features + of_y)                   at every step

y enters where the levels of a U-ViT begin: one linear map, without bias, from the positions of y to those of the level,
so that a condition of 8 x 8 gives every one of 16 x 16 positions what is its own.

The heavy network of the dual-rate pair is the single-rate one at pure noise: there z_t holds nothing of x, and 0 takes
its place. So it sees y alone, a trained single-rate network can take its part, and its features are right at every
time. `maps` give the light network y itself.

M samples of one condition: y has B rows and z_t B M, as of `context.for_rows`, and whatever was computed of y alone is
added to all M without a copy (`blocks.add_shared`).

Frames that are each made by themselves (`ByLead`), of leads k = k_1 ... k_F after the condition:

    v^k = U-ViT(z_t^k, log_snr_t, k; features)          of the embedding noise(log_snr_t) + lead(k)

So one heavy call serves all members and all lead times, and any of them can be made without the others. One noise for
all frames of a member makes them change together (`SharedNoise`), as in continuous ensemble forecasting (Andrae,
Landelius, Oskarsson, Lindsten 2024, arXiv 2410.05431), whose network sees the condition at every step. With `attention`
the frames of a window are tokens along time: at each place of the last level, those of all frames attend to each other,
or with `causal` to those before them. At first this adds nothing, nor do leads: the network is that of a frame.

A diffusion decoder p(x | z_0) is the case where y is a latent (Unified Latents, arXiv 2602.17270). How z_0 enters the
paper's decoder is not known: this is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.diffusion.context import Shape
from dualrate.networks.blocks import NoiseEmbedding, TransformerBlock, modulated, zero_init
from dualrate.networks.body import BodyConfig
from dualrate.networks.dual import check_pair, of_last, projections


def _ratio(sides: tuple[int, int], of: tuple[int, int]) -> tuple[int, int] | None:
    """The ratio of `sides` to those of `of`, (down, across); None unless both are whole numbers."""
    (down, left_down), (across, left_across) = divmod(sides[0], of[0]), divmod(sides[1], of[1])
    return None if left_down or left_across or not (down and across) else (down, across)


def ratios(shape: Shape, config: BodyConfig) -> list[tuple[tuple[int, int] | None, tuple[int, int] | None]]:
    """For each level, its sides over those of y, (down, across), and the inverse; None for what is no whole number.

    shape: (C, h, w) of y. Raises ValueError for a level where both are None.
    """
    sides_of_y, levels = (shape[1], shape[2]), [config.sides(i) for i in range(config.num_levels)]
    pairs = [(_ratio(sides, sides_of_y), _ratio(sides_of_y, sides)) for sides in levels]
    if (None, None) in pairs:
        listed = ", ".join("{} x {}".format(*sides) for sides in levels)
        raise ValueError(
            f"the sides of a condition of {shape} (C, H, W) are no multiples or divisors of those of the network's "
            f"levels, {listed}: change the network's patch or levels, the factor of super-resolution, or a forecast's "
            "--every"
        )
    return pairs


class ConditionMaps(nn.Module):
    """forward: y, (B, C, h, w) -> its sum for each level of a U-ViT, (B, C_i, H_i, W_i), finest first.

    shape: (C, h, w) of y
    """

    def __init__(self, shape: Shape, config: BodyConfig) -> None:
        super().__init__()
        channels = shape[0]
        self.maps = nn.ModuleList()
        for width, (finer, coarser) in zip(config.widths, ratios(shape, config), strict=True):
            ratio = finer or coarser
            assert ratio is not None
            kind = nn.ConvTranspose2d if finer else nn.Conv2d
            self.maps.append(kind(channels, width, ratio, stride=ratio, bias=False))

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(to_level(y) for to_level in self.maps)


class FrameAttention(TransformerBlock):
    """A block whose tokens attend to those of the other frames at the same place; rows are F frames of a sample each.

    Its positions are those of the embedding: without leads in it, frames may change places, unless it is causal, so
    that a frame sees itself and those before it alone. forward: (h, emb); h: (B F, C, H, W), or (B F, n, C) in a DiT
    """

    def __init__(self, frames: int, channels: int, embedding: int, head_dim: int, *, causal: bool = False) -> None:
        super().__init__(channels, embedding, head_dim, 0.0)
        self.frames, self.causal = frames, causal

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        if h.ndim == 4:
            return super().forward(h, emb)
        h = h + self.attention(modulated(h, self.film1(emb)))
        return h + self.mlp(h, emb)

    def attention(self, tokens: Tensor) -> Tensor:
        """tokens: (B F, n, C)"""
        places = tokens.shape[1]
        along = tokens.unflatten(0, (-1, self.frames)).transpose(1, 2).flatten(0, 1)
        return super().attention(along).unflatten(0, (-1, places)).transpose(1, 2).flatten(0, 1)


class ByLead(nn.Module):
    """A network that is called for each frame of a sample by itself, with the frame's lead.

    forward: (z_t (B, F C, H, W), log_snr (B,), label, added) -> v, as z_t. `added` is of a sample, or of several.

    config: of a frame; leads: F of them, in frames of the training; attention: whether frames see each other; causal:
    whether each sees those before it alone
    """

    leads: Tensor

    def __init__(self, config: BodyConfig, leads: Sequence[int], *, attention: bool, causal: bool = False) -> None:
        super().__init__()
        self.net: Any = config.network()
        self.lead = NoiseEmbedding(config.embedding)
        self.register_buffer("leads", torch.tensor(leads, dtype=torch.float32), persistent=False)
        if attention:
            width = config.widths[-1]
            head = math.gcd(64, width)
            block = FrameAttention(len(leads), width, config.embedding, head, causal=causal)
            config.coarsest(self.net).append(block)
            zero_init(self.lead.mlp[-1])

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()) -> Tensor:
        count = len(self.leads)
        frames = z.unflatten(1, (count, -1)).flatten(0, 1)
        emb = self.net.embedding(log_snr, label).repeat_interleave(count, 0) + self.lead(self.leads).repeat(
            z.shape[0], 1
        )
        v = self.net.called(frames, log_snr.repeat_interleave(count), emb, added)
        return v.unflatten(0, (-1, count)).flatten(1, 2)


def of_frames(config: BodyConfig, leads: Sequence[int] = (), **how: bool) -> nn.Module:
    """The network of a configuration; with leads, called for each frame of a sample, as `ByLead` is told."""
    return ByLead(config, leads, **how) if leads else config.network()


class ConditionalBody(nn.Module):
    """forward: (z_t, log_snr, y, label) -> v. shape: (C, h, w) of y; leads, how: of `ByLead`."""

    def __init__(self, config: BodyConfig, shape: Shape, leads: Sequence[int] = (), **how: bool) -> None:
        super().__init__()
        self.config = config
        self.net: Any = of_frames(config, leads, **how)
        self.latent = ConditionMaps(shape, config)

    def forward(self, z_t: Tensor, log_snr: Tensor, y: Tensor, label: Tensor | None) -> Tensor:
        """z_t: (B M, C, H, W); log_snr: (B M,); y: (B, c, h, w); label: (B M,) int64 or None -> v, as z_t."""
        return self.net(z_t, log_snr, label, self.latent(y))

    def features(self, log_snr: Tensor, y: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The last activation of every level, (B, C_i, H_i, W_i), finest first, and v; with 0 for z_t."""
        z_t = y.new_zeros(y.shape[0], *self.config.shape)
        return self.net.features(z_t, log_snr, label, self.latent(y))


class ConditionEncoder(nn.Module):
    """forward: (log_snr at t = 1, y, label) -> features for a light network, at its widths.

    net:   a `ConditionalBody` without a head
    light: the maps of y itself to the levels of the light network
    shape: (C, h, w) of y
    """

    def __init__(self, config: BodyConfig, light: BodyConfig, shape: Shape) -> None:
        super().__init__()
        check_pair(config, light)
        self.net, self.light = ConditionalBody(config.with_head(False), shape), ConditionMaps(shape, light)
        self.projections = projections(config, light)

    def forward(self, log_snr: Tensor, y: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """log_snr: (B,); y: (B, c, h, w); label: (B,) int64 or None -> (B, light C_i, H_i, W_i), finest first."""
        return sums_at_levels(self.light, self.projections, y, self.net.features(log_snr, y, label)[0])


class ConditionReader(ConditionEncoder):
    """forward: (log_snr at t = 1, y, label) -> features for a light network, then for the encoder of its context.

    Before training, the encoder's features are the maps of y itself (`heavy`) alone.
    """

    def __init__(self, config: BodyConfig, encoder: BodyConfig, light: BodyConfig, shape: Shape) -> None:
        super().__init__(config, light, shape)
        self.heavy, self.to_heavy = ConditionMaps(shape, encoder), projections(config, encoder)
        zero_init(self.to_heavy)

    def forward(self, log_snr: Tensor, y: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """Features, finest first: for the light network as in `ConditionEncoder`, then as many for the encoder."""
        levels, _ = self.net.features(log_snr, y, label)
        light = sums_at_levels(self.light, self.projections, y, levels)
        return light + sums_at_levels(self.heavy, self.to_heavy, y, levels)


def sums_at_levels(
    maps: nn.Module, projections: nn.ModuleList, y: Tensor, levels: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """For each level of a network, the map of y plus the projection of a heavy network's level."""
    pairs = of_last(tuple(zip(maps(y), projections, strict=True)), levels)
    return tuple(mapped + project(level) for (mapped, project), level in pairs)
