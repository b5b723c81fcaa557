"""The feature net: a small classifier of the data set's own labels, whose penultimate layer is where FD is measured.

Inception features are made for photographs of 299 x 299; on small images a classifier of the same data set sees more.
Its features pool every resolution, so that they tell classes apart and still react to blur and noise. Distances in
them are called FD-<name>, never FID: they compare only with distances in the very same weights (`identity`).

Features are always computed on the CPU in float32 from uint8 images, so that a score depends on no accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Iterations, Probability, Ranged, Seed
from dualrate.data.images import to_float
from dualrate.data.packed import Shards
from dualrate.metrics import kept
from dualrate.metrics.architectures import Architecture, Classifier

NAME = "features"
WEIGHTS, CARD = f"{NAME}.safetensors", f"{NAME}.json"


@dataclass(frozen=True)
class Card(Ranged):
    """What a feature net is and where it comes from; stored as JSON beside its weights.

    name:     of the data set; scores are called FD-<name>
    identity: sha256 of the weights file
    data:     sha256 of the training images
    accuracy: on the test images, in [0, 1]; None without a test set
    seed, epochs: of the training
    """

    name: str
    identity: str
    architecture: Architecture
    data: str
    accuracy: Probability | None
    seed: Seed
    epochs: Iterations


@dataclass(frozen=True)
class FeatureNet(kept.KeptNetwork[Card, Classifier]):
    """A trained classifier and its card; a `FeatureExtractor`."""

    file, card_type = NAME, Card

    @property
    def dim(self) -> int:
        return self.card.architecture.features

    def features(self, images: Tensor | NDArray[np.uint8] | Shards, batch_size: int = 500) -> Tensor:
        """Features (N, D) float32 on the CPU of images (N, C, H, W) uint8; ValueError for others."""
        arch = self.card.architecture
        wanted = (arch.channels, arch.size, arch.size)
        if str(images.dtype).removeprefix("torch.") != "uint8" or tuple(images.shape[1:]) != wanted or not len(images):
            raise ValueError(
                f"got images {tuple(images.shape)} {images.dtype}; feature net {self.card.name!r} takes "
                f"(N, {', '.join(map(str, wanted))}) uint8: quantise x in [-1, 1] by round(127.5x+127.5), use images "
                "of the size and colours of its data set, or train a feature net on yours"
            )
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return torch.cat([self.module.features(to_float(part).cpu()) for part in parts])


def read_card(file: Path) -> Card:
    """The card of a feature net in a file. Raises ValueError for any other content."""
    return kept.read_card(file, Card)
