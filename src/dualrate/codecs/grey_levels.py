"""Grey images as tokens: every pixel one of a few levels, one-hot, the latents of a run on a categorical process.

Nothing is learned, so a run is trained on images, and its method makes tokens of them (`methods/encoded.py`). Levels
are spread evenly over [-1, 1], ends included, so that what is black stays black; a pixel becomes the nearest one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, Moments
from dualrate.codecs.config import CodecConfig
from dualrate.config.ranges import Range, Ranged
from dualrate.config.serial import to_plain
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Shape


@dataclass(frozen=True)
class GreyLevels(CodecConfig, Ranged):
    """Tokens of grey images."""

    levels: Annotated[int, Range(2, 256)] = 8
    """Of grey."""
    mask: bool = True
    """Whether a category more stands for noise, as a masked process has it."""

    @property
    def categories(self) -> int:
        """V."""
        return self.levels + self.mask

    def data_shape(self, latent: Shape) -> Shape:
        return 1, latent[1], latent[2]

    def build(self, networks: nn.ModuleDict, device: torch.device | str) -> Codec:
        return GreyTokens(self, torch.device(device))


@dataclass(frozen=True)
class GreyTokens:
    """Between grey images, (B, 1, H, W), and one-hot tokens, (B, V, H, W)."""

    config: GreyLevels
    device: torch.device
    log_snr = None  # no annotation: no field

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(to_plain(self.config)).encode()).hexdigest()

    @property
    def latents(self) -> str:
        return self.fingerprint

    def latent_shape(self, image: Shape) -> Shape:
        if image[0] != 1:
            raise ValueError(f"tokens are of grey images, got {image[0]} channels: set --data.channels 1")
        return self.config.categories, *image[1:]

    def image_shape(self, latent: Shape) -> Shape:
        if latent[0] != self.config.categories:
            raise ValueError(f"tokens of {self.config.categories} categories are decoded, got {latent} (V, H, W)")
        return 1, *latent[1:]

    def encode(self, images: Tensor) -> Moments:
        level = ((images + 1) / 2 * (self.config.levels - 1)).round().long()
        tokens = images.new_zeros(len(images), self.config.categories, *images.shape[2:])
        return Moments(tokens.scatter_(1, level, 1))

    def decode(self, x: Tensor, draws: Draws) -> Tensor:
        level = x.argmax(1, keepdim=True).clamp(max=self.config.levels - 1)
        return level / (self.config.levels - 1) * 2.0 - 1
