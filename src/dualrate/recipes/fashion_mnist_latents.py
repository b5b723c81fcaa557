"""Fashion-MNIST by Unified Latents: images of 28 x 28 in latents of 7 x 7, encoder, prior and decoder trained together;
and then a larger base model on these latents.

Images are small, so a pixel of them tells more than one of 512 x 512: the decoder's weighting has a bias of 3 where the
latent is to hold what is seen below a log-SNR of about that.
"""

from __future__ import annotations

from dataclasses import replace

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment
from dualrate.experiments.networks import OneNetwork, TwoNetworks
from dualrate.experiments.stages import Stages
from dualrate.experiments.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

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
