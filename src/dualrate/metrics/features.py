"""The feature net: a small classifier of the data set's own labels, whose penultimate layer is where FD is measured.

Inception features are made for photographs of 299 x 299; on small images a classifier of the same data set sees more.
Its features pool every resolution, so that they tell classes apart and still react to blur and noise. Distances in
them are called FD-<name>, never FID: they compare only with distances in the very same weights (`identity`).

Features are always computed on the CPU in float32 from uint8 images, so that a score depends on no accelerator.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor

from dualrate.config.ranges import Iterations, Probability, Ranged, Seed
from dualrate.config.serial import from_json, to_plain
from dualrate.data.images import to_float
from dualrate.data.shards import Shards
from dualrate.machine.files import read_bytes, write_whole
from dualrate.metrics.architectures import Architecture, Classifier

WEIGHTS, CARD = "features.safetensors", "features.json"


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
class FeatureNet:
    """A trained classifier, in eval mode and without gradients, and its card; a `FeatureExtractor`."""

    card: Card
    module: Classifier

    @property
    def metric(self) -> str:
        return f"FD-{self.card.name}"

    @property
    def identity(self) -> str:
        return f"{self.card.name}:{self.card.identity[:12]}"

    @property
    def dim(self) -> int:
        return self.card.architecture.features

    @property
    def usual_count(self) -> int:
        return 5000

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

    def save(self, directory: Path | str) -> None:
        """Write weights (safetensors) and card (JSON) into `directory`, made if it is missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / WEIGHTS, weight_bytes(self.module))
        write_whole(directory / CARD, json.dumps(to_plain(self.card), indent=1) + "\n")

    @staticmethod
    def load(directory: Path | str) -> FeatureNet:
        """Read what `save` wrote; OSError if a file cannot be read, ValueError if it is not what its card says."""
        weights_path, card_path = Path(directory) / WEIGHTS, Path(directory) / CARD
        weights, card = read_bytes(weights_path), read_card(card_path)
        found = hashlib.sha256(weights).hexdigest()
        if found != card.identity:
            raise ValueError(
                f"{weights_path} has sha256 {found[:12]}..., its card says {card.identity[:12]}...: the file is "
                "damaged or belongs to another net; fetch it again, or delete both files and train the net again"
            )
        try:
            module = card.architecture.build()
            module.load_state_dict(tensors_from_bytes(weights))
        except (ValueError, ArithmeticError, IndexError, RuntimeError, SafetensorError) as error:
            what = " ".join(str(error).split())[:200]
            raise ValueError(f"{card_path} is not of the weights beside it: {what} ...; fetch both again") from error
        return FeatureNet(card, module.eval().requires_grad_(False))


def read_card(file: Path) -> Card:
    """The card in a file. Raises ValueError for any other content."""
    try:
        return from_json(Card, read_bytes(file), str(file))
    except ValueError as error:
        raise ValueError(f"{error}: it is no card of a feature net; fetch it again, or train the net again") from error


def weight_bytes(module: Classifier) -> bytes:
    """The weights as the bytes of a safetensors file, the same for the same weights."""
    return bytes_of_tensors({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
