"""Networks that are trained here to measure others: weights and a card in a directory, and how they are trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor, nn

from dualrate.config.ranges import Ranged
from dualrate.config.serial import from_json, to_plain
from dualrate.data.shards import Shards
from dualrate.system.files import read_bytes, tensors_of, write_whole
from dualrate.system.progress import Reporter

Pixels = Tensor | NDArray[np.uint8] | Shards


@dataclass(frozen=True)
class NetworkCard(Ranged):
    """Facts about a trained network; stored as JSON.

    name:         of its data; distances in its features are called FD-<name>
    identity:     sha256 of the weights file
    architecture: its `build()` makes the network
    """

    name: str
    identity: str
    architecture: Any


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in eval mode, without gradients, and its card; a subclass is a `FeatureExtractor`.

    In a directory it is a file of weights (safetensors) and its card (JSON).

    file:      the name of both files, without an ending
    card_type: of the card
    """

    card: NetworkCard
    module: Any

    file: ClassVar[str]
    card_type: ClassVar[type]

    @property
    def metric(self) -> str:
        return f"FD-{self.card.name}"

    @property
    def identity(self) -> str:
        return f"{self.card.name}:{self.card.identity[:12]}"

    @property
    def usual_count(self) -> int:
        return 5000

    def check(self, images: Pixels, shape: tuple[int, ...], way_out: str) -> None:
        """Raises ValueError for other images than (N, *shape) uint8, N > 0."""
        if str(images.dtype).removeprefix("torch.") != "uint8" or tuple(images.shape[1:]) != shape or not len(images):
            raise ValueError(
                f"got {tuple(images.shape)} {images.dtype}; the network of {self.card.name!r} takes "
                f"(N, {', '.join(map(str, shape))}) uint8: {way_out}"
            )

    def save(self, directory: Path | str) -> None:
        """Write weights and card into `directory`, made if it is missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / f"{self.file}.safetensors", weight_bytes(self.module))
        write_whole(directory / f"{self.file}.json", json.dumps(to_plain(self.card), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read what `save` wrote; OSError if a file cannot be read, ValueError if it is not what its card says."""
        weights_path, card_path = (Path(directory) / f"{cls.file}.{ending}" for ending in ("safetensors", "json"))
        weights, card = read_bytes(weights_path), read_card(card_path, cls.card_type)
        sha256 = hashlib.sha256(weights).hexdigest()
        again = "it is damaged or belongs to another net; fetch both again, or train the net again"
        if sha256 != card.identity:
            raise ValueError(f"{weights_path} has sha256 {sha256[:12]}, its card says {card.identity[:12]}: {again}")
        try:
            module = card.architecture.build()
            module.load_state_dict(tensors_of(weights))
        except (ValueError, ArithmeticError, IndexError, RuntimeError, SafetensorError) as error:
            what = " ".join(str(error).split())[:200]
            raise ValueError(f"{card_path} does not fit the weights beside it: {what}; fetch both again") from error
        return cls(card, module.eval().requires_grad_(False))


def weight_bytes(module: nn.Module) -> bytes:
    """The weights as the bytes of a safetensors file, the same for the same weights."""
    return bytes_of_tensors({name: tensor.contiguous() for name, tensor in module.state_dict().items()})


def fit_module(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    iterations: int,
    batch_size: int,
    *,
    rate: float,
    clip: float | None = None,
    progress: Reporter | None,
) -> None:
    """Train by AdamW with one cycle of the learning rate; then eval mode, without gradients.

    loss_of: the loss of an iteration's batch
    rate:    the highest learning rate
    clip:    the largest norm of a gradient; None: not clipped
    """
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=iterations)
    module.train()
    for iteration in range(iterations):
        loss = loss_of(iteration)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        schedule.step()
        if progress is not None:
            done = iteration + 1
            progress.update(done, iterations, {"images": done * batch_size, "loss": loss.item()})
    module.eval().requires_grad_(False)


def read_card(file: Path, kind: type[Any]) -> Any:
    """The card of a trained network in a file. Raises ValueError for any other content."""
    try:
        return from_json(kind, read_bytes(file), str(file))
    except ValueError as error:
        raise ValueError(f"{error}: it is no card of a trained net; fetch it again, or train the net again") from error
