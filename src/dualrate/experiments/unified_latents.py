"""Unified Latents as an experiment: the networks of its first stage, and its method's configuration.

The codec of such a run is its own (`codecs/diffusion.py`): trained with it, on images. A second stage is an ordinary
experiment on that codec's latents, read from the run's directory, under a process that ends in noisy latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import FirstIterations, LossWeight, Ranged
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.process import Process
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiments.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.experiments.serves import AnyPlan
from dualrate.methods.unified_latents import UnifiedLatents
from dualrate.networks.decoder import DecoderUViT
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.networks.uvit import UViT, UViTConfig


@dataclass(frozen=True)
class LatentNetworks(NetworksConfig):
    """An encoder of images, a prior of their latents, and a decoder; what is sampled is the prior."""

    encoder: EncoderConfig
    prior: UViTConfig
    decoder: UViTConfig

    def __post_init__(self) -> None:
        for what, expected, found in (
            ("prior sees latents", self.encoder.latent_shape, self.prior.shape),
            ("decoder makes images", self.encoder.shape, self.decoder.shape),
        ):
            if expected != found:
                raise ValueError(f"the {what} of {found} (C, H, W), and its encoder's are {expected}: make them alike")
        if self.decoder.num_classes:
            raise ValueError(f"a decoder is given latents and no classes, got num_classes {self.decoder.num_classes}")

    @property
    def null_class(self) -> bool:
        """The prior never trains without labels."""
        return False

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder, prior = ImageEncoder(self.encoder), UViT(self.prior)
        decoder = DecoderUViT(self.decoder, self.encoder.latent_shape)
        return nn.ModuleDict({"encoder": encoder, "prior": prior, "decoder": decoder}), Plain(prior, process)

    @property
    def roles(self) -> tuple[str, ...]:
        return "encoder", "prior", "decoder"

    @property
    def kind(self) -> str:
        return f"a first stage of unified latents, of three networks ({', '.join(self.roles)})"

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        """The prior, which is sampled from, first."""
        return {"prior": self.prior, "decoder": self.decoder}


@dataclass(frozen=True)
class UnifiedLatentsConfig(MethodConfig, Ranged):
    """The first stage of Unified Latents: encoder, prior and decoder together."""

    loss_factor: LossWeight = 1.5
    """Price of a nat that the decoder lacks, in nats of the latent: with more of it the latent holds more."""
    decoder_weighting: Weighting = Sigmoid()
    """Of the decoder's loss over noise levels; a higher bias has the latent hold finer detail."""
    priced_from: FirstIterations = 0
    """Iteration from which on the encoder is trained by the prior's loss too. Until then nothing limits what latents
    hold, so that a decoder learns to read them."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan()

    def check(self, experiment: Experiment) -> None:
        networks, codec = experiment.networks, experiment.codec
        if not isinstance(networks, LatentNetworks) or not isinstance(codec, DiffusionDecoding):
            raise ValueError(
                "unified latents are an encoder, a prior and a decoder, whose codec is trained with them: expected "
                f"LatentNetworks and DiffusionDecoding, got {type(networks).__name__} and {type(codec).__name__}"
            )
        if experiment.process.end != codec.log_snr:
            raise ValueError(
                f"the prior's process ends in latents of log-SNR {experiment.process.end}, the decoder takes them at "
                f"{codec.log_snr:g}: give a NoisyEnd whose schedule has that log_snr_max"
            )
        if codec.data_shape(networks.shape) != networks.encoder.shape:
            raise ValueError(
                f"the encoder takes images of {networks.encoder.shape} (C, H, W), the codec says "
                f"{codec.data_shape(networks.shape)}: its factor is {networks.encoder.factor}"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, prior = experiment.build()
        codec = experiment.codec
        assert isinstance(codec, DiffusionDecoding)  # of `check`
        return Prepared(
            UnifiedLatents(
                networks,
                networks["encoder"],
                prior,
                codec.decoder(networks),
                experiment.gaussian,
                codec.process,
                self.decoder_weighting,
                self.loss_factor,
                self.priced_from,
            )
        )
