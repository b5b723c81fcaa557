"""The networks of experiments with a model of diffusers: that model alone, and a light network beside it.

A retrofit is an ordinary dual-rate run whose encoder is that model: its weights are in the run's checkpoints, so that
the run needs the folder no more, of which it keeps name and fingerprint.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor, nn

from dualrate.codecs.codec import CodecFolder, NoCodec
from dualrate.config.ranges import Range, Ranged
from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.diffusion.values import Shape
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.networks import NetworksConfig
from dualrate.from_diffusers.config import ForeignConfig, adopted
from dualrate.from_diffusers.retrofit import (
    COUNT,
    OwnEncoder,
    OwnLight,
    SiblingEncoder,
    SiblingLight,
    Stem,
    Tap,
    TappedEncoder,
    of_shorter,
    shorter,
    stem_of,
)
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.dual import LightUViT, disconnect, kept
from dualrate.networks.uvit import UViTConfig
from dualrate.training.config import FitConfig

COLOURS = (1, 3)  # channels of images


@dataclass(frozen=True)
class OneForeign(NetworksConfig):
    """A model of diffusers, called at every step."""

    model: ForeignConfig

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = self.model.build()
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
    def null_class(self) -> bool:
        return self.model.null


@dataclass(frozen=True)
class Retrofitted(NetworksConfig):
    """A model of diffusers as the encoder, and a light network that corrects its x_hat."""

    encoder: ForeignConfig
    light: UViTConfig
    taps: tuple[Tap, ...]
    """Whose outputs the light network is given, beside x_hat."""

    def __post_init__(self) -> None:
        _check_same(self.encoder, self.light)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = TappedEncoder(self.encoder.build(), Stem.of(self.light), self.taps)
        light = LightUViT(self.light, residual=True, estimate=kept)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    @property
    def roles(self) -> tuple[str, ...]:
        return ("encoder", "light")

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"light": self.light}

    @property
    def null_class(self) -> bool:
        return self.encoder.null

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        return networks.get_submodule(f"{role}.net")

    def disconnect(self, networks: nn.ModuleDict) -> None:
        """At the start of training: the light network alone."""
        disconnect(networks["encoder"], networks["light"])


class _BothForeign:
    """Both networks are of diffusers: what they see is what the encoder sees."""

    encoder: ForeignConfig

    @property
    def roles(self) -> tuple[str, ...]:
        return ("encoder", "light")

    @property
    def shape(self) -> Shape:
        return self.encoder.shape

    @property
    def num_classes(self) -> int:
        return self.encoder.num_classes

    @property
    def null_class(self) -> bool:
        return self.encoder.null

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        return networks.get_submodule(f"{role}.net")


@dataclass(frozen=True)
class TwoForeign(_BothForeign, NetworksConfig):
    """A model of diffusers as the encoder, and a smaller one as the light network."""

    encoder: ForeignConfig
    light: ForeignConfig
    taps: tuple[Tap, ...]
    """Of the encoder, whose outputs the light network is given, beside x_hat."""

    def __post_init__(self) -> None:
        _check_same(self.encoder, self.light)
        if self.encoder.null != self.light.null:
            told = {True: "a null class", False: "none"}
            raise ValueError(
                f"the encoder has {told[self.encoder.null]} and the light network {told[self.light.null]}: both or "
                "neither drop their labels (--num-classes, where a UNet2DModel's last label is the null class)"
            )

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        net = self.light.build()
        encoder = SiblingEncoder(self.encoder.build(), stem_of(net, self.shape[1]), self.taps)
        light = SiblingLight(net)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)


def _check_same(encoder: ForeignConfig, light: ForeignConfig | UViTConfig) -> None:
    own, its = ({"images of (C, H, W)": one.shape, "classes": one.num_classes} for one in (encoder, light))
    if differ := [f"{what} {own[what]} and {its[what]}" for what in own if own[what] != its[what]]:
        raise ValueError(f"encoder and light network are of the same images and classes, got {', '.join(differ)}")


@dataclass(frozen=True)
class OwnBlocks(_BothForeign, NetworksConfig, Ranged):
    """A model of diffusers as the encoder, and a light network that starts as some of its blocks."""

    encoder: ForeignConfig
    blocks: Annotated[int, Range(2, 10_000)]
    """Of the light network: the model's first, and its last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shorter(self.encoder, self.blocks)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = OwnEncoder(self.encoder.build(), self.blocks)
        light = OwnLight(shorter(self.encoder, self.blocks).build())
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        whole = json.loads(self.encoder.config)[COUNT]
        return weights if role == "encoder" else of_shorter(weights, whole, self.blocks)


def experiment_of(path: Path) -> Experiment:
    """A folder of diffusers as the experiment of a single-rate model that is trained; its VAE is the codec.

    Raises what `adopted` and `read_codec` raise; warns where images have channels of latents, which nothing decodes.
    """
    found = adopted(path)
    codec = NoCodec() if found.folder.codec is None else CodecFolder.at(found.folder.codec)
    channels, side, _ = codec.build(nn.ModuleDict(), "cpu").image_shape(found.network.shape)
    if channels not in COLOURS:
        warnings.warn(
            f"{path} has no VAE, and its network draws {channels} channels: latents, it seems, which nothing decodes. "
            "Name the folder of a pipeline, with its vae",
            stacklevel=2,
        )
    return Experiment(
        path.resolve().name,
        OneForeign(found.network),
        DenoisingConfig(),
        FitConfig(iterations=1),
        DataConfig("", size=side, channels=channels if channels in COLOURS else None),
        GaussianProcess(found.schedule),
        codec,
    )


def weights_of(path: Path) -> dict[str, Tensor]:
    """Those of the networks of `experiment_of`, in float32."""
    return {f"model.net.{name}": tensor.float() for name, tensor in adopted(path).weights().state_dict().items()}
