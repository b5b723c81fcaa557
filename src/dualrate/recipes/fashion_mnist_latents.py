"""Fashion-MNIST by Unified Latents: encoder, prior and decoder trained together, a base model of the latents, decoders.

Images of 28 x 28 become latents of 7 x 7. A decoder is a second model of the images, given the latents of a trained
codec: most are single networks; dual calls the heavy one on the latent once an image, and the light one at
every step.

Images are small, so a pixel tells more than one of 512 x 512. The decoder's weighting therefore has a bias of 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dualrate.codecs.codec import CodecFolder
from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import Ranged
from dualrate.data.conditions import Latent
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.experiment import Experiment, Stages
from dualrate.experiment.network_configs import NetworksConfig, OneConditional, OneNetwork, TwoConditional, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes, SingleTime, TimeSampler
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.fashion_mnist import network
from dualrate.recipes.shared import training

LOG_SNR = 5.0  # of z_0
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
ENCODER = EncoderConfig(28, 1, latent_channels=4, channels=(24, 48), blocks=2)
PRIOR = UViTConfig(7, 4, (Level("transformer", 96, 2),), embedding=128, head_dim=48)
DECODER = UViTConfig(28, 1, (Level("conv", 32, 1), Level("transformer", 96, 2)), patch=2, embedding=128, head_dim=48)
BASE = UViTConfig(7, 4, (Level("transformer", 192, 6),), num_classes=10, embedding=128, head_dim=48)
LIGHT = UViTConfig(7, 4, (Level("transformer", 96, 2),), num_classes=10, embedding=128, head_dim=48)  # a twelfth of it
WEIGHTING = Sigmoid(3.0)  # of decoders
FIT = training(6000, 64, 1e-3, 200, decay="cosine", ema_halflife=20_000, sample_every=1000)

Size = Literal["heavy", "medium", "light"]
Kind = Literal[Size, "dual"]
SIZES: dict[str, UViTConfig] = {
    "heavy": replace(network(56, 128, 4), num_classes=0),
    "medium": replace(network(48, 96, 2), num_classes=0),
    "light": replace(network(24, 64, 1), num_classes=0),
}
# about 40 minutes of one CPU core each
ITERATIONS: dict[Kind, int] = {"heavy": 3600, "medium": 7000, "light": 16_000, "dual": 2500}


def first() -> Experiment:
    """The first stage, about 45 minutes of one CPU core.

    The paper's loss factor of 1.5 leaves 0.05 bits a pixel in these small latents, 3 leaves 0.133
    (docs/results/decoders.md).
    """
    method = UnifiedLatentsConfig(3.0, decoder_weighting=WEIGHTING, priced_from=400)
    codec = DiffusionDecoding(channels=1, factor=4, log_snr=LOG_SNR)
    networks = LatentNetworks(ENCODER, PRIOR, DECODER)
    return Experiment("fashion-mnist-latents-first", networks, method, FIT, process=PROCESS, codec=codec)


def base() -> Experiment:
    """The second stage: a larger model of the latents, with classes. Its data are latents that `data encode` made."""
    fit = replace(FIT, batch_size=128)
    return Experiment("fashion-mnist-latents-base", OneNetwork(BASE), DenoisingConfig(), fit, process=PROCESS)


def base_dual() -> Experiment:
    """The second stage with two networks."""
    networks, method = TwoNetworks(BASE, LIGHT), DenoisingConfig(times=TimeSampler(heavy=(4, 32)))
    return replace(base(), name="fashion-mnist-latents-base-dual", networks=networks, method=method)


def both() -> Stages:
    """The first stage, then the base model of its latents."""
    return Stages("fashion-mnist-latents", first(), base())


def decoding(
    kind: Kind, sizes: Mapping[str, UViTConfig], codec: Path, weighting: Weighting, encoder: Size = "heavy"
) -> tuple[NetworksConfig, DenoisingConfig, Latent]:
    """Networks of a decoder of a codec's latents, how they train, and their condition.

    codec: a run that trained one, or its folder
    encoder: of dual, the size that sees the latent, once
    Raises what reading the codec raises.
    """
    latents = CodecFolder.at(codec)
    shape = latents.read("cpu").latent_shape(sizes["light"].shape)
    if kind in sizes:
        return OneConditional(sizes[kind], shape), DenoisingConfig(SingleTime(), weighting), Latent(latents)
    networks = TwoConditional(sizes[encoder], sizes["light"], shape)
    return networks, DenoisingConfig(GivenTimes(), weighting), Latent(latents)


@dataclass(frozen=True)
class FashionMnistDecoder(Ranged):
    """A decoder of latents of Fashion-MNIST. The recipe looks at the codec first. Give --codec with --help to see the
    other options."""

    kind: Kind = "dual"
    """heavy, medium or light: one network. dual: a larger one on the latent, once, and the light one at every step."""
    encoder: Size = "heavy"
    """For dual: size of the network that sees the latent."""
    codec: Path = Path("runs/fashion-mnist-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""

    def __call__(self) -> Experiment:
        """Raises what reading the codec raises."""
        networks, method, condition = decoding(self.kind, SIZES, self.codec, WEIGHTING, self.encoder)
        fit = replace(FIT, iterations=ITERATIONS[self.kind])
        return Experiment(f"fashion-mnist-decoder-{self.kind}", networks, method, fit, condition=condition)


RECIPES = {
    "fashion-mnist-latents-first": ("Unified Latents: encoder, prior and decoder", first),
    "fashion-mnist-latents-base": ("one network on the latents", base),
    "fashion-mnist-latents-base-dual": ("two networks on the latents", base_dual),
    "fashion-mnist-decoder": ("a decoder of the latents, at one rate or two", FashionMnistDecoder()),
}
STAGES = {"fashion-mnist-latents": ("first stage and base model, one after the other", both)}
