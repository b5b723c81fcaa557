"""The networks of an experiment that trains a decoder p(x | z_0), single-rate or dual-rate.

A dual-rate decoder's heavy call is of z_0 alone, so one serves every step, under any sampler (`Reuse.FREE`).
It is trained by the denoising loss on images, given latents of a codec that does not train (`DenoisingConfig.latents`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from dualrate.codecs.codec import Codec
from dualrate.codecs.diffusion import Decoding, OtherDecoder, decoding_of
from dualrate.config.ranges import Ranged, Side
from dualrate.denoisers.denoiser import Decoder, Denoiser, DualRateDecoder
from dualrate.diffusion.process import Process
from dualrate.diffusion.values import Shape
from dualrate.experiment.experiment import Model
from dualrate.experiment.networks import NetworksConfig
from dualrate.networks.decoder import DecoderUViT, LatentEncoder
from dualrate.networks.dual import check_pair
from dualrate.networks.uvit import UViT, UViTConfig

DECODING = "sde-dpm++2m:0.1", 16  # sampler and steps of a decoder that stands in a codec, where none are asked for


def as_codec(model: Model, sampler: str | None = None, steps: int | None = None) -> Codec:
    """What a model is to models of latents: its codec; of a decoder that of its latents, with itself as the decoder.

    sampler, steps: of its decoder, in place of its own or of DECODING
    Raises what reading the codec of its latents raises, and ValueError for a sampler that a decoder cannot have, or one
    of a codec whose decoder does not draw.
    """
    latents = model.experiment.method.latents
    if latents.fingerprint:
        decoding = Decoding.by(model.denoiser, model.process, *DECODING).under(sampler, steps)
        return OtherDecoder(latents.build(model.networks, model.device), decoding, model.weights_hash)
    codec = model.codec
    if sampler is None and steps is None:
        return codec
    decoding = decoding_of(codec)
    if decoding is None:
        raise ValueError(f"{model.name} has no decoder that takes steps: drop its sampler and its steps")
    return OtherDecoder(codec, decoding.under(sampler, steps), codec.fingerprint)


@dataclass(frozen=True)
class OneDecoder(NetworksConfig, Ranged):
    """A single-rate decoder."""

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
    """A dual-rate decoder: the encoder sees z_0, once an image; the light network the noisy image."""

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
        """At the start of training: the light network alone, as a decoder by itself."""
        encoder = networks["encoder"]
        assert isinstance(encoder, LatentEncoder)
        encoder.disconnect()
