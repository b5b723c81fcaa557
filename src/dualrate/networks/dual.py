"""The two networks of Dual-Rate Diffusion (arXiv 2605.18190): a context encoder and a light denoiser.

The encoder is a U-ViT whose last activation of *every* level is projected (1x1, no bias) to the light network's widths,
once per heavy call. The light network is a U-ViT of the same levels, narrower and shallower; each projected feature is
added where its level begins. Its embedding has both noise levels: emb = noise(log_snr_t) + noise(log_snr_tau) + label.
`ContextConfig` hands over less, for ablations.

`ContextConfig.join` says how a feature e meets the light network's own activations h at a level of C channels:

    add      h + P e                         P: the projection
    concat   W [h; e] = W_h h + W_e e        W: (C, C + C_e), a 1x1 convolution of the two, concatenated

Since W_e e is P e, concatenation is W_h more: C^2 multiply-adds at each of the level's positions, and that at every
step, while W_e e is still computed once per heavy call. The paper's public description concatenates; its reported costs
have room for P alone. W_h is the identity at first (ours), so that both begin as the same network.

An absent context is one state: its row of the features and of the tau embedding is zero. Nothing of a missing context
reaches the light network, since the projections have no bias.

Ours, not the paper's: an encoder with a head also hands over its own x_hat, through a patch projection that joins the
finest level's feature, so that the light network starts from a complete estimate and only corrects it.

Beside a model of another library the encoder also hands over x_hat(tau), and the light network corrects it:

    v = light(...) + gate kept(x_hat(tau)),    kept: the v at z_t whose x_hat that is

The gate is a linear function of emb, so of both noise levels and the label. It is 1 at first, which is plain reuse;
beside a trained light network (`disconnect`) it is 0.

The widths of the ImageNet recipes' light network are inferred from the costs that the paper reports (44.0 and 73.0 giga
multiply-adds), not stated in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from torch import Tensor, nn

from dualrate.config.ranges import Channels, Range, Ranged
from dualrate.diffusion.prediction import v_from_x, x_from_v
from dualrate.networks.blocks import InFloat32, NoiseEmbedding
from dualrate.networks.uvit import Level, UViT, UViTConfig


@dataclass(frozen=True)
class ContextConfig(Ranged):
    """What of the encoder reaches the light network."""

    levels: Annotated[int, Range(1, 16)] | None = None
    """How many levels hand over a feature, finest first; 1: the encoder's last activation alone. All if not given."""
    width: Channels | None = None
    """Channels that a feature is squeezed through on its way; not squeezed if not given."""
    join: Literal["add", "concat"] = "add"
    """How a feature meets the light network's own: its projection is added, or the two are concatenated and then
    projected."""


def check_pair(encoder: UViTConfig, light: UViTConfig, context: ContextConfig) -> None:
    """Raises ValueError, which says what differs, unless the encoder's features fit the light network."""
    shared = ("image_size", "image_channels", "num_classes", "patch")
    differ = {name: (getattr(encoder, name), getattr(light, name)) for name in shared}
    differ["number of levels"] = len(encoder.levels), len(light.levels)
    differences = [f"{name} {one} and {other}" for name, (one, other) in differ.items() if one != other]
    if differences:
        raise ValueError(
            f"encoder and light network must have the same {', '.join(shared)} and number of levels, "
            f"got {', '.join(differences)}"
        )
    if (context.levels or 1) > len(light.levels):
        raise ValueError(
            f"these networks have {len(light.levels)} levels, so {context.levels} cannot hand over a feature"
        )


class ContextEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> (projected features, v or None)."""

    def __init__(self, config: UViTConfig, light: UViTConfig, context: ContextConfig = ContextConfig()) -> None:
        super().__init__()
        check_pair(config, light, context)
        self.net = UViT(config)
        pairs = list(zip(config.levels, light.levels, strict=True))
        self.projections = nn.ModuleList(
            projection(heavy.channels, narrow.channels, context.width) for heavy, narrow in pairs[: context.levels]
        )
        self.pixels = None
        if config.head:
            self.pixels = nn.Conv2d(
                config.image_channels, light.levels[0].channels, config.patch, stride=config.patch, bias=False
            )

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """z: (B, C, H, W); log_snr: (B,). Features: (B, light C_i, H_i, W_i), finest level first."""
        levels, v = self.net.features(z, log_snr, label)
        projected = [project(level) for project, level in zip(self.projections, levels, strict=False)]
        if v is not None and self.pixels is not None:
            projected[0] = projected[0] + self.pixels(x_from_v(z, v.to(z.dtype), log_snr))
        return tuple(projected), v


def projection(channels: int, to: int, width: int | None) -> nn.Module:
    """A 1x1 convolution without bias, of rank `width` at most."""
    if width is None:
        return nn.Conv2d(channels, to, 1, bias=False)
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, to, 1, bias=False))


def unchanged(channels: int) -> nn.Conv2d:
    """A 1x1 convolution without bias, the identity at first: W_h of the module docstring."""
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(conv.weight)
    return conv


class Gate(InFloat32, nn.Linear):
    """Of the encoder's own estimate in the light network's."""


class LightUViT(nn.Module):
    """forward: (z_t, log_snr_t, label, features, log_snr_tau, present) -> v. No features: an ordinary small U-ViT.

    residual: the last feature is x_hat(tau) of the encoder, which it corrects
    concat:   the first levels at which a feature is concatenated with its own activations, not added to them; 0: none
    """

    def __init__(self, config: UViTConfig, *, residual: bool = False, concat: int = 0) -> None:
        super().__init__()
        self.net = UViT(replace(config, head=True))
        self.tau = NoiseEmbedding(config.embedding)
        self.gate = None
        if residual:
            self.gate = Gate(config.embedding, 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)
        self.own = nn.ModuleList(unchanged(level.channels) for level in config.levels[:concat])

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        features: tuple[Tensor, ...] = (),
        log_snr_tau: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """z: (B, C, H, W); log_snr, log_snr_tau: (B,); present: (B,) bool, None if every row's context is there."""
        emb = self.net.embedding(log_snr, label)
        if log_snr_tau is not None:
            emb = emb + of_present(self.tau(log_snr_tau), present)
        if self.gate is None or log_snr_tau is None:
            return self.net.predict(self.net.trunk(z, emb, features, self.own)[0])
        *added, own = features  # zero in absent rows
        v = self.net.predict(self.net.trunk(z, emb, added, self.own)[0])
        gate = of_present(self.gate(emb), present)
        return v + gate[..., None, None] * kept(z, own.to(v.dtype), log_snr)


def of_present(part: Tensor, present: Tensor | None) -> Tensor:
    """part: (B, C), 0 in rows without a context. present: (B,) bool, None if every row has one."""
    return part if present is None else part * present[:, None].to(part.dtype)


def kept(z: Tensor, x_tau: Tensor, log_snr: Tensor) -> Tensor:
    """The v at z_t whose x_hat is that of tau: (alpha_t z_t - x_hat(tau)) / sigma_t: (B, C, H, W)."""
    return v_from_x(z, x_tau, log_snr)


def last_weights(projections: nn.ModuleList) -> list[nn.Parameter]:
    """Of each one, what makes it 0 when it is; both of two factors would stay 0 for good."""
    return [list(projection.parameters())[-1] for projection in projections]


def disconnect(encoder: nn.Module, light: nn.Module) -> None:
    """Zero every way from an encoder into a `LightUViT`: at the start of training, that network alone.

    encoder: with projections, and pixels or None, as a `ContextEncoder` has them
    """
    assert isinstance(light, LightUViT)
    assert isinstance(encoder.projections, nn.ModuleList)
    ways = [*last_weights(encoder.projections), *light.tau.mlp[-1].parameters()]
    if isinstance(encoder.pixels, nn.Module):
        ways += encoder.pixels.parameters()
    if light.gate is not None:
        ways += light.gate.parameters()
    for way in ways:
        nn.init.zeros_(way)


def light_of(heavy: UViTConfig) -> UViTConfig:
    """A light network beside a heavy one: half of its transformers' channels and of its middle's blocks, three
    quarters of its convolutions' channels.

    Its finest level keeps at least one channel for every number of a patch, for all that it sees passes through it.
    """
    finest, *others = heavy.levels
    lighter = [_lighter(finest, heavy.patch**2 * heavy.image_channels), *(_lighter(level) for level in others)]
    lighter[-1] = replace(lighter[-1], blocks=max(1, heavy.levels[-1].blocks // 2))
    widths = [level.channels for level in lighter if level.kind == "transformer"]
    return replace(heavy, levels=tuple(lighter), head_dim=math.gcd(heavy.head_dim, *widths))


def _lighter(level: Level, least: int = 1) -> Level:
    channels = level.channels // 2 if level.kind == "transformer" else -(-level.channels * 3 // 32) * 8
    return replace(level, channels=min(level.channels, max(channels, least)), dropout=0.0)
