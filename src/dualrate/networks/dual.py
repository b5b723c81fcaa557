"""The two networks of Dual-Rate Diffusion (arXiv 2605.18190): a context encoder and a light denoiser.

The encoder is a U-ViT, or another network of `body.py`, whose last activation of every level is projected (1x1, no
bias) to the light network's widths, once per heavy call. The light network is one of the same levels, narrower and
shallower, or of the last of them, by a larger patch; each projected feature is added where its level begins. Its
embedding has both noise levels, emb = noise(log_snr_t) + noise(log_snr_tau) + label.

The paper's public description concatenates a feature e and the light network's own activations h, W [h; e] = W_h h +
W_e e (`concatenated.py`), where this adds, h + P e: its reported costs have room for P alone.

An absent context is one state: its row of the features and of the tau embedding is zero. Nothing of a missing context
reaches the light network, since the projections have no bias.

Ours, not the paper's: an encoder with a head also hands over its own x_hat, through a patch projection that joins the
finest level's feature, so that the light network starts from a complete estimate and only corrects it. Beside a model
of another library the encoder hands over x_hat(tau) itself, and the light network's v is a correction of it,

    v = light(...) + gate (alpha_t z_t - x_hat(tau)) / sigma_t

The gate is a linear function of emb, so of both noise levels and the label, 1 at first: before training that is plain
reuse of x_hat(tau). Beside a trained light network (`disconnect`) it is 0.

The widths of the ImageNet recipes' light network are inferred from the costs that the paper reports (44.0 and 73.0 giga
multiply-adds), not stated in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from dualrate.diffusion.prediction import v_from_x, x_from_v
from dualrate.networks.blocks import LinearInFloat32, NoiseEmbedding, zero_init
from dualrate.networks.body import BodyConfig

First = TypeVar("First")
Second = TypeVar("Second")
Features = tuple[Tensor, ...]  # of a context, as the light network takes them


def check_pair(encoder: BodyConfig, light: BodyConfig) -> None:
    """Raise ValueError, with the differences, unless the encoder's features fit the light network.

    It has the encoder's levels, or the last of them, by a larger patch.
    """
    require_same_fields(encoder, light, "shape", "num_classes", "periodic", "across", "poles")
    levels = [[config.sides(i) for i in range(config.num_levels)] for config in (encoder, light)]
    if levels[0][-light.num_levels :] != levels[1]:
        heavy, small = (", ".join("{} x {}".format(*sides) for sides in positions) for positions in levels)
        raise ValueError(
            f"the levels of a light network are those of its encoder, of {heavy} positions, or the last of them, got "
            f"{small}: change its patch or its levels"
        )


def require_same_fields(encoder: object, light: object, *names: str) -> None:
    """Raise ValueError for two configurations that differ in one of these fields."""
    differ = {name: (getattr(encoder, name), getattr(light, name)) for name in names}
    differences = [f"{name} {heavy} and {small}" for name, (heavy, small) in differ.items() if heavy != small]
    if differences:
        raise ValueError(
            f"encoder and light network must have the same {', '.join(names)}, got {', '.join(differences)}"
        )


class ContextEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label, sums for its levels) -> (projected features, v or None).

    x_hat: how its process reads v, from (z_tau, v, log_snr_tau)
    """

    def __init__(
        self, config: BodyConfig, light: BodyConfig, x_hat: Callable[[Tensor, Tensor, Tensor], Tensor] = x_from_v
    ) -> None:
        super().__init__()
        check_pair(config, light)
        self.x_hat = x_hat
        self.net: Any = config.network()
        self.projections = projections(config, light)
        self.pixels = None
        if config.head:
            patch = light.along(light.patch)
            self.pixels = nn.Conv2d(config.image_channels, light.widths[0], patch, stride=patch, bias=False)

    def forward(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Features = ()
    ) -> tuple[Features, Tensor | None]:
        """z: (B, C, H, W); log_snr: (B,). Features: (B, light C_i, H_i, W_i), finest level first."""
        levels, v = self.net.features(z, log_snr, label, added)
        projected = [project(level) for project, level in of_last(list(self.projections), levels)]
        if v is not None and self.pixels is not None:
            projected[0] = projected[0] + self.pixels(self.x_hat(z, v.to(z.dtype), log_snr))
        return tuple(projected), v


def projections(config: BodyConfig, light: BodyConfig) -> nn.ModuleList:
    """1x1 convolutions without bias to each level of the light network, from that of the heavy one."""
    return nn.ModuleList(nn.Conv2d(source, out, 1, bias=False) for out, source in of_last(light.widths, config.widths))


def of_last(light: Sequence[First], heavy: Sequence[Second]) -> Iterator[tuple[First, Second]]:
    """Pairs of what belongs to the levels of a light network, and to the last levels of a heavy one."""
    return zip(light, heavy[-len(light) :], strict=True)


class LightNetwork(nn.Module, ABC):
    """forward: (z_t, log_snr_t, label, features, log_snr_tau, present) -> output.

    net: the light network alone, (z_t, log_snr_t, label) -> output; tau: embeds log_snr_tau
    """

    net: Any  # a module of the subclass
    tau: NoiseEmbedding

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        features: Features = (),
        log_snr_tau: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """z: (B, C, H, W); log_snr, log_snr_tau: (B,); present: (B,) bool, None if every row's context is there.

        Without log_snr_tau there is no context, and the light network runs alone, with features of a condition if any.
        """
        if log_snr_tau is None:
            return self.net(z, log_snr, label, *([features] if features else []))
        return self.joined(z, log_snr, label, features, of_present(self.tau(log_snr_tau), present), present)

    @abstractmethod
    def joined(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, features: Features, tau: Tensor, present: Tensor | None
    ) -> Tensor:
        """The output with a context. tau: (B, E), 0 in rows without one, as the features are."""


class LightBody(LightNetwork):
    """An ordinary small network, a U-ViT or another, to whose levels features are added.

    residual: the last feature is the encoder's own x_hat(tau), which it corrects
    """

    def __init__(self, config: BodyConfig, *, residual: bool = False) -> None:
        super().__init__()
        self.net = config.with_head(True).network()
        self.tau = NoiseEmbedding(config.embedding)
        self.gate = None
        if residual:
            self.gate = LinearInFloat32(config.embedding, 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)

    def joined(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, features: Features, tau: Tensor, present: Tensor | None
    ) -> Tensor:
        emb = self.net.embedding(log_snr, label) + tau
        if self.gate is None:
            return self.net.called(z, log_snr, emb, features)
        *added, x_hat = features
        v = self.net.called(z, log_snr, emb, added)
        gate = of_present(self.gate(emb), present)
        return v + gate[..., None, None] * v_from_x(z, x_hat.to(v.dtype), log_snr)


def of_present(part: Tensor, present: Tensor | None) -> Tensor:
    """The part, (B, C), with 0 in rows without a context. present: (B,) bool, None if every row has one."""
    return part if present is None else part * present[:, None].to(part.dtype)


def disconnect(encoder: nn.Module, light: nn.Module) -> None:
    """Zero every way from an encoder into a `LightBody`: at the start of training, that network alone.

    encoder: with projections, and pixels or None, as a `ContextEncoder` has them
    """
    assert isinstance(light, LightBody)
    assert isinstance(encoder.projections, nn.ModuleList)
    for way in (encoder.projections, encoder.pixels, light.tau.mlp[-1], light.gate):
        if isinstance(way, nn.Module):
            zero_init(way)
