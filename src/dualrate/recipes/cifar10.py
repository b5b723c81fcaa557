"""CIFAR-10, 32 x 32, in two sizes, in the shape of the ImageNet-64 recipe scaled down.

    full       for ten minutes of one modern GPU a model: convolutions at 32 x 32, transformers at 16 x 16 and 8 x 8
    compact    the same levels with fewer channels, for a GPU in pieces of ten minutes: a fifth of full's parameters, so
               that a model fits into a few files of 16 MiB between two pieces (tools/gpu_queue.py)

As there, the light network halves the transformers' widths and the middle's depth; its convolutions are narrower too,
for on small images they would cost as much as the rest. A medium network costs about what the dual-rate model
costs on average. `source` is your own copy: a folder of images, or parquet files as the Hub has them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from dualrate.data.loader import Augment
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.networks import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.students import StudentRecipe
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

Size = Literal["full", "compact"]


def full_layout(
    conv: int, transformers: tuple[int, int], blocks: int, middle: int, dropout: float, embedding: int = 512
) -> UViTConfig:
    """`blocks` blocks of a level down to 16 x 16, `middle` at 8 x 8."""
    levels = (
        Level("conv", conv, blocks),
        Level("transformer", transformers[0], blocks),
        Level("transformer", transformers[1], middle, dropout),
    )
    return UViTConfig(32, 3, levels, num_classes=10, embedding=embedding, head_dim=64)


HEAVY = {
    "full": full_layout(128, (256, 512), 2, 8, dropout=0.1),
    "compact": full_layout(96, (192, 256), 2, 4, dropout=0.1, embedding=256),
}
LIGHT = {
    "full": full_layout(96, (128, 256), 2, 4, dropout=0.0),
    "compact": full_layout(48, (64, 128), 2, 2, dropout=0.0, embedding=256),
}
MEDIUM = full_layout(64, (128, 192), 2, 3, dropout=0.1, embedding=256)  # compact; 0.46 of heavy

FULL = FitConfig(
    iterations=200_000,  # more than ten minutes of a GPU make; `max_seconds` ends the run, a larger one goes on with it
    batch_size=512,
    optim=OptimConfig(lr=4e-4, betas=(0.9, 0.99), warmup=1000),
    ema_halflife=300_000,
    max_seconds=540,
    compile=True,
    checkpoint_every=500,
    sample_every=2000,
)
COMPACT = replace(FULL, max_seconds=None)
FITS: dict[Size, FitConfig] = {"full": FULL, "compact": COMPACT}


def data(source: str) -> DataConfig:
    return DataConfig(source, size=32, channels=3, augment=Augment(flip=True))


def single(size: Size, name: str, network: UViTConfig, source: str) -> Experiment:
    return Experiment(f"cifar10-{size}-{name}", OneNetwork(network), DenoisingConfig(), FITS[size], data(source))


def heavy(size: Size = "full", source: str = "cifar10") -> Experiment:
    """The single-rate baseline."""
    return single(size, "heavy", HEAVY[size], source)


def light(size: Size = "full", source: str = "cifar10") -> Experiment:
    """The light network alone, at every step."""
    return single(size, "light", LIGHT[size], source)


def medium(source: str = "cifar10") -> Experiment:
    """A single network of the cost that the compact dual-rate model has on average."""
    return single("compact", "medium", MEDIUM, source)


def dual(size: Size = "full", source: str = "cifar10") -> Experiment:
    """Both networks."""
    networks, method = TwoNetworks(HEAVY[size], LIGHT[size]), DenoisingConfig(times=TimeSampler(heavy=(4, 32)))
    return Experiment(f"cifar10-{size}-dual", networks, method, FITS[size], data(source))


def dual_45(source: str = "cifar10") -> Experiment:
    """The medium network for encoder, for plans of 1 to 8 heavy calls, the first late, as pairs paid elsewhere."""
    networks = TwoNetworks(MEDIUM, LIGHT["compact"])
    method = DenoisingConfig(times=TimeSampler(heavy=(1, 8), first=(0.6, 0.9)))
    return Experiment("cifar10-compact-dual-45", networks, method, COMPACT, data(source))


def distilled(size: Size = "full") -> StudentRecipe:
    """Students of the heavy model."""
    optim = OptimConfig(lr=5e-5, betas=(0.0, 0.99), warmup=200)
    return StudentRecipe(f"cifar10-{size}", LIGHT[size], replace(FITS[size], optim=optim, ema_halflife=10_000))


RECIPES = {
    "cifar10-heavy": ("the heavy network alone", heavy),
    "cifar10-light": ("the light network alone", light),
    "cifar10-dual": ("heavy and light", dual),
    "cifar10-compact-heavy": ("a smaller heavy network alone", partial(heavy, "compact")),
    "cifar10-compact-medium": ("a medium network alone", medium),
    "cifar10-compact-light": ("a smaller light network alone", partial(light, "compact")),
    "cifar10-compact-dual": ("smaller heavy and light networks", partial(dual, "compact")),
    "cifar10-compact-dual-45": ("medium and light", dual_45),
}
