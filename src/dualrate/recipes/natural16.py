"""Natural images of 16 x 16: CIFAR-10, every pixel the mean of 2 x 2, for two hours of one CPU core a model.

A second data set beside Fashion-MNIST to judge dual-rate on, in networks of the same shape: convolutions at full
resolution and transformer blocks on 8 x 8 = 64 tokens, conditional on the class. Each model has the same CPU seconds
of training, the rate annealed to zero (`ITERATIONS`). `source` is your own copy of CIFAR-10: a folder of
images, or parquet files as the Hub has them.

The mean: `size` halves an image by means of pairs, along rows and then along columns, each rounded half up to 8 bits
(data/decode.py). So a pixel is the mean of its four plus 0 to 1 of 255 levels, 1/2 on average.
"""

from __future__ import annotations

from typing import Literal

from dualrate.data.loader import Augment
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.networks import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

Single = Literal["heavy", "medium-45", "medium-25", "light", "light-10"]


def network(conv: int, transformer: int, depth: int) -> UViTConfig:
    """One convolution block down and up at 16 x 16, `depth` transformer blocks at 8 x 8."""
    return UViTConfig(
        image_size=16,
        image_channels=3,
        levels=(Level("conv", conv, 1), Level("transformer", transformer, depth)),
        num_classes=10,
        embedding=128,
        head_dim=32,
    )


NETWORKS: dict[Single, UViTConfig] = {
    "heavy": network(conv=48, transformer=160, depth=6),  # 149 million MACs
    "medium-45": network(conv=48, transformer=128, depth=3),  # 64 million, 0.43 of heavy
    "medium-25": network(conv=48, transformer=96, depth=2),  # 38 million, 0.26
    "light": network(conv=32, transformer=96, depth=2),  # 26 million, 0.17
    "light-10": network(conv=24, transformer=64, depth=2),  # 13 million, 0.09
}
# 6,400 to 6,800 CPU seconds each on one core of an AMD EPYC with AVX-512 bfloat16, measured by interleaved rounds
ITERATIONS = {
    "heavy": 7300,
    "medium-45": 16_250,
    "medium-25": 25_200,
    "light": 31_900,
    "light-10": 44_000,
    "dual-25": 25_000,
}


def fit(name: str) -> FitConfig:
    return FitConfig(
        iterations=ITERATIONS[name],
        batch_size=128,
        optim=OptimConfig(lr=7e-4, betas=(0.9, 0.99), warmup=300, decay="cosine"),
        ema_halflife=50_000,
        checkpoint_every=500,
        sample_every=5000,
    )


def data(source: str) -> DataConfig:
    return DataConfig(source, size=16, channels=3, augment=Augment(flip=True))


def single(name: Single, source: str = "cifar10") -> Experiment:
    """One network: heavy is the baseline, light the dual-rate model's own, the others cost what lies between."""
    return Experiment(f"natural16-{name}", OneNetwork(NETWORKS[name]), DenoisingConfig(), fit(name), data(source))


def dual(source: str = "cifar10") -> Experiment:
    """medium-25 and light-10, trained together from the start for plans of 1 to 8 heavy calls, the first late.

    A larger encoder could not pay: the light network is as right as heavy here (docs/results/tried.md).
    """
    networks = TwoNetworks(NETWORKS["medium-25"], NETWORKS["light-10"])
    method = DenoisingConfig(times=TimeSampler(heavy=(1, 8), first=(0.6, 0.9)))
    return Experiment("natural16-dual-25", networks, method, fit("dual-25"), data(source))
