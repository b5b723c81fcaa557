"""Features of real images, PART at a time: by several processes, and kept, so that they are taken once.

What is kept goes on after a kill where it was, and every later call reads it: Inception takes hours of a CPU for a
data set. They are float32, D of an image: 490 MB of Inception's for 60,000 images, 77 MB of EfficientNet's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.images import ImageSet
from dualrate.data.shards import Shards
from dualrate.machine.progress import ImageProgress
from dualrate.machine.workers import Mapper, in_turn
from dualrate.metrics.extractor import Extractor
from dualrate.metrics.feature_store import FeatureStore
from dualrate.metrics.origin import Origin

VERSION = 1  # raised where a net of the same weights, its identity, sees other features: resized otherwise, say
PART = 500  # images that a process sees at once; a multiple of every net's usual batch, for the same bits as at once

Pixels = NDArray[np.uint8] | Shards


def real_features(
    net: Extractor,
    images: Pixels,
    *,
    store: FeatureStore | None = None,
    mapper: Mapper = in_turn,
    progress: ImageProgress | None = None,
) -> Tensor:
    """(N, D) float32 of images (N, C, H, W) uint8: `net.features(images)`.

    store:    of `store_in`: what is there is not taken again, and what is taken is kept there
    mapper:   takes them
    progress: told of images done, those that were kept among them, and of how many
    Raises what the net raises for images, and `FeatureStore` for files.
    """
    count, found = len(images), {}
    missing = set(range(count)) if store is None else set(store.missing(range(count)))
    parts = [_Part(images, first) for first in range(0, count, PART) if first in missing]
    done = count - len(missing)
    for part, features in mapper(partial(_features, net), parts):
        if store is None:
            found[part.first] = features
        else:
            store.write(range(part.first, part.first + len(features)), features)
        done += len(features)
        if progress is not None:
            progress(done, count)
    if store is not None:
        return store.read(range(count)).features
    return torch.cat([found[part.first] for part in parts])


def store_in(directory: Path, net: Extractor, images: ImageSet) -> FeatureStore:
    """Where features of these images are kept: a folder of the directory, in which there may be those of others.

    Raises what `FeatureStore.open` raises.
    """
    origin = Origin.of_real(f"{images.name}:{images.fingerprint}, {PART} at a time, version {VERSION}", net.identity)
    name = re.sub(r"[^\w.-]+", "-", f"{images.name}-{net.identity}-{origin.digest}")
    return FeatureStore.open(directory / name, origin)


@dataclass(frozen=True, eq=False)
class _Part:
    """PART images from the first on, of all of them; to another process goes no other."""

    images: Pixels
    first: int

    @property
    def own(self) -> NDArray[np.uint8]:
        return self.images[self.first : self.first + PART]

    def __reduce__(self) -> tuple[object, ...]:
        return _Part, (self.own, 0)


def _features(net: Extractor, part: _Part) -> Tensor:
    return net.features(part.own)
