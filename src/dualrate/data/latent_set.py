"""Latents of images: encoded and cached as moments for training, and those that decoders get where they are measured.

What `encode` writes is a packed folder (cache.py), whose rows are N x V x M x C x H x W float16: of an image its V
views (plain; mirrored), of a view its M moments (mean; log of the variance, unless the codec is deterministic),
normalised. Images go through the codec in batches within a shard, in float32. Training draws a latent from its moments,
keyed by (seed, sample number), so noise is fresh in every epoch and a resumed run sees the same. A mirrored latent is
no latent of the mirrored image, hence the views.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.codecs.codec import Codec, CodecFolder, Moments
from dualrate.config.ranges import as_path
from dualrate.data import cache as packed
from dualrate.data import fashion_mnist
from dualrate.data.cache import ENCODED, SHARD_BYTES, Packed, read_packed
from dualrate.data.decode import OnBad
from dualrate.data.finding import check_outside
from dualrate.data.images import ImageSet, load_images, to_float
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import SPLITS, DataProgress, Raw, Split, resolved, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.system.device import pick_device, whole_products
from dualrate.system.files import blaming, read_json
from dualrate.system.workers import Mapper, in_turn


class LatentSet(TrainingSet):
    """One split of cached latents."""

    codec: CodecFolder

    def __init__(self, stored: Packed) -> None:
        part, row = stored.part, stored.dataset["row"]
        self.packed, self.labels, self.name = stored, stored.labels, part["name"]
        self.class_names = tuple(part["class_names"])
        self.codec = CodecFolder(**stored.dataset["codec"])  # pyright: ignore[reportIncompatibleVariableOverride]
        self.views: int = row["each"]
        self.frames_each = stored.dataset.get("frames", 1)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of a latent."""
        _, channels, height, width = self.packed.dataset["row"]["shape"]
        return channels, height, width

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
        return torch.from_numpy(self.packed.rows[index * self.views + augment.mirrors(draws).long().numpy()])

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        """(B, M, C, H, W) float16 -> (B, C, H, W) float32, drawn."""
        moments = Moments.of(rows)
        return moments.sample(torch.zeros(()) if moments.log_var is None else draws.normal("latent", *rows.shape[2:]))


def is_encoded(source: str | Path) -> bool:
    """Whether a data source is a folder of latents, finished or not."""
    return source != "" and (resolved(source) / ENCODED).is_file()


def read_latents(source: str | Path, split: Split) -> LatentSet:
    """One split of a folder of latents.

    Raises ValueError for a folder that is not finished, Damaged (an OSError) for what is not as it was written.
    """
    rows = read_packed(resolved(source), split)
    with blaming(resolved(source) / packed.DATASET):
        latents = LatentSet(rows)
        _ = latents.shape, latents.fingerprint
        return latents


def encoded_images(source: str | Path, split: Split, progress: DataProgress | None = None) -> ImageSet:
    """The images that latents were made of. Raises ValueError where others are there now, and as `load_images`."""
    stored = read_packed(resolved(source), split)
    how: dict[str, Any] = stored.dataset["images"]
    images = load_images(**how, split=split, progress=progress)
    if images.fingerprint != stored.part["fingerprint"]:
        raise ValueError(
            f"{source} was encoded from other images than {how['source']} now holds: encode them anew, elsewhere"
        )
    return images


ENCODING = "encoding"  # the message of progress


def encode(
    source: str | Path,
    folder: str | Path,
    codec: CodecFolder,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    on_bad: OnBad = "fail",
    label: str | None = None,
    mirrored: bool = True,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    mapper: Mapper = in_turn,
    progress: DataProgress = silent,
) -> dict[str, Any]:
    """Both splits of a source (see `load_images`) as latents in `folder`, made if it is missing; or what is left to do.

    size, channels, on_bad, label: as in `load_images`
    mirrored: also the latents of mirrored images
    shard_bytes: of a file at most, but for an image at least
    device:   of the codec, in every process, as of `pick_device`
    Returns what dataset.json holds. Raises ValueError for images or latents that cannot be used, for a folder that
    holds anything else or was encoded from other images, by another codec or in another way; OSError for what cannot be
    read or written.
    """
    folder, device = as_path(folder), pick_device(device)
    if is_encoded(source):
        raise ValueError(f"{source} holds latents already: encode the images that they were made of")
    check_outside(folder, source)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; expected at least 1")
    named = str(source) if source == fashion_mnist.NAME else str(resolved(source))  # read again, from wherever
    how: dict[str, Any] = {"source": named, "size": size, "channels": channels, "on_bad": on_bad, "label": label}
    images: dict[Split, ImageSet] = {split: load_images(**how, split=split, progress=progress) for split in SPLITS}
    if images["test"].shape != images["train"].shape:
        shapes = " and ".join(f"{images[split].shape} ({split})" for split in SPLITS)
        raise ValueError(f"images of one shape (C, H, W) are encoded, got {shapes}: give --size")
    made_by = codec.read(device)
    made_by.latent_shape(images["train"].shape)  # refuses what it cannot encode
    plan = {"format": packed.FORMAT, **how, "mirrored": mirrored, "shard_bytes": shard_bytes}
    plan |= {"codec": codec.fingerprint, "content": [images[split].fingerprint for split in SPLITS]}
    with packed.begun(folder, ENCODED, plan) as unfinished:
        if unfinished:
            first = moments_of(made_by, images["train"].images[:1], device, mirrored)
            row = {"shape": list(first.shape[2:]), "dtype": "float16", "each": first.shape[1]}
            where = str(device) if mapper is in_turn else device.type  # each process has a GPU of its own
            job = partial(encode_shard, folder, codec, where, mirrored, batch_size)
            raws: dict[Split, tuple[str, Raw]] = {
                split: (part.name, packed.raw_rows(part.name, part.images, part.labels, part.class_names))
                for split, part in images.items()
            }
            splits = packed.pack(
                folder, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=ENCODING
            )
            for split, part in splits.items():
                part["fingerprint"] = images[split].fingerprint
            by = {"folder": codec.folder, "fingerprint": codec.fingerprint}
            frames = {"frames": of_clip} if (of_clip := images["train"].frames_each) > 1 else {}
            packed.finish_dataset(folder, row, splits, codec=by, images=how, **frames)
    return read_json(folder / packed.DATASET)


def moments_of(codec: Codec, images: np.ndarray, device: torch.device | str, mirrored: bool) -> NDArray[np.float16]:
    """Moments (B, V, M, C, H, W) of images (B, C, H, W) uint8. Raises ValueError for numbers that float16 has not."""
    x = to_float(torch.tensor(images).to(device))
    with whole_products():
        views = [codec.encode(view).stacked() for view in ((x, x.flip(-1)) if mirrored else (x,))]
    return packed.halves(torch.stack(views, 1), "codec (see `dualrate data codec`)")


def encode_shard(
    folder: Path, by: CodecFolder, device: str, mirrored: bool, batch_size: int, shard: packed.Shard
) -> None:
    """Write the moments of a shard's images. Raises as `moments_of`, and ValueError where the codec has changed."""
    codec = by.read(device)
    packed.write_encoded(
        folder, shard, lambda images: moments_of(codec, np.stack(images), device, mirrored), batch_size
    )
