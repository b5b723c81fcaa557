"""ImageNet at 64, 128, 256 and 512 pixels a side, untrained here.

Heavy at 64 and 128: the "small" layout of the multistep consistency paper (arXiv 2403.06807), without concatenated
skips. Its blocks count 108.45 and 137.44 giga multiply-adds, the figures that Dual-Rate Diffusion (arXiv 2605.18190)
reports as GFLOPs.
Heavy at 256 and 512, reconstructed: the levels of 128, with patches. Tables of other papers give SiD2 (2410.19324)
137 giga multiply-adds at 256 with patches of 2 and 653 with patches of 1, and 653 at 512 with patches of 2; these
levels on grids of 128 and 256 positions a side count 137.4 and 652.8. SiD2's own table of layouts was not seen.
Light: inferred from the dual-rate paper's costs (44.0 and 73.0), not stated in it: the most regular of the layouts that
fit, with transformer widths and middle depth halved and the convolutional levels kept. At 256 and 512, of which that
paper says nothing, the same rule.

Noise: interpolated between what suits 32 pixels, at t = 1, and the images' side, at t = 0; so the multistep consistency
paper has it at 64, 128 and 512. The bias of the loss falls with the side, as code of others says that SiD2's does.
Batch 1024, Adam at 1e-4, EMA, about a million iterations, the dual-rate paper's: `dualrate cost` says what they take.
So is random translation, which all three have, so that they differ in their networks alone.

Students: the settings of a public reproduction of moment matching (arXiv 2406.04103) and, for the learning rate and
the batch, of one of its successors on SiD2; half of the iterations are the auxiliary's. The rate falls linearly, and is
one for student and auxiliary, as there. By consistency (arXiv 2403.06807): its pseudo-Huber loss, c = 1e-4 in the norm
of an image's error. By EM (arXiv 2405.16852): L = 16 Langevin steps, of the image's noise and of z; their number, and
the ranges of which these sizes are the lower ends, are remembered of the paper, not seen (docs/results/paper.md).

ImageNet at 256 and 512 pixels by Unified Latents (arXiv 2602.17270), untrained here: sizes of the paper.

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

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.ranges import Ranged
from dualrate.data.loader import Augment
from dualrate.diffusion.prediction import Sigmoid
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.networks import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.experiment.stages import Stages
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.decoder import EncoderConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import students
from dualrate.recipes.latents import decoder
from dualrate.recipes.students import StudentRecipe
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

Size = Literal[64, 128, 256, 512]
Patch = Literal[1, 2]
PATCHES: dict[Size, Patch] = {64: 1, 128: 1, 256: 2, 512: 2}
LAYOUTS: tuple[tuple[Size, Patch], ...] = ((64, 1), (128, 1), (256, 2), (256, 1), (512, 2))
BIASES: dict[Size, float] = {64: 0.0, 128: 0.0, 256: -1.0, 512: -3.0}  # of the loss; of SiD2 at second hand


def layout(
    size: Size, transformers: tuple[int, int], middle: int, dropout: float, patch: Patch | None = None
) -> UViTConfig:
    """3 convolution blocks a level, then 3 transformer blocks, then `middle` at the coarsest.

    At 64 pixels the levels have 64, 32 and 16 positions a side; above, a level of 128 channels comes before them.
    patch: None for that of PATCHES
    """
    levels = (
        Level("conv", 256, 3),
        Level("transformer", transformers[0], 3),
        Level("transformer", transformers[1], middle, dropout),
    )
    if size > 64:
        levels = (Level("conv", 128, 3), *levels)
    return UViTConfig(size, 3, levels, num_classes=1000, patch=patch or PATCHES[size], embedding=1024, head_dim=64)


def heavy_network(size: Size, patch: Patch | None = None) -> UViTConfig:
    return layout(size, (512, 1024), middle=16, dropout=0.2 if size == 64 else 0.1, patch=patch)


def light_network(size: Size, patch: Patch | None = None) -> UViTConfig:
    return layout(size, (256, 512), middle=8, dropout=0.0, patch=patch)


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


def heavy(size: Size = 64, source: str = "imagenet", patch: Patch | None = None) -> Experiment:
    """The single-rate baseline. source: a folder of images or parquet files; patch: None for that of PATCHES."""
    return _experiment("heavy", OneNetwork(heavy_network(size, patch)), source)


def light(size: Size = 64, source: str = "imagenet", patch: Patch | None = None) -> Experiment:
    """The light network alone, at every step."""
    return _experiment("light", OneNetwork(light_network(size, patch)), source)


def dual(size: Size = 64, source: str = "imagenet", patch: Patch | None = None) -> Experiment:
    """The dual-rate model."""
    networks = TwoNetworks(heavy_network(size, patch), light_network(size, patch))
    return _experiment("dual", networks, source, TimeSampler())


@dataclass(frozen=True)
class Students(StudentRecipe):
    """With the settings of papers where these have them for ImageNet."""

    def defaults(self, by: str) -> dict[str, Any]:
        assert isinstance(self.light, UViTConfig)
        return {
            "moments": {"student_rate": 1.0},
            "consistency": {"huber": _huber(self.light)},
            "em": {"langevin_steps": 16, "noise_step": 0.16, "latent_step": 0.01},
        }[by]


def distilled(size: Size = 64, patch: Patch | None = None) -> Students:
    """Students of the heavy model."""
    network = light_network(size, patch)
    return Students(name_of(size, patch), network, _within_memory(DISTILLING, network))


def by_consistency(experiment: Experiment) -> Experiment:
    """One of these experiments as one of consistency training, from data."""
    made = students.by_consistency(experiment)
    assert isinstance(made.method, ConsistencyConfig)
    method = replace(made.method, huber=_huber(next(iter(made.networks.configs.values()))))
    return replace(made, method=method, fit=replace(made.fit, optim=replace(made.fit.optim, decay="linear")))


def _huber(network: UViTConfig) -> float:
    """c of the paper, which is of a norm, in the root mean square."""
    return 1e-4 / math.sqrt(math.prod(network.shape))


def name_of(size: Size, patch: Patch | None = None) -> str:
    """imagenet256, or imagenet256-patch1 where the patch is not that of PATCHES."""
    return f"imagenet{size}" if patch in (None, PATCHES[size]) else f"imagenet{size}-patch{patch}"


def _within_memory(fit: FitConfig, network: UViTConfig) -> FitConfig:
    """With passes that 8 GPUs of 80 GB take (`dualrate cost`)."""
    return replace(fit, micro_batch=64) if network.side(0) == 256 else fit


def _experiment(kind: str, networks: NetworksConfig, source: str, times: TimeSource = SingleTime()) -> Experiment:
    network = next(iter(networks.configs.values()))
    size, patch = cast("tuple[Size, Patch]", (network.image_size, network.patch))
    method = DenoisingConfig(times=times, weighting=Sigmoid(BIASES[size]))
    data = DataConfig(source, size, 3, augment=Augment(flip=True, translate=4))
    process = GaussianProcess(Interpolated.between(32, size, size))
    return Experiment(f"{name_of(size, patch)}-{kind}", networks, method, _within_memory(FIT, network), data, process)


LatentSize = Literal[256, 512]
LOG_SNR, CHANNELS, FACTOR, DROPOUT = 5.0, 32, 16, 0.1
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))
WEIGHTING = Sigmoid(0.0)  # of decoders
STAGE = replace(FIT, iterations=FIT.iterations // 2, micro_batch=64)


def encoder(size: LatentSize) -> EncoderConfig:
    return EncoderConfig(size, 3, CHANNELS, (128, 256, 512, 512), blocks=2, last_blocks=3, dropout=DROPOUT)


def prior(size: LatentSize) -> UViTConfig:
    return UViTConfig(size // FACTOR, CHANNELS, (Level("transformer", 1024, 8, DROPOUT),), embedding=1024)


def decoder_network(size: LatentSize) -> UViTConfig:
    convolutions = (Level("conv", channels, 2, DROPOUT) for channels in (128, 256, 512))
    levels = (*convolutions, Level("transformer", 1024, 8, DROPOUT))
    return UViTConfig(size, 3, levels, patch=2, embedding=1024)


def light_decoder(size: LatentSize) -> UViTConfig:
    levels = (*(Level("conv", channels, 1) for channels in (64, 128, 256)), Level("transformer", 512, 4))
    return UViTConfig(size, 3, levels, patch=2, embedding=512)


def base_network(size: LatentSize) -> UViTConfig:
    levels = (Level("transformer", 512, 6, DROPOUT), Level("transformer", 1024, 16, DROPOUT))
    return UViTConfig(size // FACTOR, CHANNELS, levels, num_classes=1000, embedding=1024)


def images(size: LatentSize) -> GaussianProcess:
    """Of the decoder."""
    return GaussianProcess(Interpolated.between(32, size, size))


def pictures(size: LatentSize, source: str) -> DataConfig:
    return DataConfig(source, size, 3, augment=Augment(flip=True))


def first(size: LatentSize = 512, source: str = "imagenet") -> Experiment:
    """Encoder, prior and decoder. source: a folder of images or parquet files."""
    networks = LatentNetworks(encoder(size), prior(size), decoder_network(size))
    codec = DiffusionDecoding(channels=3, factor=FACTOR, log_snr=LOG_SNR, process=images(size))
    method = UnifiedLatentsConfig(1.5, decoder_weighting=WEIGHTING, priced_from=2000)
    return Experiment(f"imagenet{size}-latents-first", networks, method, STAGE, pictures(size, source), PROCESS, codec)


def base(size: LatentSize = 512) -> Experiment:
    """The base model of the latents, which `data encode` made."""
    data = DataConfig(augment=Augment(flip=True))
    networks, method = OneNetwork(base_network(size)), DenoisingConfig()
    return Experiment(f"imagenet{size}-latents-base", networks, method, FIT, data, PROCESS)


def both(size: LatentSize = 512) -> Stages:
    """The first stage, then the base model."""
    return Stages(f"imagenet{size}-latents", first(size), base(size))


@dataclass(frozen=True)
class DecoderRecipe(Ranged):
    """A decoder of latents of ImageNet, untrained here. The codec is looked at first; options that are not listed here
    come after that: give --codec with --help to see all of them."""

    kind: Literal["heavy", "light", "dual", "retrofit"] = "dual"
    """heavy or light: one network. dual: a heavy one on the latent, once, and a light one at every step. retrofit: the
    same of trained ones."""
    size: LatentSize = 512
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


ON_PIXELS = {
    f"{name_of(size, patch)}-{kind}": (f"{text}, {size} x {size}", partial(recipe, size, patch=patch))
    for size, patch in LAYOUTS
    for kind, text, recipe in (
        ("heavy", "the heavy network alone", heavy),
        ("light", "the light network alone", light),
        ("dual", "heavy and light", dual),
    )
}
RECIPES = {
    **ON_PIXELS,
    "imagenet256-latents-first": ("Unified Latents: encoder, prior and decoder", partial(first, 256)),
    "imagenet256-latents-base": ("one network on the latents", partial(base, 256)),
    "imagenet512-latents-first": ("Unified Latents: encoder, prior and decoder", first),
    "imagenet512-latents-base": ("one network on the latents", base),
    "imagenet-decoder": ("a decoder of the latents, at one rate or two", DecoderRecipe()),
}
STAGES = {
    "imagenet256-latents": ("first stage and base model, one after the other", partial(both, 256)),
    "imagenet512-latents": ("first stage and base model, one after the other", both),
}
