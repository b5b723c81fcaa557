"""A decoder of a codec's latents, at one rate or at two: what recipes of them share.

Single-rate, one network is given the latent at every step. dual is the heavy network on the latent, once an image, and
the light one at every step; retrofit is the same, begun as the trained light decoder and with the trained heavy one,
whose x_hat it learns.

Fashion-MNIST by Unified Latents: images of 28 x 28 in latents of 7 x 7, encoder, prior and decoder trained together;
and then a larger base model on these latents.

Images are small, so a pixel of them tells more than one of 512 x 512: the decoder's weighting has a bias of 3 where the
latent is to hold what is seen below a log-SNR of about that.

Decoders of Fashion-MNIST's latents, trained on what a first stage left: `fashion-mnist-latents-first`, or any codec.

Heavy, medium, small and light are single-rate; what dual and retrofit are is said in `decoders.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dualrate.codecs.config import CodecFolder
from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import Ranged
from dualrate.diffusion.prediction import Sigmoid, Weighting
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.decoding import OneDecoder, TwoDecoders
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.networks import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.experiment.stages import Stages
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes, TimeSampler
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.decoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.fashion_mnist import network
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig


def decoder(
    name: str,
    kind: str,
    sizes: Mapping[str, UViTConfig],
    codec: Path,
    *,
    heavy: Path,
    light: Path,
    encoder: str = "heavy",
    weighting: Weighting,
    **how: Any,
) -> Experiment:
    """Its training.

    kind:    one of `sizes`, which have heavy and light; dual; or retrofit
    codec:   a run that trained one, or its folder
    heavy, light: runs of single-rate decoders, of a retrofit; encoder: whose size sees the latent alone
    how:     fields of the experiment
    Raises what reading the codec raises.
    """
    latents = CodecFolder.at(codec)
    shape = latents.read("cpu").latent_shape(sizes["heavy"].shape)
    method = DenoisingConfig(weighting=weighting, latents=latents)
    networks: NetworksConfig
    if kind in sizes:
        networks = OneDecoder(sizes[kind], shape)
    else:
        networks = TwoDecoders(sizes[encoder], sizes["light"], shape)
        method = replace(method, times=GivenTimes(4))
    if kind == "retrofit":  # a target is a call of the heavy one at every time
        of = {"encoder_from": str(heavy), "light_from": str(light), "targets_from": str(heavy)}
        method = replace(method, times=GivenTimes(2), **of)
    return Experiment(f"{name}-{kind}", networks, method, **how)


LOG_SNR = 5.0  # of z_0
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
ENCODER = EncoderConfig(28, 1, latent_channels=4, channels=(24, 48), blocks=2)
PRIOR = UViTConfig(7, 4, (Level("transformer", 96, 2),), embedding=128, head_dim=48)
DECODER = UViTConfig(
    28, 1, (Level("conv", 32, 1), Level("transformer", 96, 2)), patch=2, embedding=128, head_dim=48
)  # fmt: skip
BASE = UViTConfig(7, 4, (Level("transformer", 192, 6),), num_classes=10, embedding=128, head_dim=48)
LIGHT = UViTConfig(7, 4, (Level("transformer", 96, 2),), num_classes=10, embedding=128, head_dim=48)  # a twelfth of it
WEIGHTING = Sigmoid(3.0)  # of decoders
FIT = FitConfig(
    iterations=6000,
    batch_size=64,
    optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup=200, decay="cosine"),
    ema_halflife=20_000,
    checkpoint_every=250,
    sample_every=1000,
)


def first(loss_factor: float = 3.0) -> Experiment:
    """The first stage, about 45 minutes of one CPU core.

    loss_factor: the paper's 1.5 left 0.05 bits a pixel, 39 an image, in these small latents after 2,000 iterations; 3
    leaves 0.133 (docs/results/decoders.md)
    """
    method = UnifiedLatentsConfig(loss_factor, decoder_weighting=WEIGHTING, priced_from=400)
    codec = DiffusionDecoding(channels=1, factor=4, log_snr=LOG_SNR)
    networks = LatentNetworks(ENCODER, PRIOR, DECODER)
    return Experiment("fashion-mnist-latents-first", networks, method, FIT, process=PROCESS, codec=codec)


def base() -> Experiment:
    """The second stage: a larger model of the latents, with classes. Its data are latents that `data encode` made."""
    fit = replace(FIT, batch_size=128)
    return Experiment("fashion-mnist-latents-base", OneNetwork(BASE), DenoisingConfig(), fit, process=PROCESS)


def base_dual() -> Experiment:
    """The same, dual-rate: that network is called sparsely, a light one at every step."""
    networks, method = TwoNetworks(BASE, LIGHT), DenoisingConfig(times=TimeSampler(heavy=(4, 32)))
    return replace(base(), name="fashion-mnist-latents-base-dual", networks=networks, method=method)


def both() -> Stages:
    """The first stage, then the base model of its latents."""
    return Stages("fashion-mnist-latents", first(), base())


Size = Literal["heavy", "medium", "small", "light"]
Kind = Literal[Size, "dual", "retrofit"]
SIZES: dict[str, UViTConfig] = {
    name: replace(network(*widths), num_classes=0)
    for name, widths in {
        "heavy": (56, 128, 4),
        "medium": (48, 96, 2),
        "small": (36, 96, 1),
        "light": (24, 64, 1),
    }.items()
}
ITERATIONS: dict[Kind, int] = {
    "heavy": 3600,
    "medium": 7000,
    "small": 11_000,
    "light": 16_000,
    "dual": 2500,
    "retrofit": 1500,
}


@dataclass(frozen=True)
class DecoderRecipe(Ranged):
    """A decoder of latents of Fashion-MNIST. The codec is looked at first; options that are not listed here come after
    that: give --codec with --help to see all of them."""

    kind: Kind = "dual"
    """heavy, medium, small or light: one network. dual: a heavy one on the latent, once, and a light one at every step.
    retrofit: the same of trained ones."""
    codec: Path = Path("runs/fashion-mnist-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""
    heavy: Path = Path("runs/fashion-mnist-decoder-heavy")
    """The trained heavy decoder; of a retrofit."""
    light: Path = Path("runs/fashion-mnist-decoder-light")
    """The trained light decoder; of a retrofit."""
    encoder: Size = "heavy"
    """Which of the sizes sees the latent, once: of dual and retrofit."""

    def __call__(self) -> Experiment:
        """About 40 minutes of one CPU core; a retrofit 30. Raises what reading the codec raises."""
        return decoder(
            "fashion-mnist-decoder",
            self.kind,
            SIZES,
            self.codec,
            heavy=self.heavy,
            light=self.light,
            encoder=self.encoder,
            weighting=WEIGHTING,
            fit=replace(FIT, iterations=ITERATIONS[self.kind]),
        )


RECIPES = {
    "fashion-mnist-latents-first": ("Unified Latents: encoder, prior and decoder", first),
    "fashion-mnist-latents-base": ("one network on the latents", base),
    "fashion-mnist-latents-base-dual": ("two networks on the latents", base_dual),
    "fashion-mnist-decoder": ("a decoder of the latents, at one rate or two", DecoderRecipe()),
}
STAGES = {"fashion-mnist-latents": ("first stage and base model, one after the other", both)}
