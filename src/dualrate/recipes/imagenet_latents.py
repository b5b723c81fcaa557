"""ImageNet at 256 and 512 pixels by Unified Latents (arXiv 2602.17270), untrained here: sizes of the paper.

The paper's, at 512 pixels: latents of 32 x 32 x 32 at log-SNR 5; an encoder of levels [128, 256, 512, 512] on patches
of 2, two blocks in each and three in the last; a prior of 8 transformer blocks of 1024; a decoder of convolution levels
[128, 256, 512] and 8 transformer blocks of 1024; a base model of two transformer levels, [512, 1024] channels and
[6, 16] blocks; dropout 0.1; a loss factor of 1.3 to 1.7, here 1.5.

Ours, as the paper's text does not say: that 256 pixels have the same networks, on latents of 16 x 16 x 32; that blocks
of the base's first level are 6 down and 6 up; 2 convolution blocks at every level of the decoder, down and up, on
patches of 2; a patch of 1 of prior and base; the decoder's bias of 0, and its noise, that of `imagenet.py`; from which
iteration on latents are priced; optimiser, batch and iterations, those of `imagenet.py`, half of them for the first
stage; the light decoder, of 0.13 of the paper's cost, and with it decoders at two rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import Ranged
from dualrate.data.loader import Augment
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiments.data import DataConfig
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment
from dualrate.experiments.networks import OneNetwork
from dualrate.experiments.stages import Stages
from dualrate.experiments.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.decoders import decoder
from dualrate.recipes.imagenet import FIT

Size = Literal[256, 512]
LOG_SNR, CHANNELS, FACTOR, DROPOUT = 5.0, 32, 16, 0.1
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
WEIGHTING = Sigmoid(0.0)  # of decoders
STAGE = replace(FIT, iterations=FIT.iterations // 2, micro_batch=64)


def encoder(size: Size) -> EncoderConfig:
    return EncoderConfig(size, 3, CHANNELS, (128, 256, 512, 512), blocks=2, last_blocks=3, dropout=DROPOUT)


def prior(size: Size) -> UViTConfig:
    return UViTConfig(size // FACTOR, CHANNELS, (Level("transformer", 1024, 8, DROPOUT),), embedding=1024)


def decoder_network(size: Size) -> UViTConfig:
    convolutions = (Level("conv", channels, 2, DROPOUT) for channels in (128, 256, 512))
    levels = (*convolutions, Level("transformer", 1024, 8, DROPOUT))
    return UViTConfig(size, 3, levels, patch=2, embedding=1024)


def light_decoder(size: Size) -> UViTConfig:
    levels = (*(Level("conv", channels, 1) for channels in (64, 128, 256)), Level("transformer", 512, 4))
    return UViTConfig(size, 3, levels, patch=2, embedding=512)


def base_network(size: Size) -> UViTConfig:
    levels = (Level("transformer", 512, 6, DROPOUT), Level("transformer", 1024, 16, DROPOUT))
    return UViTConfig(size // FACTOR, CHANNELS, levels, num_classes=1000, embedding=1024)


def images(size: Size) -> GaussianProcess:
    """Of the decoder."""
    return GaussianProcess(Interpolated.between(32, size, size))


def pictures(size: Size, source: str) -> DataConfig:
    return DataConfig(source, size, 3, augment=Augment(flip=True))


def first(size: Size = 512, source: str = "imagenet") -> Experiment:
    """Encoder, prior and decoder. source: a folder of images or parquet files."""
    networks = LatentNetworks(encoder(size), prior(size), decoder_network(size))
    codec = DiffusionDecoding(channels=3, factor=FACTOR, log_snr=LOG_SNR, process=images(size))
    method = UnifiedLatentsConfig(1.5, decoder_weighting=WEIGHTING, priced_from=2000)
    return Experiment(f"imagenet{size}-latents-first", networks, method, STAGE, pictures(size, source), PROCESS, codec)


def base(size: Size = 512) -> Experiment:
    """The base model of the latents, which `data encode` made."""
    data = DataConfig(augment=Augment(flip=True))
    networks, method = OneNetwork(base_network(size)), DenoisingConfig()
    return Experiment(f"imagenet{size}-latents-base", networks, method, FIT, data, PROCESS)


def both(size: Size = 512) -> Stages:
    """The first stage, then the base model."""
    return Stages(f"imagenet{size}-latents", first(size), base(size))


@dataclass(frozen=True)
class DecoderRecipe(Ranged):
    """A decoder of latents of ImageNet, untrained here. The codec is looked at first; options that are not listed here
    come after that: give --codec with --help to see all of them."""

    kind: Literal["heavy", "light", "dual", "retrofit"] = "dual"
    """heavy or light: one network. dual: a heavy one on the latent, once, and a light one at every step. retrofit: the
    same of trained ones."""
    size: Size = 512
    """Of the images."""
    codec: Path = Path("runs/imagenet512-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""
    heavy: Path = Path("runs/imagenet512-decoder-heavy")
    """The trained heavy decoder; of a retrofit."""
    light: Path = Path("runs/imagenet512-decoder-light")
    """The trained light decoder; of a retrofit."""
    source: str = "imagenet"
    """A folder of images or parquet files, or what `data prepare` made."""

    def __call__(self) -> Experiment:
        """Raises what reading the codec raises."""
        return decoder(
            f"imagenet{self.size}-decoder",
            self.kind,
            {"heavy": decoder_network(self.size), "light": light_decoder(self.size)},
            self.codec,
            heavy=self.heavy,
            light=self.light,
            weighting=WEIGHTING,
            fit=STAGE,
            data=pictures(self.size, self.source),
            process=images(self.size),
        )
