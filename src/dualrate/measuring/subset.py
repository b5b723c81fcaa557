"""Images spread over a set, in batches, as a model takes them: what errors and likelihoods are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.loader import Augment, TrainingSet
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Cond
from dualrate.experiments.experiment import Model


@dataclass(frozen=True)
class SubsetBatch:
    """x: (b, C, H, W) float32, as networks see it; row: (b,) int64, the places of these images in their set."""

    x: Tensor
    cond: Cond
    row: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class SubsetPart:
    """A batch as it is sent to a worker. rows, floats: as of a `TrainingSet`; label, row: (b,) int64."""

    rows: Tensor
    floats: Callable[[Tensor, Draws], Tensor]
    label: NDArray[np.int64] | None
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def on(self, device: torch.device) -> SubsetBatch:
        cond = Cond(None if self.label is None else torch.tensor(self.label, device=device))
        row = torch.tensor(self.row, device=device)
        return SubsetBatch(self.floats(self.rows.to(device), Draws(0, row)), cond, row)


def subset_batches(model: Model, images: TrainingSet, count: int, batch_size: int) -> Iterator[SubsetBatch]:
    """`subset_parts` on the model's device."""
    return (part.on(model.device) for part in subset_parts(model, images, count, batch_size))


def subset_parts(model: Model, images: TrainingSet, count: int, batch_size: int) -> Iterator[SubsetPart]:
    """`count` images, evenly spread over a set, in batches, with the labels that the model is conditioned on.

    Raises ValueError for more images than there are, images or labels that are not the model's, and a batch size
    below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    if not 1 <= count <= len(images):
        raise ValueError(f"{images.name} has {len(images)} images, got a count of {count}: ask for 1 to {len(images)}")
    if images.shape != model.shape:
        raise ValueError(f"{model.name} models images of {model.shape} (C, H, W), {images.name} has {images.shape}")
    if model.num_classes and (images.labels is None or images.num_classes > model.num_classes):
        raise ValueError(
            f"{model.name} knows {model.num_classes} classes, {images.name} has {images.num_classes}: use images with "
            "the labels that it was trained on"
        )
    labels = images.labels if model.num_classes else None
    chosen = spread(count, len(images))
    for first in range(0, count, batch_size):
        row = chosen[first : first + batch_size]
        rows = images.rows(row, Draws(0, torch.from_numpy(row)), Augment())
        yield SubsetPart(rows, images.floats, None if labels is None else np.asarray(labels[row]), row)


def spread(count: int, size: int) -> NDArray[np.int64]:
    """The places of `count` of `size` images, evenly spread over all, in their order."""
    return np.linspace(0, size - 1, count).astype(np.int64)
