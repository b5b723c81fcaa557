"""CIFAR-10, 32 x 32, in four sizes, the first three in the shape of the ImageNet-64 recipe scaled down.

    full       for ten minutes of one modern GPU a model: convolutions at 32 x 32, transformers at 16 x 16 and 8 x 8
    compact    the same levels with fewer channels, for a GPU in pieces of ten minutes: a fifth of full's parameters, so
               that a model fits into a few files of 16 MiB between two pieces (tools/gpu_queue.py)
    reduced    for half an hour of one CPU core at most a model: patches of 2, every level at half the resolution
    flat       for an hour of one CPU core a model: patches of 2 and transformer blocks alone, on all of their 256
               positions, among which caches by tokens choose (denoisers/token_cache.py)

As there, the light network halves the transformers' widths and the middle's depth; its convolutions are narrower too,
for on small images they would cost as much as the rest. A medium network costs about what the dual-rate model
costs on average. `source` is your own copy: a folder of images, or parquet files as the Hub has them.
"""

from __future__ import annotations

from dataclasses import replace
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

Size = Literal["full", "compact", "reduced", "flat"]


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


def reduced_layout(conv: int, transformers: tuple[int, int], middle: int) -> UViTConfig:
    """One block of a level at 16 x 16 and 8 x 8, `middle` at 4 x 4."""
    levels = (
        Level("conv", conv, 1),
        Level("transformer", transformers[0], 1),
        Level("transformer", transformers[1], middle),
    )
    return UViTConfig(32, 3, levels, num_classes=10, patch=2, embedding=192, head_dim=32)


def flat_layout(channels: int, blocks: int) -> UViTConfig:
    """Of one level, at 16 x 16."""
    levels = (Level("transformer", channels, blocks),)
    return UViTConfig(32, 3, levels, num_classes=10, patch=2, embedding=192, head_dim=32)


HEAVY = {
    "full": full_layout(128, (256, 512), 2, 8, dropout=0.1),
    "compact": full_layout(96, (192, 256), 2, 4, dropout=0.1, embedding=256),
    "reduced": reduced_layout(64, (128, 256), 6),
    "flat": flat_layout(128, 4),
}
LIGHT = {
    "full": full_layout(96, (128, 256), 2, 4, dropout=0.0),
    "compact": full_layout(48, (64, 128), 2, 2, dropout=0.0, embedding=256),
    "reduced": reduced_layout(40, (64, 128), 3),
    "flat": flat_layout(64, 2),
}
MEDIUM = {
    "compact": full_layout(64, (128, 192), 2, 3, dropout=0.1, embedding=256),  # 0.46 of heavy
    "flat": flat_layout(96, 3),
}

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
REDUCED = replace(
    FULL,
    iterations=4000,
    batch_size=128,
    optim=OptimConfig(lr=7e-4, betas=(0.9, 0.99), warmup=300),
    ema_halflife=50_000,
    max_seconds=None,
    compile=False,
    checkpoint_every=250,
    sample_every=1000,
)
COMPACT = replace(FULL, max_seconds=None)
FLAT = replace(REDUCED, batch_size=64, optim=replace(REDUCED.optim, decay="cosine"), sample_every=4000)
FITS = {"full": FULL, "compact": COMPACT, "reduced": REDUCED, "flat": FLAT}
FLAT_ITERATIONS = {"heavy": 3500, "medium": 6500, "light": 16_000, "dual": 6000}  # the first three of equal time


def fit(size: Size, name: str) -> FitConfig:
    return replace(FITS[size], iterations=FLAT_ITERATIONS[name]) if size == "flat" else FITS[size]


def data(source: str) -> DataConfig:
    return DataConfig(source, size=32, channels=3, augment=Augment(flip=True))


def single(size: Size, name: str, network: UViTConfig, source: str) -> Experiment:
    return Experiment(f"cifar10-{size}-{name}", OneNetwork(network), DenoisingConfig(), fit(size, name), data(source))


def heavy(size: Size = "full", source: str = "cifar10") -> Experiment:
    """The single-rate baseline."""
    return single(size, "heavy", HEAVY[size], source)


def light(size: Size = "full", source: str = "cifar10") -> Experiment:
    """The light network alone, at every step."""
    return single(size, "light", LIGHT[size], source)


def medium(size: Literal["compact", "flat"] = "compact", source: str = "cifar10") -> Experiment:
    """A single network of the cost that the dual-rate model has on average."""
    return single(size, "medium", MEDIUM[size], source)


def dual(size: Size = "full", source: str = "cifar10") -> Experiment:
    """Both networks."""
    networks, method = TwoNetworks(HEAVY[size], LIGHT[size]), DenoisingConfig(times=TimeSampler(heavy=(4, 32)))
    return Experiment(f"cifar10-{size}-dual", networks, method, fit(size, "dual"), data(source))


def dual_45(source: str = "cifar10") -> Experiment:
    """The medium network for encoder, for plans of 1 to 8 heavy calls, the first late, as pairs paid elsewhere."""
    networks = TwoNetworks(MEDIUM["compact"], LIGHT["compact"])
    method = DenoisingConfig(times=TimeSampler(heavy=(1, 8), first=(0.6, 0.9)))
    return Experiment("cifar10-compact-dual-45", networks, method, fit("compact", "dual"), data(source))


def distilled(size: Size = "full") -> StudentRecipe:
    """Students of the heavy model."""
    many = replace(FITS[size], optim=OptimConfig(lr=5e-5, betas=(0.0, 0.99), warmup=200), ema_halflife=10_000)
    few = replace(many, iterations=5000, batch_size=64)
    return StudentRecipe(f"cifar10-{size}", LIGHT[size], few if size in ("reduced", "flat") else many)
