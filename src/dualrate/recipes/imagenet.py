"""ImageNet at 64, 128, 256 and 512 pixels a side, on pixels and on latents. None of it was trained here.

Heavy at 64 and 128 is the "small" layout of the multistep consistency paper (arXiv 2403.06807), without concatenated
skips. Its blocks count 108.45 and 137.44 giga multiply-adds, which Dual-Rate Diffusion (arXiv 2605.18190) reports as
GFLOPs. Heavy at 256 and 512 is reconstructed: the levels of 128, with patches of 2. They count 137.4 and 652.8;
other papers give SiD2 (arXiv 2410.19324) 137 and 653. Light is inferred from the dual-rate paper's costs (44.0 and
73.0): transformer widths and the middle's depth are halved, the convolutional levels kept.

The noise is interpolated between what suits 32 pixels, at t = 1, and the images' side, at t = 0. The loss's bias falls
with the side, as code of others says of SiD2. Batch 1024, Adam at 1e-4, EMA, about a million iterations are the
dual-rate paper's. `dualrate cost` says what they take.

Students have the settings of a public reproduction of moment matching (arXiv 2406.04103), with the learning rate and
the batch of one of its successors on SiD2; half of the iterations are the auxiliary's. By consistency the pseudo-Huber
loss has the paper's c = 1e-4, of the norm of an image's error. By EM (arXiv 2405.16852) there are L = 16 Langevin
steps; their sizes are remembered of the paper, not seen (docs/results/paper.md).

DiT and DiS have their papers' sizes, on latents of 32 x 32 x 4 that `data encode` made by the VAE of Stable Diffusion.
Batch and learning rate are the papers' (256 and 1e-4; DiS, by its code, 128 and 1e-4 annealed to 1e-6); noise, loss
and what the networks predict are this package's.

Latents are those of Unified Latents (arXiv 2602.17270). The paper has, at 512 pixels: latents of 32 x 32 x 32 at
log-SNR 5; an encoder of levels [128, 256, 512, 512] on patches of 2, two blocks in each and three in the last; a prior
of 8 transformer blocks of 1024; a decoder of convolution levels [128, 256, 512] and 8 transformer blocks of 1024; a
base model of two transformer levels, [512, 1024] channels and [6, 16] blocks; dropout 0.1; a loss factor of 1.3 to 1.7.
Ours, as its text does not say: blocks of the base's first level, 6 down and 6 up; two
convolution blocks a level of the decoder, on patches of 2; the decoder's bias of 0 and its noise; from which iteration
on latents are priced; optimiser, batch and iterations; the light decoder, of 0.13 of the paper's cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import Ranged
from dualrate.data.loader import Augment
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, Stages
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.dis import dis
from dualrate.networks.dit import dit
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import students
from dualrate.recipes.fashion_mnist_latents import decoding
from dualrate.recipes.shared import one_or_two
from dualrate.recipes.students import StudentRecipe
from dualrate.training.config import FitConfig, OptimConfig

Size = Literal[64, 128, 256, 512]
SIZES: tuple[Size, ...] = (64, 128, 256, 512)
BIASES: dict[Size, float] = {64: 0.0, 128: 0.0, 256: -1.0, 512: -3.0}  # of the loss; of SiD2 at second hand


def network(size: Size, kind: Literal["heavy", "light"]) -> UViTConfig:
    """3 convolution blocks a level, then 3 transformer blocks, then 16 (light: 8) at the coarsest.

    At 64 pixels the levels have 64, 32 and 16 positions a side; above, a level of 128 channels comes before them.
    """
    widths, middle, dropout = ((512, 1024), 16, 0.2 if size == 64 else 0.1) if kind == "heavy" else ((256, 512), 8, 0.0)
    levels = (
        *([Level("conv", 128, 3)] if size > 64 else []),
        Level("conv", 256, 3),
        Level("transformer", widths[0], 3),
        Level("transformer", widths[1], middle, dropout),
    )
    return UViTConfig(size, 3, levels, num_classes=1000, patch=2 if size > 128 else 1, embedding=1024, head_dim=64)


FIT = FitConfig(
    iterations=1_000_000,
    batch_size=1024,
    micro_batch=256,
    optim=OptimConfig(lr=1e-4, betas=(0.9, 0.99), warmup=10_000),
    ema_halflife=10_000_000,
    compile=True,
    checkpoint_every=5000,
    sample_every=20_000,
)
DISTILLING = replace(
    FIT,
    iterations=100_000,
    batch_size=2048,
    optim=OptimConfig(lr=1e-5, betas=(0.0, 0.99), eps=1e-12, warmup=1000, decay="linear"),
    ema_halflife=200_000,
    checkpoint_every=1000,
    sample_every=5000,
)


def heavy(size: Size = 64) -> Experiment:
    """The heavy network alone."""
    return _experiment("heavy", size, OneNetwork(network(size, "heavy")))


def light(size: Size = 64) -> Experiment:
    """The light network alone, at every step."""
    return _experiment("light", size, OneNetwork(network(size, "light")))


def dual(size: Size = 64) -> Experiment:
    """The dual-rate model."""
    return _experiment("dual", size, TwoNetworks(network(size, "heavy"), network(size, "light")), TimeSampler())


def _experiment(kind: str, size: Size, networks: NetworksConfig, times: TimeSource = SingleTime()) -> Experiment:
    method = DenoisingConfig(times=times, weighting=Sigmoid(BIASES[size]))
    data = DataConfig("imagenet", size, 3, augment=Augment(flip=True, translate=4))
    process = GaussianProcess(Interpolated.between(32, size, size))
    return Experiment(f"imagenet{size}-{kind}", networks, method, _within_memory(FIT, size), data, process)


def _within_memory(fit: FitConfig, size: int) -> FitConfig:
    """The training with passes that 8 GPUs of 80 GB take (`dualrate cost`)."""
    return replace(fit, micro_batch=64) if size == 512 else fit


@dataclass(frozen=True)
class Students(StudentRecipe):
    """Students with the settings of papers, where these have them for ImageNet."""

    def defaults(self, by: str) -> dict[str, Any]:
        assert self.light is not None
        return {
            "moments": {"student_rate": 1.0},
            "consistency": {"huber": _huber(self.light.shape)},
            "em": {"langevin_steps": 16},
        }[by]


def distilled(size: Size = 64) -> Students:
    """Students of the heavy model."""
    return Students(None, network(size, "light"), _within_memory(DISTILLING, size))


def pixels_by_consistency(experiment: Experiment) -> Experiment:
    """An experiment of these, trained for consistency from data instead."""
    experiment = students.by_consistency(experiment)
    assert isinstance(experiment.method, ConsistencyConfig)
    method = replace(experiment.method, huber=_huber(experiment.shape))
    return replace(
        experiment, method=method, fit=replace(experiment.fit, optim=replace(experiment.fit.optim, decay="linear"))
    )


def _huber(shape: Shape) -> float:
    """c of the paper, which is of a norm, in the root mean square."""
    return 1e-4 / math.sqrt(math.prod(shape))


LATENT_SIZE, LATENT_SIDE, CHANNELS, LOG_SNR, DROPOUT = 512, 32, 32, 5.0, 0.1  # LATENT_SIZE: of the images
LATENT_PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
IMAGE_PROCESS = GaussianProcess(Interpolated.between(32, LATENT_SIZE, LATENT_SIZE))  # of decoders
WEIGHTING = Sigmoid(0.0)  # of decoders
STAGE = replace(FIT, iterations=500_000, micro_batch=64)
PICTURES = DataConfig("imagenet", LATENT_SIZE, 3, augment=Augment(flip=True))
ENCODER = EncoderConfig(LATENT_SIZE, 3, CHANNELS, (128, 256, 512, 512), blocks=2, last_blocks=3, dropout=DROPOUT)
PRIOR = UViTConfig(LATENT_SIDE, CHANNELS, (Level("transformer", 1024, 8, DROPOUT),), embedding=1024)
_LEVELS = (*(Level("conv", width, 2, DROPOUT) for width in (128, 256, 512)), Level("transformer", 1024, 8, DROPOUT))
DECODER = UViTConfig(LATENT_SIZE, 3, _LEVELS, patch=2, embedding=1024)
_LEVELS = (*(Level("conv", width, 1) for width in (64, 128, 256)), Level("transformer", 512, 4))
LIGHT_DECODER = UViTConfig(LATENT_SIZE, 3, _LEVELS, patch=2, embedding=512)
_LEVELS = Level("transformer", 512, 6, DROPOUT), Level("transformer", 1024, 16, DROPOUT)
BASE = UViTConfig(LATENT_SIDE, CHANNELS, _LEVELS, num_classes=1000, embedding=1024)


def first() -> Experiment:
    """Encoder, prior and decoder, on images of 512 x 512."""
    codec = DiffusionDecoding(channels=3, factor=LATENT_SIZE // LATENT_SIDE, log_snr=LOG_SNR, process=IMAGE_PROCESS)
    method = UnifiedLatentsConfig(1.5, decoder_weighting=WEIGHTING, priced_from=2000)
    networks = LatentNetworks(ENCODER, PRIOR, DECODER)
    return Experiment("imagenet512-latents-first", networks, method, STAGE, PICTURES, LATENT_PROCESS, codec)


def base() -> Experiment:
    """The base model of the latents, which `data encode` made."""
    data = DataConfig(augment=Augment(flip=True))
    return Experiment("imagenet512-latents-base", OneNetwork(BASE), DenoisingConfig(), FIT, data, LATENT_PROCESS)


def both() -> Stages:
    """The first stage, then the base model."""
    return Stages("imagenet512-latents", first(), base())


@dataclass(frozen=True)
class ImageNetDecoder(Ranged):
    """A decoder of latents of ImageNet, untrained here. The recipe looks at the codec first. Give --codec with --help
    to see the other options."""

    kind: Literal["heavy", "light", "dual"] = "dual"
    """heavy or light: one network. dual: a heavy one on the latent, once, and a light one at every step."""
    codec: Path = Path("runs/imagenet512-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""

    def __call__(self) -> Experiment:
        """Raises what reading the codec raises."""
        sizes = {"heavy": DECODER, "light": LIGHT_DECODER}
        networks, method, condition = decoding(self.kind, sizes, self.codec, WEIGHTING)
        name = f"imagenet512-decoder-{self.kind}"
        return Experiment(name, networks, method, STAGE, PICTURES, IMAGE_PROCESS, condition=condition)


@dataclass(frozen=True)
class ImageNetFlat(Ranged):
    """A DiT or a DiS of a published size, on latents. Options that are not listed here come after that: give --size
    with --help to see all of them."""

    body: Literal["dit", "dis"] = "dit"
    """dit: attention. dis: state spaces."""
    size: str = "B/2"
    """As in the paper: of DiT S, B, L or XL and patches of 2, 4 or 8; of DiS S, B, M, L or H and patches of 2 or 4."""
    rate: Literal["single", "dual"] = "single"
    """single: one network at every step. dual: that now and then, and a lighter one of its kind at every step."""

    def __call__(self) -> Experiment:
        """Raises ValueError for an unknown size."""
        name = f"imagenet256-{self.body}-{self.size.replace('/', '-')}"
        network = replace({"dit": dit, "dis": dis}[self.body](self.size), convention="sit", learned_sigma=False)
        optim, batch = OptimConfig(lr=1e-4, betas=(0.9, 0.999)), 256
        if self.body == "dis":
            optim, batch = replace(optim, decay="cosine"), 128
        fit = replace(FIT, iterations=400_000, batch_size=batch, micro_batch=None, optim=optim, ema_halflife=1_800_000)
        fit = replace(fit, compile=self.body == "dit")  # of a DiS it was not tried
        light = None if self.rate == "single" else network.lighter()
        return one_or_two(f"{name}{'-dual' * bool(light)}", network, light, fit, DataConfig(augment=Augment(flip=True)))


KINDS = {
    "heavy": ("the heavy network alone", heavy),
    "light": ("the light network alone", light),
    "dual": ("heavy and light", dual),
}
ON_PIXELS = {
    f"imagenet{size}-{kind}": (f"{text}, {size} x {size}", partial(recipe, size))
    for size in SIZES
    for kind, (text, recipe) in KINDS.items()
}
RECIPES = {
    **ON_PIXELS,
    "imagenet512-latents-first": ("Unified Latents: encoder, prior and decoder", first),
    "imagenet512-latents-base": ("one network on the latents", base),
    "imagenet256-latents-flat": ("a DiT or a DiS of a published size, at one rate or two", ImageNetFlat()),
    "imagenet-decoder": ("a decoder of the latents, at one rate or two", ImageNetDecoder()),
}
STAGES = {"imagenet512-latents": ("first stage and base model, one after the other", both)}
