"""Codecs of tokens: images, every value one of a few levels, and texts, every character one of an alphabet.

Nothing is learned: a run is trained on its data, whose batches become tokens. A value of the data, (B, C, H, W), is one
of the codec's symbols, one-hot over V categories: (B, V, C H, W), the rows of red above those of green and of blue. A
masked process has one more category, the last: the mask, which no data has.

Grey levels are spread evenly over [-1, 1], ends included, so that what is black stays black; a pixel becomes the
nearest. A text's data are the places of its characters in the alphabet as 8-bit values, (B, 1, 1, L).
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, CodecConfig, Moments
from dualrate.config.ranges import Range, Ranged, many
from dualrate.config.serial import to_plain
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws


class TokenCodec(CodecConfig):
    """A codec of tokens. A subclass is a frozen dataclass with a field `mask` and fields that define the symbols.

    mask:    whether one more category stands for noise, as in a masked process
    channels: of the data, each a token of its own
    highest: the symbol that stands for 1 in the data, where 0 stands for -1
    """

    instant, channels = True, 1
    mask: bool

    @property
    @abstractmethod
    def symbols(self) -> int:
        """The number of symbols."""

    @property
    def highest(self) -> int:
        return self.symbols - 1

    @property
    def categories(self) -> int:
        """V, the number of categories."""
        return self.symbols + self.mask

    def data_shape(self, latent: Shape) -> Shape:
        return self.channels, latent[1] // self.channels, latent[2]

    def check(self, process: Process, shape: Shape) -> None:
        if not isinstance(process, CategoricalProcess):
            raise ValueError(f"tokens are of a categorical process (Masked, Uniform), got {type(process).__name__}")
        like = torch.zeros(self.categories, 1, 1, device="cpu")  # also among networks without content
        masked = bool(process.pi(like)[-1] == 1)
        if masked != self.mask:
            raise ValueError(f"{type(process).__name__} wants a codec with mask {masked}, got {self.mask}: set it")
        if shape[0] != self.categories:
            raise ValueError(
                f"the codec's tokens have {self.categories} categories (symbols and mask), the networks take "
                f"{shape[0]}: set their vocabulary to it"
            )
        if shape[1] % self.channels:
            raise ValueError(
                f"tokens of {self.channels} channels stand in as many times the image's rows, the networks take "
                f"{shape[1]} rows: set their height to a multiple of {self.channels}"
            )

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return Tokens(self, torch.device(device))


@dataclass(frozen=True)
class Tokens:
    """The codec between data, (B, C, H, W), and one-hot tokens, (B, V, C H, W)."""

    config: TokenCodec
    device: torch.device
    log_snr = None  # no annotation: no field

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(to_plain(self.config)).encode()).hexdigest()

    latents = fingerprint

    def latent_shape(self, image: Shape) -> Shape:
        if image[0] != (channels := self.config.channels):
            raise ValueError(
                f"{type(self.config).__name__} are tokens of {many(channels, 'channel')}, got {image[0]}: set "
                f"--data.channels {channels}, or take a recipe of the other tokens"
            )
        return self.config.categories, channels * image[1], image[2]

    def image_shape(self, latent: Shape) -> Shape:
        if latent[0] != self.config.categories:
            raise ValueError(f"tokens of {self.config.categories} categories are decoded, got {latent} (V, H, W)")
        return self.config.data_shape(latent)

    def encode(self, images: Tensor) -> Moments:
        symbols = ((images + 1) / 2 * self.config.highest).round().long().flatten(1, 2)[:, None]
        tokens = images.new_zeros(len(images), self.config.categories, *symbols.shape[2:])
        return Moments(tokens.scatter_(1, symbols, 1))

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        symbols = x.argmax(1).clamp(max=self.config.symbols - 1).unflatten(1, (self.config.channels, -1))
        return symbols / self.config.highest * 2.0 - 1


@dataclass(frozen=True)
class GreyLevels(TokenCodec, Ranged):
    """Tokens of grey images."""

    levels: Annotated[int, Range(2, 256)] = 8
    """Number of grey levels."""
    mask: bool = True
    """Whether one more category stands for noise, as in a masked process."""

    @property
    def symbols(self) -> int:
        return self.levels


@dataclass(frozen=True)
class ColourLevels(GreyLevels):
    """Tokens of colour images, as published for CIFAR-10: a token is the level of one channel of one pixel."""

    channels = 3  # no annotation: no field


BETWEEN = "\n---\n"  # pieces that are shown one after the other
MOST = 255  # characters of an alphabet, which a byte tells apart


@dataclass(frozen=True)
class Characters(TokenCodec):
    """Tokens of a text. Raises ValueError for an alphabet with a repeat, or not of 2 to 255 characters."""

    alphabet: str  # pyright: ignore[reportIncompatibleVariableOverride]
    """All characters of the text."""
    mask: bool = True
    """Whether one more category stands for noise, as in a masked process."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.alphabet) <= MOST or len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError(f"an alphabet is 2 to {MOST} different characters, got {len(self.alphabet)}")

    @property
    def symbols(self) -> int:
        return len(self.alphabet)

    @property
    def highest(self) -> int:
        return 255  # data are 8-bit values


def texts(alphabet: str, places: NDArray[np.uint8]) -> Iterable[str]:
    """The pieces of text of 8-bit values. places: (N, 1, 1, L)."""
    return ("".join(alphabet[place] for place in piece.ravel()) for piece in places)
