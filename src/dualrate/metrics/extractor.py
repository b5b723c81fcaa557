"""The seam between images and distances: what turns images into the features that a Frechet distance is measured in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.packed import Shards
from dualrate.system.device import whole_products


class Extractor(Protocol):
    """What makes features of images. identity: those of another one are not kept beside its own"""

    @property
    def identity(self) -> str: ...

    def features(self, images: Any) -> Tensor:
        """(N, D) float32 on the CPU, of (N, C, H, W)."""
        ...


class FeatureExtractor(Extractor, Protocol):
    """A fixed network. Distances compare only within one `identity`."""

    @property
    def metric(self) -> str:
        """What a distance in these features is called: "FD-<name>", and "FID" for Inception's alone."""
        ...

    @property
    def identity(self) -> str:
        """ "<name>:<first 12 hex digits of the weights' sha256>", for fingerprints and reference files."""
        ...

    @property
    def dim(self) -> int:
        """D, features of an image."""
        ...

    @property
    def usual_count(self) -> int:
        """Images that scores are usually of; a score of fewer carries a note."""
        ...

    def features(self, images: Tensor | NDArray[np.uint8] | Shards) -> Tensor:
        """Features (N, D) float32 on the CPU of images (N, C, H, W) uint8; ValueError for images it does not take."""
        ...


def features_of_photos(
    net: Callable[[Tensor], Tensor],
    images: Tensor | NDArray[np.uint8] | Shards,
    name: str,
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """What a net of colour photographs gives, (N, D) float32 on the CPU, of (N, C, H, W) uint8, C = 1 or 3.

    In float32 on every device: TensorFloat-32 would move a low distance. Else ValueError.
    """
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"got images {shape} {dtype}; {name} takes (N, C, H, W) uint8 with C = 1 or 3: quantise x in [-1, 1] by "
            "round(127.5x+127.5)"
        )
    parts = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), whole_products():
        for start in range(0, len(images), batch_size):
            batch = torch.tensor(np.asarray(images[start : start + batch_size])).to(device)
            parts.append(net(batch).float().cpu())
    return torch.cat(parts)


def resized(images: Tensor, size: int) -> Tensor:
    """(N, 3, size, size) float32 of images (N, C, H, W) uint8, C = 1 or 3: bicubic, antialiased, unrounded."""
    return F.interpolate(images.float().expand(-1, 3, -1, -1), size=(size, size), mode="bicubic", antialias=True)
