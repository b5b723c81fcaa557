"""`encode`: images -> cached moments of their latents (latents.py), over processes, going on after a kill.

A shard is a range of the images in their order, whatever the number of processes; one that is there with its record is
never made again. Images go through the codec in batches within a shard, in float32.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dualrate.codecs.codec import Codec
from dualrate.codecs.config import CodecFolder
from dualrate.config.ranges import as_path
from dualrate.data import fashion_mnist
from dualrate.data.cache import OnBad
from dualrate.data.images import ImageSet, check_outside, load_images, to_float
from dualrate.data.latents import is_encoded
from dualrate.data.prepare import (
    check_folder,
    check_space,
    is_done,
    make_blocks,
    record_file,
    remove_leftovers,
)
from dualrate.data.shards import DATASET, ENCODED, FORMAT, SHARD_BYTES, block_sums, is_finished, labels_file
from dualrate.data.source import SPLITS, DataProgress, Split, resolved
from dualrate.system.device import whole_products
from dualrate.system.files import read_json, whole, write_whole
from dualrate.system.folders import Manifest
from dualrate.system.progress import run_lock
from dualrate.system.workers import Mapper, in_turn

ENCODING = "encoding"  # what progress is told
HIGHEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Pixels:
    """The images, as `load_images` takes them."""

    source: str
    size: int | None
    channels: Literal[1, 3] | None
    on_bad: OnBad
    label: str | None

    def load(self, split: Split, progress: DataProgress | None = None) -> ImageSet:
        return load_images(**asdict(self), split=split, progress=progress)


@dataclass(frozen=True)
class Block:
    """The work of one shard: images `first` to `last`, exclusive, of a split with that fingerprint."""

    file: str
    split: Split
    first: int
    last: int
    fingerprint: str

    @property
    def count(self) -> int:
        return self.last - self.first


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
    device: torch.device | str = "cpu",
    mapper: Mapper = in_turn,
    progress: DataProgress = lambda done, total, message: None,
) -> dict[str, Any]:
    """Both splits of a source (see `load_images`) as latents in `folder`, made if it is missing; or what is left to do.

    size, channels, on_bad, label: as in `load_images`
    mirrored: also the latents of mirrored images
    shard_bytes: of a file at most, but for an image at least
    device:   of the codec, in every process
    Returns what dataset.json holds. Raises ValueError for images or latents that cannot be used, for a folder that
    holds anything else or was encoded from other images, by another codec or in another way; OSError for what cannot be
    read or written.
    """
    folder = as_path(folder)
    if is_encoded(source):
        raise ValueError(f"{source} holds latents already: encode the images that they were made of")
    check_outside(folder, source)
    if shard_bytes < 1 or batch_size < 1:
        raise ValueError(f"shard_bytes {shard_bytes}, batch_size {batch_size}; expected at least 1 each")
    named = str(source) if source == fashion_mnist.NAME else str(resolved(source))  # read again, from wherever
    pixels = Pixels(named, size, channels, on_bad, label)
    images: dict[Split, ImageSet] = {split: pixels.load(split, progress) for split in SPLITS}
    if images["test"].shape != images["train"].shape:
        shapes = " and ".join(f"{images[split].shape} ({split})" for split in SPLITS)
        raise ValueError(f"images of one shape (C, H, W) are encoded, got {shapes}: give --size")
    made_by = codec.read(device)
    made_by.latent_shape(images["train"].shape)  # refuses what it cannot encode
    plan = {"format": FORMAT, **asdict(pixels), "mirrored": mirrored, "shard_bytes": shard_bytes}
    plan |= {"codec": codec.fingerprint, "content": [images[split].fingerprint for split in SPLITS]}
    check_folder(folder, plan, file=ENCODED, done="encoded")
    with run_lock(folder, "encoded"):
        if not is_finished(folder):
            remove_leftovers(folder)
            write_whole(folder / ENCODED, json.dumps(plan, indent=1))
            row = moments_of(made_by, images["train"].images[:1], device, mirrored)
            where = str(device) if mapper is in_turn else torch.device(device).type  # a worker has a GPU of its own
            job = partial(encode_shard, folder, pixels, codec, where, mirrored, batch_size)
            _encode(images, folder, job, row, shard_bytes, mapper, progress)
            _describe(images, folder, pixels, codec, row, shard_bytes)
    return read_json(folder / DATASET)


def moments_of(codec: Codec, images: np.ndarray, device: torch.device | str, mirrored: bool) -> Tensor:
    """(B, V, M, C, H, W) float16. images: (B, C, H, W) uint8. Raises ValueError for numbers that float16 has not."""
    x = to_float(torch.tensor(images).to(device))
    with whole_products():
        views = [codec.encode(view).stacked() for view in ((x, x.flip(-1)) if mirrored else (x,))]
    stacked = torch.stack(views, 1).cpu()
    if not (stacked.isfinite().all() and stacked.abs().max() <= HIGHEST):
        raise ValueError(
            "the codec gives latents that are not finite, or too large for float16: see `dualrate data codec`"
        )
    return stacked.half()


def encode_shard(
    folder: Path, pixels: Pixels, by: CodecFolder, device: str, mirrored: bool, batch_size: int, block: Block
) -> None:
    """Encode the images of one shard and write it, then its record.

    Raises what `moments_of` raises, and ValueError where the codec is not what it was.
    """
    codec, images = by.read(device), _loaded(pixels, block.split, block.fingerprint)
    digest = hashlib.sha256()
    with whole(folder / block.file) as aside, aside.open("wb") as file:
        for first in range(block.first, block.last, batch_size):
            batch = images.images[first : min(first + batch_size, block.last)]
            content = moments_of(codec, batch, device, mirrored).numpy().tobytes()
            digest.update(content)
            file.write(content)
    record = {"images": block.count, "sha256": digest.hexdigest(), "blocks": block_sums(folder / block.file)}
    write_whole(folder / record_file(block.file), json.dumps(record))


@lru_cache(maxsize=2)
def _loaded(pixels: Pixels, split: Split, fingerprint: str) -> ImageSet:
    """Once in a process."""
    return pixels.load(split)


def _blocks(images: dict[Split, ImageSet], row: Tensor, shard_bytes: int) -> list[Block]:
    size = max(1, shard_bytes // row.nbytes)
    return [
        Block(f"{split}-{i:05}.bin", split, first, min(first + size, len(images[split])), images[split].fingerprint)
        for split in SPLITS
        for i, first in enumerate(range(0, len(images[split]), size))
    ]


def _encode(
    images: dict[Split, ImageSet],
    folder: Path,
    job: partial[None],
    row: Tensor,
    shard_bytes: int,
    mapper: Mapper,
    progress: DataProgress,
) -> None:
    missing = [block for block in _blocks(images, row, shard_bytes) if not is_done(folder, block.file, row.nbytes)]
    check_space(folder, sum(block.count for block in missing) * row.nbytes)
    total, place = sum(map(len, images.values())), f"encoded in {folder}"
    make_blocks(job, missing, total, mapper, lambda done, of: progress(done, of, ENCODING), place)


def _describe(
    images: dict[Split, ImageSet], folder: Path, pixels: Pixels, by: CodecFolder, row: Tensor, shard_bytes: int
) -> None:
    """Write labels, dataset.json and the manifest."""
    splits, labelled = {}, []
    for split, one in images.items():
        files = [block.file for block in _blocks(images, row, shard_bytes) if block.split == split]
        if one.labels is not None:
            labelled.append(labels_file(split))
            with whole(folder / labelled[-1]) as aside, aside.open("wb") as file:
                np.save(file, one.labels, allow_pickle=False)
        splits[split] = {
            "name": one.name,
            "images": len(one),
            "labelled": one.labels is not None,
            "class_names": one.class_names,
            "fingerprint": one.fingerprint,
            "shards": [{"file": file, **read_json(folder / record_file(file))} for file in files],
        }
    held = {"shape": list(row.shape[2:]), "dtype": "float16", "each": row.shape[1]}
    codec = {"folder": by.folder, "fingerprint": by.fingerprint}
    made = {"format": FORMAT, "row": held, "codec": codec, "images": asdict(pixels), "splits": splits}
    write_whole(folder / DATASET, json.dumps(made, indent=1))
    Manifest.write(folder, [DATASET, *labelled])
