"""The configuration of runs on tokens: networks, and the denoising loss of tokens that a codec makes of images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from dualrate.codecs.grey_levels import GreyLevels
from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment, Prepared, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.methods.encoded import Encoded
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

    def with_dropout(self, dropout: float | None) -> TwoTransformers:
        if dropout is None:
            return self
        return replace(self, encoder=self.encoder.with_dropout(dropout), light=self.light.with_dropout(dropout))

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The transformer of a role, without what joins the two."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        """At the start of training: the light network alone."""
        ways = (*networks.get_submodule("encoder.projections").parameters(),
                *networks.get_submodule("light.tau.mlp").parameters(),
                *networks.get_submodule("light.changed").parameters())  # fmt: skip
        for way in ways:
            nn.init.zeros_(way)


@dataclass(frozen=True)
class TokenDenoisingConfig(DenoisingConfig):
    """The cross-entropy of tokens, weighted: with the weighting as it is, of a masked process its bound."""

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        process, codec = experiment.process, experiment.codec
        if not isinstance(process, CategoricalProcess) or not isinstance(codec, GreyLevels):
            raise ValueError(
                "tokens are of a categorical process, and made of images by GreyLevels: got "
                f"{type(process).__name__} and {type(codec).__name__}"
            )
        masked = bool(process.pi(torch.zeros(codec.categories, 1, 1))[-1] == 1)
        if masked != codec.mask:
            raise ValueError(f"{type(process).__name__} wants a codec with mask {masked}, got {codec.mask}: set it")
        if experiment.shape[0] != codec.categories:
            raise ValueError(
                f"the codec's tokens have {codec.categories} categories (levels and mask), the networks of "
                f"{experiment.name} take {experiment.shape[0]}: set their vocabulary to it"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        prepared = super().prepare(experiment, start)
        codec = experiment.codec.build(prepared.method.networks, start.device)
        return replace(prepared, method=Encoded(prepared.method, lambda images: codec.encode(images).mean))
