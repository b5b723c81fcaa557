"""Models of tokens: one transformer, or two at two rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.process import Process
from dualrate.experiment.network_configs import NOISE, PackageNetworks, of_kind
from dualrate.networks.blocks import zero_init
from dualrate.texts.noise_planes import NoisePlanes
from dualrate.texts.transformer import LightTokens, TokenEncoder, TokensConfig, TokenTransformer, check_tokens


class TokenNetworks(PackageNetworks):
    """Transformers of tokens, by their roles."""

    part = TokensConfig

    @property
    def noise(self) -> int:
        return max(config.noise for config in self.configs.values())

    def with_noise(self, planes: int) -> TokenNetworks:
        return replace(self, **{role: config.with_noise(planes) for role, config in self.configs.items()})  # pyright: ignore[reportArgumentType]

    def process_for(self, process: Process) -> Process:
        """With planes of noise beside the tokens, where it reads some."""
        if not self.noise:
            return process
        assert isinstance(process, CategoricalProcess)
        return NoisePlanes(process, self.noise)

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All weights. A transformer that reads noise begins by ignoring it."""
        config = self.configs[role]
        if not config.noise:
            return weights
        return {NOISE: torch.zeros(config.channels, config.noise, config.patch, config.patch), **weights}


@dataclass(frozen=True)
class OneTransformer(TokenNetworks):
    """A single-rate model of tokens."""

    model: TokensConfig

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = TokenTransformer(self.model)
        return nn.ModuleDict({"model": network}), Plain(network, process)

    def beside(self, light: object, name: str) -> TwoTransformers:
        config = self.model.lighter() if light is None else of_kind(TokensConfig, light, name)
        same = {name: getattr(self.model, name) for name in ("vocabulary", "width", "height", "patch", "num_classes")}
        return TwoTransformers(self.model, replace(config, **same))


@dataclass(frozen=True)
class TwoTransformers(TokenNetworks):
    """A dual-rate model of tokens. encoder.head: whether the encoder denoises by itself where it is called."""

    encoder: TokensConfig
    light: TokensConfig

    def __post_init__(self) -> None:
        check_tokens(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, light = TokenEncoder(self.encoder, self.light), LightTokens(self.light)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        """The transformer of a role, without what joins the two."""
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        light = networks["light"]
        assert isinstance(light, LightTokens)
        for part in (networks.get_submodule("encoder.projections"), light.tau.mlp[-1], light.changed):
            zero_init(part)
