"""Latents of images: cached as moments for training, and those that decoders are given where they are measured.

What `encode` writes is a packed folder (cache.py), whose rows are N x V x M x C x H x W float16: of an image its V
views (as it is; mirrored), of a view its M moments (mean; log of the variance, unless the codec is deterministic),
normalised. Training draws a latent from its moments, keyed by (seed, sample number), so noise is fresh in every epoch
and a resumed run sees the same. A mirrored latent is no latent of the mirrored image, hence the views.

A decoder is given a latent z_0 for every seed, the same for all decoders of these:
    HeldOut       seed i: z_0 of held-out image i, with noise that is keyed by i: the decoder reconstructs image i
    DrawnLatents  seed i: the i-th z_0 that a model of latents drew (`draw_latents`)
Both count round and round.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, CodecFolder, Moments, noisy_latents
from dualrate.data.cache import ENCODED, Packed, read_packed
from dualrate.data.images import ImageSet, load_images, to_float
from dualrate.data.loader import Augment
from dualrate.data.source import DataProgress, Split, resolved
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Shape


def _floats(rows: Tensor, draws: Draws) -> Tensor:
    """(B, M, C, H, W) float16 -> (B, C, H, W) float32, drawn."""
    moments = Moments.of(rows)
    return moments.sample(torch.zeros(()) if moments.log_var is None else draws.normal("latent", *rows.shape[2:]))


class LatentSet:
    """One split of cached latents, as a `TrainingSet`."""

    alphabet = ""
    floats = staticmethod(_floats)

    def __init__(self, packed: Packed) -> None:
        part, row = packed.part, packed.dataset["row"]
        self.packed, self.labels, self.name = packed, packed.labels, part["name"]
        self.class_names: tuple[str, ...] = tuple(part["class_names"])
        self.num_classes = len(self.class_names)
        self.codec = CodecFolder(**packed.dataset["codec"])
        self.views: int = row["each"]
        _, channels, height, width = row["shape"]
        self.shape: Shape = (channels, height, width)  # of a latent

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of moments, labels and class names."""
        part = self.packed.part
        digest = hashlib.sha256(repr([shard["sha256"] for shard in part["shards"]]).encode())
        digest.update(repr((self.packed.dataset["row"], part["class_names"])).encode())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.packed.part["images"]

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment) -> Tensor:
        """(B, M, C, H, W) float16. Raises ValueError for changes that are made before images are encoded."""
        if augment.translate:
            raise ValueError(f"{self.name} are latents, which cannot be shifted: drop --data.augment.translate")
        if augment.flip and self.views < 2:
            raise ValueError(
                f"{self.name} has no latents of mirrored images: encode with --mirrored, or drop --data.augment.flip"
            )
        view = augment.mirrors(draws).long().numpy()
        return torch.from_numpy(self.packed.rows[index * self.views + view])


def is_encoded(source: str | Path) -> bool:
    """Whether a data source is a folder of latents, finished or not."""
    return source != "" and (resolved(source) / ENCODED).is_file()


def read_latents(source: str | Path, split: Split) -> LatentSet:
    """Raises ValueError for a folder that is not finished, Damaged (an OSError) for what is not as it was written."""
    return LatentSet(read_packed(resolved(source), split))


def encoded_images(source: str | Path, split: Split, progress: DataProgress | None = None) -> ImageSet:
    """The images that latents were made of. Raises ValueError where others are there now, and as `load_images`."""
    packed = read_packed(resolved(source), split)
    how: dict[str, Any] = packed.dataset["images"]
    images = load_images(**how, split=split, progress=progress)
    if images.fingerprint != packed.part["fingerprint"]:
        raise ValueError(
            f"{source} was encoded from other images than {how['source']} now holds: encode them anew, elsewhere"
        )
    return images


KEPT = 64  # batches of z_0, so that what is drawn of them is timed without the encoder


@dataclass(frozen=True, eq=False)
class HeldOut:
    """codec: whose latents they are; images: that they are of."""

    codec: Codec
    images: ImageSet
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def rows(self, seeds: Tensor) -> Tensor:
        """(B,) int64: which images those of these seeds, (B,), are."""
        return seeds.cpu() % len(self.images)

    def originals(self, seeds: Tensor) -> NDArray[np.uint8]:
        """(B, C, H, W): the images of these seeds, (B,)."""
        return self.images.images[self.rows(seeds).numpy()]

    def __call__(self, seeds: Tensor) -> Tensor:
        """z_0: (B, C, h, w) float32, on the codec's device. seeds: (B,)."""
        key = tuple(seeds.tolist())
        if key not in self._kept:
            x = to_float(self.originals(seeds)).to(self.codec.device)
            with torch.no_grad():
                z_0 = noisy_latents(self.codec, x, Draws(0, seeds.to(self.codec.device)))
            self._kept[key] = z_0
            for oldest in list(self._kept)[:-KEPT]:
                del self._kept[oldest]
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class DrawnLatents:
    """z_0: (N, C, h, w) float32; codec: `Codec.latents` of theirs; digest: of all that they depend on.

    drawn_by: model, plan and sampler, in words; weights: that model's hash; macs: multiply-adds of one latent
    """

    z_0: Tensor
    codec: str
    digest: str
    drawn_by: str
    weights: str
    macs: int

    def __call__(self, seeds: Tensor) -> Tensor:
        """(B, C, h, w), on the device of the seeds, (B,)."""
        return self.z_0[seeds.cpu() % len(self.z_0)].to(seeds.device)


GivenLatents = HeldOut | DrawnLatents
