"""Networks of an experiment: configurations that build them, and describe them to the rest of the package.

`NetworksConfig` is the seam for networks of your own (docs/extending.md, examples/own_networks.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from dualrate.config.ranges import Lead, Ranged, Side
from dualrate.denoisers.denoiser import BothRates, Conditional, Denoiser, DualRate, DualRateConditional, Plain
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import Process
from dualrate.networks.blocks import zero_init
from dualrate.networks.body import BodyConfig
from dualrate.networks.conditional import ConditionalBody, ConditionEncoder, ConditionReader, of_frames
from dualrate.networks.dual import ContextEncoder, LightBody, check_pair, disconnect, require_same_fields

Light = TypeVar("Light")


NOISE = "noise.weight"  # of tokens, by which noise enters: where it is new, it begins at 0


class NetworksConfig(ABC):
    """Builds networks and the denoiser that calls them. A subclass is a frozen dataclass.

    It must have `build`, `shape` and `num_classes`, and `roles` where these are not ("encoder", "light"). Everything
    else has a default.

    bfloat16_weights: whether all linear layers and convolutions run under autocast, but for those of `InFloat32`;
                      sampling in bfloat16 then holds their weights in it
    frames:           of a sample, T, where that is a clip, (T C, H, W)
    """

    bfloat16_weights = False
    frames = 1

    @property
    def guided_already(self) -> bool:
        """Whether guidance was distilled into it, so that its x_hat is no posterior mean."""
        return False

    @abstractmethod
    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks by their roles, with random weights, and the denoiser that calls them."""

    @property
    def configs(self) -> Mapping[str, Any]:
        """The network of each role; none for other networks, which have roles, shape and classes."""
        return {}

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of its networks; ("model",) is a single-rate model."""
        return tuple(self.configs) or ("encoder", "light")

    @property
    def shape(self) -> Shape:
        """(C, H, W) of an image, or of its latent; of frames that are told their `leads`, of all of them."""
        channels, height, width = next(iter(self.configs.values())).shape
        return channels * max(1, len(getattr(self, "leads", ()))), height, width

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model."""
        return next(iter(self.configs.values())).num_classes

    @property
    def null_class(self) -> bool:
        """Whether label `num_classes` stands for no class, as guidance needs."""
        return self.num_classes > 0

    @property
    def given(self) -> Shape | None:
        """(C, h, w) of the condition that it makes samples of, its field `given_shape`; None: there is none."""
        return getattr(self, "given_shape", None)

    @property
    def noise(self) -> int:
        """Planes of noise that it reads beside a state: none, unless overridden."""
        return 0

    @property
    def calls(self) -> int | None:
        """Heavy calls of a sample where contexts never age: 1; None of one network, which runs at every step."""
        return None if self.single_rate else 1

    @property
    def single_rate(self) -> bool:
        """Whether it is one network, called alike at every noise level."""
        return self.roles == ("model",)

    @property
    def ages(self) -> bool:
        """Whether a heavy network sees states, so that its context ages."""
        return self.given is None and not self.single_rate

    @property
    def blind_alone(self) -> bool:
        """Whether a step without a context sees nothing of the condition: then no such step is trained or drawn."""
        return False

    @property
    def kind(self) -> str:
        """A model of these networks, in words, for errors."""
        return "a single-rate model" if self.single_rate else "a dual-rate model"

    def with_dropout(self, dropout: float | None) -> NetworksConfig:
        """Copies these with one rate of dropout; None: unchanged. Raises ValueError where there are no `configs`."""
        if dropout is None:
            return self
        if not self.configs:
            raise ValueError(f"{type(self).__name__} has no dropout to set: drop the rate of {dropout}")
        return replace(self, **{role: config.with_dropout(dropout) for role, config in self.configs.items()})  # pyright: ignore[reportArgumentType]

    def with_noise(self, planes: int) -> NetworksConfig:
        """Reading so many planes of noise beside a state. Raises ValueError where it has no input."""
        if planes:
            raise ValueError(f"{type(self).__name__} reads no noise beside its states, got {planes} planes: take 0")
        return self

    def process_for(self, process: Process) -> Process:
        """The process, with the states that it reads: the same, unless overridden."""
        return process

    def beside(self, light: object, name: str) -> NetworksConfig:
        """This network as an encoder, with a light one; None: one in proportion to it. name: the user's, of the model

        Raises ValueError where there is no rule for a light network, or `light` is of another kind.
        """
        raise ValueError(
            f"no light network is laid out beside a network such as that of {name}: make it dual-rate first (dualrate "
            f"retrofit {name} --out RUN), then add --student-from RUN"
        )

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The part of a role that a single-rate model has too, for starts from its weights: all, unless overridden."""
        return networks[role]

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights that a role's `backbone` starts from, of a single-rate model's: all, unless overridden."""
        return weights

    def disconnect(self, networks: nn.ModuleDict) -> None:  # noqa: B027  # one network has nothing to take away
        """Set to zero what the encoder contributes to the light network, for a start from trained ones."""


class PackageNetworks(NetworksConfig):
    """Networks of this package: fields that are configurations of networks, of class `part`, by their roles."""

    bfloat16_weights, part = True, BodyConfig

    @property
    def configs(self) -> Mapping[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # pyright: ignore[reportArgumentType]
        return {role: config for role, config in values.items() if isinstance(config, self.part)}


def of_kind(kind: type[Light], light: object, name: str) -> Light:
    """The light network of a recipe. Raises ValueError unless it is of this kind, which the network of `name` has."""
    if not isinstance(light, kind):
        raise ValueError(
            f"the recipe's light network is a {type(light).__name__}, and {name} has a {kind.__name__}: take a recipe "
            "of such models (auto is one of any)"
        )
    return light


@dataclass(frozen=True)
class OneNetwork(PackageNetworks):
    """A single-rate model."""

    model: BodyConfig

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = self.model.network()
        return nn.ModuleDict({"model": network}), Plain(network, process)

    def beside(self, light: object, name: str) -> TwoNetworks:
        config = self.model.lighter() if light is None else of_kind(BodyConfig, light, name)
        same: Any = {"num_classes": self.model.num_classes}
        return TwoNetworks(self.model, replace(config, **same))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class TwoNetworks(PackageNetworks):
    """A dual-rate model. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: BodyConfig
    light: BodyConfig

    def __post_init__(self) -> None:
        check_pair(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = ContextEncoder(self.encoder, self.light), LightBody(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The network of a role, without the projections of contexts and the embedding of tau."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        disconnect(networks["encoder"], networks["light"])


@dataclass(frozen=True)
class OneConditional(PackageNetworks, Ranged):
    """One network, which sees the state and the condition at every step."""

    model: BodyConfig
    given_shape: tuple[Side, Side, Side]
    """(C, h, w) of the condition."""
    leads: tuple[Lead, ...] = ()
    """Lead times of frames that are each made by themselves. Empty: a sample is one image."""
    attention: bool = False
    """Whether such frames attend to each other."""
    causal: bool = False
    """Whether each attends to those before it alone."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        how = {"attention": self.attention, "causal": self.causal}
        network = ConditionalBody(self.model, self.given_shape, self.leads, **how)
        return nn.ModuleDict({"model": network}), Conditional(network, process)


@dataclass(frozen=True)
class TwoConditional(PackageNetworks, Ranged):
    """An encoder that sees the condition, once for all its samples, and a light network that sees each state."""

    encoder: BodyConfig
    light: BodyConfig
    given_shape: tuple[Side, Side, Side]
    """(C, h, w) of the condition."""
    leads: tuple[Lead, ...] = ()
    """Lead times of frames that are each made by themselves: the light network is called for each, with the features of
    one heavy call. Empty: a sample is one image."""
    attention: bool = False
    """Whether such frames attend to each other."""
    causal: bool = False
    """Whether each attends to those before it alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = ConditionEncoder(self.encoder, self.light, self.given_shape)
        light = of_frames(self.light, self.leads, attention=self.attention, causal=self.causal)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRateConditional(encoder, light, process)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The single-rate network of a role's size: of the light one with the encoder's maps of y to it."""
        encoder, light = networks["encoder"], networks["light"]
        assert isinstance(encoder, ConditionEncoder)
        net = networks.get_submodule("light.net") if self.leads else light
        return encoder.net if role == "encoder" else nn.ModuleDict({"net": net, "latent": encoder.light})

    def disconnect(self, networks: nn.ModuleDict) -> None:
        zero_init(networks.get_submodule("encoder.projections"))


@dataclass(frozen=True)
class ThreeConditional(PackageNetworks, Ranged):
    """Both rates: a reader sees the condition, once for all its samples; an encoder sees a state now and then; a light
    network sees each. encoder.head: as of `TwoNetworks`.
    """

    reader: BodyConfig
    encoder: BodyConfig
    light: BodyConfig
    given_shape: tuple[Side, Side, Side]
    """(C, h, w) of the condition."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for heavy in (self.reader, self.encoder):
            check_pair(heavy, self.light)
        require_same_fields(self.encoder, self.light, "num_levels")  # each gets as many features of the condition

    @property
    def ages(self) -> bool:
        return True

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        reader = ConditionReader(self.reader, self.encoder, self.light, self.given_shape)
        encoder, light = ContextEncoder(self.encoder, self.light, process.x_hat), LightBody(self.light)
        networks = nn.ModuleDict({"reader": reader, "encoder": encoder, "light": light})
        return networks, BothRates(encoder, light, process, reader=reader)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The single-rate network of a role's size: with the reader's maps of y to it."""
        reader, net = networks["reader"], networks.get_submodule(f"{role}.net")
        assert isinstance(reader, ConditionReader)
        maps = {"encoder": reader.heavy, "light": reader.light}
        return nn.ModuleDict({"net": net, "latent": maps[role]}) if role in maps else reader.net

    def disconnect(self, networks: nn.ModuleDict) -> None:
        zero_init(networks.get_submodule("reader.projections"))
        disconnect(networks["encoder"], networks["light"])
