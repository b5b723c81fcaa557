"""The networks of experiments on tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.categorical import NoisePlanes  # noqa: F401  # a file may name it
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.experiment.networks import NetworksConfig, of_kind
from dualrate.networks.tokens import LightTokens, TokenEncoder, TokensConfig, TokenTransformer, check_tokens


@dataclass(frozen=True)
class OneTransformer(NetworksConfig):
    """A single-rate model of tokens."""

    model: TokensConfig
    bfloat16_weights = True

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model",)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = TokenTransformer(self.model)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    @property
    def shape(self) -> Shape:
        return self.model.shape

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def beside(self, light: object, name: str) -> TwoTransformers:
        found = self.model.lighter() if light is None else of_kind(TokensConfig, light, name)
        same = {name: getattr(self.model, name) for name in ("vocabulary", "width", "height", "patch", "num_classes")}
        return TwoTransformers(self.model, replace(found, **same))

    @property
    def noise(self) -> int:
        return self.model.noise

    def with_noise(self, planes: int) -> OneTransformer:
        return replace(self, model=self.model.with_noise(planes))

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _reading_noise(self.model, weights)

    def with_dropout(self, dropout: float | None) -> OneTransformer:
        return self if dropout is None else replace(self, model=self.model.with_dropout(dropout))


@dataclass(frozen=True)
class TwoTransformers(NetworksConfig):
    """A dual-rate model of tokens. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: TokensConfig
    light: TokensConfig
    bfloat16_weights = True

    @property
    def roles(self) -> tuple[str, ...]:
        return ("encoder", "light")

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

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _reading_noise(self.encoder if role == "encoder" else self.light, weights)

    def with_dropout(self, dropout: float | None) -> TwoTransformers:
        if dropout is None:
            return self
        return replace(self, encoder=self.encoder.with_dropout(dropout), light=self.light.with_dropout(dropout))

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The transformer of a role, without what joins the two."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        """At the start of training: the light network alone."""
        light = networks["light"]
        assert isinstance(light, LightTokens)
        ways = (*networks.get_submodule("encoder.projections").parameters(),
                *light.tau.mlp[-1].parameters(),
                *light.changed.parameters())  # fmt: skip
        for way in ways:
            nn.init.zeros_(way)


def _reading_noise(config: TokensConfig, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of a transformer that reads tokens alone, for one that reads noise too and does nothing with it yet."""
    if not config.noise:
        return weights
    return {"noise.weight": torch.zeros(config.channels, config.noise, config.patch, config.patch), **weights}
