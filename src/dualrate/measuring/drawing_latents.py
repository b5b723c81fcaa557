"""Latents that a model of them draws, for decoders to be compared on: kept as they are drawn, like features of images.

A decoder's own noise is keyed by its image's seed, so the latent of image i is drawn from another one, FIRST + i.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from dualrate.report.headline import plan_name

FIRST = 2_000_000  # beyond the seeds of images
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
    model, cost, origin = drawer.model, drawer.expected_cost, drawer.origin(_Itself.identity)
    store = FeatureStore.open(directory / f"latents-{origin.digest}", origin)
    seeds, how = range(FIRST, FIRST + count), {"size": SHARD, "progress": progress, "mapper": mapper}
    store.fill(seeds, partial(_latents, drawer.settled), _Itself(), **how)
    return DrawnLatents(
        store.read(seeds).features.unflatten(1, model.shape),
        codec=model.codec.latents,
        digest=f"{origin.digest} {count}",
        drawn_by=drawn_by(drawer),
        weights=model.weights_hash,
        macs=int(cost.macs - cost.calls.decode),
    )


def drawn_by(drawer: Drawer) -> str:
    """Model, sampler and plan, in words."""
    return f"{drawer.network} ({drawer.sampler}, {plan_name(drawer.plan.num_steps, drawer.plan.num_heavy)} steps)"


class _Itself:
    """The features of a latent: its numbers."""

    identity = "the latents themselves"

    def features(self, images: Any) -> Tensor:
        """(N, C h w) of (N, C, h, w)."""
        return torch.as_tensor(images).flatten(1)


def _latents(drawer: Drawer, seeds: Sequence[int]) -> Any:
    return torch.cat(list(drawer.states(seeds))).cpu().numpy()
