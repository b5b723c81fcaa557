"""The networks of an experiment: their configurations, what they are built to, and what their parts are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.networks.dual import ContextEncoder, LightUViT, check_pair, disconnect, light_of
from dualrate.networks.uvit import UViT, UViTConfig

Light = TypeVar("Light")


@dataclass(frozen=True)
class NetworksConfig(ABC):
    """Builds networks and the denoiser that calls them. A subclass is a frozen dataclass.

    bfloat16_weights: whether all linear layers and convolutions run under autocast, but for those of `InFloat32`: then
                      sampling in bfloat16 may hold their weights in it
    null_class:       whether the label after the last class stands for none, as guidance needs
    """

    bfloat16_weights = False

    @property
    def null_class(self) -> bool:
        return self.num_classes > 0

    @abstractmethod
    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks by their roles, with random weights, and their denoiser."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What its networks are called, in the order of `build`."""
        return tuple(self.configs)

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        """The U-ViT of each role, in the order of `build`; none for networks that have none."""
        return {}

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image: that of the U-ViTs, of which all agree. Networks without say it themselves."""
        return next(iter(self.configs.values())).shape

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model; as `shape`."""
        return next(iter(self.configs.values())).num_classes

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
        """With one rate of dropout at all levels of its U-ViTs; None: as it is.

        Raises ValueError where there are no U-ViTs.
        """
        if dropout is None:
            return self
        if not self.configs:
            raise ValueError(f"{type(self).__name__} has no dropout of its own to set: drop the rate of {dropout}")
        return replace(self, **{role: config.with_dropout(dropout) for role, config in self.configs.items()})

    def with_noise(self, planes: int) -> NetworksConfig:
        """Reading so many planes of noise beside a state (`NoisePlanes`), of a student; 0: none.

        Raises ValueError where they have no input for it.
        """
        if planes:
            raise ValueError(
                f"{type(self).__name__} reads no noise beside its states, and {planes} planes of it are asked "
                "for: take 0, or a transformer of tokens"
            )
        return self

    def beside(self, light: object, name: str) -> NetworksConfig:
        """As an encoder, with a light network; None: one in proportion to it. name: what the user calls it.

        Raises ValueError where no light network is laid out beside such a one, or `light` is of another kind.
        """
        raise ValueError(
            f"{name} is a model of another library, beside which no light network is laid out here: make it dual-rate "
            f"first (dualrate retrofit {name} --out RUN), then add --student-from RUN"
        )

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The part of a role that a model of one network has too: all of it, unless said otherwise."""
        return networks[role]

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of the weights of a model of one network, by name, those that a role's `backbone` starts from: all."""
        return weights

    def disconnect(self, networks: nn.ModuleDict) -> None:  # noqa: B027  # one network has nothing to take away
        """Take all influence of one role on another away; nothing where there is none."""


def of_kind(kind: type[Light], light: object, name: str) -> Light:
    """The light network of a recipe. Raises ValueError for one that is not of this kind, as that of `name` is."""
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
        """At the start of training: the light network alone."""
        disconnect(networks["encoder"], networks["light"])
