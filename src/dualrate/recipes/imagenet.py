"""ImageNet at 64 x 64 and 128 x 128: the layouts of the Dual-Rate Diffusion paper, untrained here.

Heavy: the "small" layout of the multistep consistency paper (arXiv 2403.06807), without concatenated skips. Its blocks
count 108.45 and 137.44 giga multiply-adds, the figures that Dual-Rate Diffusion (arXiv 2605.18190) reports as GFLOPs.
Light: inferred from the paper's costs (44.0 and 73.0), not stated in it: the most regular of the layouts that fit,
with transformer widths and middle depth halved and the convolutional levels kept.

Batch 1024, Adam at 1e-4, EMA, about a million iterations: a job for several large GPUs.
"""

from __future__ import annotations

from typing import Literal

from dualrate.data.loader import Augment
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Interpolated
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import DataConfig, Experiment
from dualrate.experiments.networks import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training.config import FitConfig
from dualrate.training.optim import OptimConfig

Size = Literal[64, 128]


def layout(size: Size, transformers: tuple[int, int], middle: int, dropout: float) -> UViTConfig:
    """3 convolution blocks a level down to 64 x 64, 3 transformer blocks at 32 x 32, `middle` at 16 x 16."""
    levels = (
        Level("conv", 256, 3),
        Level("transformer", transformers[0], 3),
        Level("transformer", transformers[1], middle, dropout),
    )
    if size == 128:
        levels = (Level("conv", 128, 3), *levels)
    return UViTConfig(size, 3, levels, num_classes=1000, embedding=1024, head_dim=64)


def heavy_network(size: Size) -> UViTConfig:
    return layout(size, (512, 1024), middle=16, dropout=0.2 if size == 64 else 0.1)


def light_network(size: Size) -> UViTConfig:
    return layout(size, (256, 512), middle=8, dropout=0.0)


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


def heavy(size: Size = 64, source: str = "imagenet") -> Experiment:
    """The single-rate baseline. source: a folder of images or parquet files."""
    networks, augment = OneNetwork(heavy_network(size)), Augment(flip=True)
    return _experiment(
        f"imagenet{size}-heavy", networks, DenoisingConfig(), DataConfig(source, size, 3, augment=augment)
    )


def dual(size: Size = 64, source: str = "imagenet") -> Experiment:
    """The dual-rate model; random translation is the paper's augmentation."""
    networks, augment = TwoNetworks(heavy_network(size), light_network(size)), Augment(flip=True, translate=4)
    method = DenoisingConfig(times=TimeSampler())
    return _experiment(f"imagenet{size}-dual", networks, method, DataConfig(source, size, 3, augment=augment))


def _experiment(name: str, networks: NetworksConfig, method: DenoisingConfig, data: DataConfig) -> Experiment:
    side = networks.shape[1]
    return Experiment(name, networks, method, FIT, data, GaussianProcess(Interpolated.between(32, side, side)))
