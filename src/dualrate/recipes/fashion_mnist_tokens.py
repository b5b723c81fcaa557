"""Fashion-MNIST as tokens: 14 x 14 pixels of 8 grey levels, under masked diffusion, at one rate and at two,
and under uniform diffusion; and all 28 x 28.

196 tokens in patches of 2 x 2, 49 positions for a transformer of small width, for a CPU. The 784 of 28 x 28 are for the
U-ViT of the images themselves, a channel a category.
"""

from __future__ import annotations

from dataclasses import replace

from dualrate.codecs.tokens import GreyLevels
from dualrate.diffusion.categorical import CategoricalProcess, Masked, Uniform
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.networks import NetworksConfig, OneNetwork
from dualrate.experiment.tokens import OneTransformer, TwoTransformers
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource
from dualrate.networks.tokens import TokensConfig
from dualrate.recipes import fashion_mnist
from dualrate.recipes.latents import FIT
from dualrate.recipes.students import DISTILLING, StudentRecipe

CODEC, PROCESS = GreyLevels(8), Masked()


def network(channels: int, blocks: int) -> TokensConfig:
    """A transformer of 14 x 14 tokens."""
    return TokensConfig(CODEC.categories, 14, 14, channels, 2, blocks, num_classes=10, embedding=128, head_dim=32)


HEAVY, LIGHT = network(128, 6), network(64, 2)


def single() -> Experiment:
    """One network."""
    return of("fashion-mnist-tokens", OneTransformer(HEAVY), SingleTime())


def dual() -> Experiment:
    """Both, trained jointly."""
    return of("fashion-mnist-tokens-dual", TwoTransformers(HEAVY, LIGHT), TimeSampler(heavy=(4, 32)))


def uniform() -> Experiment:
    """One network, under noise that is any grey."""
    codec = replace(CODEC, mask=False)
    networks = OneTransformer(replace(HEAVY, vocabulary=codec.categories))
    return of("fashion-mnist-tokens-uniform", networks, SingleTime(), Uniform(), codec)


def full_size() -> Experiment:
    """One network, of 28 x 28 tokens: a U-ViT, whose students read no noise (--noise 0)."""
    uvit = replace(fashion_mnist.HEAVY, image_channels=CODEC.categories)
    return of("fashion-mnist-tokens-28", OneNetwork(uvit), SingleTime(), size=28)


def of(
    name: str,
    networks: NetworksConfig,
    times: TimeSource,
    process: CategoricalProcess = PROCESS,
    codec: GreyLevels = CODEC,
    size: int = 14,
) -> Experiment:
    return Experiment(name, networks, DenoisingConfig(times), FIT, DataConfig(size=size), process, codec)


def distilled() -> StudentRecipe:
    """Students of the single models."""
    return StudentRecipe(None, LIGHT, DISTILLING, noise=4)


RECIPES = {
    "fashion-mnist-tokens": ("one transformer, masked diffusion", single),
    "fashion-mnist-tokens-dual": ("two transformers, masked diffusion", dual),
    "fashion-mnist-tokens-uniform": ("one transformer, uniform noise", uniform),
    "fashion-mnist-tokens-28": ("one transformer, whole images", full_size),
}
