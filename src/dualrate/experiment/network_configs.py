"""Networks of an experiment: configurations that build them, and say what the rest must know of them.

`NetworksConfig` is the seam for networks of your own (docs/extending.md, examples/own_networks.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Ranged, Side
from dualrate.denoisers.denoiser import Decoder, Denoiser, DualRate, DualRateDecoder, Plain
from dualrate.diffusion.categorical import NoisePlanes  # noqa: F401  # a file may name it
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.networks.decoder import DecoderUViT, LatentEncoder
from dualrate.networks.dual import ContextEncoder, LightUViT, check_pair, disconnect, light_of
from dualrate.networks.tokens import LightTokens, TokenEncoder, TokensConfig, TokenTransformer, check_tokens
from dualrate.networks.uvit import UViT, UViTConfig

Light = TypeVar("Light")


class NetworksConfig(ABC):
    """Builds networks and the denoiser that calls them. A subclass is a frozen dataclass.

    It must have `build`, `shape` and `num_classes`, and `roles` where these are not ("encoder", "light"). All else has
    a default, or refuses what it does not know.

    bfloat16_weights: whether all linear layers and convolutions run under autocast, but for those of `InFloat32`;
                      sampling in bfloat16 then holds their weights in it
    """

    bfloat16_weights = False

    @abstractmethod
    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks by their roles, with random weights, and the denoiser that calls them."""

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        """The U-ViT of each role; none for networks that are no U-ViTs, which say roles, shape and classes."""
        return {}

    @property
    def roles(self) -> tuple[str, ...]:
        """What its networks are called; ("model",) is a single-rate model."""
        return tuple(self.configs) or ("encoder", "light")

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image, or of its latent."""
        return next(iter(self.configs.values())).shape

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model."""
        return next(iter(self.configs.values())).num_classes

    @property
    def null_class(self) -> bool:
        """Whether label `num_classes` stands for no class, as guidance needs."""
        return self.num_classes > 0

    @property
    def latent(self) -> Shape | None:
        """(C, h, w) of the z_0 that a decoder is given; None: it is no decoder."""
        return None

    @property
    def noise(self) -> int:
        """Planes of noise that it reads beside a state."""
        return 0

    @property
    def single_rate(self) -> bool:
        """Whether it is one network, called alike at every noise level."""
        return self.roles == ("model",)

    @property
    def kind(self) -> str:
        """What a model of these networks is, as errors say it."""
        return "a single-rate model" if self.single_rate else "a dual-rate model"

    def with_dropout(self, dropout: float | None) -> NetworksConfig:
        """With one rate of dropout; None: as it is. Raises ValueError where there are no U-ViTs."""
        if dropout is None:
            return self
        if not self.configs:
            raise ValueError(f"{type(self).__name__} has no dropout to set: drop the rate of {dropout}")
        return replace(self, **{role: config.with_dropout(dropout) for role, config in self.configs.items()})  # pyright: ignore[reportArgumentType]

    def with_noise(self, planes: int) -> NetworksConfig:
        """Reading so many planes of noise beside a state (`NoisePlanes`). Raises ValueError where it has no input."""
        if planes:
            raise ValueError(f"{type(self).__name__} reads no noise beside its states, got {planes} planes: take 0")
        return self

    def beside(self, light: object, name: str) -> NetworksConfig:
        """This network as an encoder, with a light one; None: one in proportion to it. name: what the user calls it.

        Raises ValueError where no light network is laid out beside such a one, or `light` is of another kind.
        """
        raise ValueError(
            f"no light network is laid out beside a network such as that of {name}: make it dual-rate first (dualrate "
            f"retrofit {name} --out RUN), then add --student-from RUN"
        )

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The part of a role that a single-rate model has too, for starts from its weights: all, unless overridden."""
        return networks[role]

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of a single-rate model's weights those that a role's `backbone` starts from: all, unless overridden."""
        return weights

    def disconnect(self, networks: nn.ModuleDict) -> None:  # noqa: B027  # one network has nothing to take away
        """Set to zero what the encoder contributes to the light network, for a start from trained ones."""


def of_kind(kind: type[Light], light: object, name: str) -> Light:
    """The light network of a recipe. Raises ValueError unless it is of this kind, as the network of `name` is."""
    if not isinstance(light, kind):
        raise ValueError(
            f"the recipe's light network is a {type(light).__name__}, and {name} has a {kind.__name__}: take a recipe "
            "of such models (auto is one of any)"
        )
    return light


@dataclass(frozen=True)
class OneNetwork(NetworksConfig):
    """A single-rate model."""

    model: UViTConfig
    bfloat16_weights = True

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = UViT(self.model)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"model": self.model}

    def beside(self, light: object, name: str) -> TwoNetworks:
        found = light_of(self.model) if light is None else of_kind(UViTConfig, light, name)
        return TwoNetworks(self.model, replace(found, num_classes=self.model.num_classes))


@dataclass(frozen=True)
class TwoNetworks(NetworksConfig):
    """A dual-rate model. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: UViTConfig
    light: UViTConfig
    bfloat16_weights = True

    def __post_init__(self) -> None:
        check_pair(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = ContextEncoder(self.encoder, self.light), LightUViT(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"encoder": self.encoder, "light": self.light}

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The U-ViT of a role, without the projections of contexts and the embedding of tau."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        disconnect(networks["encoder"], networks["light"])


@dataclass(frozen=True)
class OneTransformer(NetworksConfig):
    """A single-rate model of tokens."""

    model: TokensConfig
    bfloat16_weights = True

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = TokenTransformer(self.model)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model",)

    @property
    def shape(self) -> Shape:
        return self.model.shape

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def noise(self) -> int:
        return self.model.noise

    def beside(self, light: object, name: str) -> TwoTransformers:
        found = self.model.lighter() if light is None else of_kind(TokensConfig, light, name)
        same = {name: getattr(self.model, name) for name in ("vocabulary", "width", "height", "patch", "num_classes")}
        return TwoTransformers(self.model, replace(found, **same))

    def with_noise(self, planes: int) -> OneTransformer:
        return replace(self, model=self.model.with_noise(planes))

    def with_dropout(self, dropout: float | None) -> OneTransformer:
        return self if dropout is None else replace(self, model=self.model.with_dropout(dropout))

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _reading_noise(self.model, weights)


@dataclass(frozen=True)
class TwoTransformers(NetworksConfig):
    """A dual-rate model of tokens. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: TokensConfig
    light: TokensConfig
    bfloat16_weights = True

    def __post_init__(self) -> None:
        check_tokens(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = TokenEncoder(self.encoder, self.light), LightTokens(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    @property
    def shape(self) -> Shape:
        return self.light.shape

    @property
    def num_classes(self) -> int:
        return self.light.num_classes

    @property
    def noise(self) -> int:
        return self.light.noise

    def with_noise(self, planes: int) -> TwoTransformers:
        return replace(self, encoder=self.encoder.with_noise(planes), light=self.light.with_noise(planes))

    def with_dropout(self, dropout: float | None) -> TwoTransformers:
        if dropout is None:
            return self
        return replace(self, encoder=self.encoder.with_dropout(dropout), light=self.light.with_dropout(dropout))

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _reading_noise(self.encoder if role == "encoder" else self.light, weights)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The transformer of a role, without what joins the two."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        light = networks["light"]
        assert isinstance(light, LightTokens)
        parts = networks.get_submodule("encoder.projections"), light.tau.mlp[-1], light.changed
        for weight in (weight for part in parts for weight in part.parameters()):
            nn.init.zeros_(weight)


def _reading_noise(config: TokensConfig, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of a transformer that reads tokens alone, for one that reads noise too and does nothing with it yet."""
    if not config.noise:
        return weights
    return {"noise.weight": torch.zeros(config.channels, config.noise, config.patch, config.patch), **weights}


@dataclass(frozen=True)
class OneDecoder(NetworksConfig, Ranged):
    """A single-rate decoder p(x | z_0), trained by the denoising loss on images (`DenoisingConfig.latents`)."""

    model: UViTConfig
    latent_shape: tuple[Side, Side, Side]
    """(C, h, w) of the latents."""
    bfloat16_weights = True

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = DecoderUViT(self.model, self.latent_shape)
        return nn.ModuleDict({"model": network}), Decoder(network, process)

    @property
    def latent(self) -> Shape:
        return self.latent_shape

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"model": self.model}


@dataclass(frozen=True)
class TwoDecoders(NetworksConfig, Ranged):
    """A dual-rate decoder: the encoder sees z_0, once an image, whatever the sampler; the light network each state."""

    encoder: UViTConfig
    light: UViTConfig
    latent_shape: tuple[Side, Side, Side]
    """(C, h, w) of the latents."""
    bfloat16_weights = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = LatentEncoder(self.encoder, self.light, self.latent_shape), UViT(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRateDecoder(encoder, light, process)

    @property
    def latent(self) -> Shape:
        return self.latent_shape

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"encoder": self.encoder, "light": self.light}

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """As the single-rate decoder of a role's size has it: of the light one with the encoder's maps of z_0 to it."""
        encoder = networks["encoder"]
        assert isinstance(encoder, LatentEncoder)
        return encoder.net if role == "encoder" else nn.ModuleDict({"net": networks["light"], "latent": encoder.light})

    def disconnect(self, networks: nn.ModuleDict) -> None:
        encoder = networks["encoder"]
        assert isinstance(encoder, LatentEncoder)
        encoder.disconnect()
