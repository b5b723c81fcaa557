"""Latents that a model of them draws, for decoders to be compared on: kept as they are drawn, like features of images.

A decoder's own noise is keyed by its image's seed, so the latent of image i is drawn from another seed, FIRST + i: of
the same class, if the model has classes, whose number divides FIRST.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualrate.data.given_latents import DrawnLatents
from dualrate.machine.progress import ImageProgress
from dualrate.machine.workers import Mapper, in_turn
from dualrate.measuring.drawer import Drawer
from dualrate.metrics.feature_store import FeatureStore

FIRST = 2_520_000  # a multiple of 1 to 10, 100 and 1,000
SHARD = 250  # latents of a file


def draw_latents(
    drawer: Drawer,
    count: int,
    directory: Path,
    *,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> DrawnLatents:
    """`count` of them, those that the directory lacks drawn now, in blocks; it goes on where a killed call was.

    Raises OSError for files that are damaged or cannot be read.
    """
    origin = drawer.origin(_Itself.identity)
    store = FeatureStore.open(directory / f"latents-{origin.digest}", origin)
    how = {"size": SHARD, "progress": progress, "mapper": mapper}
    seeds = range(FIRST, FIRST + count)
    store.fill(seeds, partial(_latents, drawer.settled), _Itself(), **how)
    z_0 = store.read(seeds).features.unflatten(1, drawer.model.shape)
    by = f"{drawer.network}, {drawer.plan.num_steps} steps of {drawer.sampler}"
    cost = drawer.expected_cost
    return DrawnLatents(
        z_0, drawer.model.codec.latents, f"{origin.digest} {count}", by, int(cost.macs - cost.calls.decode)
    )


@dataclass(frozen=True)
class _Itself:
    """The features of a latent: its numbers."""

    identity = "the latents themselves"

    def features(self, images: Any) -> Tensor:
        """(N, C h w) of (N, C, h, w)."""
        return torch.as_tensor(images).flatten(1)


def _latents(drawer: Drawer, seeds: Sequence[int]) -> Any:
    return torch.cat(list(drawer.states(seeds))).cpu().numpy()
