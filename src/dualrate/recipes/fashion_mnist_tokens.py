"""Fashion-MNIST as tokens: 14 x 14 pixels of 8 grey levels, under masked diffusion, at one rate and at two.

196 tokens for a transformer whose sequence is that long: small widths, for a CPU.
"""

from __future__ import annotations

from dualrate.codecs.grey_levels import GreyLevels
from dualrate.diffusion.categorical import Masked
from dualrate.experiments.experiment import DataConfig, Experiment
from dualrate.experiments.networks import NetworksConfig
from dualrate.experiments.tokens import OneTransformer, TokenDenoisingConfig, TwoTransformers
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource
from dualrate.networks.tokens import TokensConfig
from dualrate.recipes.fashion_mnist_latents import FIT

CODEC = GreyLevels(8)


def network(channels: int, blocks: int) -> TokensConfig:
    """A transformer of 14 x 14 tokens."""
    return TokensConfig(CODEC.categories, 14, 14, channels, blocks, num_classes=10, embedding=128, head_dim=32)


HEAVY, LIGHT = network(128, 6), network(64, 2)


def single() -> Experiment:
    """One network."""
    return of("fashion-mnist-tokens", OneTransformer(HEAVY), SingleTime())


def dual() -> Experiment:
    """Both, trained jointly."""
    return of("fashion-mnist-tokens-dual", TwoTransformers(HEAVY, LIGHT), TimeSampler(heavy=(4, 32)))


def of(name: str, networks: NetworksConfig, times: TimeSource) -> Experiment:
    method, data = TokenDenoisingConfig(times), DataConfig(size=14)
    return Experiment(name, networks, method, FIT, data, Masked(), CODEC)
