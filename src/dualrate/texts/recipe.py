"""Models of tokens: for a CPU Fashion-MNIST in 8 grey levels, and texts by their characters; for a GPU CIFAR-10.

Images are 14 x 14 tokens in patches of 2 x 2, so a transformer has 49 positions. Texts are pieces of 64 characters.
CIFAR-10 is tokens of 256 levels, a colour of a pixel each, as discrete diffusion is published on it: 32 x 96 of them.
Noise masks tokens, or replaces them by any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.recipes import cifar10
from dualrate.recipes.fashion_mnist_latents import FIT
from dualrate.recipes.students import DISTILLING, StudentRecipe
from dualrate.texts.codec import Characters, ColourLevels, GreyLevels
from dualrate.texts.networks import OneTransformer, TwoTransformers
from dualrate.texts.pieces import PIECE, PYTHON_DOCS, is_text, read_text
from dualrate.texts.transformer import TokensConfig

Rate = Literal["single", "dual"]
Noise = Literal["mask", "uniform"]
HEAVY_TEXT, LIGHT_TEXT = (128, 4), (64, 1)  # channels, blocks
PROCESSES = {"mask": Masked(), "uniform": Uniform()}


def image_network(codec: GreyLevels, channels: int, blocks: int) -> TokensConfig:
    """A transformer of 14 x 14 tokens."""
    return TokensConfig(codec.categories, 14, 14, channels, 2, blocks, num_classes=10, embedding=128, head_dim=32)


def name_ending(rate: Rate, noise: Noise) -> str:
    """The end of a run's name: empty for single and mask."""
    return f"{'-dual' * (rate == 'dual')}{'-uniform' * (noise == 'uniform')}"


def method_of(rate: Rate) -> DenoisingConfig:
    return DenoisingConfig(SingleTime() if rate == "single" else TimeSampler(heavy=(4, 32)))


def images(rate: Rate = "single", noise: Noise = "mask") -> Experiment:
    """Fashion-MNIST as tokens."""
    codec = GreyLevels(8, mask=noise == "mask")
    heavy, light = image_network(codec, 128, 6), image_network(codec, 64, 2)
    networks = OneTransformer(heavy) if rate == "single" else TwoTransformers(heavy, light)
    name = f"fashion-mnist-tokens{name_ending(rate, noise)}"
    return Experiment(name, networks, method_of(rate), FIT, DataConfig(size=14), PROCESSES[noise], codec)


def colours(rate: Rate = "single", noise: Noise = "mask") -> Experiment:
    """CIFAR-10 as tokens; its network and training are ours, and were not tried."""
    codec = ColourLevels(256, mask=noise == "mask")
    heavy = TokensConfig(codec.categories, 32, 96, channels=512, patch=2, blocks=12, num_classes=10)
    networks = OneTransformer(heavy) if rate == "single" else TwoTransformers(heavy, heavy.lighter())
    name, fit = f"cifar10-tokens{name_ending(rate, noise)}", replace(cifar10.FIT, micro_batch=64)
    return Experiment(name, networks, method_of(rate), fit, cifar10.DATA, PROCESSES[noise], codec)


@dataclass(frozen=True)
class Text:
    """A model of a text: your own, --data.source FILE.txt, or the reference of the Python that runs it."""

    data: DataConfig = DataConfig(source=PYTHON_DOCS, size=PIECE)
    rate: Rate = "single"
    """dual: a heavy network now and then, a light one at every step. single: the heavy one at every step."""
    noise: Noise = "mask"
    """What noise turns a character into: a mask, or any other character."""

    def __call__(self) -> Experiment:
        """Raises what `read_text` raises, and ValueError for a source that is no text."""
        if not is_text(self.data.source):
            raise ValueError(f"text-tokens is of texts, got {self.data.source}: name a .txt file, or {PYTHON_DOCS}")
        data = replace(self.data, size=self.data.size or PIECE)
        text = read_text(data.source, "train", data.size or PIECE)
        codec = Characters(text.alphabet, mask=self.noise == "mask")
        heavy, light = (
            TokensConfig(codec.categories, text.shape[2], channels=channels, blocks=blocks, embedding=128, head_dim=32)
            for channels, blocks in (HEAVY_TEXT, LIGHT_TEXT)
        )
        networks = OneTransformer(heavy) if self.rate == "single" else TwoTransformers(heavy, light)
        name, fit = f"text-tokens{name_ending(self.rate, self.noise)}", replace(FIT, iterations=4000)
        return Experiment(name, networks, method_of(self.rate), fit, data, PROCESSES[self.noise], codec)


@dataclass(frozen=True)
class TokenStudents(StudentRecipe):
    """Students of models of tokens."""

    light: TokensConfig | None  # pyright: ignore[reportIncompatibleVariableOverride]


def distilled_images() -> TokenStudents:
    """Students of the single models of images."""
    return TokenStudents(None, image_network(GreyLevels(8), 64, 2), DISTILLING, noise=4)


def distilled_texts() -> TokenStudents:
    """Students of the single text models; a light network in proportion to its teacher's."""
    return TokenStudents(None, None, DISTILLING, noise=4)


RECIPES = {
    "fashion-mnist-tokens": ("one transformer, masked diffusion", images),
    "fashion-mnist-tokens-dual": ("two transformers, masked diffusion", partial(images, "dual")),
    "fashion-mnist-tokens-uniform": ("one transformer, uniform noise", partial(images, noise="uniform")),
    "cifar10-tokens": ("one transformer, masked diffusion of 256 levels", colours),
    "cifar10-tokens-dual": ("two transformers, masked diffusion of 256 levels", partial(colours, "dual")),
    "cifar10-tokens-uniform": ("one transformer, uniform noise", partial(colours, noise="uniform")),
    "text-tokens": ("a text by its characters, at one rate or two", Text()),
}
