"""Unified Latents of clips (docs/clips.md): encoder, prior and decoder together, a model of the latents, and decoders.

Latents have 8 positions a side. Those of a clip are as many as it has pieces of `each` frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dualrate.codecs.codec import CodecFolder
from dualrate.codecs.diffusion import DiffusionCodec, DiffusionDecoding
from dualrate.config.ranges import Channels, ClipFrames, Ranged, many
from dualrate.data.conditions import Latent
from dualrate.data.images import ImageSet
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, Stages
from dualrate.forecasts.clip_networks import (
    ClipEncoderConfig,
    ClipLatents,
    ClipPrior,
    OneClipDecoder,
    TwoClipDecoders,
    TwoClipPriors,
    leads_of,
)
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes, SingleTime, TimeSampler
from dualrate.methods.unified_latents import UnifiedLatentsConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.shared import training

LOG_SNR = 5.0  # of z_0
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
WEIGHTING = Sigmoid()  # of decoders, of a bias as SiD2 has at 64 pixels
SIDE, HEAD = 8, 48  # positions of a latent; width of an attention head
Rate = Literal["single", "dual"]
FIT = training(6000, 16, 1e-3, 200, decay="cosine", ema_halflife=20_000, sample_every=1000)
SIZES = {"heavy": (96, 2, 192, 4), "light": (48, 1, 96, 1)}  # channels and blocks of finer levels, and of the last


def piece_decoder(side: int, channels: int, size: str) -> UViTConfig:
    """The network of a piece, of so many channels. size: of SIZES

    All that it sees passes through its finest level, so a patch has at most as many numbers as the narrowest network
    has channels there, if one pixel has no more.
    """
    (fine, few, coarse, many), patch = SIZES[size], max(1, side // (2 * SIDE))
    while patch > 1 and channels * patch**2 > min(widths[0] for widths in SIZES.values()):
        patch //= 2
    halvings = (side // patch // SIDE).bit_length() - 1
    levels = *[Level("conv", max(fine, channels), few)] * halvings, Level("transformer", coarse, many)
    return UViTConfig(side, channels, levels, patch=patch, embedding=128, head_dim=HEAD)


def of_latent(channels: int, width: int, blocks: int, num_classes: int = 0) -> UViTConfig:
    """The network of a latent. width: of its level, more where a latent has more channels"""
    levels = (Level("transformer", -(-max(width, channels) // HEAD) * HEAD, blocks),)
    return UViTConfig(SIDE, channels, levels, num_classes=num_classes, embedding=128, head_dim=HEAD)


@dataclass(frozen=True)
class ClipStages(Ranged):
    """Latents of clips, and a model of them. The recipe looks at the clips first, which data prepare --frames wrote.
    Give --data.source with --help to see the other options."""

    data: DataConfig = DataConfig(source="")
    each: ClipFrames = 4
    """Frames that become one latent."""
    latent_channels: Channels = 8
    """Channels of a latent."""
    rate: Rate = "single"
    """Rate of the model of the latents. single: one network at every step. dual: a heavy one now and then, and a light
    one at every step."""

    def __call__(self) -> Stages:
        clips = packed_clips(self.data)
        (channels, side, _), frames = clips.shape, clips.frames_each
        if frames % self.each or side % (2 * SIDE) or side & (side - 1):
            raise ValueError(
                f"{self.data.source} has clips of {many(frames, 'frame')} of side {side}; expected a number of frames "
                f"that divides by --each {self.each}, and a side of 16, 32, 64, ...: prepare them so"
            )
        pieces, of_piece = frames // self.each, self.each * channels // frames
        widths = tuple(24 * 2**i for i in range((side // SIDE).bit_length() - 1))
        encoder = ClipEncoderConfig(side, of_piece, self.latent_channels, widths, frames=frames, pieces=pieces)
        prior = of_latent(self.latent_channels, 96, 2)
        networks = ClipLatents(encoder, prior, piece_decoder(side, of_piece, "light"))
        method = UnifiedLatentsConfig(12.0, decoder_weighting=WEIGHTING, priced_from=400)
        codec = DiffusionDecoding(channels=channels, factor=side // SIDE, log_snr=LOG_SNR)
        first = Experiment("clip-latents-first", networks, method, FIT, self.data, PROCESS, codec)
        base = base_model(self.rate, self.latent_channels, clips.num_classes, pieces, frames)
        return Stages("clip-latents", first, base)


def base_model(rate: Rate, channels: int, num_classes: int, pieces: int, frames: int) -> Experiment:
    """The model of latents. channels: of a latent"""
    heavy, of_clip = of_latent(channels, 144, 4, num_classes), (leads_of(pieces), frames)
    if rate == "single":
        return Experiment("clip-latents-base", ClipPrior(heavy, *of_clip), DenoisingConfig(), FIT, process=PROCESS)
    networks = TwoClipPriors(heavy, of_latent(channels, 48, 2, num_classes), *of_clip)
    method = DenoisingConfig(times=TimeSampler(heavy=(4, 32)))
    return Experiment("clip-latents-base-dual", networks, method, FIT, process=PROCESS)


@dataclass(frozen=True)
class ClipBase(Ranged):
    """A model of latents that clip-latents made, in the folder latents of its run. The recipe looks at them first. Give
    --data.source with --help to see the other options."""

    data: DataConfig = DataConfig(source="runs/clip-latents/latents")
    rate: Rate = "dual"
    """single: one network at every step. dual: a heavy one now and then, and a light one at every step."""

    def __call__(self) -> Experiment:
        """Raises ValueError for what is no such folder, and what reading it, and its codec, raises."""
        if not is_encoded(self.data.source):
            raise ValueError(f"{self.data.source} holds no latents: name the folder latents of a run of clip-latents")
        latents = read_latents(self.data.source, "train")
        encoder = clip_encoder(latents.codec)
        of_clip = encoder.pieces, encoder.frames
        base = base_model(self.rate, encoder.latent_channels, latents.num_classes, *of_clip)
        return replace(base, data=self.data)


@dataclass(frozen=True)
class ClipDecoder(Ranged):
    """A decoder of latents of clips. The recipe looks at the codec first. Give --codec with --help to see the other
    options."""

    data: DataConfig = DataConfig(source="")
    kind: Literal["heavy", "light", "dual"] = "dual"
    """heavy or light: one network. dual: the heavy one on each latent, once, and the light one at every step."""
    codec: Path = Path("runs/clip-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""

    def __call__(self) -> Experiment:
        """Raises what reading the codec raises, and ValueError for one of images."""
        packed_clips(self.data)
        latents = CodecFolder.at(self.codec)
        encoder = clip_encoder(latents)
        of_piece, shape = (encoder.image_size, encoder.image_channels), encoder.latent_shape
        of_clip: Any = {"leads": leads_of(encoder.pieces), "frames": encoder.frames}
        heavy, light = (piece_decoder(*of_piece, size) for size in SIZES)
        networks, times = {
            "heavy": (OneClipDecoder(heavy, shape, **of_clip), SingleTime()),
            "light": (OneClipDecoder(light, shape, **of_clip), SingleTime()),
            "dual": (TwoClipDecoders(heavy, light, shape, **of_clip), GivenTimes()),
        }[self.kind]
        method = DenoisingConfig(times, WEIGHTING)
        return Experiment(f"clip-decoder-{self.kind}", networks, method, FIT, self.data, condition=Latent(latents))


def clip_encoder(latents: CodecFolder) -> ClipEncoderConfig:
    """The encoder of a codec of clips. Raises what reading it raises, and ValueError for one of images."""
    codec = latents.read("cpu")
    encoder = codec.networks["encoder"].config if isinstance(codec, DiffusionCodec) else None
    if not isinstance(encoder, ClipEncoderConfig):
        raise ValueError(f"{latents.folder} encodes no clips: name a run of clip-latents, its folder first")
    return encoder


def packed_clips(data: DataConfig) -> ImageSet:
    """The training clips of a source. Raises ValueError, with the way, for one that holds none."""
    way = "dualrate data prepare CLIPS FOLDER --frames 16 --size 64 writes them: then --data.source FOLDER"
    if not data.source:
        raise ValueError(f"there is no source of packed clips: {way}")
    clips = data.load("train")
    if not isinstance(clips, ImageSet) or clips.frames_each < 2:
        raise ValueError(f"{data.source} holds no packed clips: {way}")
    return clips


RECIPES = {
    "clip-decoder": ("a decoder of latents of clips, at one rate or two", ClipDecoder()),
    "clip-latents-base": ("a model of latents of clips, at two rates or one", ClipBase()),
}
STAGES = {"clip-latents": ("latents of your own clips and a model of them: first stage and base model", ClipStages())}
