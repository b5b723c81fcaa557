"""A codec whose decoder is a diffusion model, of the run's own networks (Unified Latents, arXiv 2602.17270).

    encode   z = E(x), without noise
    decode   x_1 ~ N(0, I), then the decoder's trajectory given z_0, which keeps its noise: all of it, at every step

The heavy call of a dual-rate decoder is of z_0 alone, so every plan makes one, at its first step.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, CodecConfig, Moments
from dualrate.config.ranges import LogSNR, Range, Ranged, Steps
from dualrate.config.serial import to_plain
from dualrate.denoisers.denoiser import Conditional, Denoiser
from dualrate.diffusion.context import Cond, Shape
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.image_encoder import EncoderConfig, ImageEncoder
from dualrate.sampling.catalogue import at_gamma, make_step, sampler_named
from dualrate.sampling.grids import grid_times
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import StepNoise, first_state, rollout

DECODER = zlib.crc32(b"decoder")  # added to a seed: other numbers than those that drew the latent
PARTS = ("encoder", "decoder")  # of a run's networks, those that a codec is made of: all whose names begin so


@dataclass(frozen=True)
class DiffusionDecoding(CodecConfig, Ranged):
    """The codec of a run that trains its encoder and its decoder, called so among its networks."""

    channels: Annotated[int, Range(1, 1024)] = field(kw_only=True)
    """Channels of the images: 1 for grey, 3 for colour."""
    factor: Annotated[int, Range(1, 4096)] = field(kw_only=True)
    """Pixels per position of the latent, along a side."""
    log_snr: LogSNR = 5.0
    """Log-SNR of the latents that are decoded."""
    process: GaussianProcess = GaussianProcess(Cosine())
    """Noise process of the images."""
    sampler: str = "dpm++2m"
    """Sampler of the decoder, NAME or NAME:GAMMA."""
    steps: Steps = 16
    """Steps of the decoder."""

    def under(self, sampler: str | None, steps: int | None) -> DiffusionDecoding:
        return replace(self, sampler=sampler or self.sampler, steps=steps or self.steps)

    def data_shape(self, latent: Shape) -> Shape:
        return self.channels, self.factor * latent[1], self.factor * latent[2]

    def decoder(self, networks: nn.ModuleDict) -> Denoiser:
        """The denoiser that calls the decoder's networks."""
        return Conditional(networks["decoder"], self.process)

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        """Raises ValueError for a sampler that nobody knows."""
        decoding = Decoding.by(self.decoder(networks), self.process, self.sampler, self.steps)
        return DiffusionCodec(self, networks, decoding, torch.device(device))


@dataclass(frozen=True)
class Decoding:
    """A diffusion decoder under a sampler, NAME or NAME:GAMMA. plan: one heavy call, at its first step"""

    decoder: Denoiser
    process: Process
    sampler: str
    step: Step
    plan: StepPlan

    @staticmethod
    def by(decoder: Denoiser, process: Process, sampler: str, steps: int) -> Decoding:
        """Raises ValueError for a sampler that nobody knows, and a gamma that it cannot have."""
        name, gamma = at_gamma(sampler)
        plan = StepPlan.at(grid_times(sampler_named(name).step.grid, process.schedule, steps), [0])
        return Decoding(decoder, process, sampler, make_step(name, process, gamma), plan)

    def under(self, sampler: str | None, steps: int | None) -> Decoding:
        """The same decoder with another sampler or number of steps; None: unchanged. Raises as `by`."""
        return Decoding.by(self.decoder, self.process, sampler or self.sampler, steps or self.plan.num_steps)

    @torch.no_grad()
    def images(self, z_0: Tensor, shape: Shape, draws: Draws) -> Tensor:
        """(B, *shape) of z_0: (B, C, h, w). draws: of the images' seeds."""
        draws = Draws(draws.seed + DECODER, draws.row)
        process = self.step.process
        noise, start = StepNoise(process, draws, self.plan.num_steps, shape), first_state(process, draws, shape)
        with torch.autocast(z_0.device.type, enabled=False):
            return rollout(self.decoder, self.step, self.plan, start, Cond(given=z_0.float()), noise)


@dataclass(frozen=True)
class DiffusionCodec:
    """A codec whose decoder is a diffusion. encoder: images -> latents; decoder: of images, given z_0."""

    config: DiffusionDecoding
    networks: nn.ModuleDict
    decoding: Decoding
    device: torch.device

    @property
    def log_snr(self) -> float:
        return self.config.log_snr

    @property
    def fingerprint(self) -> str:
        """sha256 of settings and weights, as they are when it is asked for: a training changes them."""
        digest = hashlib.sha256(json.dumps(to_plain(self.config)).encode())
        for name, tensor in sorted(self.networks.state_dict().items()):
            if name.startswith(PARTS):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    latents = fingerprint

    def latent_shape(self, image: Shape) -> Shape:
        if image != self._encoder.shape:
            raise ValueError(
                f"this codec encodes images of {self._encoder.shape} (C, H, W), got {image}: give --size and --channels"
            )
        return self._encoder.latent_shape

    def image_shape(self, latent: Shape) -> Shape:
        if latent != self._encoder.latent_shape:
            raise ValueError(f"this codec decodes latents of {self._encoder.latent_shape} (C, H, W), got {latent}")
        return self._encoder.shape

    @property
    def _encoder(self) -> EncoderConfig:
        encoder = self.networks["encoder"]
        assert isinstance(encoder, ImageEncoder)
        return encoder.config

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        with torch.autocast(images.device.type, enabled=False):
            return Moments(self.networks["encoder"](images.float()))

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return self.decoding.images(x, self.image_shape((x.shape[1], x.shape[2], x.shape[3])), draws)


class OtherDecoder:
    """The latents of a codec, decoded in another way: by a decoder that was trained later, or with another sampler.

    weights: sha256 of the decoder's
    """

    def __init__(self, codec: Codec, decoding: Decoding, weights: str) -> None:
        self.decoding, self.device, self.log_snr, self.latents = decoding, codec.device, codec.log_snr, codec.latents
        self.latent_shape, self.image_shape, self.encode = codec.latent_shape, codec.image_shape, codec.encode
        made_by = f"{codec.fingerprint} {weights} {decoding.step} {decoding.plan.to_json()}"
        self.fingerprint = hashlib.sha256(made_by.encode()).hexdigest()

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        return self.decoding.images(x, self.image_shape((x.shape[1], x.shape[2], x.shape[3])), draws)


def decoding_of(codec: Codec) -> Decoding | None:
    """How the decoder of a codec draws; None: it does not."""
    return codec.decoding if isinstance(codec, DiffusionCodec | OtherDecoder) else None
