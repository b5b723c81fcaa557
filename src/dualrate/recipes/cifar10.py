"""CIFAR-10, 32 x 32, for a GPU: a heavy network, a light one, and the pair.

Convolutions at 32 x 32, transformers at 16 x 16 and 8 x 8. The light network halves the transformers' widths and the
middle's depth, and has narrower convolutions. Models are small enough to travel between short pieces of GPU time
(tools/gpu); `auto --size base` makes larger ones.
`--data.source` is your own copy: a folder of images, or parquet files as the Hub has them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from dualrate.data.loader import Augment
from dualrate.experiment.data_config import DataConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.shared import one_or_two, training
from dualrate.recipes.students import StudentRecipe
from dualrate.training.config import OptimConfig

Size = Literal["heavy", "light"]


def network(conv: int, transformers: tuple[int, int], middle: int, dropout: float = 0.1) -> UViTConfig:
    """Two blocks of a level down to 16 x 16, `middle` at 8 x 8."""
    levels = (
        Level("conv", conv, 2),
        Level("transformer", transformers[0], 2),
        Level("transformer", transformers[1], middle, dropout),
    )
    return UViTConfig(32, 3, levels, num_classes=10, embedding=256, head_dim=64)


NETWORKS: dict[Size, UViTConfig] = {
    "heavy": network(96, (192, 256), 4),
    "light": network(48, (64, 128), 2, dropout=0.0),
}
FIT = training(200_000, 512, 4e-4, 1000, ema_halflife=300_000, compile=True, checkpoint_every=500, sample_every=2000)
DATA = DataConfig("cifar10", size=32, channels=3, augment=Augment(flip=True))


def distilled() -> StudentRecipe:
    """Students of the heavy model."""
    optim = OptimConfig(lr=5e-5, betas=(0.0, 0.99), warmup=200)
    return StudentRecipe(None, NETWORKS["light"], replace(FIT, optim=optim, ema_halflife=10_000))


HEAVY, LIGHT = NETWORKS.values()
dual = partial(one_or_two, "cifar10-dual", HEAVY, LIGHT, FIT, DATA)
RECIPES = {
    "cifar10-heavy": ("the heavy network alone", partial(one_or_two, "cifar10-heavy", HEAVY, None, FIT, DATA)),
    "cifar10-light": ("the light network alone", partial(one_or_two, "cifar10-light", LIGHT, None, FIT, DATA)),
    "cifar10-dual": ("heavy and light", dual),
}
